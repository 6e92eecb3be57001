"""Least squares with intervals that trust neither equal spread nor independence.

Ordinary least squares, ``b = (X'X)^-1 X'y``, as the study's fits are; a ratio of sums is the same
with other instruments, ``b = (Z'X)^-1 Z'y`` with Z = 1. The intervals are those of the jackknife
over blocks of neighbours in time,

    V = (K - 1) / K sum_k (b_(k) - b)(b_(k) - b)',    b +- t(K - m) sqrt(diag V),

b_(k) without block k. With blocks of one it is HC3 (MacKinnon and White 1985, J. Econometrics
29; Long and Ervin 2000, Am. Stat. 54, who recommend it below 250 values): right where the spread grows
with the size, and where the form is only the best line through a law that is none. A block is
as long as the lag-one autocorrelation of the residuals (or the coefficients' influences) asks for.
``benchmarks/fit_recovery.py`` prints how often it, plain errors and HC3 hold known constants.

Columns that the data cannot tell apart: a term less than `TELLABLE` of whose length is left when
those kept before it are taken out is refused, as its value would be noise. Of those kept, the
condition number of the columns scaled to length 1 is given; from `CONDITION` on, the terms
with most of their variance in one weak direction are named (Belsley, Kuh and Welsch 1980,
Regression Diagnostics, ch. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.stats import LEVEL, autocorrelation, student
from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TELLABLE = 1e-3
CONDITION = 30.0
SHARED_VARIANCE = 0.5
"""Of a term's variance: so much of it in a weak direction ties the term to the others there."""
FEWEST = 20
"""Values that a fit needs."""
BLOCKS_AT_MOST, BLOCKS_AT_LEAST = 2000, 12
CORRELATION_TIMES = 5
"""Length of a block, in (1 + a) / (1 - a) of a first-order autoregression: 5 leave its spread 5 % low."""
MOST_FREEDOM = 200


@dataclass(frozen=True, slots=True)
class Solution:
    """Coefficients (m,) of the kept columns and what is known of them; 0 for those refused.

    ``half``: (m,) half-widths of the 95 % intervals, NaN where one block alone decides.
    ``covariance``: (m, m), 0 for what was refused. ``residual``: (n,), observed less predicted.
    ``tangled``: groups of columns that the data hardly tell apart. ``block``: values in a block
    of the jackknife; ``short``: whether longer ones were needed than n allows.
    """

    value: Floats
    half: Floats
    covariance: Matrix
    kept: tuple[bool, ...]
    r2: float | None
    spread: float
    condition: float
    tangled: tuple[tuple[int, ...], ...]
    residual: Floats
    block: int
    freedom: int
    short: bool


def solve(x: Matrix, y: Floats, order: Sequence[int], series: Ints, *, ratio: bool = False) -> Solution:
    """Fits y (n,) by the columns of x (n, m), in order of time within each series.

    ``order``: places of the columns, those to keep first. ``series``: (n,), the run of each value,
    sorted; blocks do not reach over runs. ``ratio``: a single column, by sums.
    Raises ValueError for fewer than `FEWEST` values.
    """
    n, m = x.shape
    if n < FEWEST:
        raise ValueError(f"{n} values")
    kept = tellable(x, order)
    places = np.flatnonzero(kept)
    scale = np.linalg.norm(x[:, places], axis=0)
    u = x[:, places] / scale
    z = np.ones_like(u) if ratio else u
    b = np.linalg.solve(z.T @ u, z.T @ y) if ratio else np.linalg.lstsq(u, y, rcond=None)[0]
    residual = y - u @ b
    block, short = _block_length(u, z, residual, series)
    deviation, count = _without_each(u, z, residual, _blocks(series, block))
    freedom = max(1, min(count - len(places), MOST_FREEDOM))
    inner = (count - 1) / count * deviation.T @ deviation
    value, half, covariance = np.zeros(m), np.zeros(m), np.zeros((m, m))
    value[places] = b / scale
    covariance[np.ix_(places, places)] = inner / np.outer(scale, scale)
    half[places] = student.two_sided(LEVEL, freedom) * np.sqrt(np.diag(inner)) / scale
    total = float(np.sum((y - y.mean()) ** 2))
    left = float(residual @ residual)
    return Solution(
        value,
        half,
        covariance,
        tuple(bool(k) for k in kept),
        1.0 - left / total if total > 0 else None,
        math.sqrt(left / max(n - len(places), 1)),
        float(np.linalg.cond(u)),
        tangled(u, places),
        residual,
        block,
        freedom,
        short,
    )


def tellable(x: Matrix, order: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which columns add a direction of their own to those before them in ``order``, (m,)."""
    kept = np.zeros(x.shape[1], dtype=bool)
    basis = np.empty((len(x), 0))
    for place in order:
        length = float(np.linalg.norm(x[:, place]))
        if not length > 0:
            continue
        rest = x[:, place] / length
        for _ in range(2):  # once more: rounding leaves a part of the first
            rest = rest - basis @ (basis.T @ rest)
        left = float(np.linalg.norm(rest))
        if left >= TELLABLE:
            kept[place] = True
            basis = np.column_stack([basis, rest / left])
    return kept


def tangled(u: Matrix, places: Ints) -> tuple[tuple[int, ...], ...]:
    """Groups of ``places`` whose columns (of length 1) share a weak direction."""
    _, size, direction = np.linalg.svd(u, full_matrices=False)
    part = (direction / size[:, None]) ** 2
    share = part / part.sum(axis=0)
    groups = []
    for row in np.flatnonzero(size[0] / size >= CONDITION):
        group = tuple(int(p) for p in places[share[row] >= SHARED_VARIANCE])
        if len(group) > 1:
            groups.append(group)
    return tuple(groups)


def _block_length(u: Matrix, z: Matrix, residual: Floats, series: Ints) -> tuple[int, bool]:
    """Neighbours that go together, and whether there were too few values for more."""
    n = len(residual)
    influence = (z * residual[:, None]) @ np.linalg.inv(z.T @ u).T
    # An influence is a residual times what varies at random: a drift shows in the residuals themselves. A
    # lag over the edge of a series is one of n; no matter.
    lag = max(autocorrelation.lag_one(column) for column in (residual, *influence.T))
    least = -(-n // BLOCKS_AT_MOST)
    if lag <= 2.0 / math.sqrt(n):
        return least, False
    wanted = math.ceil(CORRELATION_TIMES * (1.0 + lag) / max(1.0 - lag, 1e-9))
    most = max(n // max(BLOCKS_AT_LEAST, int(series[-1]) + 1), 1)
    return max(least, min(wanted, most)), wanted > most


def _blocks(series: Ints, length: int) -> Ints:
    """The block of each value, (n,), 0..K-1: so many neighbours of one series."""
    begins = np.flatnonzero(np.concatenate([[True], series[1:] != series[:-1]]))
    place = np.arange(len(series)) - np.repeat(begins, np.diff(np.append(begins, len(series))))
    inner = place // length
    change = np.concatenate([[False], (series[1:] != series[:-1]) | (inner[1:] != inner[:-1])])
    return np.cumsum(change)


def _without_each(u: Matrix, z: Matrix, residual: Floats, block: Ints) -> tuple[Matrix, int]:
    """How the coefficients move, (K, m), when each of K blocks is left out: NaN when that cannot be.

    From the blocks' moments, less those of the fit: ``b_(k) - b = -(G - G_k)^-1 Z_k' e_k``.
    """
    count, m = int(block[-1]) + 1, u.shape[1]
    gram, moment = np.empty((count, m, m)), np.empty((count, m))
    for i in range(m):
        moment[:, i] = np.bincount(block, z[:, i] * residual, minlength=count)
        for j in range(m):
            gram[:, i, j] = np.bincount(block, z[:, i] * u[:, j], minlength=count)
    rest = gram.sum(axis=0) - gram
    # Columns of length 1: what one block alone tells leaves nothing.
    alone = (
        np.linalg.svd(rest, compute_uv=False)[:, -1]
        < 1e-3 * np.linalg.svd(gram.sum(axis=0), compute_uv=False)[-1]
    )
    if np.any(alone):
        return np.full((count, m), np.nan), count
    return -np.linalg.solve(rest, moment[:, :, None])[:, :, 0], count
