"""The figure of joules against the lengths of prompt and reply, with what a fit says of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.attribution import Attributed
from analysis.figures.axes import limits, log_axis
from analysis.figures.reduce import binned, thinned
from analysis.figures.style import BLUE, DASHES, MUTED, VERMILLION, Drawn, Sheet, in_house_style, key
from analysis.figures.words import count, labelled, plain, prefixed
from analysis.run import Run
from analysis.words import number
from loadgen.types import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.fit.model import Model

from analysis.figures.energy import LOG_FROM, successes

DOTS = 900


@in_house_style
def energy_by_length(
    run: Run, attributed: Attributed, model: Model | None = None, *, name: str = "energy-by-length"
) -> Drawn | None:
    """Joules of successful requests against their prompt and reply tokens: medians and quartiles of bins.

    ``model``: its line in each panel, the other length at its median, with the 95 % band of one more
    request. A panel for each length that varies; None when none does, or no request has
    tokens and a known energy.
    """
    rows = _lengths(run, attributed)
    panels = [
        (column, other, label)
        for column, other, label in (
            ("prompt_tokens", "output_tokens", "prompt tokens"),
            ("output_tokens", "prompt_tokens", "reply tokens"),
        )
        if len(rows) and rows[column].min() < rows[column].max()
    ]
    if not panels:
        return None
    joules = rows["total_j"].to_numpy(dtype=np.float64)
    scale, unit = prefixed(float(np.median(joules)), "J")
    fitted = model is not None and model.get("E_prefill") is not None and model.get("E_decode") is not None
    band = "Band: 95 % of single requests by the fit, the other length at its median. " if fitted else ""
    note = band + "Bars: quartiles of the requests of a bin, which are a spread and no interval."
    said = f"{labelled(attributed.label)}; {count(len(rows), 'successful requests')}"
    title = "Energy of a request by the lengths of its prompt and reply"
    sheet = Sheet(title, said, (2.8,) * len(panels), note=note)
    sentences = []
    for ax, (column, other, label) in zip(sheet.axes, panels, strict=True):
        x = rows[column].to_numpy(dtype=np.float64)
        y = joules * scale
        log_y = bool(y.min() > 0 and y.max() / y.min() > LOG_FROM)
        kept = thinned(len(x), DOTS)
        ax.plot(x[kept], y[kept], "o", markersize=2.6, markeredgewidth=0, color=MUTED, alpha=0.45)
        some = "request" if len(kept) == len(x) else f"request ({len(kept):,} of them)"
        quart = binned(x, y)
        bars = ax.errorbar(
            quart.x,
            quart.median,
            yerr=np.array([quart.median - quart.low, quart.high - quart.median]),
            fmt="s",
            color=BLUE,
            markersize=6,
            linewidth=2,
            capsize=3,
            label="median, quartiles",
            zorder=3,
        )
        handles = [key(MUTED, some, linestyle="", marker="o", markersize=4), bars]
        if fitted and model is not None:
            handles.append(_fit_line(ax, model, column, x, float(rows[other].median()), scale))
        ends = limits(x, log=bool(x.min() > 0 and x.max() / x.min() > LOG_FROM))
        if x.min() > 0 and x.max() / x.min() > LOG_FROM:
            log_axis(ax, "x", *ends)
        else:
            ax.set_xlim(*ends)
        if log_y:
            log_axis(ax, "y", *limits(y, log=True), 5)
        else:
            ax.set_ylim(0, float(y.max()) * 1.05 or 1.0)
        ax.set_xlabel(label)
        ax.set_ylabel(f"{unit} per request")
        sheet.keys = handles
        if len(quart.x):
            sentences.append(
                f"median {number(float(quart.median[0]))} {unit} around {quart.x[0]:,.0f} {label} and "
                f"{number(float(quart.median[-1]))} {unit} around {quart.x[-1]:,.0f}"
            )
    alt = f"Energy of {len(rows):,} requests ({attributed.label}) by length: {'; '.join(sentences)}."
    return sheet.finish(name, alt)


def _lengths(run: Run, attributed: Attributed) -> pd.DataFrame:
    tokens = run.requests.drop_duplicates("id").set_index("id")[["prompt_tokens", "output_tokens"]]
    return successes(attributed)[["total_j"]].join(tokens, how="inner").dropna()


def _fit_line(ax: Axes, model: Model, column: str, x: Floats, other: float, scale: float) -> Any:
    """The model's line over the range of ``x`` and its band; what stands for it in a legend."""
    at = np.unique(
        np.concatenate([np.linspace(x.min(), x.max(), 40), np.geomspace(max(x.min(), 1), x.max(), 20)])
    )
    lengths = [(v, other) if column == "prompt_tokens" else (other, v) for v in at.tolist()]
    costs = [model.request(prompt, reply) for prompt, reply in lengths]
    line = np.array([np.nan if cost.energy_j is None else cost.energy_j for cost in costs]) * scale
    half = np.array([_half(cost.prefill_j, cost.decode_j) for cost in costs]) * scale
    if np.isfinite(half).any():
        ax.fill_between(
            at, np.maximum(line - half, 0), line + half, color=VERMILLION, alpha=0.18, linewidth=0
        )
    ax.plot(at, line, color=VERMILLION, linestyle=DASHES[1], zorder=4)
    return key(VERMILLION, plain(f"fit, {model.load}"), linestyle=DASHES[1])


def _half(*predictions: Any) -> float:
    """Half the interval of a sum of two independent predictions; NaN when one has none."""
    halves = [
        np.nan if p is None or p.low is None or p.high is None else (p.high - p.low) / 2 for p in predictions
    ]
    return math.hypot(*halves)
