"""The figures of a run for its page, and as files; a run that has nothing to draw has none.

matplotlib is imported by `analysis.figures`, when it draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis import energy
from analysis.energy import Part, PartEnergy
from analysis.figures import (
    energy_by_length,
    energy_histogram,
    forest,
    in_flight_timeline,
    latency_ecdf,
    lateness,
    phase_components,
    power_timeline,
    save,
    shaping_bars,
    svg,
)
from analysis.report.blocks import Picture
from loadgen.errors import RunDirError

if TYPE_CHECKING:
    from analysis.attribution import Attributed
    from analysis.compare.comparison import Comparison
    from analysis.figures import Drawn
    from analysis.study import Study

FORMATS = ("png", "pdf")
SLICES = 120
"""Windows of the timeline of phases."""


def drawn(study: Study, key: str) -> dict[str, list[Drawn]]:
    """Every figure by the section that it stands in. ``key``: before names, which are one each a page."""
    run, whole = study.run, study.whole
    made: dict[str, list[Drawn | None]] = {"parts": [], "energy": [], "load": [], "latency": []}
    if study.attributed is not None:
        made["energy"].append(energy_histogram(study.attributed, run, name=f"{key}-energy-histogram"))
    slices = None
    if run.end_s:
        window = study.window
        edges_s = [0.0, run.end_s] if window is None else [window.start_s, window.end_s]
        parts = energy.measure(run, np.array(edges_s))
        shares: dict[Part, Attributed] = {p: a for p, a in study.hosts.items() if not isinstance(a, str)}
        if study.attributed is not None:
            shares["gpu"] = study.attributed
        slices = _slices(study, parts) if whole else None
        made["parts"].append(phase_components(shares or None, parts, name=f"{key}-phase-components"))
    if study.attributed is not None:
        made["energy"].append(energy_by_length(run, study.attributed, name=f"{key}-energy-by-length"))
    steady = study.steady
    settled = (
        (steady.start_s, steady.end_s) if steady.start_s is not None and steady.end_s is not None else None
    )
    stages = [row.span for row in study.windows]
    made["load"] = [
        power_timeline(run, study.timeline, steady=settled, stages=stages, name=f"{key}-power-timeline"),
        in_flight_timeline(run, study.timeline, slices, name=f"{key}-in-flight"),
        lateness(run, name=f"{key}-lateness"),
    ]
    made["latency"] = [latency_ecdf(run, name=f"{key}-latency")]
    return {section: [one for one in found if one is not None] for section, found in made.items()}


def _slices(study: Study, parts: Mapping[Part, PartEnergy]) -> Sequence[Attributed] | None:
    """The run's energy by phase, window by window, as far as there are readings.

    No window is shorter than two values of the slowest board: within one, watts are not known.
    """
    if study.attribution is None or not study.run.end_s:
        return None
    first_s, last_s = study.attribution.span_s
    start_s, end_s = max(0.0, first_s), min(study.run.end_s, last_s)
    if not end_s > start_s:
        return None
    updates_s = [board.update_s or 0.0 for board in parts["gpu"].boards] if "gpu" in parts else []
    slowest_s = max([study.run.period_s or 0.0, *updates_s])
    fitting = SLICES if slowest_s <= 0 else max(1, int((end_s - start_s) / (2 * slowest_s)))
    return study.attribution.windows(np.linspace(start_s, end_s, min(SLICES, fitting) + 1))


def pictures(found: Mapping[str, Sequence[Drawn]]) -> dict[str, list[Picture]]:
    """The figures for a page."""
    return {section: [Picture(one.title, svg(one)) for one in figures] for section, figures in found.items()}


def save_all(found: Mapping[str, Sequence[Drawn]], folder: Path) -> list[Path]:
    """Each figure as PNG and PDF under ``folder``. Raises RunDirError when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            save(one, folder / f"{one.name}.{ending}")
            for figures in found.values()
            for one in figures
            for ending in FORMATS
        ]
    except OSError as exc:
        raise RunDirError(f"{folder}: figures cannot be written: {exc.strerror or exc}") from exc


def of_comparison(found: Comparison) -> dict[str, list[Drawn]]:
    """Bars of the energy of a request, and a forest of ratios of each side to the reference."""
    made = [shaping_bars(found, name="drawn-bars")]
    made += [forest(found, side=i, name=f"drawn-forest-{i}") for i in range(1, len(found.sides))]
    return {"comparison": [one for one in made if one is not None]}
