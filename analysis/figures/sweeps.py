"""Figures of sweeps: one figure over an axis, a line a level of another, with interval and envelope."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures.axes import limits, log_axis
from analysis.figures.style import DASHES, INK, SERIES, Drawn, Sheet, in_house_style, key
from analysis.figures.words import named, prefixed
from analysis.sweeps.study import ENERGY, Cell, Study
from analysis.words import number
from loadgen.sweep.figures import FIGURES
from loadgen.types import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vPX*hp"
MOST_SERIES = 10
MOST_SERVED = 0.99
"""Share of its requests that a point must serve for its mark to be filled."""
_HEIGHT_IN, _ROW_IN = 3.6, 0.46


@dataclass(frozen=True, slots=True)
class Spot:
    """One point of a line: where, how high, interval and envelope, where there are any; all served?"""

    x: Any
    y: float
    interval: tuple[float, float] | None
    envelope: tuple[float, float] | None
    whole: bool


Lines = Mapping[str, Sequence[Spot]]


@in_house_style
def sweep_figure(study: Study, plot: Mapping[str, Any]) -> Drawn | None:
    """One figure as the sweep's file names it (`loadgen.sweep.spec.Plot`); None without a point.

    Bars: 95 % intervals over seeds. Bands: 5-95 % of the draws of the power constants, of energy
    only. Other axes than ``x``, ``series`` and the seed make lines of their own.
    """
    lines = dict(_ratios(study, plot) if plot["relative"] else _values(study, plot))
    spots = [spot for line in lines.values() for spot in line]
    if not spots:
        return None
    drawn = dict(list(lines.items())[:MOST_SERIES])
    numeric = all(isinstance(s.x, int | float) and not isinstance(s.x, bool) for s in spots)
    return (_curves if numeric else _rows)(study, plot, drawn, len(lines))


def _values(study: Study, plot: Mapping[str, Any]) -> Iterator[tuple[str, list[Spot]]]:
    told = ((cell, cell.figures.get(plot["y"])) for cell in study.cells)
    draws = plot["y"] == ENERGY
    yield from _lines(((cell, y, cell.envelope_j if draws else None) for cell, y in told), plot)


def _ratios(study: Study, plot: Mapping[str, Any]) -> Iterator[tuple[str, list[Spot]]]:
    cells = {_levels(cell.levels): cell for cell in study.cells}
    told = (
        (cells[_levels({**one.levels, one.axis: one.level})], one.ratio, one.envelope)
        for one in study.against
        if one.metric == plot["y"]
    )
    yield from _lines(told, plot)


def _lines(
    told: Iterable[tuple[Cell, Estimate | None, tuple[float, float] | None]], plot: Mapping[str, Any]
) -> Iterator[tuple[str, list[Spot]]]:
    found: dict[str, list[Spot]] = {}
    for cell, y, envelope in told:
        x = _x(cell, plot)
        if y is None or y.value is None or x is None or not _wanted(cell.levels, plot):
            continue
        ends = None if y.low is None or y.high is None else (y.low, y.high)
        whole = cell.value("ok") >= MOST_SERVED * cell.value("requests")
        found.setdefault(_series(cell.levels, plot), []).append(Spot(x, y.value, ends, envelope, whole))
    yield from found.items()


def _levels(levels: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(level)) for key, level in levels.items()))


def _wanted(levels: Mapping[str, Any], plot: Mapping[str, Any]) -> bool:
    return all(levels[axis] == level for axis, level in plot["where"].items())


def _x(cell: Cell, plot: Mapping[str, Any]) -> Any:
    if plot["x"] in cell.levels:
        return cell.levels[plot["x"]]
    value = cell.value(plot["x"])
    return None if np.isnan(value) else value


def _series(levels: Mapping[str, Any], plot: Mapping[str, Any]) -> str:
    """The name of the line: the level of ``series``, and of every other axis but ``x``."""
    first = []
    if plot["series"]:
        level = levels[plot["series"]]
        first = [level if isinstance(level, str) else f"{_brief(plot['series'])} {_said(level)}"]
    known = {plot["x"], plot["series"], *plot["where"]}
    if plot["x"] not in levels and plot["series"] is not None:
        known |= set(levels)  # over a figure, the other axes run along the line
    others = [f"{_brief(key)} {_said(level)}" for key, level in levels.items() if key not in known]
    return ", ".join([*first, *others])


def _brief(axis: str) -> str:
    last = axis.rpartition(".")[2]
    for ending in ("_s", "_rps", "_mhz", "_w"):
        last = last.removesuffix(ending)
    return last.replace("_", " ")


def _said(level: Any) -> str:
    return f"{level:.6g}" if isinstance(level, float) else str(level)


def _sheet(study: Study, plot: Mapping[str, Any], lines: Lines, total: int, height_in: float) -> Sheet:
    figure = FIGURES[plot["y"]]
    seeds = {len(cell.seeds) for cell in study.cells if cell.refused is None}
    spots = [spot for line in lines.values() for spot in line]
    what = figure.words
    if plot["relative"]:
        what += f", ratio to {named(study.against[0].reference, 20)}"
    each = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{next(iter(seeds))}"
    served = [cell.figures["ok"].value or 0 for cell in study.cells if "ok" in cell.figures]
    said = f"{study.label}; {each} seeds a point, {min(served):,.0f} to {max(served):,.0f} served each"
    if served and min(served) == max(served):
        said = f"{study.label}; {each} seeds a point, {served[0]:,.0f} served each"
    held = "".join(f"; {_brief(axis)} {_said(level)}" for axis, level in plot["where"].items())
    if any(spot.interval for spot in spots):
        note = "Bars: 95 % intervals over seeds, where wider than the mark."
    else:
        note = "One seed: no interval."
    if any(spot.envelope for spot in spots):
        note += f" Bands: 5-95 % of {study.draws:,} draws of the power constants."
    if not all(spot.whole for spot in spots):
        note += f" Hollow: under {100 * MOST_SERVED:.0f} % of the requests were served."
    if total > len(lines):
        note += f" {total - len(lines)} more lines are not drawn."
    return Sheet(f"{named(study.name)}: {what}", said + held, (height_in,), note=note)


def _curves(study: Study, plot: Mapping[str, Any], lines: Lines, total: int) -> Drawn | None:
    sheet = _sheet(study, plot, lines, total, _HEIGHT_IN)
    (ax,) = sheet.axes
    spots = [spot for line in lines.values() for spot in line]
    scale, unit = _unit(plot, spots)
    known = list(dict(_values(study, plot)))
    for name, line in lines.items():
        k = known.index(name) % MOST_SERIES  # as in the figure that is not relative
        color, dash = SERIES[k % len(SERIES)], DASHES[(k + k // len(SERIES)) % len(DASHES)]
        _curve(ax, line, scale, color, dash, MARKERS[k])
        sheet.keys.append(key(color, named(name, 34), linestyle=dash, marker=MARKERS[k], markersize=6))
    if len(lines) == 1 and not next(iter(lines)):
        sheet.keys = []
    if plot["relative"]:
        ax.axhline(1.0, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    xs = np.array([float(spot.x) for spot in spots])
    reach = [x for s in spots for x in (s.y, *(s.interval or ()), *(s.envelope or ()))]
    ys = np.array([*reach, *([1 / scale] if plot["relative"] else ())]) * scale
    for which, values in (("x", xs), ("y", ys)):
        positive = values[values > 0]
        if which in plot["log"] and len(positive):
            log_axis(ax, which, *limits(positive, log=True))
        else:
            (ax.set_xlim if which == "x" else ax.set_ylim)(*limits(values, log=False))
    ax.set_xlabel(_titled(plot["x"]))
    ax.set_ylabel(unit)
    return sheet.finish(_name(plot), _alt(sheet, plot, lines, scale, unit))


def _curve(ax: Axes, line: Sequence[Spot], scale: float, color: str, dash: Any, marker: str) -> None:
    ordered = sorted(line, key=lambda spot: float(spot.x))
    x = np.array([float(spot.x) for spot in ordered])
    y = np.array([spot.y for spot in ordered]) * scale
    bands = [spot.envelope for spot in ordered]
    known = [band for band in bands if band is not None]
    if len(known) == len(bands) and len(bands) > 1:
        low, high = (np.array(ends) * scale for ends in zip(*known, strict=True))
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ends = np.array([spot.interval or (spot.y, spot.y) for spot in ordered]) * scale
    bars = np.abs(ends.T - y)
    ax.errorbar(x, y, yerr=bars, color=color, linestyle=dash, marker=marker, markersize=6, capsize=3)
    lost = [k for k, spot in enumerate(ordered) if not spot.whole]
    if lost:
        look: dict[str, Any] = {
            "marker": marker,
            "markersize": 7,
            "markeredgecolor": color,
            "markerfacecolor": "white",
        }
        ax.plot(x[lost], y[lost], linestyle="", zorder=4, **look)


def _rows(study: Study, plot: Mapping[str, Any], lines: Lines, total: int) -> Drawn | None:
    """Levels without an order: a row each, the value to the right."""
    names = list(dict.fromkeys(str(spot.x) for line in lines.values() for spot in line))
    height_in = 0.75 + _ROW_IN * len(names) * max(1.0, 0.5 * len(lines))
    sheet = _sheet(study, plot, lines, total, height_in)
    (ax,) = sheet.axes
    ax.grid(visible=False)
    ax.grid(axis="x")
    spots = [spot for line in lines.values() for spot in line]
    scale, unit = _unit(plot, spots)
    step = 0.7 / len(lines)
    for k, (name, line) in enumerate(lines.items()):
        color = SERIES[k % len(SERIES)]
        for spot in line:
            at = -names.index(str(spot.x)) + 0.35 - step * (k + 0.5)
            if spot.envelope is not None:
                ends = np.array(spot.envelope) * scale
                ax.plot(ends, [at, at], color=color, alpha=0.3, linewidth=7, solid_capstyle="butt")
            if spot.interval is not None:
                ax.plot(np.array(spot.interval) * scale, [at, at], color=color, linewidth=2, marker="|")
            look: dict[str, Any] = {"marker": MARKERS[k], "markersize": 7, "markeredgecolor": color}
            face = color if spot.whole else "white"
            ax.plot([spot.y * scale], [at], linestyle="", markerfacecolor=face, zorder=3, **look)
        sheet.keys.append(key(color, named(name, 34), linestyle="", marker=MARKERS[k], markersize=7))
    if len(lines) == 1 and not next(iter(lines)):
        sheet.keys = []
    ax.set_yticks([-k for k in range(len(names))], [named(name, 24) for name in names])
    ax.set_ylim(-len(names) + 0.5, 0.5)
    ax.tick_params(axis="y", length=0)
    reach = [x for s in spots for x in (s.y, *(s.interval or ()), *(s.envelope or ()))]
    values = np.array(reach) * scale
    if "y" in plot["log"] and values.min() > 0:
        log_axis(ax, "x", *limits(values, log=True), 5)
    else:
        ax.set_xlim(0, float(values.max()) * 1.05 or 1.0)
    ax.set_xlabel(unit)
    return sheet.finish(_name(plot), _alt(sheet, plot, lines, scale, unit))


def _unit(plot: Mapping[str, Any], spots: Sequence[Spot]) -> tuple[float, str]:
    """What to multiply by, and the axis' title."""
    unit = FIGURES[plot["y"]].unit
    if plot["relative"]:
        return 1.0, "ratio"
    if unit in ("1", "1/s"):
        return 1.0, FIGURES[plot["y"]].words
    scale, prefixed_unit = prefixed(float(np.median([abs(spot.y) for spot in spots])), unit)
    return scale, f"{prefixed_unit} per success" if plot["y"] == ENERGY else prefixed_unit


def _titled(x: str) -> str:
    if x in FIGURES:
        return f"{FIGURES[x].words}, {FIGURES[x].unit}"
    for ending, unit in (("_s", "s"), ("_rps", "1/s"), ("_mhz", "MHz"), ("_w", "W")):
        if x.endswith(ending):
            return f"{x.rpartition('.')[2].removesuffix(ending).replace('_', ' ')}, {unit}"
    return x.rpartition(".")[2].replace("_", " ")


def _name(plot: Mapping[str, Any]) -> str:
    where = "".join(f"-{level}" for level in plot["where"].values())
    return f"{plot['y']}-over-{_brief(plot['x'])}{'-ratio' if plot['relative'] else ''}{where}"


def _alt(sheet: Sheet, plot: Mapping[str, Any], lines: Lines, scale: float, unit: str) -> str:
    told = []
    for name, line in list(lines.items())[:5]:
        ends = (line[0], line[-1])
        said = " to ".join(f"{number(spot.y * scale)} at {_said(spot.x)}" for spot in ends)
        told.append(f"{name or plot['y']}: {said}")
    return f"{sheet.title} ({unit}): {'; '.join(told)}."
