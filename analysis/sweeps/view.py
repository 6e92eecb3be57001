"""A sweep's findings for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.console import bare_table, line
from analysis.plain import plain
from analysis.stats import LEVEL
from analysis.sweeps.study import ENERGY, Cell, Study, study
from analysis.words import interval, number, printable, quantity
from loadgen.errors import RunDirError
from loadgen.physics.uncertainty import FEWEST_FOR_QUANTILES
from loadgen.sweep.figures import FIGURES
from loadgen.terminal import print_json
from loadgen.types import Estimate

FINDINGS = "findings.json"
_SHOWN = (ENERGY, "ttft_p99_s", "e2e_p99_s")
_MOST_ROWS = 60
_WIDEST = 400
_ROUNDING = 1e-9
"""Percent; less is what floating point leaves of equal values."""


def report(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    manifest: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    as_json: bool,
    draw: Callable[[Study, Sequence[Mapping[str, Any]], Path], Sequence[str]],
) -> None:
    """Studies the rows, writes findings.json and the figures into ``path``, and prints them.

    ``draw(study, plots, path)`` writes the figures and returns notes. Raises RunDirError.
    """
    found = study(rows, manifest, wanted)
    notes = draw(found, wanted.get("figures") or (), path)
    told = as_object(found)
    try:
        (path / FINDINGS).write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as exc:
        raise RunDirError(f"cannot write {path / FINDINGS}: {exc.strerror or exc}") from exc
    if as_json:
        print_json({"directory": str(path), **told})
    else:
        render(found, Console())
        print(path)
    for note in notes:
        Console(stderr=True).print(f"note: {note}", highlight=False, soft_wrap=True)


def as_object(found: Study) -> dict[str, Any]:
    """The findings as one JSON-ready dict; an *estimate* has the fields of `loadgen.types.Estimate`.

    - ``name``, ``label``, ``axes`` (without the seed), ``points``, ``missing``, ``draws``
    - ``cells``: ``levels``, ``seeds``, ``refused``, ``envelope_j`` (null, or [low, high] of the energy per
      success over the draws), ``figures`` (estimates by name: means over seeds)
    - ``against``: ``metric``, ``axis``, ``levels`` (of the other axes), ``level``, ``reference``,
      ``difference`` and ``ratio`` (estimates), ``p`` (of a ratio of 1), ``p_adjusted`` (Holm), ``told``,
      ``envelope`` (of the ratio)
    - ``fronts``: ``x``, ``y``, ``served``, ``within`` (levels), ``cells`` (levels, in the order of x)
    """
    cells = [
        {
            "levels": cell.levels,
            "seeds": cell.seeds,
            "refused": cell.refused,
            "envelope_j": cell.envelope_j,
            "figures": cell.figures,
        }
        for cell in found.cells
    ]
    against = [{**plain(one), "told": one.told} for one in found.against]
    kept = {name: getattr(found, name) for name in ("name", "label", "axes", "points", "missing", "draws")}
    told: dict[str, Any] = plain({**kept, "cells": cells, "fronts": found.fronts})
    return {**told, "against": against}


def render(found: Study, console: Console) -> None:
    """Prints the findings."""
    console.print(Text(f"{printable(found.name)}: {found.points} points, {found.label}", style="bold"))
    if found.missing:
        console.print(Text(f"{found.missing} points have no row yet", style="yellow"))
    _cells(found, console)
    for metric in dict.fromkeys(one.metric for one in found.against):
        _ratios(found, metric, console)
    _fronts(found, console)


def _cells(found: Study, console: Console) -> None:
    extra = [one.metric for one in found.against] + [m for f in found.fronts for m in (f.x, f.y)]
    shown = [
        name
        for name in dict.fromkeys((*_SHOWN, *extra, "goodput_share"))
        if any(name in cell.figures for cell in found.cells)
    ]
    drawn = any(cell.envelope_j is not None for cell in found.cells)
    columns = ["served"]
    for name in shown:
        columns += [_short(name)] + ["±", "of draws"][: 1 + drawn] * (name == ENERGY)
    table = bare_table(*map(_brief, found.axes), *columns, left=len(found.axes))
    for cell in found.cells[:_MOST_ROWS]:
        levels = [_level(cell.levels[axis]) for axis in found.axes]
        if cell.refused is not None:
            table.add_row(*levels, Text("refused", style="yellow"))
            continue
        told = [_count(cell, "ok")]
        for name in shown:
            told.append(_value(cell, name))
            if name == ENERGY:
                told.append(_half(cell.figures.get(name)))
                told += ["-" if cell.envelope_j is None else _ends(cell.envelope_j, "J")] * drawn
        table.add_row(*levels, *told)
    console.print()
    _whole(table, console)
    if len(found.cells) > _MOST_ROWS:
        console.print(f"... and {len(found.cells) - _MOST_ROWS} more in {FINDINGS}", highlight=False)
    seeds = max((len(cell.seeds) for cell in found.cells), default=0)
    text = "one seed a row: no interval"
    if seeds > 1:
        text = f"means over {seeds} seeds, ± half of the {100 * LEVEL:.0f} % interval (Student's t)"
        if any(_half(cell.figures.get(ENERGY)) == "0 %" for cell in found.cells):
            text += "; 0 %: nothing in these points depends on the seed"
    if drawn:
        share = "5-95 %" if found.draws >= FEWEST_FOR_QUANTILES else "least to greatest"
        text += f"; of draws: {share} of {found.draws:,} draws of the power constants"
    of = {_count(cell, "requests") for cell in found.cells if cell.refused is None}
    counted = f"served of {of.pop()} requests a point; " if len(of) == 1 else ""
    console.print(Text(f"{counted}{text}; times in seconds"), highlight=False)
    for reason in dict.fromkeys(cell.refused for cell in found.cells if cell.refused is not None):
        line(console, "refused  ", reason, "yellow")


def _whole(table: Table, console: Console) -> None:
    """Prints a table with nothing cut off: on a narrow terminal its lines go on below."""
    needed = console.measure(table, options=console.options.update(max_width=_WIDEST)).maximum
    if needed > console.width:
        console = Console(width=needed, file=console.file, no_color=console.no_color)
    console.print(table, highlight=False)


def _brief(axis: str) -> str:
    return axis.rpartition(".")[2].replace("_", " ")


def _half(estimate: Estimate | None) -> str:
    """Half of an interval, in percent of the value."""
    if estimate is None or not estimate.value or estimate.low is None or estimate.high is None:
        return "-"
    half = 50 * (estimate.high - estimate.low) / estimate.value
    return f"{half if half > _ROUNDING else 0:.2g} %"


def _count(cell: Cell, name: str) -> str:
    """A mean of counts over seeds, whole where it is."""
    estimate = cell.figures.get(name)
    return "-" if estimate is None or estimate.value is None else f"{estimate.value:,.1f}".removesuffix(".0")


def _short(name: str) -> str:
    words = {ENERGY: "J / success", "mean_power_w": "W", "goodput_share": "goodput"}
    return words.get(name) or name.removesuffix("_s").replace("_", " ")


def _value(cell: Cell, name: str) -> str:
    estimate = cell.figures.get(name)
    return "-" if estimate is None or estimate.value is None else number(estimate.value)


def _ends(ends: tuple[float, float], unit: str, digits: int = 3) -> str:
    low, high = ends
    bounds = {"value": (low + high) / 2, "low": low, "high": high, "unit": unit}
    return interval(bounds, prefixed=False, digits=digits)


def _level(level: Any) -> str:
    return f"{level:.6g}" if isinstance(level, float) else printable(str(level))


def _ratios(found: Study, metric: str, console: Console) -> None:
    """A row for each combination of the other axes and each level."""
    those = [one for one in found.against if one.metric == metric]
    axis, others = those[0].axis, list(those[0].levels)
    drawn = any(one.envelope is not None for one in those)
    columns = ("ratio", "95 %", *(("of draws",) if drawn else ()))
    table = bare_table(*map(_brief, (*others, axis)), *columns, left=1 + len(others))
    places = list(dict.fromkeys(tuple(map(repr, one.levels.values())) for one in those))
    those.sort(key=lambda one: places.index(tuple(map(repr, one.levels.values()))))
    for one in those[:_MOST_ROWS]:
        told = [_level(level) for level in (*one.levels.values(), one.level)]
        digits = 4 if (one.ratio.value or 0.0) >= 0.9995 else 3  # three decimals on both sides of 1
        value = "-" if one.ratio.value is None else number(one.ratio.value, digits)
        between = interval(one.ratio, prefixed=False, digits=digits)
        told += [f"{value}{'*' if one.told else ' '}", between or "-"]
        told += ["-" if one.envelope is None else _ends(one.envelope, "1", digits)] * drawn
        table.add_row(*told)
    console.print()
    title = f"{FIGURES[metric].words}, ratio to {_brief(axis)} {_level(those[0].reference)}"
    console.print(Text(title, style="bold"), highlight=False)
    _whole(table, console)
    if len(those) > _MOST_ROWS:
        console.print(f"... and {len(those) - _MOST_ROWS} more in {FINDINGS}", highlight=False)
    console.print(Text("paired by seed; * told from 1 at 5 % (Holm, over all ratios)"), highlight=False)


def _fronts(found: Study, console: Console) -> None:
    if not found.fronts:
        return
    x, y = found.fronts[0].x, found.fronts[0].y
    console.print()
    title = f"Pareto front: {FIGURES[x].words}; {FIGURES[y].words}"
    console.print(Text(title, style="bold"), highlight=False)
    served = 100 * found.fronts[0].served
    console.print(Text(f"of the means, where at least {served:g} % were served"), highlight=False)
    by_levels = {tuple(map(str, cell.levels.values())): cell for cell in found.cells}
    for one in found.fronts:
        at = ", ".join(f"{key} {_level(level)}" for key, level in one.within.items())
        members = []
        for levels in one.cells:
            cell = by_levels[tuple(map(str, levels.values()))]
            named = " ".join(_level(level) for key, level in levels.items() if key not in one.within)
            ends = [_figure(cell, name) for name in (x, y)]
            members.append(f"{named or 'the one'} ({ends[0]}, {ends[1]})")
        line(console, f"{at}: " if at else "", "; ".join(members) or "none")


def _figure(cell: Cell, name: str) -> str:
    estimate, unit = cell.figures.get(name), FIGURES[name].unit
    return quantity(None if estimate is None else estimate.value, "" if unit == "1" else unit)
