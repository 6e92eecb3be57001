"""The rows of a sweep studied: cells over seeds, paired comparisons, the front.

A cell is what all points have in common that differ in their seed only. Points of one seed had the same
requests and the same gaps, so levels are compared seed by seed, and what seeds have in common cancels.

Three things may be off, and stand apart: chance (Student's interval over seeds), the power constants
(the envelope: 5-95 % of draws, the same draws at every point, so that a ratio has an envelope of its own),
and what the model leaves out, which neither tells. Everything is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis.stats import pairs
from analysis.sweeps.front import pareto_front
from loadgen.physics.uncertainty import range_of_draws
from loadgen.sweep.figures import FIGURES
from loadgen.types import Estimate, Floats

ENERGY = "energy_per_success_j"
SEED = "seed"
_OF_DRAWS = ("energy_low_j", "energy_high_j")

Levels = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """The points of equal levels but for the seed. ``envelope_j``: of the mean energy per success.

    ``refused``: why there are no figures, if so. ``seeds``: of the points, in the order of the values.
    """

    levels: Levels
    seeds: tuple[Any, ...]
    figures: Mapping[str, Estimate]
    envelope_j: tuple[float, float] | None
    refused: str | None
    values: Mapping[str, Mapping[Any, float]] = field(repr=False)
    draws_j: Mapping[Any, Floats] = field(repr=False)

    def value(self, name: str) -> float:
        """The mean of a figure; NaN where there is none."""
        held = self.figures.get(name)
        return float("nan") if held is None or held.value is None else held.value


@dataclass(frozen=True, slots=True)
class Against:
    """A level of the compared axis against the reference, at equal levels of the others."""

    metric: str
    axis: str
    levels: Levels
    level: Any
    reference: Any
    difference: Estimate
    ratio: Estimate
    p: float | None
    p_adjusted: float | None
    envelope: tuple[float, float] | None
    """5-95 % of draws of the power constants of the ratio, of energy per success only."""

    @property
    def told(self) -> bool:
        """Whether the difference is told from chance at 5 % after Holm's correction."""
        return self.p_adjusted is not None and self.p_adjusted <= pairs.ALPHA


@dataclass(frozen=True, slots=True)
class Front:
    """The cells that no other of equal ``within`` beats in both figures, in the order of x.

    Of those that serve at least the share ``served`` of their requests.
    """

    x: str
    y: str
    served: float
    within: Levels
    cells: tuple[Levels, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """A sweep's findings. ``axes``: without the seed; ``missing``: points that have no row."""

    name: str
    label: str
    axes: tuple[str, ...]
    points: int
    missing: int
    draws: int
    cells: tuple[Cell, ...]
    against: tuple[Against, ...]
    fronts: tuple[Front, ...]


def study(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any], wanted: Mapping[str, Any]) -> Study:
    """The findings of a sweep's rows; ``manifest``: its sweep.json; ``wanted``: the file's other sections."""
    axes = tuple(key for key in manifest["axes"] if key != SEED)
    cells = tuple(_cells(rows, axes))
    compare, pareto = wanted.get("compare"), wanted.get("pareto")
    how = "whole path over HTTP, virtual time" if manifest["http"] else "engine driven directly"
    return Study(
        str(manifest["name"]),
        f"simulated ({how})",
        axes,
        int(manifest["points"]),
        int(manifest["points"]) - len(rows),
        int(manifest["draws"]),
        cells,
        () if compare is None else tuple(_adjusted(list(_against(cells, compare)))),
        () if pareto is None else tuple(_fronts(cells, pareto)),
    )


def _cells(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Iterator[Cell]:
    together: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        together.setdefault(tuple(_key(row["axes"][axis]) for axis in axes), []).append(row)
    for members in together.values():
        values: dict[str, dict[Any, float]] = {}
        for row in members:
            for name, value in row["figures"].items():
                if value is not None:
                    values.setdefault(name, {})[row["axes"].get(SEED)] = float(value)
        draws_j = {
            row["axes"].get(SEED): np.asarray(row["draws_j"], dtype=np.float64)
            for row in members
            if row["draws_j"] is not None
        }
        figures = {
            name: pairs.mean_of_runs(list(held.values()), FIGURES[name].unit)
            for name, held in values.items()
            if name in FIGURES and name not in _OF_DRAWS
        }
        whole = len(draws_j) == len(members)
        yield Cell(
            {axis: members[0]["axes"][axis] for axis in axes},
            tuple(row["axes"].get(SEED) for row in members),
            figures,
            range_of_draws(np.mean(list(draws_j.values()), axis=0)) if draws_j and whole else None,
            next((row["refused"] for row in members if row["refused"] is not None), None),
            values,
            draws_j,
        )


def _key(label: Any) -> Any:
    """True is not 1 here, nor is False 0."""
    return (type(label).__name__, label)


def _against(cells: Sequence[Cell], compare: Mapping[str, Any]) -> Iterator[Against]:
    axis, reference = compare["axis"], compare["reference"]
    first = {_others(cell, axis): cell for cell in cells if _key(cell.levels.get(axis)) == _key(reference)}
    for metric in compare["metrics"]:
        for cell in cells:
            base = first.get(_others(cell, axis))
            if base is None or base is cell:
                continue
            seeds = [s for s in base.values.get(metric, {}) if s in cell.values.get(metric, {})]
            if not seeds:
                continue
            a, b = ([one.values[metric][seed] for seed in seeds] for one in (base, cell))
            found = pairs.over_runs(a, b, FIGURES[metric].unit, interleaved=True)
            yield Against(
                metric,
                axis,
                {key: level for key, level in cell.levels.items() if key != axis},
                cell.levels[axis],
                reference,
                found.difference,
                found.ratio,
                _p_of_one(found.ratio, len(seeds), found.p),
                None,
                _ratio_envelope(base, cell, seeds) if metric == ENERGY else None,
            )


def _p_of_one(ratio: Estimate, n: int, otherwise: float | None) -> float | None:
    """Two-sided p of a ratio of 1, on logarithms as its interval is; ``otherwise`` where there is none."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return otherwise
    logs = replace(
        ratio, value=math.log(ratio.value), low=math.log(ratio.low), high=math.log(ratio.high), unit="1"
    )
    return pairs.p_of(logs, 0.0, n - 1)


def _others(cell: Cell, axis: str) -> tuple[Any, ...]:
    return tuple(_key(level) for key, level in cell.levels.items() if key != axis)


def _ratio_envelope(base: Cell, cell: Cell, seeds: Sequence[Any]) -> tuple[float, float] | None:
    """Of the ratio of energies, each draw in both: geometric mean over seeds."""
    if not all(seed in base.draws_j and seed in cell.draws_j for seed in seeds):
        return None
    logs = [np.log(cell.draws_j[seed]) - np.log(base.draws_j[seed]) for seed in seeds]
    return range_of_draws(np.exp(np.mean(logs, axis=0)))


def _adjusted(found: Sequence[Against]) -> Iterator[Against]:
    """With Holm's rule over all of them."""
    tested = {str(k): one.p for k, one in enumerate(found) if one.p is not None}
    adjusted = pairs.holm(tested)
    for k, one in enumerate(found):
        yield replace(one, p_adjusted=adjusted.get(str(k)))


def _fronts(cells: Sequence[Cell], pareto: Mapping[str, Any]) -> Iterator[Front]:
    x, y, within = pareto["x"], pareto["y"], pareto["within"]
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        if cell.refused is None and cell.value("ok") >= pareto["served"] * cell.value("requests"):
            groups.setdefault(tuple(_key(cell.levels[axis]) for axis in within), []).append(cell)
    for members in groups.values():
        points = [(_low(cell, x), _low(cell, y)) for cell in members]
        places = pareto_front(points)
        held = {axis: members[0].levels[axis] for axis in within}
        yield Front(x, y, pareto["served"], held, tuple(members[k].levels for k in places))


def _low(cell: Cell, name: str) -> float:
    """A figure turned so that lower is better."""
    return -cell.value(name) if FIGURES[name].better == "high" else cell.value(name)
