"""The physical form: what a step costs, by what it did. Gives weights for an attribution.

Two tariffs of seven coefficients, of seconds and of joules above idle
(`analysis.attribution.weights`). Where the model and the board are known, each coefficient is its
prior by physics times a factor, drawn to 1 as far as the runs say nothing of it (ridge); else
non-negative least squares on those columns that the runs can tell apart. Steps and slices of all
runs are taken together. The intervals are the wider of the ridge's own and a jackknife's over 20
stretches of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.attribution import Attribution
from analysis.attribution.activity import Activity
from analysis.attribution.calibration import PRIOR_SD, ridge, stretches, work_of
from analysis.attribution.weights import TERMS, Tariff, Weights, weights_of
from analysis.fit.build import hardly, relative_error, some_residuals, words
from analysis.fit.estimate import FEWEST, Ints, Matrix, tangled, tellable
from analysis.fit.model import FitError, Fitted, Range, Term
from analysis.stats import LEVEL, student
from loadgen.types import Floats

STRETCHES = 20
MOST_STEPS = 50_000
"""Steps for the tariff of seconds, evenly over time."""
EVERY_GRAPH = 4096
"""Rows up to which decoding is taken to be replayed where nobody knows: never passed."""
TOLD = 0.5
"""A coefficient whose error is more than this share of its prior's is physics', not the runs'."""
_ORDER = ("prompt", "step", "token", "context", "eager", "ride", "pair")
_UNITS = ("forward", "launch", "token", "token", "token", "token", "pair")
_FORMULA = "step F + eager L + token n + context c + ride min(T, T0) + prompt max(0, T - T0) + pair q"


@dataclass(frozen=True, slots=True)
class _Side:
    """One tariff's regression: rows (n, 7) and what they cost (n,); ``prior`` of the tariff."""

    name: str
    unit: str
    work: Matrix
    cost: Floats
    prior: Floats | None
    relative: bool


def physical(attributions: Sequence[Attribution]) -> tuple[Weights, tuple[Fitted, ...]]:
    """Weights that fit the runs, and the fits of both tariffs.

    Raises FitError when tokens have no stamps, so that no step can be seen, or there are too few.
    """
    stamped = [a for a in attributions if a.did.stamped]
    if not stamped:
        raise FitError("tokens have no stamps of their own (not streamed or not kept): no step can be seen")
    first = stamped[0]
    prior = weights_of(first.run, float(first.idle_w.mean()))
    base = prior or Weights(_ones(), _ones(), 0.0, EVERY_GRAPH, "")
    done = [work_of(a.did, base) for a in stamped]
    steps = np.concatenate(done), np.concatenate([a.did.duration_s for a in stamped])
    every = -(-len(steps[0]) // MOST_STEPS)
    slices = [_slices(work, a) for work, a in zip(done, stamped, strict=True)]
    times = _Side(
        "step_time",
        "s",
        steps[0][::every],
        steps[1][::every],
        None if prior is None else prior.time_s.array,
        True,
    )
    joules = _Side(
        "step_energy",
        "J",
        np.concatenate([x for x, _ in slices]),
        np.concatenate([y for _, y in slices]),
        None if prior is None else prior.active_j.array,
        False,
    )
    for side, what in ((times, "steps"), (joules, "slices of 1 s with work")):
        if len(side.cost) < FEWEST:
            raise FitError(f"{len(side.cost)} {what}, at least {FEWEST} are needed")
    rows = _rows([a.did for a in stamped])
    fits = [_tariff(side, rows) for side in (times, joules)]
    source = "fitted to " + words([a.run.path.name for a in stamped])
    weights = replace(
        base,
        time_s=_read(fits[0]),
        active_j=_read(fits[1]),
        source=source if prior is None else f"{source}, from {prior.source}",
    )
    return weights, tuple(fits)


def _ones() -> Tariff:
    return Tariff(*len(TERMS) * [1.0])


def _read(found: Fitted) -> Tariff:
    return Tariff(*(term.value or 0.0 for term in found.terms))


def _slices(work: Matrix, attribution: Attribution) -> tuple[Matrix, Floats]:
    """What the steps did in each stretch of a second, and the joules above idle read in it."""
    pieces = attribution.pieces
    above_j = np.bincount(
        pieces.slice, pieces.active_w * pieces.length_s, minlength=len(pieces.edges_s) - 1
    ).astype(np.float64)
    return stretches(work, pieces, above_j)


def _rows(activities: Sequence[Activity]) -> dict[str, Range]:
    """Ranges of what is in a step: rows that decode, their context, prompt tokens."""
    rows, context, prompts = [], [], []
    for did in activities:
        decoding = (did.prefill_tokens == 0).astype(np.float64)
        rows.append(did.per_step(decoding))
        context.append(did.per_step(decoding * did.context_tokens))
        prompts.append(did.per_step(did.prefill_tokens))
    names = ("rows", "context", "s")
    return {
        name: Range.of(np.concatenate(v)) for name, v in zip(names, (rows, context, prompts), strict=True)
    }


def _tariff(side: _Side, ranges: dict[str, Range]) -> Fitted:
    used = np.flatnonzero(tellable(side.work, [TERMS.index(name) for name in _ORDER]))
    held = np.setdiff1d(np.arange(len(TERMS)), used)
    # Columns in units of what they are expected to cost: by the prior, or such that all are alike.
    unit = side.prior
    if unit is None:
        length = np.sqrt(np.mean(side.work[:, used] ** 2, axis=0))
        unit = np.zeros(len(TERMS))
        unit[used] = float(np.mean(side.cost)) / length
    x = side.work * unit
    rest = side.cost - x[:, held].sum(axis=1)
    sd = None if side.prior is None else PRIOR_SD
    inner, error, _ = ridge(x[:, used], rest, relative=side.relative, prior_sd=sd)
    factor, covariance = np.ones(len(TERMS)), np.zeros((len(TERMS), len(TERMS)))
    factor[used] = inner
    covariance[np.ix_(used, used)] = _jackknife(x[:, used], rest, side, sd, inner, error)
    if sd is not None and len(held):
        # What is held may be off by its prior's error, and those that stand in for it are then off as well.
        moved = np.zeros((len(TERMS), len(held)))
        moved[used] = -np.linalg.lstsq(x[:, used], x[:, held], rcond=None)[0]
        moved[held] = np.eye(len(held))
        covariance += sd**2 * moved @ moved.T
    predicted = x @ factor
    left = side.cost - predicted
    total = float(np.sum((side.cost - side.cost.mean()) ** 2))
    scaled = side.work[:, used] / np.linalg.norm(side.work[:, used], axis=0)
    return Fitted(
        name=side.name,
        formula=f"{'t' if side.unit == 's' else 'E above idle'} = {_FORMULA}",
        unit=side.unit,
        terms=_terms(side, factor, unit, np.sqrt(np.diag(covariance)), used),
        r2=1.0 - float(left @ left) / total if total > 0 else None,
        spread=float(np.sqrt(left @ left / max(len(left) - len(used), 1))),
        relative_error=relative_error(side.cost, predicted),
        condition=float(np.linalg.cond(scaled)),
        n=len(side.cost),
        range=ranges,
        covariance=covariance * np.outer(unit, unit),
        freedom=STRETCHES - 1,
        block=-(-len(side.cost) // STRETCHES),
        residuals=some_residuals(
            {name: side.work[:, k] for k, name in enumerate(TERMS)}, side.cost, predicted
        ),
        notes=_notes(np.sqrt(np.diag(covariance)), sd, scaled, used),
    )


def _terms(side: _Side, factor: Floats, unit: Floats, spread: Floats, used: Ints) -> tuple[Term, ...]:
    half = student.two_sided(LEVEL, STRETCHES - 1) * spread * unit
    terms = []
    for k, name in enumerate(TERMS):
        said, value = f"{side.unit}/{_UNITS[k]}", float(factor[k] * unit[k])
        if side.prior is None and k not in used:
            why = "cannot be told from the others in these runs; counted as 0"
            terms.append(Term(name, None, None, None, said, {name: 1}, why))
        else:
            low, high = max(value - float(half[k]), 0.0), value + float(half[k])
            terms.append(Term(name, value, low, high, said, {name: 1}))
    return tuple(terms)


def _notes(spread: Floats, sd: float | None, scaled: Matrix, used: Ints) -> tuple[str, ...]:
    condition = float(np.linalg.cond(scaled))
    notes = [hardly([TERMS[k] for k in group], condition) for group in tangled(scaled, used)]
    if sd is None:
        return (*notes, "from these runs alone: the model or the board is not known")
    guessed = [name for name, own in zip(TERMS, spread, strict=True) if own > TOLD * sd]
    return (*notes, *([f"physics', since these runs hardly tell: {words(guessed)}"] if guessed else []))


def _jackknife(
    x: Matrix, cost: Floats, side: _Side, sd: float | None, factor: Floats, error: Floats
) -> Matrix:
    """Covariance (m, m) of the factors: over stretches of time, nowhere less than the ridge's own errors."""
    stretch: Ints = np.arange(len(x)) * STRETCHES // len(x)
    moved = np.array(
        [
            ridge(x[stretch != k], cost[stretch != k], relative=side.relative, prior_sd=sd)[0] - factor
            for k in range(STRETCHES)
        ]
    )
    found: Matrix = (STRETCHES - 1) / STRETCHES * moved.T @ moved
    np.fill_diagonal(found, np.maximum(np.diag(found), error**2))
    return found
