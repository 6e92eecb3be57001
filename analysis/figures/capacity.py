"""The Pareto figure of a capacity answer: what a good request costs against what it burns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from analysis.capacity.answer import Answer
from analysis.capacity.plan import CapacityPlan
from analysis.figures.axes import limits, log_axis
from analysis.figures.style import BLUE, INK, MUTED, Drawn, Sheet, in_house_style, key
from analysis.figures.words import named
from analysis.stats import scaled
from analysis.sweeps.front import pareto_front
from analysis.words import number
from loadgen.types import Estimate

_HEIGHT_IN = 4.2
_WIDE = 1.6
Mask = npt.NDArray[np.bool_]
Point = tuple[str, Estimate, Estimate]


@in_house_style
def capacity_pareto(answer: Answer, plan: CapacityPlan, *, name: str = "capacity-pareto") -> Drawn | None:
    """A point a candidate, blue if no other is both cheaper and cleaner; bars are 95 % intervals.

    Money against CO2e where there are prices and a grid, against energy without a grid, boards against
    energy without prices. None when no candidate can serve the traffic.
    """
    points, x_label, y_label = _points(answer, plan)
    if not points:
        return None
    x = np.array([_value(p[1]) for p in points])
    y = np.array([_value(p[2]) for p in points])
    front = np.isin(np.arange(len(x)), pareto_front(list(zip(x.tolist(), y.tolist(), strict=True))))
    of = "good request"
    said = f"simulated; n = {points[0][2].n:,} requests a candidate for the energy; per 1,000 are {of}s"
    sheet = Sheet(f"{plan.model}: what serving costs and burns", said, (_HEIGHT_IN,), note=_note(plan))
    (ax,) = sheet.axes
    for k, (label, across, up) in enumerate(points):
        color = BLUE if front[k] else MUTED
        if across.low is not None and across.high is not None:
            ax.plot([across.low, across.high], [y[k], y[k]], color=INK, linewidth=1.2, marker="|")
        if up.low is not None and up.high is not None:
            ax.plot([x[k], x[k]], [up.low, up.high], color=INK, linewidth=1.2, marker="_")
        ax.plot(x[k], y[k], "o" if front[k] else "s", color=color, markersize=9)
        ax.annotate(label, (x[k], y[k]), xytext=(8, 8), textcoords="offset points", color=INK)
    order = np.flatnonzero(front)[np.argsort(x[front])]
    ax.plot(x[order], y[order], color=BLUE, linestyle="--", linewidth=1.2)
    low, high = limits(x, log=True, pad=0.12)
    log_axis(ax, "x", low, high * _WIDE, most=5)
    log_axis(ax, "y", *limits(y, log=True, pad=0.12), most=5)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    sheet.keys = [key(BLUE, "no other is better in both", marker="o", linestyle="")]
    if not front.all():
        sheet.keys.append(key(MUTED, "another is better in both", marker="s", linestyle=""))
    best = points[int(x.argmin())]
    alt = (
        f"{len(points)} candidates, {int(front.sum())} on the front; {best[0]} has the least {x_label}, "
        f"{number(_value(best[1]))}, at {number(_value(best[2]))} {y_label}."
    )
    return sheet.finish(name, alt)


def _points(answer: Answer, plan: CapacityPlan) -> tuple[list[Point], str, str]:
    fleets = [(a.name, a.fleet) for a in answer.ranked if a.fleet is not None]
    priced = [(label, f) for label, f in fleets if f.per_good_cost.value is not None]
    rows = priced or fleets
    across = f"{plan.currency} per 1,000 good requests" if priced else "boards in the fleet"
    up = "J per good request" if plan.place is None else "g CO2e per 1,000 good requests"
    points = []
    for label, f in rows:
        boards = Estimate(float(f.boards), "boards", None, None, 0.95, 1, "counted")
        money = _thousand(f.per_good_cost) if priced else boards
        burnt = f.per_good_j if plan.place is None else _thousand(f.per_good_co2e_g)
        points.append((named(label, 24), money, burnt))
    return points, across, up


def _thousand(estimate: Estimate) -> Estimate:
    return scaled(estimate, 1e3, f"{estimate.unit}/1k")


def _note(plan: CapacityPlan) -> str:
    pue = "no PUE" if plan.pue is None else f"PUE {plan.pue:g}"
    return f"Boards only, {pue}; embodied carbon is not in it. Log scales; bars: 95 % intervals."


def _value(estimate: Estimate) -> float:
    assert estimate.value is not None
    return estimate.value
