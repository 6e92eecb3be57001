"""One form, one set of values: a `Fitted`, with sentences for what the data do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis.fit import estimate
from analysis.fit.estimate import FEWEST, Ints, Solution
from analysis.fit.forms import Factor, Form, Matrix, design
from analysis.fit.model import FitError, Fitted, Range, Residuals, Term
from loadgen.types import Floats

MOST_RESIDUALS = 400
_NAMES = {
    "s": "prompt tokens",
    "n": "decode steps",
    "q": "squared prompt tokens",
    "rows": "rows",
    "context": "tokens of context",
    "t": "seconds",
}


def fit_form(
    form: Form,
    inputs: Mapping[str, Floats],
    observed: Floats,
    series: Ints,
    *,
    beside: Mapping[str, Floats],
    notes: Sequence[str] = (),
    solution: Solution | None = None,
) -> Fitted:
    """Fits ``observed`` (n,), in order of time within each series (n,), by a form of ``inputs`` (n,) each.

    ``solution``: of these terms from elsewhere; the values then show how far off it is only.
    ``beside``: what else to give the range of, such as requests in flight. Values that are not
    known are left out. Raises FitError when there are too few, or nothing can be told.
    """
    known = ~np.isnan(observed)
    for values in inputs.values():
        known &= ~np.isnan(values)
    count = int(known.sum())
    if count < FEWEST:
        raise FitError(f"{count} of {len(observed)} values are known, at least {FEWEST} are needed")
    inputs = {name: values[known] for name, values in inputs.items()}
    y = observed[known]
    x = design(form, inputs, count)
    if solution is None:
        found = estimate.solve(x, y, form.order, series[known], ratio=form.inputs == ("t",))
    else:
        found = _against(solution, x, y)
    if not any(found.kept):
        raise FitError("every size is 0: nothing to fit")
    terms = tuple(
        _term(factor, found, place, _why(form, factor, found, inputs))
        for place, factor in enumerate(form.factors)
    )
    predicted = y - found.residual
    ranges = {**inputs, **{name: values[known] for name, values in beside.items()}}
    return Fitted(
        name=form.name,
        formula=form.formula,
        unit=form.unit,
        terms=terms,
        r2=None if form.inputs == ("t",) else found.r2,
        spread=found.spread,
        relative_error=relative_error(y, predicted),
        condition=found.condition,
        n=count,
        range={name: Range.of(values) for name, values in ranges.items()},
        covariance=found.covariance,
        freedom=found.freedom,
        block=found.block,
        residuals=some_residuals(inputs, y, predicted),
        notes=(*_notes(form, found, terms), *notes),
    )


def relative_error(observed: Floats, predicted: Floats) -> float | None:
    """Median of |observed / predicted - 1| where the prediction is above 0; None without any."""
    above = predicted > 0
    return float(np.median(np.abs(observed[above] / predicted[above] - 1.0))) if above.any() else None


def some_residuals(inputs: Mapping[str, Floats], observed: Floats, predicted: Floats) -> Residuals:
    """At most `MOST_RESIDUALS` values, evenly over time."""
    n = len(observed)
    some = np.unique(np.linspace(0, n - 1, min(n, MOST_RESIDUALS)).round().astype(np.int64))
    return Residuals({name: values[some] for name, values in inputs.items()}, observed[some], predicted[some])


def hardly(names: Sequence[str], condition: float) -> str:
    """The sentence for terms that the data hardly tell apart."""
    return (
        f"{words(names)} can hardly be told apart (condition {condition:.3g}): what they add up to over the "
        "sizes seen is known better than each"
    )


def words(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _against(solution: Solution, x: Matrix, y: Floats) -> Solution:
    """The same coefficients with the residuals of other values."""
    residual = y - x @ solution.value
    left, total = float(residual @ residual), float(np.sum((y - y.mean()) ** 2))
    spread = float(np.sqrt(left / max(len(y) - sum(solution.kept), 1)))
    r2 = 1.0 - left / total if total > 0 else None
    return replace(solution, residual=residual, r2=r2, spread=spread)


def _term(factor: Factor, found: Solution, place: int, why: str) -> Term:
    if not found.kept[place]:
        return Term(factor.name, None, None, None, factor.unit, factor.powers, why)
    value, half = float(found.value[place]), float(found.half[place])
    if np.isnan(half):
        return Term(factor.name, value, None, None, factor.unit, factor.powers)
    return Term(factor.name, value, value - half, value + half, factor.unit, factor.powers)


def _why(form: Form, factor: Factor, found: Solution, inputs: Mapping[str, Floats]) -> str:
    """Why a term was refused: what its columns coincide with, and which size hardly varied."""
    others = [f.name for f, kept in zip(form.factors, found.kept, strict=True) if kept] or ["the rest"]
    seen = []
    for name in tuple(factor.powers) or form.inputs:
        low, high = float(inputs[name].min()), float(inputs[name].max())
        what = _NAMES.get(name, name)
        seen.append(f"{what} are {low:g} throughout" if low == high else f"{what} span {low:g} to {high:g}")
    return f"cannot be told from {words(others)}: {words(seen)}; counted as 0"


def _notes(form: Form, found: Solution, terms: tuple[Term, ...]) -> list[str]:
    notes = []
    for group in found.tangled:
        notes.append(hardly([form.factors[place].name for place in group], found.condition))
    told = [t for t in terms if t.value is not None and t.low is not None and t.high is not None]
    unsure = [t.name for t in told if t.low is not None and t.high is not None and t.low <= 0 <= t.high]
    if unsure:
        notes.append(f"not told from 0: {words(unsure)}")
    below = [t.name for t in told if t.high is not None and t.high < 0 and _is_cost(form, t.name)]
    if below:
        notes.append(
            f"{words(below)} came out below 0, which no work costs: the law bends where the form does not"
        )
    if np.isnan(found.half).any():
        notes.append("no intervals: without one block of values a term could not be told")
    if found.short:
        notes.append(
            "values depend on each other for longer than a twelfth of them: intervals are too narrow"
        )
    return notes


def _is_cost(form: Form, name: str) -> bool:
    return any(factor.cost for factor in form.factors if factor.name == name)
