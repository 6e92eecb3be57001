"""Many points to few, so that what is seen stays the same: at most 2,000 a series in a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadgen.types import Floats

MOST_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Binned:
    """``y`` by bins of ``x``: each bin's median of x, quartiles of y and number of values; (B,) each."""

    x: Floats
    low: Floats
    median: Floats
    high: Floats
    n: npt.NDArray[np.int64]


def extremes(t: Floats, y: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Least and greatest ``y`` in each of the bins between ``edges`` (K + 1,), (K,) each; NaN where none."""
    low, high = np.full(len(edges) - 1, np.inf), np.full(len(edges) - 1, -np.inf)
    index = np.searchsorted(edges, t, side="right") - 1
    inside = (index >= 0) & (index < len(low)) & np.isfinite(y)
    np.minimum.at(low, index[inside], y[inside])
    np.maximum.at(high, index[inside], y[inside])
    empty = ~np.isfinite(low)
    low[empty], high[empty] = np.nan, np.nan
    return low, high


def thinned(n: int, most: int) -> npt.NDArray[np.int64]:
    """Places of at most ``most`` of n values, evenly by order."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)) if n else np.empty(0, np.int64)


def ecdf(values: Floats, most: int = 500) -> tuple[Floats, Floats]:
    """Points (x, share of values at or below x) of the step function, at most about ``most``.

    Levels are even in the share, and denser in both tails, down to single values.
    """
    ordered = np.sort(values)
    n = len(ordered)
    tail = np.geomspace(1 / n, 0.5, max(most // 4, 2))
    levels = np.concatenate([np.linspace(1 / n, 1, max(most // 2, 2)), tail, 1 - tail, [1.0]])
    rank = np.unique(np.clip(np.ceil(levels * n - 1e-9), 1, n).astype(np.int64))
    x = ordered[rank - 1]
    last = np.append(x[1:] != x[:-1], True)
    # Of equal values the last rank counts, and all of them lie at or below it.
    x = x[last]
    return x, np.searchsorted(ordered, x, side="right") / n


def binned(x: Floats, y: Floats, bins: int = 12, least: int = 3) -> Binned:
    """Quartiles of ``y`` in bins of about equally many values of ``x``; equal x share one bin."""
    cuts = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)[1:-1]))
    index = np.searchsorted(cuts, x, side="left")
    rows = []
    for k in range(len(cuts) + 1):
        inside = index == k
        if inside.sum() >= least:
            rows.append((np.median(x[inside]), *np.quantile(y[inside], (0.25, 0.5, 0.75)), inside.sum()))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Binned(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4].astype(np.int64))
