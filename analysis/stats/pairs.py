"""Did B differ from A: paired where requests are shared, unpaired otherwise, runs as samples.

Within one pair of runs the interval is a sampling interval of those two runs. Temperature and
clocks make a run one sample, so a claim about configurations rests on several pairs run in
turn; five or more are preferred, and with one the result says so. Several metrics compared at
once are corrected by Holm's step-down rule.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis import stats
from analysis.stats import student
from analysis.stats.blocks import LEVEL, Blocks
from loadgen.types import Estimate, Floats

ENOUGH_PAIRS = 5
LOAD_TOLERANCE = 0.05
"""Two loads count as equal when their ratio lies within 1 -+ this."""
_PER_STANDARD_ERROR = 1.959964


@dataclass(frozen=True, slots=True)
class Compared:
    """B against A in one metric. ``p``: two-sided, of no difference; None where it cannot be told."""

    difference: Estimate
    ratio: Estimate
    p: float | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """``equal``: None when it cannot be told. ``sentences``: one for each quantity."""

    equal: bool | None
    sentences: tuple[str, ...]


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


def paired_requests(a: Floats, b: Floats, at_s: Floats, blocks: Blocks, unit: str) -> Compared:
    """Mean of b - a and mean(b) / mean(a) of the same requests, (n,) each, due at ``at_s`` in A.

    Differences of one time block stay together: neighbours share a queue, in both runs.
    """
    index = blocks.index(at_s)
    difference = stats.mean(b - a, index, blocks, unit)
    what = "ratio of means, paired by request"
    ratio = stats.ratio(blocks.sums(b, index), blocks.sums(a, index), blocks, "1", len(a), what)
    return Compared(difference, ratio, _p_of(difference, 0.0), (_ONE_PAIR,))


def unpaired(a: Estimate, b: Estimate) -> Compared:
    """b - a and b / a of two independent estimates, from their own intervals.

    Squares of the distances to the ends add (MOVER: Zou and Donner 2008, "Construction of
    confidence limits about effect measures", Stat. Med. 27, eq. 6; Newcombe 1998), so
    asymmetric intervals keep their shape; the ratio on the logarithm's scale.
    """
    if a.unit != b.unit:
        raise ValueError(f"expected estimates of one unit, got {a.unit} and {b.unit}")
    n = min(a.n, b.n)
    if a.value is None or b.value is None:
        why = (a if a.value is None else b).method
        return Compared(stats.missing(a.unit, why, n), stats.missing("1", why, n), None)
    method = "unpaired, MOVER of both intervals"
    value = b.value - a.value
    if a.low is None or a.high is None or b.low is None or b.high is None:
        why = f"unpaired; no interval: one side has none ({(a if a.low is None else b).method})"
        difference = stats.exact(value, a.unit, n, why)
        ratio = stats.exact(b.value / a.value, "1", n, why) if a.value > 0 else stats.missing("1", why, n)
        return Compared(difference, ratio, None, (_ONE_PAIR,))
    low = value - math.hypot(b.value - b.low, a.high - a.value)
    high = value + math.hypot(b.high - b.value, a.value - a.low)
    difference = Estimate(value, a.unit, low, high, a.level, n, method)
    if min(a.low, b.low) <= 0:
        ratio = (
            stats.exact(b.value / a.value, "1", n, "unpaired; no interval: one side's reaches 0")
            if a.value > 0
            else stats.missing("1", "the denominator is not positive", n)
        )
    else:
        centre = math.log(b.value / a.value)
        down = math.hypot(math.log(b.value / b.low), math.log(a.high / a.value))
        up = math.hypot(math.log(b.high / b.value), math.log(a.value / a.low))
        ends = (math.exp(centre - down), math.exp(centre + up))
        ratio = Estimate(math.exp(centre), "1", *ends, a.level, n, f"{method}, logarithms")
    return Compared(difference, ratio, _p_of(difference, 0.0), (_ONE_PAIR,))


def over_runs(a: Sequence[float], b: Sequence[float], unit: str, *, interleaved: bool) -> Compared:
    """Runs as samples: one value a run, A and B of a pair at the same place.

    Student's t over the pairs' differences, and over the logarithms of their ratios when all
    values are positive. One pair has values and no interval.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"expected as many runs of A as of B and at least one, got {len(a)} and {len(b)}")
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    pairs = len(first)
    notes = []
    if pairs == 1:
        notes.append(_ONE_PAIR)
    elif pairs < ENOUGH_PAIRS:
        notes.append(f"{pairs} pairs of runs: {ENOUGH_PAIRS} or more are preferred")
    if pairs > 1 and not interleaved:
        notes.append(
            "the runs of A and B were not taken in turn: a drift of the board counts as a difference"
        )
    difference, p = _t_over(second - first, unit, "mean of the pairs' differences")
    if (first > 0).all() and (second > 0).all():
        logs, _ = _t_over(np.log(second / first), "1", "geometric mean of the pairs' ratios")
        value, low, high = (None if x is None else math.exp(x) for x in (logs.value, logs.low, logs.high))
        ratio = Estimate(value, "1", low, high, logs.level, logs.n, logs.method)
    else:
        ratio = stats.missing("1", "not all values are positive", pairs)
    return Compared(difference, ratio, p, tuple(notes))


def taken_in_turn(started_a_s: Sequence[float], started_b_s: Sequence[float]) -> bool:
    """Whether, in order of time, each two runs are one of A and one of B (ABAB, ABBA, ...)."""
    order = sorted([(t, "a") for t in started_a_s] + [(t, "b") for t in started_b_s])
    sides = [side for _, side in order]
    even = len(sides) % 2 == 0
    return even and all(sides[i] != sides[i + 1] for i in range(0, len(sides), 2))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979, Scand. J. Stat. 6): max over j <= i of (m - j + 1) p_(j), at most 1.

    Reject where the adjusted value is at most the level; the chance of any false rejection is
    then at most the level, whatever the dependence between the metrics.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min(1.0, (len(p) - place) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def same_load(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], tolerance: float = LOAD_TOLERANCE
) -> Verdict:
    """Whether two runs bore the same load: rate, prompt and output tokens, by name, as they happened.

    Equal when the whole interval of the ratio lies within 1 -+ ``tolerance`` (equivalence, as
    two one-sided tests; Schuirmann 1987), unequal when it lies wholly outside, otherwise not
    told. Without intervals the values decide, and the sentence says so.
    """
    sentences: list[str] = []
    answers: list[bool | None] = []
    for name in a:
        if name not in b:
            sentences.append(f"{name}: not known of the second run")
            answers.append(None)
            continue
        answer, sentence = _same(name, a[name], b[name], tolerance)
        answers.append(answer)
        sentences.append(sentence)
    equal = False if False in answers else None if None in answers or not answers else True
    return Verdict(equal, tuple(sentences))


_ONE_PAIR = (
    "one pair of runs: the interval holds for these two runs; how far a repetition would differ is not known"
)


def _same(name: str, a: Estimate, b: Estimate, tolerance: float) -> tuple[bool | None, str]:
    ratio = unpaired(a, b).ratio
    if ratio.value is None:
        return None, f"{name}: {ratio.method}"
    said = f"{name}: {ratio.value:.4g} times ({a.value:.4g} and {b.value:.4g} {a.unit})"
    if ratio.low is None or ratio.high is None:
        equal = abs(ratio.value - 1) <= tolerance
        return (
            equal,
            f"{said}, {'equal' if equal else 'NOT equal'} within {tolerance:.0%} by the values alone",
        )
    said += f", {ratio.level:.0%} interval {ratio.low:.4g} to {ratio.high:.4g}"
    if ratio.low >= 1 - tolerance and ratio.high <= 1 + tolerance:
        return True, f"{said}: equal within {tolerance:.0%}"
    if ratio.high < 1 - tolerance or ratio.low > 1 + tolerance:
        return False, f"{said}: NOT equal within {tolerance:.0%}"
    return None, f"{said}: whether equal within {tolerance:.0%} cannot be told"


def _t_over(values: Floats, unit: str, what: str) -> tuple[Estimate, float | None]:
    """Student's interval for the mean of independent values, and p of a zero mean."""
    n, value = len(values), float(values.mean())
    if n < 2:
        return stats.exact(value, unit, n, f"{what}; no interval: one pair of runs"), None
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = student.two_sided(LEVEL, n - 1) * error
    p = student.probability(value / error, n - 1) if error > 0 else float(value == 0)
    return Estimate(value, unit, value - half, value + half, LEVEL, n, f"{what}, t over {n} pairs of runs"), p


def _p_of(estimate: Estimate, null: float) -> float | None:
    """p value of ``null`` from an interval, taking each half as 1.96 standard errors."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    distance = null - estimate.value
    half = estimate.high - estimate.value if distance > 0 else estimate.value - estimate.low
    if half <= 0:
        return float(distance == 0)
    return math.erfc(abs(distance) / half * _PER_STANDARD_ERROR / math.sqrt(2))
