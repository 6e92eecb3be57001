"""Constants of a law by robust least squares: which the data tell, how far off they may be.

Gauss-Newton on ``y = f(x) + noise`` with Huber's weights, in units of the constants themselves.
What the data do not tell is kept where the table has it: a constant whose column of the Jacobian
adds less than `analysis.fit.estimate.TELLABLE` of its length to the others, then, one by one, the
one whose own 95 % interval is most wider than the table's. The others are fitted beside what is
kept, as what they are together is told all the same.

The covariance trusts neither independence nor the law: a sandwich over blocks of time plus one over
kinds of observation (cells of batch size, prompt length, context), as a law that is wrong for a kind is
wrong for all of it (Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29, who subtract what both
share; it is left in here). Added is what the constants kept from the table may be off by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.fit.estimate import Matrix, tangled, tellable
from analysis.stats import LEVEL, student
from loadgen.types import Floats

Ints = npt.NDArray[np.int64]
Law = Callable[[Floats], tuple[Floats, Matrix]]
"""Constants (m,) to what they predict, (n,), and its derivatives, (n, m)."""

RESOLUTION = 1e-3
"""No half-width is less, relative: what rounds stamps and counters alike in every step, no residual shows."""
_HUBER = 2.0
_ROUNDS, _HALVINGS = 40, 8
_CONVERGED, _GAINED = 1e-9, 1e-6
"""A round that moves no constant by more of its table's value, or gains no more, is the last."""
_LEAST_SPREAD = 1e-7
"""Of the residuals, relative: what stamps and sums are rounded by."""
_TWO_SIDED_95 = 1.959964
_MOST_FREEDOM = 200
_UNSEEN = "nothing in the runs needs it"
_SINGULAR = 1e12
_SMALLEST = 1e-9
"""Of its value in the table: where a constant that would be negative is held."""
_FREE = 5.0
"""A constant this uncertain is no scale, and may be negative."""


@dataclass(frozen=True, slots=True)
class Question:
    """A constant that is asked for: its value in the table and that one's relative uncertainty."""

    name: str
    base: float
    relative_uncertainty: float

    @property
    def sd(self) -> float:
        """Of the table's value, in its own unit."""
        wide = self.relative_uncertainty if self.relative_uncertainty > 0 else 1.0
        return self.base * math.log1p(wide) / _TWO_SIDED_95


@dataclass(frozen=True, slots=True)
class Answer:
    """Constants (m,), 95 % half-widths (m,) in their units, and which the data told, (m,).

    ``kept``: why the others stand at the table's value, by name. ``condition``: of the kept columns
    scaled to length 1; ``tangled``: names that share a weak direction. ``residual``: (n,), observed
    over predicted less 1 where the law is relative, else in units of y.
    """

    value: Floats
    half: Floats
    told: tuple[bool, ...]
    kept: dict[str, str]
    condition: float
    tangled: tuple[tuple[str, ...], ...]
    residual: Floats
    n: int


def answer(
    law: Law,
    y: Floats,
    questions: Sequence[Question],
    clusters: Sequence[Ints],
    *,
    relative: bool,
) -> Answer:
    """Fits the constants. ``clusters``: (n,) each, numbers of the blocks and kinds that go together.

    ``relative``: residuals are relative to what is predicted, and count by it. ``questions`` in order of
    preference: of two that cannot be told apart the first is fitted.
    """
    base = np.array([q.base for q in questions])
    sd = np.array([q.sd for q in questions])
    predicted, jacobian = law(base)
    size, _ = _sizes(predicted, relative)
    scaled = jacobian * base / size[:, None]
    kept: dict[str, str] = {}
    free = tellable(scaled, range(len(questions)))
    for k in np.flatnonzero(~free).tolist():
        seen = float(np.linalg.norm(scaled[:, k])) > 0
        kept[questions[k].name] = "not told apart from the others" if seen else _UNSEEN
    while True:
        value = _solve(law, y, base, sd, free, relative)
        unseen = free & ~np.any(law(value)[1] != 0.0, axis=0)
        if unseen.any():  # at the table's values it counted, where the others are found it does not
            kept |= {questions[k].name: _UNSEEN for k in np.flatnonzero(unseen).tolist()}
            free &= ~unseen
            continue
        own, half = _half(law, y, value, free, sd, clusters, relative)
        wide = np.where(free, own / np.maximum(_TWO_SIDED_95 * sd, 1e-300), 0.0)
        worst = int(np.argmax(wide))
        if not free.any() or wide[worst] <= 1.0:
            break
        free[worst] = False
        share = own[worst] / base[worst]
        kept[questions[worst].name] = f"the runs tell it to {100 * share:.2g} % only, worse than the table"
    half = np.where(free, np.maximum(half, RESOLUTION * np.abs(value)), half)
    predicted, jacobian = law(value)
    size, _ = _sizes(predicted, relative)
    u = jacobian[:, free] / size[:, None]
    u = u / np.maximum(np.linalg.norm(u, axis=0), 1e-300)
    condition = float(np.linalg.cond(u)) if free.any() else math.nan
    groups = tangled(u, np.flatnonzero(free)) if condition < _SINGULAR else ()
    return Answer(
        value,
        half,
        tuple(bool(f) for f in free),
        kept,
        condition,
        tuple(tuple(questions[k].name for k in group) for group in groups),
        (y - predicted) / size,
        len(y),
    )


def _solve(
    law: Law, y: Floats, base: Floats, sd: Floats, free: npt.NDArray[np.bool_], relative: bool
) -> Floats:
    x, active = base.copy(), free.copy()
    least = np.where(sd > _FREE * base, -np.inf, _SMALLEST * base)
    for _ in range(_ROUNDS):
        predicted, jacobian = law(x)
        size, share = _sizes(predicted, relative)
        residual = (y - predicted) / size
        spread = _spread(residual, share, y / size)
        weight = np.sqrt(share * _weights(residual, spread))
        scaled = jacobian[:, active] * base[active] / size[:, None]
        step = np.zeros(len(x))
        found = np.linalg.lstsq(scaled * weight[:, None], residual * weight, rcond=1e-12)[0]
        step[active] = base[active] * found
        before, length = _loss(residual, share, spread), 1.0
        for _ in range(_HALVINGS):
            tried = np.maximum(x + length * step, least)
            after = _loss((y - law(tried)[0]) / size, share, spread)
            if after <= before * (1 + 1e-12):
                break
            length /= 2
        moved = np.max(np.abs(tried - x) / base)
        x = tried
        active &= x > least  # what would be negative is 0, and the others are fitted without it
        if moved < _CONVERGED or before - after < _GAINED * before:
            break
    return x


def _sizes(predicted: Floats, relative: bool) -> tuple[Floats, Floats]:
    """What residuals are taken in, and how much each counts, (n,) both.

    Relative residuals count by what is predicted, so that every second counts alike: a thousand short
    steps would else outvote the few long ones that make up as much of the time.
    """
    if not relative:
        return np.ones(len(predicted)), np.ones(len(predicted))
    return predicted, predicted / float(np.mean(predicted))


def _spread(residual: Floats, share: Floats, y: Floats) -> float:
    """The deviation of normal values with this median size, each counted by its share."""
    order = np.argsort(np.abs(residual))
    middle = np.searchsorted(np.cumsum(share[order]), 0.5 * float(share.sum()))
    size = float(np.abs(residual[order[min(int(middle), len(order) - 1)]]))
    return max(size / 0.6745, _LEAST_SPREAD * float(np.mean(np.abs(y))))


def _weights(residual: Floats, spread: float) -> Floats:
    found: Floats = np.minimum(1.0, _HUBER * spread / np.maximum(np.abs(residual), 1e-300))
    return found


def _loss(residual: Floats, share: Floats, spread: float) -> float:
    """Huber's: quadratic within so many deviations, linear beyond."""
    size = np.abs(residual) / spread
    return float(share @ (np.where(size <= _HUBER, size**2, 2.0 * _HUBER * size - _HUBER**2)))


def _half(
    law: Law,
    y: Floats,
    x: Floats,
    free: npt.NDArray[np.bool_],
    sd: Floats,
    clusters: Sequence[Ints],
    relative: bool,
) -> tuple[Floats, Floats]:
    """Half-widths of the 95 % intervals, (m,), were what is kept exact, and with what it may be off by.

    Of what is kept from the table, the table's.
    """
    predicted, jacobian = law(x)
    size, share = _sizes(predicted, relative)
    residual = (y - predicted) / size
    weight = share * _weights(residual, _spread(residual, share, y / size))
    a = jacobian / size[:, None]
    half = _TWO_SIDED_95 * sd
    if not free.any():
        return half, half
    own = a[:, free]
    length = np.maximum(np.linalg.norm(own, axis=0), 1e-300)
    own = own / length
    bread = np.linalg.pinv((own * weight[:, None]).T @ own)
    score = own * (weight * residual)[:, None]
    total = np.zeros_like(bread)
    for cluster in clusters:
        count = int(cluster.max()) + 1 if len(cluster) else 0
        summed = np.stack([np.bincount(cluster, column, minlength=count) for column in score.T], axis=1)
        some = np.bincount(cluster, minlength=count) > 0
        k, m = int(some.sum()), own.shape[1]
        if k <= m + 1:
            continue
        t = student.two_sided(LEVEL, max(1, min(k - m, _MOST_FREEDOM))) / _TWO_SIDED_95
        total += t**2 * k / (k - m) * bread @ (summed.T @ summed) @ bread
    if not total.any():  # too few clusters: as if independent
        m = own.shape[1]
        total = float(np.sum(weight * residual**2)) / max(len(y) - m, 1) * bread
    held = (a[:, ~free] * sd[~free]) * weight[:, None]
    moved = bread @ (own.T @ held)
    exact, carried = half.copy(), half.copy()
    exact[free] = _TWO_SIDED_95 * np.sqrt(np.diag(total)) / length
    carried[free] = _TWO_SIDED_95 * np.sqrt(np.diag(total + moved @ moved.T)) / length
    return exact, carried
