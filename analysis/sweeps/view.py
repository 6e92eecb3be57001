"""A sweep's findings for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from analysis.console import bare_table, line
from analysis.plain import plain
from analysis.stats import LEVEL
from analysis.sweeps.study import ENERGY, Against, Cell, Study, missing, study
from analysis.words import interval, number, printable, quantity
from loadgen.errors import RunDirError
from loadgen.sweep.figures import FIGURES
from loadgen.types import Estimate

FINDINGS = "findings.json"
_SHOWN = (ENERGY, "mean_power_w", "ttft_p99_s", "e2e_p99_s")
_MOST_ROWS = 60


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
        print(orjson.dumps({"directory": str(path), **told}, option=orjson.OPT_INDENT_2).decode())
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
    - ``against``: ``metric``, ``levels`` (of the other axes), ``level``, ``reference``, ``difference`` and
      ``ratio`` (estimates), ``p``, ``p_adjusted`` (Holm), ``told``, ``envelope`` (of the ratio)
    - ``fronts``: ``x``, ``y``, ``within`` (levels), ``cells`` (levels, in the order of x)
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
    table = bare_table(*found.axes, left=len(found.axes))
    table.add_column("served", justify="right")
    for name in shown:
        table.add_column(_short(name), justify="right")
        if name == ENERGY and drawn:
            table.add_column(f"5-95 % of {found.draws:,} draws", justify="right")
    for cell in found.cells[:_MOST_ROWS]:
        levels = [_level(cell.levels[axis]) for axis in found.axes]
        if cell.refused is not None:
            table.add_row(*levels, Text("refused", style="yellow"))
            continue
        told = [_value(cell, "ok")]
        for name in shown:
            told.append(_value(cell, name))
            if name == ENERGY and drawn:
                told.append("-" if cell.envelope_j is None else _ends(cell.envelope_j, "J"))
        table.add_row(*levels, *told)
    console.print()
    console.print(table, highlight=False)
    if len(found.cells) > _MOST_ROWS:
        console.print(f"... and {len(found.cells) - _MOST_ROWS} more in {FINDINGS}", highlight=False)
    seeds = max((len(cell.seeds) for cell in found.cells), default=0)
    if seeds > 1:
        text = f"means over {seeds} seeds, [{100 * LEVEL:.0f} % interval of Student's t]; times in seconds"
    else:
        text = "one seed a row: no interval"
    console.print(Text(text), highlight=False)
    for reason in dict.fromkeys(cell.refused for cell in found.cells if cell.refused is not None):
        line(console, "refused  ", reason, "yellow")


def _short(name: str) -> str:
    words = {ENERGY: "J / success", "mean_power_w": "W", "goodput_share": "goodput"}
    return words.get(name) or name.removesuffix("_s").replace("_", " ")


def _value(cell: Cell, name: str) -> str:
    estimate = cell.figures.get(name) or missing(name)
    if estimate.value is None:
        return "-"
    said = number(estimate.value)
    ends = interval(estimate, prefixed=False) if name == ENERGY else ""
    return f"{said} {ends}".rstrip()


def _ends(ends: tuple[float, float], unit: str) -> str:
    low, high = ends
    bounds = {"value": (low + high) / 2, "low": low, "high": high, "unit": unit}
    return interval(bounds, prefixed=False)


def _level(level: Any) -> str:
    return number(level, 4) if isinstance(level, float) else printable(str(level))


def _ratios(found: Study, metric: str, console: Console) -> None:
    """A matrix of ratios: a row for each combination of the other axes, a column a level."""
    those = [one for one in found.against if one.metric == metric]
    axes = list(those[0].levels)
    names = list(dict.fromkeys(str(one.level) for one in those))
    rows: dict[tuple[str, ...], dict[str, Against]] = {}
    for one in those:
        rows.setdefault(tuple(_level(level) for level in one.levels.values()), {})[str(one.level)] = one
    table = bare_table(*axes, left=len(axes))
    for name in names:
        table.add_column(printable(name), justify="right")
    for at, held in list(rows.items())[:_MOST_ROWS]:
        table.add_row(*at, *(_ratio(held.get(name)) for name in names))
    reference = printable(str(those[0].reference))
    console.print()
    console.print(Text(f"{FIGURES[metric].words}, ratio to {reference}", style="bold"), highlight=False)
    console.print(table, highlight=False)
    note = "[95 % over seeds, paired]; * told from 1 at 5 % (Holm, over all ratios)"
    if any(one.envelope is not None for one in those):
        note += "; (5-95 % of the draws)"
    console.print(Text(note), highlight=False, soft_wrap=True)


def _ratio(one: Against | None) -> str:
    if one is None or one.ratio.value is None:
        return "-"
    ends = interval(one.ratio, prefixed=False)
    draws = "" if one.envelope is None else " (" + _ends(one.envelope, "1")[1:-1] + ")"
    return f"{number(one.ratio.value)}{'*' if one.told else ''} {ends}{draws}".rstrip()


def _fronts(found: Study, console: Console) -> None:
    if not found.fronts:
        return
    x, y = found.fronts[0].x, found.fronts[0].y
    console.print()
    title = f"Pareto front of {FIGURES[x].words} and {FIGURES[y].words} (of the means)"
    console.print(Text(title, style="bold"), highlight=False)
    by_levels = {tuple(map(str, cell.levels.values())): cell for cell in found.cells}
    for one in found.fronts:
        at = ", ".join(f"{key} {_level(level)}" for key, level in one.within.items())
        members = []
        for levels in one.cells:
            cell = by_levels[tuple(map(str, levels.values()))]
            named = " ".join(_level(level) for key, level in levels.items() if key not in one.within)
            ends = [_figure(cell.figures.get(name) or missing(name)) for name in (x, y)]
            members.append(f"{named or 'the one'} ({ends[0]}, {ends[1]})")
        line(console, f"{at}: " if at else "", "; ".join(members) or "none")


def _figure(estimate: Estimate) -> str:
    return quantity(estimate.value, "" if estimate.unit == "1" else estimate.unit)
