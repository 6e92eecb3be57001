"""The figures that verbs write beside what they print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.capacity.answer import Answer
from analysis.capacity.plan import CapacityPlan
from analysis.compare.comparison import Comparison
from analysis.figures.capacity import capacity_pareto
from analysis.figures.compare import forest
from analysis.figures.fits import residuals
from analysis.figures.style import Drawn
from analysis.figures.svg import save
from analysis.figures.sweeps import sweep_figure
from analysis.figures.video import scaling
from analysis.fit.model import Model
from analysis.sweeps.study import Study
from loadgen.errors import ConfigError
from loadgen.physics.video import VideoTransformer
from loadgen.physics.video_sweeps import Setting

_INSTALL = "pip install 'loadgen[report]'"


def write_forest(comparison: Comparison, metric: str, path: Path) -> None:
    """Writes the forest plot of a headline's ratios. Raises ConfigError when it cannot."""
    if comparison.headline(metric) is None:
        known = ", ".join(h.name for h in comparison.headlines)
        raise ConfigError(f"compare: --metric: expected one of {known}; got {metric}")
    _check_matplotlib("compare")
    _written(forest(comparison, metric), path, "compare", f"there is no ratio of {metric} to draw")


def write_residuals(model: Model, path: Path) -> list[Path]:
    """The residuals of every fit, a file each: ``F-t_prefill.svg`` of ``F.svg``.

    Raises ConfigError when there is nothing to draw or a file cannot be written.
    """
    _check_matplotlib("fit")
    drawn = [(found.name, residuals(found, label=model.label)) for found in model.fitted]
    written = [
        _written(figure, path.with_name(f"{path.stem}-{name}{path.suffix}"), "fit")
        for name, figure in drawn
        if figure is not None
    ]
    if not written:
        raise ConfigError("fit: --figure: nothing to draw: no fit was made")
    return written


def write_pareto(answer: Answer, plan: CapacityPlan, path: Path) -> None:
    """Writes the Pareto figure of a capacity answer. Raises ConfigError when it cannot."""
    _check_matplotlib("capacity")
    nothing = "no candidate can serve this, there is nothing to draw"
    _written(capacity_pareto(answer, plan), path, "capacity", nothing)


def write_scaling(
    model: VideoTransformer,
    rules: Mapping[str, Any],
    at: Setting,
    points: Sequence[Mapping[str, Any]],
    *,
    path: Path,
) -> Path:
    """Writes the figure of `video.scaling` by the name's ending. Raises ConfigError when it cannot."""
    _check_matplotlib("theory video")
    return _written(scaling(model, rules, at, points), path, "theory video")


def write_sweep_figures(study: Study, plots: Sequence[Mapping[str, Any]], directory: Path) -> list[str]:
    """Writes each figure of a sweep's file as SVG and PNG; notes on those that were not drawn.

    Raises ConfigError when a file cannot be written.
    """
    if not plots:
        return []
    if find_spec("matplotlib") is None:
        return [f"no figures: they need matplotlib ({_INSTALL})"]
    notes = []
    for plot in plots:
        drawn = sweep_figure(study, plot)
        if drawn is None:
            notes.append(f"no figure of {plot['y']} over {plot['x']}: no point has both")
            continue
        for ending in (".svg", ".png"):
            _written(drawn, directory / f"{drawn.name}{ending}", "sweep")
    return notes


def _check_matplotlib(verb: str) -> None:
    if find_spec("matplotlib") is None:
        raise ConfigError(f"{verb}: --figure needs matplotlib: {_INSTALL}")


def _written(drawn: Drawn | None, path: Path, verb: str, nothing: str = "nothing to draw") -> Path:
    """The file. ``nothing``: what to say where there is no figure."""
    if drawn is None:
        raise ConfigError(f"{verb}: --figure: {nothing}")
    try:
        return save(drawn, path)
    except OSError as exc:
        raise ConfigError(f"{verb}: --figure: cannot write {path}: {exc.strerror or exc}") from exc
