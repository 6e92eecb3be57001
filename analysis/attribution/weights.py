"""What a row of a step weighs: tariffs of seconds and of joules, from physics or from a fit.

A tariff is linear in what a step does:

    cost = step F + eager L + token n + context c + ride min(T, T0) + prompt max(0, T - T0) + pair q

F forwards (1, or several where a step stands for many), L those that are not replayed as a CUDA
graph (with prefill rows, or more rows than were captured), n tokens decoded, c tokens of
context read for them, T prompt tokens, q = sum of
T_i (T_i + 1) / 2 + T_i C_i with C_i tokens of the prompt computed before. A product takes the longer of
its arithmetic and of reading its weights, so T0 prompt tokens *ride* along: they cost joules, as the
board works harder, but hardly time.

Rows share a cost by cause, each in the order-free way in which a threshold or a maximum is shared
(Littlechild and Owen, 1973):

- ``step``, in equal parts, prefill rows included: any of them alone would need it.
- ``eager``: by how often, joining in any order, a prefill row or the row too many comes first.
- ``token`` is a decode row's own; beside p prompts it is the last but one in p of p + 1 orders, and
  then only one more token of a prompt's kind.
- ``ride`` and ``prompt`` in proportion to the prompts; ``context`` and ``pair`` are a row's own.

This is the table's ``c_p prefill + decode (c_w / batch + c_kv context)`` with what a board does in a
mixed step taken into account; `linear_weights` is the table's formula as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from analysis.attribution.activity import Activity
from analysis.run import Run
from analysis.served import board_of, graph_rows, model_of
from loadgen.errors import ConfigError
from loadgen.physics.formats import DTYPES
from loadgen.physics.transformer import StepModel
from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_BATCH_ROWS, _CONTEXT_TOKENS, _PROMPTS_TOKENS = 32, 2000, (1024, 2048)
"""The steps a tariff is taken from."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """Cost of one unit each, seconds or joules: see the module."""

    step: float
    eager: float
    token: float
    context: float
    ride: float
    prompt: float
    pair: float

    @property
    def array(self) -> Floats:
        """The coefficients in order, (7,)."""
        return np.array(astuple(self), dtype=np.float64)

    def times(self, factors: Sequence[float] | Floats) -> Tariff:
        """Each coefficient by its factor, in the order of the fields."""
        return Tariff(*(c * float(f) for c, f in zip(astuple(self), factors, strict=True)))


TERMS = tuple(f.name for f in fields(Tariff))


@dataclass(frozen=True, slots=True)
class Weights:
    """``time_s`` and ``active_j`` (above idle) of a step; ``overlap_tokens`` is T0.

    ``source`` says where they are from.
    """

    time_s: Tariff
    active_j: Tariff
    overlap_tokens: float
    graph_rows: int
    source: str

    def perturbed(self, time_factors: Sequence[float], energy_factors: Sequence[float]) -> Weights:
        """The same with other coefficients, for asking how much they matter."""
        return replace(
            self,
            time_s=self.time_s.times(time_factors),
            active_j=self.active_j.times(energy_factors),
            source=f"{self.source}, perturbed",
        )


def from_physics(model: StepModel, idle_w: float) -> Weights:
    """Tariffs that fit a model's steps: single rows, batches, prompts, and their contexts.

    ``idle_w``: of one board. Joules are of all boards.
    """

    def cost(prefill: int = 0, pairs: int = 0, rows: int = 1, context: int = 0) -> Matrix:
        found = model.step(
            prefill_tokens=prefill,
            prefill_pairs=pairs,
            prefill_span_tokens=prefill,
            decode_rows=rows,
            decode_context_tokens=context,
            emitting_rows=rows + (prefill > 0),
        )
        above_w = found.power_w - idle_w
        return np.array([found.duration_s, model.shards * above_w * found.duration_s])

    efficiency, graphs = model.efficiency, model.dtype.graphs
    graph_rows = efficiency.graph_max_rows if graphs else 0
    late_s = efficiency.eager_overhead_s - efficiency.graph_overhead_s if graphs else 0.0
    # Launching draws what any active board does.
    eager = np.array([late_s, model.shards * (model.gpu.active_w - idle_w) * late_s])
    many = max(min(graph_rows, _BATCH_ROWS), 2)
    one, batch = cost(), cost(rows=many)
    token = (batch - one) / (many - 1)
    context = (cost(rows=many, context=many * _CONTEXT_TOKENS) - batch) / (many * _CONTEXT_TOKENS)
    long, longer = (cost(prefill=n) for n in _PROMPTS_TOKENS)
    slope_s = float((longer - long)[0]) / (_PROMPTS_TOKENS[1] - _PROMPTS_TOKENS[0])
    # Where the line through long prompts meets a step that only decodes.
    overlap = max(round(float((one + eager - long)[0]) / slope_s + _PROMPTS_TOKENS[0]), 1)
    full = cost(prefill=overlap)
    ride = np.maximum(full - one - eager, 0.0) / overlap
    prompt = (longer - full) / (_PROMPTS_TOKENS[1] - overlap)
    pairs = _PROMPTS_TOKENS[1] * (_PROMPTS_TOKENS[1] + 1) // 2
    pair = (cost(prefill=_PROMPTS_TOKENS[1], pairs=pairs) - longer) / pairs
    time, energy = (
        Tariff(*(float(term[k]) for term in (one - token, eager, token, context, ride, prompt, pair)))
        for k in (0, 1)
    )
    return Weights(time, energy, float(overlap), graph_rows, f"physics of {model.model.id} on {model.gpu.id}")


def weights_of(run: Run, idle_w: float) -> Weights | None:
    """By the manifest's model, board at its locked clock and number format; None when one is not known.

    ``idle_w``: of one board, as measured.
    """
    server = run.manifest.get("server") or {}
    model, board, dtype = model_of(run), board_of(run), DTYPES.get(str(server.get("dtype") or "bfloat16"))
    if model is None or board is None or dtype is None:
        return None
    gpu, efficiency = board
    efficiency = replace(efficiency, graph_max_rows=graph_rows(run, efficiency))
    try:
        steps = StepModel(model, gpu, dtype, shards=int(server.get("shards") or 1), efficiency=efficiency)
    except ConfigError:
        return None
    return from_physics(steps, min(idle_w, gpu.active_w))


def linear_weights(did: Activity, weights: Weights) -> Floats:
    """``c_p prefill + decode (c_w / batch + c_kv context)`` of each row, (R,)."""
    tariff = weights.active_j
    decoding = np.where(did.prefill_tokens > 0, 0.0, did.decode_tokens)
    batch = did.per_step(_part(did, _forwards(did)) * (did.prefill_tokens == 0))
    own: Floats = (
        tariff.prompt * did.prefill_tokens
        + tariff.token * did.decode_tokens
        + decoding * (tariff.step / np.maximum(batch, 1.0)[did.step] + tariff.context * did.context_tokens)
    )
    return own


def row_terms(did: Activity, weights: Weights) -> Matrix:
    """What each row is charged for, (R, 7), in the order of a tariff's fields: ``row_terms @ tariff``.

    Summed over the rows of a step it is what the step did.
    """
    prefill = did.prefill_tokens > 0
    step = did.step
    forwards = _forwards(did)
    part = _part(did, forwards)
    new = did.per_step(prefill.astype(np.float64))
    decoding = did.per_step(part * ~prefill)
    prompt = did.per_step(did.prefill_tokens)
    # Of several forwards each prompt is taken to have had its own.
    filling = np.minimum(new, forwards)
    often = filling / np.maximum(forwards, 1e-12)
    together = new / np.maximum(filling, 1.0)
    beside = often * together / (together + 1.0)
    free = filling * weights.overlap_tokens
    riding = np.minimum(prompt, free) / np.maximum(prompt, 1.0)
    overflowing = (prompt > free).astype(np.float64)
    decode = did.decode_tokens
    found = np.empty((len(step), len(TERMS)))
    found[:, 0] = (forwards / np.maximum(did.per_step(part), 1e-12))[step] * part
    late = _late(new, decoding, weights.graph_rows)
    by_prompt = (1.0 - late) * often / np.maximum(new, 1.0)
    many = decoding > weights.graph_rows
    by_decode = np.where(many, late * often + 1.0 - often, 0.0) / np.maximum(decoding, 1e-12)
    found[:, 1] = forwards[step] * np.where(prefill, by_prompt[step], by_decode[step] * part)
    found[:, 2] = decode * (1.0 - beside[step]) + prefill
    found[:, 3] = decode * did.context_tokens
    found[:, 4] = did.prefill_tokens * riding[step] + decode * (beside * (1.0 - overflowing))[step]
    found[:, 5] = did.prefill_tokens * (1.0 - riding[step]) + decode * (beside * overflowing)[step]
    found[:, 6] = did.prefill_tokens * ((did.prefill_tokens + 1.0) / 2.0 + did.context_tokens)
    return found


def _late(new: Floats, decoding: Floats, graph_rows: int) -> Floats:
    """The chance, (S,), that a mixed step is launched row by row because of its decode rows.

    Of p prefill rows and n that decode, g being captured, one of the former comes first unless the
    first g + 1 to join all decode: probability ``prod_(k <= g) (n - k) / (n + p - k)``.
    """
    late = np.zeros(len(new))
    mixed = np.flatnonzero((decoding > graph_rows) & (new > 0))
    left = np.maximum(decoding[mixed, None] - np.arange(graph_rows + 1), 0.0)
    late[mixed] = np.prod(left / (left + new[mixed, None]), axis=1)
    return late


def _forwards(did: Activity) -> Floats:
    """Forwards that a step stands for, (S,): 1, or more or less where stamps are missing.

    The mean of its rows' tokens, each weighed by itself: those that were there in part count little.
    """
    prefill = did.prefill_tokens > 0
    tokens = did.decode_tokens * ~prefill
    whole = did.per_step(tokens)
    found = np.where(whole > 0, did.per_step(tokens**2) / np.where(whole > 0, whole, 1.0), 0.0)
    return np.where(did.per_step(prefill.astype(np.float64)) > 0, np.maximum(found, 1.0), found)


def _part(did: Activity, forwards: Floats) -> Floats:
    """In how much of its step a row took part, (R,), at most 1: a prompt in one forward of it."""
    per_forward = np.where(did.prefill_tokens > 0, 1.0, did.decode_tokens)
    return np.minimum(per_forward / np.maximum(forwards[did.step], 1e-12), 1.0)
