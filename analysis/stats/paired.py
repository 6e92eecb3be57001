"""What two runs of the same requests differ in: the requests' own differences, block by block.

Prompts of all lengths make the figures of a run vary; where both runs had the same ones, that part
cancels. Blocks of neighbours stay together, as in `analysis.stats.estimates`: they share a queue.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import replace

import numpy as np

from analysis import stats
from analysis.stats import student
from analysis.stats.blocks import LEVEL, Blocks, Ints
from analysis.stats.pairs import ONE_PAIR, Compared, degrees_of, p_of, same
from loadgen.types import Estimate, Floats

_ROUNDING = 1e-10
_TIME_BLOCKS = re.compile(r"joint time blocks of \S+ s")


def shared_requests(
    a: Mapping[Hashable, Hashable], b: Mapping[Hashable, Hashable]
) -> tuple[list[Hashable], str | None]:
    """Ids whose prompts are equal in both runs, in the order of ``a``, and why not to pair, if so.

    ``a``, ``b``: {request id: prompt, or its hash}. Pairs only if every id of one run is in
    the other with the same prompt: requests that only one run has are a selection.
    """
    ids = [i for i, prompt in a.items() if i in b and b[i] == prompt]
    if not ids:
        return [], "the runs share no request"
    unequal = sum(1 for i, prompt in a.items() if i in b and b[i] != prompt)
    if unequal:
        return ids, f"{unequal} of {len(a)} requests have another prompt under the same id"
    if len(ids) < len(a) or len(ids) < len(b):
        return ids, f"only {len(ids)} of {len(a)} and {len(b)} requests are in both runs"
    return ids, None


def paired_requests(a: Floats, b: Floats, at: Floats, blocks: Blocks, unit: str) -> Compared:
    """Mean of b - a and mean(b) / mean(a) of the same requests, (n,) each.

    ``at``: each request's place on the axis of the blocks. Differences of a block stay together:
    neighbours share a queue, in both runs.
    """
    if not len(a):
        why = "no request succeeded in both runs"
        return Compared(stats.missing(unit, why), stats.missing("1", why), None)
    values = (float(a.mean()), float(b.mean()))
    what = "difference of means, paired by request"
    return _of_moves(a - values[0], b - values[1], values, blocks.index(at), blocks, unit, len(a), what)


def paired_quantiles(
    a: Floats, b: Floats, q: float, at: Floats, blocks: Blocks, unit: str, value: tuple[float, float]
) -> Compared:
    """The q-quantiles of b against a, of the same requests, (n,) each, at ``at`` on the blocks' axis.

    ``value``: the two quantiles as they are reported. In large samples a quantile moves as the
    mean of (q - 1[x <= x_q]) / f, f the density there (Bahadur 1966, Ann. Math. Stat. 37), so
    the difference of two moves as the mean of the requests' differences of those. f: quotient of two
    order statistics at Hall and Sheather's (1988) distance. For the middle of a distribution only.
    """
    sides = [_moves(a, q, value[0]), _moves(b, q, value[1])]
    what = f"difference of p{100 * q:g}, paired by request"
    return _of_moves(sides[0], sides[1], value, blocks.index(at), blocks, unit, len(a), what)


def paired_ratios(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], groups: Blocks, unit: str, n: int
) -> Compared:
    """top_b / bottom_b against top_a / bottom_a, sums over the same groups of requests in both runs.

    ``a``, ``b``: (top, bottom), (K,) each: what group k of the requests had in that run. To first
    order the ratio R of sums moves as the mean over k of K (top_k - R bottom_k) / sum(bottom), so
    the differences of the two, group by group, are free of what the requests have in common.
    """
    values, moves = [], []
    for top, bottom in (a, b):
        total = float(bottom.sum())
        if total == 0:
            why = "a denominator is 0"
            return Compared(stats.missing(unit, why, n), stats.missing("1", why, n), None)
        values.append(float(top.sum()) / total)
        moves.append(groups.count * (top - values[-1] * bottom) / total)
    index = np.arange(groups.count)
    what = "difference of ratios, paired by groups of requests"
    return _of_moves(moves[0], moves[1], (values[0], values[1]), index, groups, unit, n, what)


def _moves(x: Floats, q: float, at: float) -> Floats:
    """By how much each value moves the q-quantile ``at`` of x, (n,), mean 0."""
    z = student.two_sided(LEVEL, 1000)
    normal = math.exp(-(_probit(q) ** 2) / 2) / math.sqrt(2 * math.pi)
    far = len(x) ** (-1 / 3) * z ** (2 / 3) * (1.5 * normal**2 / (2 * _probit(q) ** 2 + 1)) ** (1 / 3)
    far = min(far, q, 1 - q)
    low, high = np.quantile(x, [q - far, q + far])
    sign = q - (x <= at)
    moved: Floats = (sign - sign.mean()) * (high - low) / (2 * far)
    return moved


def _probit(q: float) -> float:
    return statistics.NormalDist().inv_cdf(q)


def _of_moves(
    a: Floats,
    b: Floats,
    values: tuple[float, float],
    index: Ints,
    blocks: Blocks,
    unit: str,
    n: int,
    what: str,
) -> Compared:
    """Difference and, on logarithms, ratio of two values whose errors are the means of ``a`` and ``b``."""
    a, b = (np.zeros_like(x) if _level(x, at) else x for x, at in zip((a, b), values, strict=True))
    if same(*values):
        values = (values[0], values[0])
    value = values[1] - values[0]
    difference = _shifted(stats.mean(b - a, index, blocks, unit), value, n, what)
    p = p_of(difference, 0.0, degrees_of(difference))
    if min(values) <= 0:
        return Compared(difference, stats.missing("1", "not both values are positive", n), p, (ONE_PAIR,))
    logs = stats.mean(b / values[1] - a / values[0], index, blocks, "1")
    logs = _shifted(logs, math.log(values[1] / values[0]), n, f"{what}, as a ratio on logarithms")
    ratio = replace(
        logs,
        value=values[1] / values[0],
        low=None if logs.low is None else math.exp(logs.low),
        high=None if logs.high is None else math.exp(logs.high),
    )
    return Compared(difference, ratio, p, (ONE_PAIR,))


def _level(moves: Floats, value: float) -> bool:
    """Whether all that moves is what floating point leaves of ``value``."""
    return float(np.abs(moves).max()) <= _ROUNDING * abs(value)


def _shifted(estimate: Estimate, value: float, n: int, what: str) -> Estimate:
    """An estimate of a mean of about 0 as the error of ``value``."""
    found = _renamed(estimate, what)
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return replace(found, value=value, n=n)
    off = value - estimate.value
    return replace(found, value=value, low=estimate.low + off, high=estimate.high + off, n=n)


def _renamed(estimate: Estimate, what: str) -> Estimate:
    """With another name of the statistic in ``method``; the blocks are of neighbours, not of time."""
    _, semicolon, how = estimate.method.partition("; ")
    how = _TIME_BLOCKS.sub("groups of neighbouring requests", how)
    return replace(estimate, method=f"{what}; {how}" if semicolon else estimate.method)
