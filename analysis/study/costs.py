"""Where the energy of a window went, and what one success cost, from an `Attributed`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis import stats
from analysis.attribution import CLOSED, PARTS, Attributed, AttributionError
from analysis.energy import Label
from analysis.run import Run
from analysis.stats import Blocks
from loadgen.types import Estimate, Floats

QUANTILES: Mapping[str, float] = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
ALIKE = frozenset({"mean", "marginal"})
"""Methods that give every success the same, so that there is no spread to speak of."""


@dataclass(frozen=True, slots=True)
class Spent:
    """The energy of a window in parts that add up to it: joules, and how many requests each is of.

    ``idle_j``, ``prefill_j``, ``decode_j``: of the successes, None by a method that knows no
    phases. ``unseen``: failed requests of which no token was seen, whose cost is in the others'.
    """

    method: str
    label: Label | None
    start_s: float
    end_s: float
    energy_j: float
    idle_j: float | None
    prefill_j: float | None
    decode_j: float | None
    succeeded_j: float
    failed_j: float
    warmup_j: float
    unattributed_j: float
    succeeded: int
    failed: int
    warmups: int
    unseen: int


def spent(attributed: Attributed) -> Spent:
    """The parts of an attribution's window. Raises AttributionError when they do not add up to it."""
    table = attributed.requests
    warmup = table.index.to_numpy() < 0
    ok = (table["status"] == "ok").to_numpy() & ~warmup
    total = table["total_j"].to_numpy(dtype=np.float64)
    groups = {"succeeded": ok, "failed": ~ok & ~warmup, "warmup": warmup}
    joules = {name: math.fsum(total[members]) for name, members in groups.items()}
    left_j = attributed.energy_j - attributed.unattributed_j - math.fsum(joules.values())
    if abs(left_j) > CLOSED * max(attributed.energy_j, 1e-9):
        raise AttributionError(f"attribution: {left_j:g} J of {attributed.energy_j:g} J are in no part")
    phases = [math.fsum(table[name].to_numpy(dtype=np.float64)[ok]) for name in PARTS]
    idle_j, prefill_j, decode_j = ((None,) * 3) if math.isnan(sum(phases)) else phases
    return Spent(
        attributed.method,
        attributed.label,
        attributed.start_s,
        attributed.end_s,
        attributed.energy_j,
        idle_j,
        prefill_j,
        decode_j,
        joules["succeeded"],
        joules["failed"],
        joules["warmup"],
        attributed.unattributed_j,
        int(groups["succeeded"].sum()),
        int(groups["failed"].sum()),
        int(groups["warmup"].sum()),
        attributed.unseen,
    )


def per_success(
    run: Run, whole: Attributed, start_s: float, end_s: float, blocks: Blocks
) -> dict[str, dict[str, Estimate]]:
    """Statistics over the successes due in [start, end] of what each cost, wherever in the run that fell.

    By ``total_j``, ``idle_j``, ``prefill_j``, ``decode_j``: ``mean``, ``p50``, ``p95``, ``p99``, ``max``,
    joules. ``whole``: the attribution of the whole run. A success that the readings know nothing
    of is in none.
    """
    ok = run.ok
    due_s = ok["due_s"].to_numpy(dtype=np.float64)
    inside = (due_s >= start_s) & (due_s <= end_s)
    table = whole.requests.reindex(ok["id"].to_numpy()[inside])
    due_s = due_s[inside]
    return {
        name: _statistics(table[name].to_numpy(dtype=np.float64), due_s, blocks, whole.method)
        for name in ("total_j", *PARTS)
    }


def _statistics(values: Floats, at_s: Floats, blocks: Blocks, method: str) -> dict[str, Estimate]:
    known = ~np.isnan(values)
    values, index = values[known], blocks.index(at_s[known])
    names = ("mean", *QUANTILES, "max")
    if not len(values):
        why = f"the method {method} knows no phases" if len(known) else "no request succeeded in the window"
        return {name: stats.missing("J", why) for name in names}
    if method in ALIKE:
        why = f"{method} gives every success the same"
        mean = stats.exact(float(values.mean()), "J", len(values), f"no interval: {why}")
        return {"mean": mean} | dict.fromkeys(names[1:], stats.missing("J", why, len(values)))
    found = {"mean": stats.mean(values, index, blocks, "J")}
    levels = list(QUANTILES.values())
    found.update(zip(QUANTILES, stats.quantiles(values, index, levels, blocks, "J"), strict=True))
    largest = stats.exact(
        float(values.max()), "J", len(values), "the largest seen: a sample has no interval for it"
    )
    return {
        name: replace(e, method=f"attributed ({method}): {e.method}")
        for name, e in (found | {"max": largest}).items()
    }
