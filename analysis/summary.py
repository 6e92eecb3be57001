"""One run as one JSON-ready dict: what `loadgen summary --json` prints and `show` renders.

Keys (an *estimate* is an object with the fields of `loadgen.types.Estimate`; a
value that does not exist is null there, and ``method`` says why):

- ``run`` (path), ``name``, ``status``, ``clock``, ``server``, ``protocol``, ``closed_loop``
- ``valid``, ``reasons``, ``warnings``
- ``window_s``: length of the window, from the first measured due time to the last end
- ``blocks``: ``count``, ``length_s``, ``reason`` (null, or why there are no intervals)
- ``requests``: ``planned``, ``records``, ``missing``, one count per status,
  ``success_ratio`` (estimate), ``errors`` ({cause: count}, the commonest ten)
- ``rate``: ``offered_rps``, ``achieved_rps``, ``in_flight_mean`` (estimates)
- ``lateness_s``: ``p50``, ``p99``, ``max``, or null with ``lateness_reason``
- ``latency``: ``ttft_s``, ``ttft_from_due_s``, ``ttft_from_demand_s``, ``tpot_s``, ``itl_s``,
  ``e2e_s``, ``e2e_from_due_s``, ``e2e_from_demand_s``: each ``n`` and the estimates
  ``mean``, ``std``, ``p50``, ``p90``, ``p95``, ``p99``; ``tokens_per_chunk``
- ``tokens``: ``input``, ``output`` (totals), ``from`` ({who counted: replies}),
  ``output_tokens_per_s`` (estimate)
- ``goodput``: null, or ``slo``, ``ratio``, ``rps`` (estimates)
- ``energy``: ``label`` (measured, simulated, unavailable), ``reason``, ``window``
  ({start_s, end_s}), ``denominators``, and ``gpu``, ``cpu``, ``ram``: ``label``,
  ``methods``, ``domains``, ``reason``, and the estimates ``total_j``, ``mean_power_w``,
  ``idle_power_w`` (also ``idle_before_w``, ``idle_after_w``), ``static_j`` (idle power x
  window), ``active_j`` (total - static; both null of a constant estimate),
  ``energy_per_attempt``, ``energy_per_request``, ``energy_per_output_token`` (joules, and
  with ``_wh`` in watt hours), ``output_tokens_per_joule``; numbers that may be null:
  ``low_j`` and ``high_j``, between which the total lies for certain by these readings,
  ``bound_j``, how far off it can be at most, or ``bound_reason``; ``sensor_gain_error``,
  which is not in them: the largest relative error of a known board's sensor; ``coverage``,
  the share of the window near a reading; ``update_s``, the slowest series' time between new
  values.
  ``energy`` has also ``apart``: joules of series that are in no sum, by domain
- ``sidecars``: null, or of each ``name``, ``url``, ``interval_s``, ``clock_bound_s`` (how far off its
  clock can be at any instant of the run; null: not compared at both ends), ``drift_ppm``, the power
  samples ``expected``, ``received``, ``missing``, ``reconnects``, ``server_boards`` (those on which the
  server was seen; null: not known) and ``reason`` (why samples are missing or the end is not known)

`loadgen summary` adds ``uncertainty``: the run's uncertainty.json, or null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import energy, latency, lint, stats
from analysis.energy import Part, PartEnergy
from analysis.goodput import goodput
from analysis.lint import Verdict
from analysis.plain import plain
from analysis.run import Run
from analysis.served import gpu_of
from analysis.stats import Blocks
from analysis.words import WH_PER_J
from loadgen.physics.hardware import Gpu
from loadgen.types import STATUSES, Floats

TOP_CAUSES = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """A run looked at once: joint time blocks of its window, its energies over them, verdict, summary."""

    run: Run
    blocks: Blocks
    parts: Mapping[Part, PartEnergy]
    verdict: Verdict
    summary: Mapping[str, Any]


def summarize(run: Run) -> dict[str, Any]:
    """The run's figures and verdict; see the module for the keys. Never raises for missing data."""
    return dict(look(run).summary)


def look(run: Run) -> Facts:
    """What a run's summary says and stands on. Never raises for missing data."""
    blocks = energy.blocks_of(run)
    parts = energy.measure_window(run, blocks)
    verdict = lint.judge(run, parts)
    return Facts(run, blocks, parts, verdict, plain(_summary(run, blocks, parts, verdict)))


def _server(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The manifest's, with the clock in MHz and the cap in W that the simulated board was set to."""
    server: Mapping[str, Any] | None = manifest.get("server")
    hardware = ((manifest.get("scenario") or {}).get("server") or {}).get("hardware") or {}
    held = {key: hardware[key] for key in ("sm_clock_mhz", "power_cap_w") if hardware.get(key) is not None}
    return {**server, **held} if server and held else server


def _summary(run: Run, blocks: Blocks, parts: Mapping[Part, PartEnergy], verdict: Verdict) -> dict[str, Any]:
    manifest = run.manifest
    return {
        "run": str(run.path),
        "name": run.name,
        "status": manifest.get("status"),
        "valid": verdict.valid,
        "reasons": list(verdict.reasons),
        "warnings": list(verdict.warnings),
        "clock": manifest.get("clock"),
        "server": _server(manifest),
        "protocol": manifest.get("protocol"),
        "closed_loop": run.closed_loop,
        "window_s": run.end_s,
        "blocks": {"count": blocks.count, "length_s": blocks.length_s, "reason": blocks.reason},
        "requests": _requests(run, blocks),
        "rate": _rate(run, blocks),
        **_lateness(run),
        "latency": _latency(run, blocks),
        "tokens": _tokens(run, blocks),
        "goodput": goodput(run, blocks),
        "energy": _energy(run, parts, blocks),
        "sidecars": _sidecars(run),
    }


def _column(run: Run, name: str, *, ok: bool = False) -> Floats:
    values: Floats = run.requests[name].to_numpy(dtype=np.float64)
    return values[run.requests["status"] == "ok"] if ok else values


def _requests(run: Run, blocks: Blocks) -> dict[str, Any]:
    statuses = run.requests["status"].value_counts()
    n = len(run.requests)
    index = blocks.index(_column(run, "due_s"))
    succeeded = np.asarray(run.requests["status"] == "ok", dtype=np.float64)
    failures = run.requests.loc[run.requests["status"] != "ok", ["status", "error"]]
    causes = Counter(str(error or status) for status, error in failures.itertuples(index=False))
    what = "successful requests / records"
    ratio = stats.share(blocks.sums(succeeded, index), blocks.counts(index), blocks, what)
    return {
        "planned": run.planned,
        "records": n,
        "missing": run.missing,
        **{status: int(statuses.get(status, 0)) for status in STATUSES},
        "success_ratio": ratio,
        "errors": dict(causes.most_common(TOP_CAUSES)),
    }


def _rate(run: Run, blocks: Blocks) -> dict[str, Any]:
    due_s = run.arrivals_s
    n_ok = int(np.count_nonzero(run.requests["status"] == "ok"))
    if run.closed_loop:
        offered = stats.missing("1/s", "closed loop: nothing is offered at a rate of its own")
    elif len(due_s) < 2 or due_s.max() == due_s.min():
        offered = stats.missing("1/s", "all requests were due at one instant", len(due_s))
    else:
        value = (len(due_s) - 1) / float(due_s.max() - due_s.min())
        offered = stats.exact(value, "1/s", len(due_s), "(due requests - 1) / span of due times")
    if run.end_s:
        done_s = _column(run, "done_s", ok=True)
        achieved = stats.ratio(
            blocks.counts(blocks.index(done_s)),
            np.diff(blocks.edges_s),
            blocks,
            "1/s",
            n_ok,
            "successful requests / window",
        )
        held_s = _column(run, "done_s") - _column(run, "sent_s")
        in_flight = stats.exact(
            float(np.nansum(held_s)) / run.end_s,
            "requests",
            int(np.count_nonzero(~np.isnan(held_s))),
            "time in flight summed / window (Little's law)",
        )
    else:
        achieved = stats.missing("1/s", "no request ended")
        in_flight = stats.missing("requests", "no request ended")
    return {"offered_rps": offered, "achieved_rps": achieved, "in_flight_mean": in_flight}


def _lateness(run: Run) -> dict[str, Any]:
    why = lint.lateness_not_judged(run)
    late_s = latency.lateness_s(run)
    if why in ("virtual", "closed loop") or not len(late_s):
        return {"lateness_s": None, "lateness_reason": f"n/a ({why or 'nothing was sent'})"}
    p50, p99 = np.quantile(late_s, [0.5, 0.99])
    return {
        "lateness_s": {"p50": float(p50), "p99": float(p99), "max": float(late_s.max())},
        "lateness_reason": None if why is None else f"not judged ({why})",
    }


def _latency(run: Run, blocks: Blocks) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{metric}_s": {"n": len(sample.value_s), **latency.summarize_sample(sample, blocks)}
        for metric, sample in latency.samples(run).items()
    }
    found["tokens_per_chunk"] = latency.tokens_per_chunk(run)
    return found


def _output_per_block(run: Run, blocks: Blocks) -> tuple[Floats, int]:
    """Output tokens of successful requests per block (K,), and how many replies have a count."""
    tokens = _column(run, "output_tokens", ok=True)
    known = ~np.isnan(tokens)
    index = blocks.index(_column(run, "due_s", ok=True)[known])
    return blocks.sums(tokens[known], index), int(known.sum())


def _tokens(run: Run, blocks: Blocks) -> dict[str, Any]:
    per_block, known = _output_per_block(run, blocks)
    prompt = _column(run, "prompt_tokens", ok=True)
    if run.end_s and known:
        what = "output tokens of successful requests / window"
        rate = stats.ratio(per_block, np.diff(blocks.edges_s), blocks, "1/s", known, what)
    else:
        rate = stats.missing("1/s", "no successful request has a token count")
    return {
        "input": int(np.nansum(prompt)) if not np.isnan(prompt).all() else None,
        "output": int(per_block.sum()) if known else None,
        "from": dict(Counter(run.requests.loc[run.requests["status"] == "ok", "tokens_from"].dropna())),
        "output_tokens_per_s": rate,
    }


def _energy(run: Run, parts: Mapping[Part, PartEnergy], blocks: Blocks) -> dict[str, Any]:
    sent = run.requests["sent_s"].notna().to_numpy()
    due_s = _column(run, "due_s")
    attempts = blocks.counts(blocks.index(due_s[sent]))
    successes = blocks.counts(blocks.index(_column(run, "due_s", ok=True)))
    tokens, _ = _output_per_block(run, blocks)
    gpu = parts.get("gpu")
    label = gpu.label if gpu is not None and gpu.total_j is not None else None
    reason = None
    if label is None:
        declared = run.power.get("reason")
        reason = gpu.reason if gpu is not None else declared or "no request ended, so there is no window"
    found: dict[str, Any] = {
        "label": label or "unavailable",
        "reason": reason,
        "window": {"start_s": 0.0, "end_s": run.end_s},
        "denominators": {
            "attempt": int(attempts.sum()),
            "request": int(successes.sum()),
            "output_token": int(tokens.sum()),
        },
    }
    for part, measured in parts.items():
        found[part] = _part(measured, attempts, successes, tokens, blocks)
        found[part] |= _certainty(measured, gpu_of(run) if part == "gpu" else None)
    found["apart"] = energy.apart(run, 0.0, run.end_s) if run.end_s else {}
    return found


def _sidecars(run: Run) -> list[dict[str, Any]] | None:
    """What is known of each clock and how complete its samples are, from run.json."""
    rows = run.manifest.get("sidecars")
    return None if rows is None else [_sidecar(row) for row in rows]


def _sidecar(row: Mapping[str, Any]) -> dict[str, Any]:
    looks = [look["boards"] for look in (row["server"]["start"], row["server"]["end"]) if look is not None]
    known = [boards for boards in looks if boards is not None]
    return {
        **{key: row[key] for key in ("name", "url", "interval_s", "reconnects", "reason")},
        "clock_bound_s": row["clock"]["bound_s"],
        "drift_ppm": row["clock"]["drift_ppm"],
        **{key: row["samples"][key] for key in ("expected", "received", "missing")},
        "server_boards": sorted({board for boards in known for board in boards}) if known else None,
    }


def _certainty(part: PartEnergy, gpu: Gpu | None) -> dict[str, Any]:
    low_j, high_j = part.within_j or (None, None)
    updates_s = [b.update_s for b in part.boards if b.update_s is not None]
    return {
        "low_j": low_j,
        "high_j": high_j,
        "bound_j": part.bound_j,
        "bound_reason": None if part.bound_j is not None else part.bound_reason,
        "sensor_gain_error": None if gpu is None else gpu.sensor_gain_error,
        "coverage": part.coverage,
        "update_s": max(updates_s, default=None),
    }


def _part(
    part: PartEnergy, attempts: Floats, successes: Floats, tokens: Floats, blocks: Blocks
) -> dict[str, Any]:
    usable = part.total_j is not None
    rows: dict[str, Any] = {
        "label": part.label if usable else "unavailable",
        "methods": list(part.methods),
        "domains": [b.domain for b in part.boards],
        "reason": part.reason,
        "idle_before_w": part.idle_before_w,
        "idle_after_w": part.idle_after_w,
    }
    kinds: tuple[tuple[str, Floats, str], ...] = (
        ("energy_per_attempt", attempts, "attempted requests"),
        ("energy_per_request", successes, "successful requests"),
        ("energy_per_output_token", tokens, "output tokens of successful requests"),
    )
    if part.total_j is None:
        why = part.reason or "no readings"
        units = {"total_j": "J", "mean_power_w": "W", "idle_power_w": "W", "output_tokens_per_joule": "1/J"}
        units |= {"static_j": "J", "active_j": "J"}
        rows.update({name: stats.missing(unit, why) for name, unit in units.items()})
        for name, _, _ in kinds:
            rows[name], rows[f"{name}_wh"] = stats.missing("J", why), stats.missing("Wh", why)
        return rows
    durations = np.diff(blocks.edges_s)
    if part.block_j is not None:
        per_block_j = part.block_j
    else:  # the window as one block: values, but no intervals
        blocks = Blocks(blocks.edges_s[[0, -1]], None, blocks.level, part.block_reason)
        per_block_j, durations = np.array([part.total_j]), durations.sum(keepdims=True)
        kinds = tuple((name, count.sum(keepdims=True), what) for name, count, what in kinds)
        tokens = tokens.sum(keepdims=True)
    how = f"{rows['label']} ({', '.join(part.methods)})"
    n = len(part.boards)
    rows["total_j"] = stats.exact(part.total_j, "J", n, f"{how}: energy of the window, {n} series summed")
    rows["mean_power_w"] = stats.ratio(per_block_j, durations, blocks, "W", n, f"{how}: energy / window")
    read = sum(w is not None for w in (part.idle_before_w, part.idle_after_w))
    if part.idle_power_w is None:
        why = "no idle stretch was read before or after the load"
        rows["idle_power_w"] = stats.missing("W", why)
    else:
        why = "a constant estimate does not tell what the work added"
        lower = f"{how}: the lower of the idle stretches before and after"
        rows["idle_power_w"] = stats.exact(part.idle_power_w, "W", read, lower)
    if part.static_j is None or part.active_j is None:
        rows |= {name: stats.missing("J", why) for name in ("static_j", "active_j")}
    else:
        rows["static_j"] = stats.exact(part.static_j, "J", read, f"{how}: idle power x window")
        rows["active_j"] = stats.exact(part.active_j, "J", n, f"{how}: total - idle power x window")
    for name, denominator, of_what in kinds:
        what = f"{how}: energy of the window / {of_what}"
        per_unit = stats.ratio(per_block_j, denominator, blocks, "J", int(denominator.sum()), what)
        rows[name], rows[f"{name}_wh"] = per_unit, stats.scaled(per_unit, WH_PER_J, "Wh")
    what = f"{how}: output tokens of successful requests / energy of the window"
    rows["output_tokens_per_joule"] = (
        stats.ratio(tokens, per_block_j, blocks, "1/J", int(tokens.sum()), what)
        if tokens.sum()
        else stats.missing("1/J", "no successful request has a token count")
    )
    return rows
