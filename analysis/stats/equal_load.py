"""Whether two runs bore the same load, as far as their realised figures tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.stats.pairs import unpaired
from loadgen.types import Estimate

LOAD_TOLERANCE = 0.05
"""Two loads count as equal when their ratio lies within 1 -+ this."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``equal``: None when it cannot be told. ``sentences``: one for each quantity.

    ``as_happened``: by the values alone, whatever a repetition would give.
    """

    equal: bool | None
    sentences: tuple[str, ...]
    as_happened: bool | None = None


def same_load(
    a: Mapping[str, Estimate], b: Mapping[str, Estimate], tolerance: float = LOAD_TOLERANCE
) -> Verdict:
    """Whether two runs bore the same load: rate, prompt and output tokens, by name, as they happened.

    Equal when the whole interval of the ratio lies within 1 -+ ``tolerance`` (equivalence, as
    two one-sided tests; Schuirmann 1987), unequal when it lies wholly outside, otherwise not
    told. Values that are facts, or the same, are compared as they are. Where an interval is lacking
    because the data cannot give one, values apart are unequal and close ones are not told.
    """
    names = list(dict.fromkeys([*a, *b]))
    found = [_same(name, a.get(name), b.get(name), tolerance) for name in names]
    return Verdict(
        _all([equal for equal, _, _ in found]),
        tuple(sentence for _, _, sentence in found),
        _all([close for _, close, _ in found]),
    )


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers or not answers else True


def _same(
    name: str, a: Estimate | None, b: Estimate | None, tolerance: float
) -> tuple[bool | None, bool | None, str]:
    """(equal, equal by the values alone, sentence)."""
    if a is None or b is None:
        return None, None, f"{name}: known of one run only"
    if a.value is not None and a.value == b.value == 0:
        return True, True, f"{name}: 0 {a.unit} in both"
    ratio = unpaired(a, b).ratio
    if ratio.value is None:
        return None, None, f"{name}: {ratio.method}"
    close = abs(ratio.value - 1) <= tolerance
    within = f"within {100 * tolerance:g} %"
    unit = "" if a.unit == "1" else f" {a.unit}"
    said = f"{name}: {ratio.value:.4g} times ({a.value:,.5g} and {b.value:,.5g}{unit})"
    if ratio.low is None or ratio.high is None:
        told = not close or a.value == b.value or not any(_lacking(one) for one in (a, b))
        alone = f"{said}, {'equal' if close else 'NOT equal'} {within} by the values alone"
        if not told:
            return None, close, f"{alone}: without an interval it cannot be told"
        return close, close, alone
    said += f", {100 * ratio.level:g} % interval {ratio.low:.4g} to {ratio.high:.4g}"
    if ratio.low >= 1 - tolerance and ratio.high <= 1 + tolerance:
        return True, close, f"{said}: equal {within}"
    if ratio.high < 1 - tolerance or ratio.low > 1 + tolerance:
        return False, close, f"{said}: NOT equal {within}"
    return None, close, f"{said}: whether equal {within} cannot be told"


def _lacking(estimate: Estimate) -> bool:
    """Whether it should have an interval and the data could give none."""
    return estimate.low is None and "no interval" in estimate.method
