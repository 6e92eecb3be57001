"""Measured videos beside what the text-to-video model predicts of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen.errors import ConfigError
from loadgen.physics.video import VideoTransformer, mean_percentage_error, video_cost
from loadgen.physics.video_sweeps import Setting, Sweep, find_sweeps
from loadgen.prompts.files import read_text
from loadgen.terminal import bare_table

_SETTING = Setting._fields
_MOST = 1e9


def compare(
    path: Path, model: VideoTransformer, steps: int | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Predictions beside the measured points of a CSV, and their mean percentage errors.

    ``settings`` as ``video_cost`` takes them by name; ``steps`` None takes the
    file's. Errors are of all points, and as the study's Table 3 of those that vary one
    dimension (``video_sweeps.find_sweeps``), None where nothing varies it. Raises
    ConfigError naming file, line and column of what cannot be used.
    """
    rows = _read(path, model, steps)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    cost = video_cost(model, *(columns[name] for name in _SETTING), **settings)
    points = [
        row | {"predicted_latency_s": float(s), "predicted_energy_wh": float(wh)}
        for row, s, wh in zip(rows, cost.latency_s, cost.energy_wh, strict=True)
    ]
    sweeps = find_sweeps([setting_of(row) for row in rows])
    return {
        "mpe_percent": _errors(points),
        "n": len(rows),
        "sweeps": {
            dimension: _sweep(dimension, sweep, points) if sweep.values > 1 else None
            for dimension, sweep in sweeps.items()
        },
        "points": points,
    }


def setting_of(point: Mapping[str, Any]) -> Setting:
    """The setting of a measured point."""
    return Setting(*(point[name] for name in _SETTING))


def _sweep(dimension: str, sweep: Sweep, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    own = [points[row] for row in sweep.rows]
    return {
        "held": sweep.example.held(dimension),
        "values": sweep.values,
        "n": len(own),
        "mpe_percent": _errors(own),
    }


def _errors(points: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean percentage errors over points; of energy None when one of them has none."""
    found: dict[str, float | None] = {}
    for key, name in (("latency", "latency_s"), ("energy", "energy_wh")):
        measured = [point[name] for point in points]
        predicted = [point[f"predicted_{name}"] for point in points]
        found[key] = None if None in measured else mean_percentage_error(measured, predicted)
    return found


def render(found: Mapping[str, Any], console: Console) -> None:
    """A row a setting: mean of its points, prediction, error; then mean percentage errors by sweep."""
    groups: dict[tuple[float, ...], list[dict[str, Any]]] = {}
    for point in found["points"]:
        groups.setdefault(tuple(point[name] for name in _SETTING), []).append(point)
    table = bare_table("size", "frames", "steps", "n", "seconds", "model", "", "Wh", "model", "")
    for (height, width, *rest), points in groups.items():
        cells = []
        for name in ("latency_s", "energy_wh"):
            values = [point[name] for point in points if point[name] is not None]
            guess = points[0][f"predicted_{name}"]
            if values:
                mean = sum(values) / len(values)
                cells += [f"{mean:,.4g}", f"{guess:,.4g}", f"{guess / mean - 1:+.1%}"]
            else:
                cells += ["-", f"{guess:,.4g}", "-"]
        table.add_row(f"{height:g}x{width:g}", *(f"{x:g}" for x in rest), str(len(points)), *cells)
    console.print(table)
    table = bare_table("mean percentage error", "latency", "energy", "values", "n")
    for dimension, sweep in found["sweeps"].items():
        if sweep is None:
            table.add_row(f"{dimension}: one value", "-", "-", "1", "-")
        else:
            held = ", ".join(f"{name} {value:g}" for name, value in sweep["held"].items())
            table.add_row(f"{dimension} ({held})", *_said(sweep), str(sweep["values"]), str(sweep["n"]))
    table.add_row("all points", *_said(found), str(len(groups)), str(found["n"]))
    console.print(table)


def _said(found: Mapping[str, Any]) -> tuple[str, str]:
    errors = found["mpe_percent"]
    energy = "not measured" if errors["energy"] is None else f"{errors['energy']:.1f} %"
    return f"{errors['latency']:.1f} %", energy


def _read(path: Path, model: VideoTransformer, steps: int | None) -> list[dict[str, Any]]:
    text, cut = read_text(path)
    if cut:
        raise ConfigError(f"{path.name}: cut off: its gzip stream has no end")
    reader = csv.DictReader(io.StringIO(text))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error as exc:
        raise ConfigError(f"{path.name}: cannot be read as CSV: {exc}") from exc
    needed = ["height", "width", "num_frames", "duration_generate", *(["steps"] if steps is None else [])]
    missing = [name for name in needed if name not in (reader.fieldnames or [])]
    if missing:
        raise ConfigError(f"{path.name}: expected the columns {', '.join(needed)}; no {', '.join(missing)}")
    tag = "14b" if model.id == "wan2.1-14b" else "1.3b"
    rows = []
    for line, row in lines:
        name = (row.get("model_name") or "").lower()
        if name and not ("wan2.1" in name and tag in name):
            continue
        at = f"{path.name}:{line}"
        energy_kwh = _number(row, "energy_generate_gpu", at) if row.get("energy_generate_gpu") else None
        rows.append(
            {
                "height": _number(row, "height", at),
                "width": _number(row, "width", at),
                "frames": _number(row, "num_frames", at),
                "steps": _number(row, "steps", at) if steps is None else float(steps),
                "latency_s": _number(row, "duration_generate", at),
                "energy_wh": None if energy_kwh is None else 1000 * energy_kwh,
            }
        )
    if not rows:
        raise ConfigError(f"{path.name}: no row of a {model.id} (model_name with WAN2.1 and {tag.upper()})")
    return rows


def _number(row: Mapping[str, str | None], column: str, at: str) -> float:
    try:
        value = float(row[column] or "")
    except ValueError:
        value = 0.0
    if not 0 < value <= _MOST:
        raise ConfigError(f"{at} {column}: expected a number > 0 and <= {_MOST:g}, got {row[column]!r}")
    return value
