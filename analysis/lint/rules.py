"""Is the run valid? Each rule gives reasons (the run is invalid) or warnings (read with care).

The rules are those of "a run says that it is invalid when" in `docs/method.md`.
Nothing is hidden: an invalid run is still summarised, its verdict beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from analysis import floor
from analysis.energy import COVERED_PERIODS, Part, PartEnergy, ran_backwards, spacing_s
from analysis.energy.idle import LEAST_BASELINE_S
from analysis.energy.integral import widest_gap_s
from analysis.latency import lateness_s
from analysis.lint import boards as lint_boards
from analysis.lint import power as lint_power
from analysis.run import Run
from analysis.server_metrics import disagreements
from loadgen.physics.hardware import Gpu

LATENESS_FLOOR_S = 5e-3
LATENESS_SHARE = 0.01
OVER_LIMIT = 1.05
UNDER_OWN_IDLE = 0.90
"""Sensor gain and counter quantisation over a 2 s baseline stay within a tenth."""
FAIR_SUCCESS = 0.95
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """``valid`` is the absence of ``reasons``; ``warnings`` do not invalidate."""

    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def valid(self) -> bool:
        return not self.reasons


def judge(run: Run, parts: Mapping[Part, PartEnergy]) -> Verdict:
    """Applies every rule. ``parts``: the window's energies, as `analysis.energy.parts` gives."""
    reasons = [*_completeness(run), *_lateness(run), *_readings(run), *lint_power.reasons(run)]
    warnings = [str(w) for w in run.manifest.get("warnings") or ()]
    warnings += lint_power.warnings(run)
    warnings += _success(run)
    warnings += _token_counts(run)
    warnings += disagreements(run)
    warnings += lint_boards.warnings(run, parts)
    gpu = parts.get("gpu")
    if gpu is not None and gpu.total_j is not None:
        reasons += _power_range(run, gpu)
        warnings += _idle_in_tail(run, gpu)
        below, soft = _floor(run, gpu)
        reasons += below
        warnings += soft
    return Verdict(tuple(reasons), tuple(dict.fromkeys(warnings)))


def lateness_limit_s(run: Run) -> float:
    """max(5 ms, 1 % of the median latency of successful requests)."""
    e2e_s = (run.ok["done_s"] - run.ok["sent_s"]).dropna()
    median_s = float(e2e_s.median()) if len(e2e_s) else 0.0
    return max(LATENESS_FLOOR_S, LATENESS_SHARE * median_s)


def lateness_not_judged(run: Run) -> str | None:
    """Why lateness says nothing about this run's client; None when it does."""
    if run.virtual:
        return "virtual"
    if run.closed_loop:
        return "closed loop"
    load = (run.manifest.get("scenario") or {}).get("load") or {}
    if load.get("max_in_flight") is not None and load.get("overflow", "queue") == "queue":
        return "held by max_in_flight"
    return None


def _completeness(run: Run) -> Iterator[str]:
    status = run.manifest.get("status")
    if status == "running":
        yield "incomplete: the run was killed or is still running"
    elif not run.complete:
        yield f"incomplete: the run's status is {status!r}"
    if run.missing:
        yield f"{len(run.requests)} records for {run.planned} planned requests: {run.missing} missing"
    elif len(run.requests) != run.planned:
        yield f"{len(run.requests)} records for {run.planned} planned requests"
    if len(run.requests) and not len(run.ok):
        yield "no request succeeded"


def _lateness(run: Run) -> Iterator[str]:
    late_s = lateness_s(run)
    if lateness_not_judged(run) is not None or not len(late_s):
        return
    p99_s, limit_s = float(np.quantile(late_s, 0.99)), lateness_limit_s(run)
    if p99_s > limit_s:
        yield (
            f"the client was late: lateness p99 {1e3 * p99_s:.3g} ms > {1e3 * limit_s:.3g} ms "
            "(the greater of 5 ms and 1 % of the median latency)"
        )


def _readings(run: Run) -> Iterator[str]:
    gaps_s: dict[float, dict[str, float]] = {}  # by the period that they were due at
    for name, series in run.series.items():
        if ran_backwards(series):
            yield f"power: the counter of {name} ran backwards (driver reset?)"
        if run.end_s is None or run.period_s is None:
            continue
        if not len(series.t_s):
            yield f"power: {name} was never read"
            continue
        gap_s, period_s = widest_gap_s(series.t_s, 0.0, run.end_s), spacing_s(series, run.period_s)
        if gap_s > COVERED_PERIODS * period_s * (1 + 1e-9):
            gaps_s.setdefault(period_s, {})[name] = gap_s
    for period_s, found in gaps_s.items():
        names = sorted(found, key=lambda name: -found[name])
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        yield (
            f"power: {found[names[0]]:.3g} s without a reading of {', '.join(names[:SHOWN_NAMES])}{more}, "
            f"more than {COVERED_PERIODS:g} periods of {period_s:g} s"
        )


def _least_shown(gpu: Gpu) -> float:
    """The share of what it draws that a board's sensor shows at least."""
    return 1.0 - gpu.sensor_gain_error


def _power_range(run: Run, gpu: PartEnergy) -> Iterator[str]:
    boards = len(gpu.boards)
    mean_w = gpu.mean_power_w
    assert mean_w is not None
    known = floor.gpu_of(run)
    own = [w for w in (gpu.idle_before_w, gpu.idle_after_w) if w is not None]
    # A baseline may fall into the tail after work, from which some boards decay in a quarter of a minute.
    decay = known.context_idle_w / known.tail_w if known is not None and known.tail_s > 0 else 1.0
    if own and mean_w < UNDER_OWN_IDLE * decay * min(own):
        yield (
            f"mean GPU power {mean_w:.4g} W is below this run's own idle, {min(own):.4g} W: "
            "wrong board or dead server"
        )
    if known is not None and not floor.drawn(run):
        idle_w = boards * floor.least_idle_w(known)
        if mean_w < _least_shown(known) * idle_w:
            yield (
                f"mean GPU power {mean_w:.4g} W is below idle: {boards} x {known.name} with a server's "
                f"context draws at least {idle_w:.4g} W (bare {boards * known.bare_idle_w:.4g} W), of which "
                f"sensors show at least {100 * _least_shown(known):.3g} %"
            )
    limits = [row.get("power_limit_w") for row in run.manifest.get("gpus") or ()]
    if limits and all(w is not None for w in limits) and len(limits) == boards:
        limit_w = float(sum(limits))
    elif known is not None:
        limit_w = boards * known.tdp_w
    else:
        return
    if mean_w > OVER_LIMIT * limit_w:
        yield f"mean GPU power {mean_w:.4g} W exceeds {OVER_LIMIT:g} x the power limit of {limit_w:.4g} W"


def _idle_in_tail(run: Run, gpu: PartEnergy) -> Iterator[str]:
    known, baseline_s = floor.gpu_of(run), run.power.get("baseline_s")
    read = gpu.idle_before_w is not None or gpu.idle_after_w is not None
    if not read or known is None or known.tail_s == 0 or baseline_s is None:
        return
    least_s = known.tail_s + LEAST_BASELINE_S
    if baseline_s < least_s:
        yield (
            f"power: the idle power is that of the {known.tail_s:.3g} s in which {known.name} decays after "
            f"work: power.baseline_s is {baseline_s:g}, expected >= {least_s:.3g} to see it idle"
        )


def _floor(run: Run, gpu: PartEnergy) -> tuple[list[str], list[str]]:
    bound = floor.physical_floor(run, gpu.window_s, len(gpu.boards))
    known = floor.gpu_of(run)
    if bound is None or known is None or gpu.total_j is None:
        return [], []
    n = max(1, len(run.ok))
    got_wh = gpu.total_j / n / 3600
    if gpu.total_j < _least_shown(known) * bound.hard_j:
        floor_wh = bound.hard_j / n / 3600
        return [
            f"GPU energy {1e3 * got_wh:.3g} mWh per success is below the physical floor of "
            f"{1e3 * floor_wh:.3g} mWh (idle {bound.idle_w:.3g} W per board, and the work at peak rate)"
        ], []
    if bound.soft_j is not None and gpu.total_j < bound.soft_j:
        soft_wh = bound.soft_j / n / 3600
        return [], [
            f"GPU energy {1e3 * got_wh:.3g} mWh per success is below {1e3 * soft_wh:.3g} mWh, the work's "
            "FLOP at peak rate and full power: possible only with lower clocks or a prefix cache"
        ]
    return [], []


def _success(run: Run) -> Iterator[str]:
    n = len(run.requests)
    if len(run.ok) and len(run.ok) < FAIR_SUCCESS * n:
        yield (
            f"only {100 * len(run.ok) / n:.3g} % of the requests succeeded: energy per request is no fair "
            f"headline below {100 * FAIR_SUCCESS:g} % (the failed ones' energy is in it)"
        )


def _token_counts(run: Run) -> Iterator[str]:
    ok = run.ok
    counted = int(ok["tokens_from"].isin(["chunks", "planned"]).sum())
    if counted:
        yield f"output tokens of {counted} of {len(ok)} replies are counted here, not reported by the server"
    unknown = int(ok["output_tokens"].isna().sum())
    if unknown:
        yield f"{unknown} of {len(ok)} replies have no token count; they are left out of figures per token"
    known = ok[ok["output_tokens"].notna()]
    # Replies whose text came in fewer events than the server counts tokens, end marker aside.
    held = [
        (int(tokens), events)
        for tokens, chunks in zip(known["output_tokens"], known["chunk_tokens"], strict=True)
        if chunks and tokens > (events := sum(chunks)) + 1
    ]
    if held:
        tokens, events = (sum(column) for column in zip(*held, strict=True))
        yield (
            f"{len(held)} of {len(ok)} replies brought {tokens:,} tokens in {events:,} events: "
            "itl is the gap between events; read tpot"
        )
