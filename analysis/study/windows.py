"""Windows of a run: the one a study is about, and the stages or slices it is shown by.

- ``whole``: from the first due time to the last end.
- ``steady``: where in-flight requests, power and latency have settled by a rule fixed before the run
  (`analysis.stats.stationarity`). It ends with the last arrival. "Not stationary" is an answer: then
  the study is of the whole run and says so.
- ``START:END``: seconds of run time.

A stage is one of the scenario's; slices begin with the first due time. What comes after the last
arrival is a row of its own, the drain: nothing arrives in it, so its joules per success
say nothing of a rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from analysis import stats
from analysis.energy.meter import Meter
from analysis.run import Run
from analysis.stats import Blocks, stationarity
from analysis.stats.stationarity import Window
from analysis.timeline import RESOLUTION_S
from loadgen.errors import ConfigError
from loadgen.types import Estimate, Floats

MOST_ROWS = 500
DRAIN = "drain"
RULE = "MSER-5 and no trend at 1 %, over in flight, power, latency"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The window of a study, run time. ``sentence`` says how it came about, ``asked`` what was asked for."""

    start_s: float
    end_s: float
    asked: str
    sentence: str

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the run with its name; ``rate_rps``: as the scenario wants it."""

    name: str
    start_s: float
    end_s: float
    rate_rps: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What happened in a span and what it cost.

    ``due``, ``sent``: requests that became so in it; ``succeeded``, ``failed``: that ended in it.
    ``energy_j``: of the boards; ``bound_j``: how far off by the readings at most, or None.
    ``per_success_j``: energy / succeeded. ``in_flight``: mean.
    """

    span: Span
    due: int
    sent: int
    succeeded: int
    failed: int
    in_flight: float
    energy_j: Estimate
    bound_j: float | None
    power_w: Estimate
    per_success_j: Estimate


def choose(run: Run, asked: str, steady: Window) -> Chosen | None:
    """The window asked for; None when nothing was done. Raises ConfigError for one that cannot be."""
    start_s, end_s = _parsed(asked)
    if run.end_s is None or run.end_s <= 0:
        return None
    if start_s is not None and end_s is not None:
        if not 0 <= start_s < end_s <= run.end_s * (1 + 1e-9):
            raise ConfigError(
                f"--window {asked}: expected START < END within the run, 0 to {run.end_s:.6g} s of run time"
            )
        return Chosen(start_s, min(end_s, run.end_s), asked, f"{start_s:.6g} to {end_s:.6g} s, as asked for")
    if asked == "steady":
        if steady.start_s is not None and steady.end_s is not None:
            text = f"steady from {steady.start_s:.4g} s to the last arrival at {steady.end_s:.4g} s"
            return Chosen(steady.start_s, steady.end_s, asked, f"{text} ({steady.rule})")
        text = f"no steady window, so the whole run: {steady.reason} ({steady.rule})"
        return Chosen(0.0, run.end_s, asked, text)
    return Chosen(0.0, run.end_s, asked, f"the whole run, 0 to {run.end_s:.4g} s")


def _parsed(asked: str) -> tuple[float | None, float | None]:
    if asked in ("whole", "steady"):
        return None, None
    try:
        start_s, end_s = (float(word) for word in asked.split(":"))
    except ValueError:
        start_s = end_s = math.nan
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise ConfigError(f"--window {asked}: expected whole, steady or START:END in seconds, such as 60:300")
    return start_s, end_s


def last_due_s(run: Run) -> float:
    """The last arrival; 0 when there was none."""
    due_s = run.arrivals_s
    return float(due_s.max()) if len(due_s) else 0.0


def steady_window(run: Run, meter: Meter) -> Window:
    """Where in-flight requests, power and latency have all settled, up to the last arrival."""
    ok = run.ok
    end_s, due_s = last_due_s(run), ok["due_s"].to_numpy(dtype=np.float64)
    if not len(ok):
        return Window(None, None, RULE, "no request succeeded")
    if not end_s > 0:
        return Window(None, None, RULE, "all requests were due at one instant")
    e2e_s = (ok["done_s"] - ok["sent_s"]).to_numpy(dtype=np.float64)
    blocks = _blocks(run, 0.0, end_s, meter)
    edges_s = blocks.edges_s
    sent_s, done_s = _spans(run)
    series = {"in flight": stationarity.in_flight(sent_s, done_s, edges_s)}
    if meter.reason is None:
        series["power"] = meter.joules(edges_s) / np.diff(edges_s)
    series["latency"] = stationarity.binned(due_s, e2e_s, edges_s)
    return stationarity.steady_window(edges_s, series)


def spans(run: Run, window: Chosen, slice_s: float | None) -> list[Span]:
    """Slices of ``slice_s``, or without it the scenario's stages; none when it has none.

    Raises ConfigError for slices that are no length or too many.
    """
    if slice_s is not None:
        return _slices(run, window, slice_s)
    load = (run.manifest.get("scenario") or {}).get("load") or {}
    stages = load.get("stages") if load.get("pattern") == "steps" else None
    return _stages(run, stages) if stages else []


def rows(run: Run, found: Sequence[Span], meter: Meter) -> list[Row]:
    """What each span held and cost."""
    if not found:
        return []
    held = _instants(run)
    edges_s = np.unique([t for span in found for t in (span.start_s, span.end_s)])
    busy_s = stationarity.in_flight(*_spans(run), edges_s) * np.diff(edges_s)
    return [
        _row(
            run,
            span,
            meter,
            held,
            float(busy_s[(edges_s[:-1] >= span.start_s) & (edges_s[1:] <= span.end_s)].sum()),
        )
        for span in found
    ]


@dataclass(frozen=True, slots=True)
class _Instants:
    """When requests fell due, were sent, succeeded and failed, sorted. ``latency_s``: the median, or none.

    ``asked_s``: when those that succeeded fell due.
    """

    due_s: Floats
    sent_s: Floats
    succeeded_s: Floats
    asked_s: Floats
    failed_s: Floats
    latency_s: Floats


def _instants(run: Run) -> _Instants:
    requests, ok = run.requests, (run.requests["status"] == "ok").to_numpy()
    due_s, sent_s, done_s = (
        requests[name].to_numpy(dtype=np.float64) for name in ("due_s", "sent_s", "done_s")
    )
    # What was never sent failed when it was due.
    failed_s = np.where(np.isnan(done_s), due_s, done_s)[~ok]
    e2e_s = (done_s - sent_s)[ok]
    e2e_s = e2e_s[~np.isnan(e2e_s)]
    return _Instants(
        np.sort(run.arrivals_s),
        np.sort(sent_s[~np.isnan(sent_s)]),
        np.sort(done_s[ok]),
        np.sort(due_s[ok]),
        np.sort(failed_s[~np.isnan(failed_s)]),
        np.median(e2e_s, keepdims=True) if len(e2e_s) else np.empty(0),
    )


def _row(run: Run, span: Span, meter: Meter, held: _Instants, busy_s: float) -> Row:
    start_s, end_s = span.start_s, span.end_s
    last = run.end_s is not None and end_s >= run.end_s
    until_s = end_s + RESOLUTION_S if last else math.nextafter(end_s, -math.inf)
    due_s, sent_s, succeeded_s, failed_s = (
        _between(t_s, start_s, until_s) for t_s in (held.due_s, held.sent_s, held.succeeded_s, held.failed_s)
    )
    n = len(succeeded_s)
    why = meter.why_not(start_s, end_s)
    if why is None:
        blocks = stats.choose_blocks(
            start_s, end_s, due_s, held.latency_s, run.period_s, update_s=meter.update_s or None
        )
        block_j, how = meter.joules(blocks.edges_s), meter.how
        # Of the whole run as the summary counts: by due time, with which a block's energy goes closer.
        counted_s = held.asked_s if last and start_s == 0.0 else succeeded_s
        done = blocks.counts(blocks.index(counted_s))
        total = stats.exact(float(block_j.sum()), "J", meter.count, f"{how}: energy of the window")
        what = f"{how}: energy / window"
        watts = stats.ratio(block_j, np.diff(blocks.edges_s), blocks, "W", blocks.count, what)
        what = f"{how}: energy of the window / requests that succeeded in it"
        per = stats.ratio(block_j, done, blocks, "J", n, what)
        if not n:
            per = stats.missing("J", "no request succeeded in it")
    else:
        total, watts, per = (stats.missing(unit, why) for unit in ("J", "W", "J"))
    return Row(
        span,
        due=len(due_s),
        sent=len(sent_s),
        succeeded=n,
        failed=len(failed_s),
        in_flight=busy_s / (end_s - start_s),
        energy_j=total,
        bound_j=meter.bound_j(start_s, end_s) if why is None else None,
        power_w=watts,
        per_success_j=per,
    )


def _between(sorted_s: Floats, start_s: float, until_s: float) -> Floats:
    """The instants in [start, until]."""
    return sorted_s[np.searchsorted(sorted_s, start_s) : np.searchsorted(sorted_s, until_s, side="right")]


def blocks_of(run: Run, window: Chosen, meter: Meter) -> Blocks:
    """The joint time blocks of a window (`analysis.stats.choose_blocks`)."""
    return _blocks(run, window.start_s, window.end_s, meter)


def _blocks(run: Run, start_s: float, end_s: float, meter: Meter) -> Blocks:
    held = _instants(run)
    due_s = _between(held.due_s, start_s, end_s)
    update_s = meter.update_s or None
    return stats.choose_blocks(start_s, end_s, due_s, held.latency_s, run.period_s, update_s=update_s)


def _spans(run: Run) -> tuple[Floats, Floats]:
    """When each request that was sent was sent and ended, (n,) each."""
    held = run.requests[["sent_s", "done_s"]].dropna().to_numpy(dtype=np.float64)
    return held[:, 0], held[:, 1]


def _slices(run: Run, window: Chosen, slice_s: float) -> list[Span]:
    if not (math.isfinite(slice_s) and slice_s > 0):
        raise ConfigError(f"--slice {slice_s:g}: expected a length in seconds above 0")
    # The last arrival is in a slice, not in the drain that begins with it.
    end_s = min(window.end_s, math.nextafter(last_due_s(run), math.inf))
    if end_s - window.start_s < RESOLUTION_S:
        end_s = window.end_s  # everything came at once, or before
    if (end_s - window.start_s) / slice_s > MOST_ROWS:
        count = math.ceil((end_s - window.start_s) / slice_s)
        raise ConfigError(
            f"--slice {slice_s:g}: {count} slices of {end_s - window.start_s:.4g} s, expected at most "
            f"{MOST_ROWS}: take {(end_s - window.start_s) / MOST_ROWS:.2g} s or longer"
        )
    edges_s = [window.start_s]
    while edges_s[-1] + slice_s < end_s * (1 - 1e-9):
        edges_s.append(window.start_s + slice_s * len(edges_s))
    if len(edges_s) > 1 and end_s - edges_s[-1] < slice_s / 2:
        edges_s.pop()  # a rest too short to say much goes to the slice before it
    edges_s += [end_s] if end_s > edges_s[-1] else []
    found = [Span(f"{a:.6g}-{b:.6g} s", a, b) for a, b in pairwise(edges_s)]
    if window.end_s > end_s:
        found.append(Span(DRAIN, end_s, window.end_s))
    return found


def _stages(run: Run, stages: Sequence[dict[str, float]]) -> list[Span]:
    """The scenario's stages from the first demand on; those of rate 0 before it are over by then."""
    planned = run.timetable
    first_s = planned.loc[planned["phase"] != "warmup", "demand_s"].min()
    at_s = 0.0 if np.isnan(first_s) else float(first_s)
    started, found = False, []
    for number, stage in enumerate(stages, 1):
        started = started or stage["rate_rps"] > 0
        if started:
            name = f"{number}: {stage['rate_rps']:g}/s"
            found.append(Span(name, at_s, at_s + stage["duration_s"], stage["rate_rps"]))
            at_s += stage["duration_s"]
    end_s = run.end_s or 0.0
    inside = [
        Span(s.name, max(s.start_s, 0.0), min(s.end_s, end_s), s.rate_rps) for s in found if s.start_s < end_s
    ]
    if inside and inside[-1].end_s < end_s:
        inside.append(Span(DRAIN, inside[-1].end_s, end_s))
    return inside
