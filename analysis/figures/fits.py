"""Figures of fits: what is left when the fitted form has been taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.axes import limits
from analysis.figures.reduce import binned, thinned
from analysis.figures.style import BLUE, INK, MUTED, VERMILLION, Drawn, Sheet, in_house_style, key
from analysis.figures.words import count, labelled, prefixed
from analysis.words import number

if TYPE_CHECKING:
    from analysis.fit.model import Fitted

DOTS = 1200
SPREADS = 3.0
"""Residual standard errors that the axis shows at least; what is beyond is said."""


@in_house_style
def residuals(fitted: Fitted, *, label: str | None = None, name: str | None = None) -> Drawn | None:
    """Observed less predicted against predicted: points, and quartiles in bins, around 0.

    Dashed: one residual standard error either way. ``label``: of what was fitted, as the model has it. A
    median off 0 is a form that does not fit there, spread that grows with the size is why the
    coefficients' intervals assume no equal spread. None without residuals.
    """
    predicted, observed = fitted.residuals.predicted, fitted.residuals.observed
    known = np.isfinite(predicted) & np.isfinite(observed)
    if not known.any():
        return None
    size = float(np.median(np.abs(observed[known])))
    scale, unit = prefixed(size, fitted.unit)
    x, y = predicted[known] * scale, (observed - predicted)[known] * scale
    kept = thinned(len(x), DOTS)
    r2 = "not known" if fitted.r2 is None else number(fitted.r2, 4)
    said = f"{labelled(label)}; {count(fitted.n, 'values')}; R² {r2}"
    shown = "" if len(kept) == fitted.n else f"{len(kept):,} of them drawn. "
    note = f"{shown}Squares: median and quartiles of a bin, a spread and no interval. {fitted.formula}"
    sheet = Sheet(f"Residuals of {fitted.name}", said, (3.2,), note=note)
    (ax,) = sheet.axes
    ax.plot(
        x[kept], y[kept], linestyle="", marker="o", markersize=2.6, markeredgewidth=0, color=MUTED, alpha=0.45
    )
    ax.axhline(0.0, color=INK, linewidth=1.2)
    for sign in (-1, 1):
        ax.axhline(sign * fitted.spread * scale, color=VERMILLION, linestyle=(0, (6, 2)), linewidth=1.4)
    quart = binned(x, y)
    ax.errorbar(
        quart.x,
        quart.median,
        yerr=np.array([quart.median - quart.low, quart.high - quart.median]),
        fmt="s",
        color=BLUE,
        markersize=6,
        linewidth=2,
        capsize=3,
        zorder=3,
    )
    ax.set_xlim(*limits(x, log=False))
    reach = max(SPREADS * fitted.spread * scale, float(np.quantile(np.abs(y), 0.98)))
    ax.set_ylim(-1.05 * reach, 1.05 * reach)
    beyond = int((np.abs(y) > 1.05 * reach).sum())
    if beyond:
        sheet.note = f"{beyond} beyond the axis, to {number(float(np.abs(y).max()))} {unit}. {sheet.note}"
    ax.set_xlabel(f"predicted, {unit}")
    ax.set_ylabel(f"observed \u2212 predicted, {unit}")
    sheet.keys = [
        key(MUTED, "value", linestyle="", marker="o", markersize=4),
        key(BLUE, "median, quartiles", linestyle="", marker="s", markersize=6),
        key(VERMILLION, "standard error", linestyle=(0, (6, 2)), linewidth=1.4),
    ]
    worst = float(np.abs(y).max())
    alt = (
        f"Residuals of {fitted.name} over {fitted.n:,} values: standard error "
        f"{number(fitted.spread * scale)} {unit}, greatest {number(worst)} {unit}, R² {r2}."
    )
    return sheet.finish(name or f"residuals-{fitted.name}", alt)
