"""What fits say: coefficients with intervals, how well and where they hold, and what they predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.attribution.weights import Weights
from analysis.fit.forms import Matrix, column
from analysis.stats import LEVEL, student
from loadgen.errors import LoadgenError
from loadgen.types import Floats

Load = Literal["one at a time", "batched"]
NEAREST = 40
"""Residuals that tell how far one more value may be off, at least; a quarter of those kept if more."""


class FitError(LoadgenError):
    """These runs cannot be fitted, or this file is no model; the message says why."""


@dataclass(frozen=True, slots=True)
class Term:
    """A coefficient with its 95 % interval; without a value, ``reason`` says why the data cannot tell it.

    It multiplies the product of the inputs to their ``powers``.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    powers: Mapping[str, int]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """Where a size lay: least, 5 %, 95 %, greatest."""

    least: float
    p5: float
    p95: float
    greatest: float

    @staticmethod
    def of(values: Floats) -> Range:
        """Of at least one value."""
        return Range(*(float(q) for q in np.percentile(values, [0, 5, 95, 100])))


@dataclass(frozen=True, slots=True)
class Residuals:
    """Some of the values that were fitted, evenly over time: arrays (k,), in the unit of the fit."""

    inputs: Mapping[str, Floats]
    observed: Floats
    predicted: Floats


@dataclass(frozen=True, slots=True)
class Prediction:
    """A value for given sizes and the 95 % interval of one more observation (None: too few residuals).

    ``outside``: a sentence for each size beyond those that were fitted; the interval holds inside only.
    """

    value: float
    low: float | None
    high: float | None
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """One fit. ``range`` is of its inputs and of the requests in flight; ``n`` values.

    ``spread``: residual standard error, in ``unit``. ``relative_error``: the median of
    |observed / predicted - 1|; None without any above 0. ``condition``: of the columns scaled to
    length 1. ``covariance``: of the terms, (m, m), 0 where one has no value. ``block``: neighbours
    that the intervals keep together. ``notes``: what cannot be told apart, what the values rest on.
    """

    name: str
    formula: str
    unit: str
    terms: tuple[Term, ...]
    r2: float | None
    spread: float
    relative_error: float | None
    condition: float
    n: int
    range: Mapping[str, Range]
    covariance: Matrix
    freedom: int
    block: int
    residuals: Residuals
    notes: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the sizes to give to `at` and `predict`."""
        return tuple(dict.fromkeys(name for term in self.terms for name in term.powers))

    def __getitem__(self, name: str) -> Term:
        """The term of that name. Raises KeyError."""
        for term in self.terms:
            if term.name == name:
                return term
        raise KeyError(name)

    def at(self, **inputs: Floats | float) -> Floats:
        """Values for sizes, numbers or arrays (n,) alike; terms without a value count as 0."""
        found: Floats = self._columns(inputs) @ np.array([term.value or 0.0 for term in self.terms])
        return found

    def outside(self, **inputs: float) -> tuple[str, ...]:
        """A sentence for each size beyond those that were fitted."""
        found = []
        for name, value in inputs.items():
            seen = self.range.get(name)
            if seen is not None and not seen.least <= value <= seen.greatest:
                fitted = f"{seen.least:g} to {seen.greatest:g}"
                found.append(f"{self.name}: {name} = {value:g} is outside the fit ({fitted})")
        return tuple(found)

    def predict(self, **inputs: float) -> Prediction:
        """The value for sizes and where one more observation of it would be, with 95 %.

        From the residuals of the fitted values that were predicted nearest to it, and the
        coefficients' own errors.
        """
        row = self._columns(inputs)[0]
        value = float(row @ np.array([term.value or 0.0 for term in self.terms]))
        outside = self.outside(**inputs)
        off = np.abs(self.residuals.observed - self.residuals.predicted)
        if len(off) < NEAREST // 2 or np.isnan(self.covariance).any():
            return Prediction(value, None, None, outside)
        count = min(len(off), max(NEAREST, len(off) // 4))
        near = np.sort(off[np.argsort(np.abs(self.residuals.predicted - value), kind="stable")[:count]])
        # The (k + 1) 95 % order statistic: one more of the same kind is below it with that chance.
        own = float(near[min(math.ceil((count + 1) * LEVEL), count) - 1])
        variance = max(float(row @ self.covariance @ row), 0.0)
        half = math.hypot(own, student.two_sided(LEVEL, self.freedom) * math.sqrt(variance))
        return Prediction(value, value - half, value + half, outside)

    def _columns(self, inputs: Mapping[str, Floats | float]) -> Matrix:
        arrays = {name: np.atleast_1d(np.asarray(v, dtype=np.float64)) for name, v in inputs.items()}
        n = max((len(a) for a in arrays.values()), default=1)
        return np.stack([column(term.powers, arrays, n) for term in self.terms], axis=1)


@dataclass(frozen=True, slots=True)
class RequestCost:
    """Seconds and joules that a model expects of one request; None where a fit is missing.

    ``energy_j``: prefill and decode, idle power included. ``outside`` as in `Prediction`.
    """

    prefill_s: Prediction | None
    decode_s: Prediction | None
    prefill_j: Prediction | None
    decode_j: Prediction | None
    energy_j: float | None
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """Everything fitted to one or more runs of the same model, board and number format.

    ``subject``: what was the same in all of them. ``load``: whether requests were alone, so that
    the study's forms are laws of a request, or batched, so that they describe this load only.
    ``label``: of the energies, ``measured``, ``estimated`` or ``simulated``; None without any.
    ``refused``: fits that could not be made, and why. ``weights``: for
    `analysis.Attribution(run, weights=model.weights)`; None with ``refused["weights"]``.
    """

    subject: Mapping[str, str | int | None]
    runs: tuple[str, ...]
    load: Load
    label: str | None
    requests: int
    alone: int
    fitted: tuple[Fitted, ...]
    refused: Mapping[str, str]
    weights: Weights | None
    notes: tuple[str, ...] = field(default=())

    def get(self, name: str) -> Fitted | None:
        """The fit of that name, None when it was refused."""
        return next((found for found in self.fitted if found.name == name), None)

    def __getitem__(self, name: str) -> Fitted:
        """The fit of that name. Raises FitError with the reason why there is none."""
        found = self.get(name)
        if found is None:
            raise FitError(f"{name}: {self.refused.get(name, 'no such fit')}")
        return found

    def energy_j(self, prompt_tokens: Floats, reply_tokens: Floats) -> Floats:
        """Joules of requests of these lengths, (n,), idle power included. Raises FitError without the fits.

        A reply of one token has no decode; a phase never gives energy back.
        """
        steps = np.maximum(np.asarray(reply_tokens, dtype=np.float64) - 1.0, 0.0)
        prefill = np.maximum(self["E_prefill"].at(s=prompt_tokens), 0.0)
        decode = np.maximum(self["E_decode"].at(s=prompt_tokens, n=steps), 0.0)
        return prefill + np.where(steps > 0, decode, 0.0)

    def request(self, prompt_tokens: float, reply_tokens: float) -> RequestCost:
        """What one request of these lengths takes and costs."""
        steps = max(reply_tokens - 1.0, 0.0)

        def told(name: str, **sizes: float) -> Prediction | None:
            found = self.get(name)
            if found is None:
                return None
            return found.predict(**sizes) if sizes.get("n", 1.0) > 0 else Prediction(0.0, 0.0, 0.0, ())

        prefill_s, prefill_j = (told(name, s=prompt_tokens) for name in ("t_prefill", "E_prefill"))
        decode_s, decode_j = (told(name, s=prompt_tokens, n=steps) for name in ("t_decode", "E_decode"))
        parts = (prefill_s, decode_s, prefill_j, decode_j)
        energy_j = None
        if prefill_j is not None and decode_j is not None:
            energy_j = max(prefill_j.value, 0.0) + max(decode_j.value, 0.0)
        outside = dict.fromkeys(sentence for p in parts if p is not None for sentence in p.outside)
        return RequestCost(*parts, energy_j, tuple(outside))

    def as_object(self) -> dict[str, Any]:
        """The model as it stands in model.json; see `analysis.fit.file`."""
        from analysis.fit.file import as_object

        return as_object(self)
