"""Was the server in a steady state while it was loaded: warmed up, and not falling behind. All of it warns.

Both look at the time from the first request to the last sending: what drains afterwards
is no part of the load. A rule trips only where the figures move with it, since a long run
passes or fails a test of stationarity for differences too small to matter.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis import energy
from analysis.energy import PartEnergy
from analysis.energy.parts import update_of
from analysis.lint.client import load_of
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.stats.stationarity import in_flight, settled
from loadgen.types import Floats

MOVED = 0.05
"""How far the mean over the load may lie from that of its settled part."""
SERVED = 0.98
GROWN_REQUESTS = 10.0
_STRAIGHT = 0.8
_BINS = 100
_FEWEST_BINS = 50
_UPDATES_PER_BIN = 5
_FEWEST_SENT = 50
_QUEUE_BINS = 40
_LATENCIES = 10
"""A load shorter than so many of its first requests' latencies may still be filling the server."""

WARMED_UP = Check(
    "warm-up",
    "the load was steady, its warm-up left out or negligible",
    "1",
    "docs/lint.md, Is a run to be believed?",
)
KEEPS_UP = Check(
    "server-keeps-up", "the server served what was offered", "1", "docs/lint.md, Is a run to be believed?"
)
CHECKS = (WARMED_UP, KEEPS_UP)


def rules(run: Run, gpu: PartEnergy | None) -> Iterator[Rule]:
    """In the order of CHECKS."""
    if (why := _not_meant(run)) is not None:
        yield from (check.not_judged(why) for check in CHECKS)
        return
    sent_s, done_s = run.requests[["sent_s", "done_s"]].dropna().to_numpy(dtype=np.float64).T
    last_s = float(sent_s.max())
    yield _warm_up(run, gpu, sent_s, done_s, last_s)
    yield KEEPS_UP.not_judged("closed loop") if run.closed_loop else _keeps_up(run, sent_s, done_s, last_s)


def _not_meant(run: Run) -> str | None:
    """Why no steady state can be asked of a run."""
    pattern = load_of(run).get("pattern")
    if pattern in ("steps", "trace"):
        return f"the load of pattern {pattern} changes by design"
    spans = run.requests[["sent_s", "done_s"]].dropna()
    if len(spans) < _FEWEST_SENT:
        return f"{len(spans)} requests were sent and ended, {_FEWEST_SENT} needed"
    if pattern == "all_at_once" or not float(spans["sent_s"].max()) > 0:
        return "all requests were sent at one instant: a burst, not a steady load"
    return None


def _warm_up(run: Run, gpu: PartEnergy | None, sent_s: Floats, done_s: Floats, last_s: float) -> Rule:
    """By MSER-5 and no trend, over the requests in flight and, if it is known, the power."""
    slowest_s = 0.0 if gpu is None or gpu.total_j is None else _slowest_s(run, gpu)
    bins = int(last_s / (_UPDATES_PER_BIN * slowest_s)) if slowest_s else _BINS
    read = gpu is not None and gpu.total_j is not None and bins >= _FEWEST_BINS
    edges_s = np.linspace(0.0, last_s, min(bins, _BINS) + 1 if read else _BINS + 1)
    series = {"requests in flight": in_flight(sent_s, done_s, edges_s)}
    if gpu is not None and read:
        series["GPU power"] = _power_w(run, gpu, edges_s)
    shown, values = list(series.items())[-1]
    first, unsettled = 0, []
    for name, one in series.items():
        found = settled(one)
        if found.first is None:
            unsettled.append(f"{name}: {found.reason}")
        else:
            first = max(first, found.first)
    mean = float(values.mean())
    if not mean > 0:
        return WARMED_UP.not_judged(f"{shown} is 0")
    if unsettled:
        half = len(values) // 2
        moved = float(values[half:].mean() - values[:half].mean()) / mean
        if abs(moved) <= MOVED:
            return WARMED_UP.holds(
                f"{shown} differs by {100 * moved:+.2g} % between the halves of the load", moved, MOVED
            )
        return WARMED_UP.warns(
            f"no steady state ({'; '.join(unsettled)}); {shown} changes by {100 * moved:+.3g} % from the "
            "first half of the load to the second: figures over the window depend on how long it is",
            moved,
            MOVED,
        )
    warm_s, after = float(edges_s[first]), float(values[first:].mean())
    if not after > 0:
        return WARMED_UP.not_judged(f"{shown} is 0 after the first {warm_s:.3g} s of {last_s:.3g} s of load")
    moved = mean / after - 1
    if abs(moved) <= MOVED:
        return WARMED_UP.holds(
            f"{shown} over the load is {100 * moved:+.2g} % off that after the first {warm_s:.3g} s",
            moved,
            MOVED,
        )
    return WARMED_UP.warns(
        f"the window holds {warm_s:.3g} s of warm-up in {last_s:.3g} s of load (MSER-5): mean {shown} over "
        f"all is {100 * moved:+.3g} % off that of the settled part",
        moved,
        MOVED,
    )


def _slowest_s(run: Run, gpu: PartEnergy) -> float:
    """The time between new values of the slowest series that the GPU's energy is from."""
    used = [run.series[board.domain] for board in gpu.boards]
    return max(max(update_of(series, run.period_s) or 0.0, run.period_s or 0.0) for series in used)


def _power_w(run: Run, gpu: PartEnergy, edges_s: Floats) -> Floats:
    """Mean power of all boards in each bin, (K,)."""
    total_j = np.zeros(len(edges_s) - 1)
    for board in gpu.boards:
        total_j += np.diff(energy.curve(run.series[board.domain], edges_s).at(edges_s))
    power_w: Floats = total_j / np.diff(edges_s)
    return power_w


def _keeps_up(run: Run, sent_s: Floats, done_s: Floats, last_s: float) -> Rule:
    """What was refused, and a straight rise of what is in flight after the first quarter, was not served."""
    refused, n = int((run.requests["status"] == "rejected").sum()), len(run.requests)
    if 1 - refused / n < SERVED:
        return KEEPS_UP.warns(
            f"the server refused {refused} of {n} requests as overloaded: more was offered than it serves",
            1 - refused / n,
            SERVED,
        )
    edges_s = np.linspace(last_s / 4, last_s, _QUEUE_BINS + 1)
    flight = in_flight(sent_s, done_s, edges_s)
    middle_s = (edges_s[1:] + edges_s[:-1]) / 2
    slope, start = np.polyfit(middle_s, flight, 1)
    offered = len(sent_s) / last_s
    served = 1 - float(slope) / offered
    grown = float(slope) * 0.75 * last_s
    left = flight - (start + slope * middle_s)
    spread = float(np.sum((flight - flight.mean()) ** 2))
    straight = 1 - float(np.sum(left**2)) / spread if spread > 0 else 0.0
    if served < SERVED and grown > GROWN_REQUESTS and straight > _STRAIGHT:
        early_s = float(np.median((done_s - sent_s)[sent_s <= last_s / 4]))
        filling = ", or is still filling" if last_s < _LATENCIES * early_s else ""
        return KEEPS_UP.warns(
            f"the server falls behind{filling}: of {offered:.4g} requests/s, those in flight grew from "
            f"{flight[0]:.3g} to {flight[-1]:.3g} in {0.75 * last_s:.3g} s (the first took {early_s:.3g} s); "
            "latency grows with such a run's length",
            served,
            SERVED,
        )
    said = f"{flight[0]:.3g} in flight after a quarter of the load, {flight[-1]:.3g} at its end"
    if served < SERVED:  # a rise that is few requests, or no straight line, is a swing
        few = f"a rise of {grown:.3g} requests, {GROWN_REQUESTS:g} would tell"
        return KEEPS_UP.holds(f"{said}: {few if grown <= GROWN_REQUESTS else 'no steady rise'}")
    return KEEPS_UP.holds(said, served, SERVED)
