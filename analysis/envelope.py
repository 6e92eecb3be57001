"""The range of a run's figures over draws of the simulated hardware's uncertain constants.

A simulated joule follows from constants of which none is exact. Repeating the
run under n joint draws of them, the plan unchanged, gives n values of each
figure. They are exchangeable with the value under the true constants, as far as
the stated uncertainties are right, so that their order statistics hold it with a
known probability: [X_(1), X_(n)] with (n - 1) / (n + 1), and the quantiles
k / (n + 1) exactly (type 6 of Hyndman and Fan 1996, numpy's ``weibull``). From
n = 19, where both agree, the envelope is 5-95 %; below, the range of all draws.

It says nothing of what the model leaves out, and it is no sampling interval.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.text import Text

from analysis.console import bare_table
from analysis.run import load_run
from analysis.summary import summarize
from analysis.words import interval, quantity
from loadgen.errors import RunDirError
from loadgen.physics.uncertainty import FEWEST_FOR_QUANTILES, TAIL, range_of_draws

FILE = "uncertainty.json"
SCHEMA = 1
FEWEST_DRAWS = 2
_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the envelope: its name (as for --fail-if), label, unit and place in a summary."""

    name: str
    label: str
    unit: str
    place: tuple[str, ...]


FIGURES = (
    Figure("energy_per_request_j", "per success", "J", ("energy", "gpu", "energy_per_request")),
    Figure("energy_per_request_wh", "", "Wh", ("energy", "gpu", "energy_per_request_wh")),
    Figure(
        "energy_per_output_token_j", "per output token", "J", ("energy", "gpu", "energy_per_output_token")
    ),
    Figure("mean_power_w", "mean power", "W", ("energy", "gpu", "mean_power_w")),
    Figure("p50_ttft", "ttft p50", "s", ("latency", "ttft_s", "p50")),
    Figure("p99_ttft", "ttft p99", "s", ("latency", "ttft_s", "p99")),
    Figure("p50_tpot", "tpot p50", "s", ("latency", "tpot_s", "p50")),
    Figure("achieved_rps", "achieved rate", "1/s", ("rate", "achieved_rps")),
    Figure("success_ratio", "success ratio", "1", ("requests", "success_ratio")),
)


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What one run contributes: ``valid``, ``reasons``, ``values`` ({figure: value or null})."""
    return {
        "valid": summary["valid"],
        "reasons": list(summary["reasons"]),
        "values": {figure.name: _value(summary, figure.place) for figure in FIGURES},
    }


def figures_of(path: Path) -> dict[str, Any]:
    """The same of a run directory. Raises RunDirError as `analysis.run.load_run`."""
    return figures(summarize(load_run(path)))


def envelope(
    nominal: Mapping[str, Any], draws: Mapping[int, Mapping[str, Any]], planned: int, seed: int
) -> dict[str, Any]:
    """The envelope of ``planned`` draws, as uncertainty.json holds it (docs/format.md).

    ``nominal`` and ``draws`` (by number, those that finished) are what `figures`
    returns. A draw that is invalid counts with the values it has; how many there
    were, and why, is stated. Raises ValueError for fewer than 2 draws.
    """
    n = len(draws)
    if n < FEWEST_DRAWS:
        raise ValueError(f"envelope: expected at least {FEWEST_DRAWS} draws, got {n}")
    order = sorted(draws)
    invalid = [draws[k] for k in order if not draws[k]["valid"]]
    return {
        "schema": SCHEMA,
        "label": f"simulated, uncertainty of the model's constants, {n} draws",
        "seed": seed,
        "planned": planned,
        "draws": n,
        "kind": _kind(n),
        "covers": _covers(n),
        "invalid": len(invalid),
        "invalid_reasons": dict(Counter(reason for draw in invalid for reason in draw["reasons"])),
        "figures": {figure.name: _range(figure, nominal, [draws[k] for k in order]) for figure in FIGURES},
        "rows": [{"draw": k, "valid": draws[k]["valid"], **draws[k]["values"]} for k in order],
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Puts the envelope into a run directory. Raises RunDirError when it cannot."""
    draft = path / f"{FILE}.tmp"
    try:
        draft.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")
        os.replace(draft, path / FILE)
    except OSError as exc:
        raise RunDirError(f"cannot write {path / FILE}: {exc.strerror or exc}") from exc


def read(path: Path) -> dict[str, Any] | None:
    """The envelope of a run directory; None without one. Raises RunDirError for a damaged file."""
    file = path / FILE
    try:
        found = orjson.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as exc:
        raise RunDirError(f"{file}: cannot be read: {exc}") from exc
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        got = found.get("schema") if isinstance(found, dict) else type(found).__name__
        raise RunDirError(f"{file}: schema: expected {SCHEMA}, got {got!r}")
    return found


def render(found: Mapping[str, Any], console: Console) -> None:
    """Prints an envelope for people."""
    table = bare_table("uncertainty")
    table.add_column("nominal", justify="right")
    table.add_column(f"{found['kind']} of {found['draws']} draws")
    table.add_column("off nominal")
    for figure in FIGURES:
        row = found["figures"][figure.name]
        unit = {"1/s": "/s", "1": ""}.get(row["unit"], row["unit"])
        bounds = {"value": row["nominal"], "low": row["low"], "high": row["high"], "unit": row["unit"]}
        fewer = f" ({row['n']} draws)" if row["n"] < found["draws"] else ""
        table.add_row(figure.label, quantity(row["nominal"], unit), f"{interval(bounds)}{fewer}", _off(row))
    console.print()
    console.print(table, highlight=False)
    console.print(Text(found["label"], style="bold"), highlight=False)
    console.print(
        Text(
            f"{found['kind']} holds the value under the true constants in about {100 * found['covers']:.0f} "
            "of 100 cases, if the constants' stated uncertainties are right"
        ),
        highlight=False,
    )
    if found["draws"] < found["planned"]:
        _warn(console, f"interrupted: {found['draws']} of {found['planned']} draws")
    if found["invalid"]:
        _warn(console, f"{found['invalid']} of {found['draws']} draws are invalid (they count all the same):")
        reasons = list(found["invalid_reasons"].items())
        for reason, times in reasons[:_MOST_REASONS]:
            _warn(console, f"  - {times} x {reason}")
        if len(reasons) > _MOST_REASONS:
            _warn(console, f"  - and {len(reasons) - _MOST_REASONS} other reasons")


def _warn(console: Console, line: str) -> None:
    console.print(Text(line, style="yellow"), highlight=False)


def _value(summary: Mapping[str, Any], place: tuple[str, ...]) -> float | None:
    here: Any = summary
    for key in (*place, "value"):
        here = here.get(key) if isinstance(here, Mapping) else None
    return None if here is None else float(here)


def _range(figure: Figure, nominal: Mapping[str, Any], draws: list[Mapping[str, Any]]) -> dict[str, Any]:
    values = [v for draw in draws if (v := draw["values"][figure.name]) is not None]
    n = len(values)
    found: dict[str, Any] = {
        "unit": figure.unit,
        "nominal": nominal["values"][figure.name],
        "n": n,
    }
    if not n:
        return {**found, "low": None, "median": None, "high": None}
    low, high = range_of_draws(np.array(values))
    return {**found, "low": low, "median": float(np.median(values)), "high": high}


def _kind(n: int) -> str:
    return "5-95 %" if n >= FEWEST_FOR_QUANTILES else "min-max"


def _covers(n: int) -> float:
    """The probability that an (n + 1)-th value lies in the envelope of n."""
    return 1 - 2 * TAIL if n >= FEWEST_FOR_QUANTILES else (n - 1) / (n + 1)


def _off(row: Mapping[str, Any]) -> str:
    """How far the ends lie from the nominal value, in percent of it."""
    nominal, low, high = row["nominal"], row["low"], row["high"]
    if not nominal or low is None or high is None:
        return ""
    return f"{100 * (low / nominal - 1):+.1f} % .. {100 * (high / nominal - 1):+.1f} %"
