"""What a run's own step times and energies say of the weights.

``calibrate`` keeps the form of the tariffs and asks how far each coefficient is from its
prior: ridge regression towards factor 1, with the noise estimated from the residuals, so that
what a run cannot tell (a coefficient without variation) stays where physics put it and what it
can tell is taken from the run. ``regress`` knows no prior:

    E_k - P_idle dt = a prefill + b decode + c steps + d context,

non-negative least squares on slices of at least 1 s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.attribution.activity import Activity
from analysis.attribution.slices import Pieces
from analysis.attribution.weights import TERMS, Tariff, Weights, row_terms
from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]

PRIOR_SD = 0.3
"""How far off physics' coefficients are taken to be: NVML's gain and a kernel's efficiency together."""
LEAST_SLICE_S = 1.0
_UNIT = Tariff(*len(TERMS) * [1.0])
_ROUNDS = 6
_WELL = 1e12
"""Up to this condition the equations are solved at once."""
_HUBER = 2.0
"""Residuals beyond so many deviations count less: a step that waited for something else."""
_TWO_SIDED_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients by name with 95 % intervals, as factors of the prior or in joules a unit.

    ``r2`` of the active energies of ``n`` slices; ``condition``: of the regressors, each scaled to
    length 1: above about 30 the coefficients cannot be told apart, though their sum can.
    """

    kind: str
    names: tuple[str, ...]
    value: Floats
    low: Floats
    high: Floats
    r2: float
    n: int
    condition: float


def calibrate(did: Activity, weights: Weights, pieces: Pieces, above_j: Floats) -> tuple[Fit, Weights]:
    """The weights as corrected by the steps' durations and the slices' energies above idle, (K,).

    Of use only where tokens have stamps: else a step is a slice of a reply, whose length and number
    of forwards say nothing of the server.
    """
    work = work_of(did, weights)
    by_duration = work * weights.time_s.array
    time, *_ = ridge(by_duration, did.duration_s, relative=True)
    slices, read_j = stretches(work * weights.active_j.array, pieces, above_j)
    factor, error, r2 = ridge(slices, read_j)
    fit = _fit("factors of the prior", TERMS, factor, error, r2, slices)
    return fit, replace(
        weights,
        time_s=weights.time_s.times(time),
        active_j=weights.active_j.times(factor),
        source=f"{weights.source}, corrected by this run",
    )


def regress(did: Activity, pieces: Pieces, above_j: Floats) -> tuple[Fit, Weights]:
    """Weights from this run alone: four coefficients in joules a token, step, context token."""
    prefill = did.prefill_tokens > 0
    forwards = work_of(did, Weights(_UNIT, _UNIT, 0.0, 0, ""))[:, 0]
    prompts, decoded = did.per_step(did.prefill_tokens), did.per_step(did.decode_tokens * ~prefill)
    context = did.per_step(did.decode_tokens * did.context_tokens)
    work = np.stack([prompts, decoded, forwards, context], axis=1)
    slices, read_j = stretches(work, pieces, above_j)
    scale = np.maximum(np.abs(slices).max(axis=0, initial=0.0), 1e-12)
    factor, error, r2 = ridge(slices / scale, read_j, prior_sd=None)
    a, b, c, d = (factor / scale).tolist()
    names = ("prefill_token", "decode_token", "step", "context_token")
    fit = _fit("joules", names, factor / scale, error / scale, r2, slices)
    tariff = Tariff(step=c, eager=0.0, token=b, context=d, ride=a, prompt=a, pair=0.0)
    return fit, Weights(tariff, tariff, 0.0, 0, "regression on this run")


def work_of(did: Activity, weights: Weights) -> Matrix:
    """What each step did, (S, 7)."""
    return np.stack([did.per_step(column) for column in row_terms(did, weights).T], axis=1)


def _fit(kind: str, names: tuple[str, ...], value: Floats, error: Floats, r2: float, x: Matrix) -> Fit:
    half = _TWO_SIDED_95 * error
    length = np.linalg.norm(x, axis=0)
    used = x[:, length > 0] / length[length > 0]
    condition = float(np.linalg.cond(used)) if used.size else np.inf
    return Fit(kind, names, value, np.maximum(value - half, 0.0), value + half, r2, len(x), condition)


def stretches(of_step: Matrix, pieces: Pieces, above_j: Floats) -> tuple[Matrix, Floats]:
    """Regressors (B, m) and joules (B,) of stretches of at least `LEAST_SLICE_S`, those with work."""
    width_s = np.diff(pieces.edges_s)
    block = np.floor((np.cumsum(width_s) - 0.5 * width_s) / LEAST_SLICE_S).astype(np.int64)
    columns = [np.bincount(block, pieces.per_slice(column)) for column in of_step.T]
    x, y = np.stack(columns, axis=1), np.bincount(block, above_j)
    busy = x.sum(axis=1) > 0
    return x[busy], y[busy]


def ridge(
    x: Matrix, y: Floats, *, relative: bool = False, prior_sd: float | None = PRIOR_SD
) -> tuple[Floats, Floats, float]:
    """Non-negative factors of the columns, their standard errors, R2.

    ``relative``: every row is weighed by its expected size, as errors of durations grow with
    them. Reweighted (Huber) so that a few odd rows do not steer.
    """
    m = x.shape[1]
    prior = np.ones(m)
    precision = 0.0 if prior_sd is None else prior_sd**-2
    value, error = prior.copy(), np.full(m, prior_sd or np.inf)
    if len(x) < 2:
        return value, error, float("nan")
    size = np.maximum(x.sum(axis=1), 1e-12) if relative else np.ones(len(x))
    weight = np.ones(len(x))
    scaled_x, scaled_y = x / size[:, None], y / size
    for _ in range(_ROUNDS):
        gram = (scaled_x * weight[:, None]).T @ scaled_x
        moment = (scaled_x * weight[:, None]).T @ scaled_y
        residual = scaled_y - scaled_x @ value
        noise = max(_rms(residual * np.sqrt(weight)), 1e-6 * _rms(scaled_y), 1e-12)
        a = gram / noise**2 + precision * np.eye(m)
        value = _non_negative(a, moment / noise**2 + precision * prior, value)
        residual = scaled_y - scaled_x @ value
        spread = max(float(np.median(np.abs(residual))) / 0.6745, 1e-12)
        weight = np.minimum(1.0, _HUBER * spread / np.maximum(np.abs(residual), 1e-300))
    free = value > 0
    error = np.zeros(m)
    error[free] = np.sqrt(np.maximum(np.diag(np.linalg.pinv(a[np.ix_(free, free)])), 0.0))
    total, left = float(np.sum((y - y.mean()) ** 2)), float(np.sum((y - x @ value) ** 2))
    varies = total > 1e-12 * float(np.sum(y**2))
    return value, error, 1.0 - left / total if varies else float("nan")


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _non_negative(a: Matrix, b: Floats, start: Floats) -> Floats:
    """The least of ``x a x / 2 - b x`` with x >= 0, by coordinates: a is small and positive."""
    if np.linalg.cond(a) < _WELL:
        free: Floats = np.asarray(np.linalg.solve(a, b), dtype=np.float64)
        if free.min() >= 0:
            return free
        start = free
    x = np.maximum(start, 0.0)
    diagonal = np.maximum(np.diag(a), 1e-300)
    for _ in range(2000):
        before = x.copy()
        for i in range(len(x)):
            x[i] = max(0.0, x[i] + (b[i] - a[i] @ x) / diagonal[i])
        if np.max(np.abs(x - before)) <= 1e-10 * max(float(np.max(np.abs(x))), 1e-300):
            break
    return x
