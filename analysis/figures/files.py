"""The figures that verbs write beside what they print."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from analysis.compare.comparison import Comparison
from analysis.compare.sides import CompareError
from analysis.figures.compare import forest
from analysis.figures.fits import residuals
from analysis.figures.svg import save
from analysis.fit.model import FitError, Model

_NEEDS = "--figure needs matplotlib: pip install 'loadgen[report]'"


def write_forest(comparison: Comparison, metric: str, path: Path) -> None:
    """Writes the forest plot of a headline's ratios. Raises CompareError when there is nothing to draw."""
    if comparison.headline(metric) is None:
        known = ", ".join(h.name for h in comparison.headlines)
        raise CompareError(f"compare: --metric: expected one of {known}; got {metric}")
    if find_spec("matplotlib") is None:
        raise CompareError(f"compare: {_NEEDS}")
    drawn = forest(comparison, metric)
    if drawn is None:
        raise CompareError(f"compare: --figure: there is no ratio of {metric} to draw")
    try:
        save(drawn, path)
    except OSError as exc:
        raise CompareError(f"compare: --figure: cannot write {path}: {exc.strerror or exc}") from exc


def write_residuals(model: Model, path: Path) -> list[Path]:
    """The residuals of every fit, a file each: ``F-t_prefill.svg`` of ``F.svg``.

    Raises FitError when there is nothing to draw or a file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise FitError(f"fit: {_NEEDS}")
    written = []
    for found in model.fitted:
        drawn = residuals(found, label=model.label)
        if drawn is None:
            continue
        file = path.with_name(f"{path.stem}-{found.name}{path.suffix}")
        try:
            written.append(save(drawn, file))
        except OSError as exc:
            raise FitError(f"{file}: cannot be written: {exc.strerror}") from exc
    if not written:
        raise FitError(f"{path}: nothing to draw: no fit was made")
    return written
