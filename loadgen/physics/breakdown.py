"""A step of ``transformer.StepModel`` group by group, and a whole static batch of equal requests.

The groups, their counts and their constants are those of ``loadgen.physics.groups``; the
sum over the groups is ``StepModel.step``. Arguments broadcast as arrays do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadgen.errors import ConfigError
from loadgen.physics.groups import Gemm, Groups
from loadgen.physics.transformer import StepModel
from loadgen.types import Floats

Strings = npt.NDArray[np.str_]
_NODES = 16


class Chunk(NamedTuple):
    """Prefill rows of ``sequences`` equal sequences: ``new`` >= 1 tokens each after ``cached`` >= 0."""

    new: int
    cached: int = 0
    sequences: int = 1


class Rows(NamedTuple):
    """``rows`` decoding sequences that each have ``context`` tokens cached before the step."""

    rows: int
    context: int


class Mix(NamedTuple):
    """What one forward pass does, by the names of ``StepModel.step``. Counts."""

    prefill_tokens: npt.ArrayLike = 0
    prefill_pairs: npt.ArrayLike = 0
    prefill_span_tokens: npt.ArrayLike = 0
    decode_rows: npt.ArrayLike = 0
    decode_context_tokens: npt.ArrayLike = 0
    emitting_rows: npt.ArrayLike = 0

    @classmethod
    def of(
        cls, prefill: Sequence[Chunk] = (), decode: Sequence[Rows] = (), emitting: int | None = None
    ) -> Mix:
        """The mix of these rows; every sequence emits a token unless ``emitting`` says how many do."""
        sequences = sum(c.sequences for c in prefill) + sum(r.rows for r in decode)
        return cls(
            prefill_tokens=sum(c.sequences * c.new for c in prefill),
            prefill_pairs=sum(c.sequences * (c.new * c.cached + c.new * (c.new + 1) // 2) for c in prefill),
            prefill_span_tokens=sum(c.sequences * (c.cached + c.new) for c in prefill),
            decode_rows=sum(r.rows for r in decode),
            decode_context_tokens=sum(r.rows * r.context for r in decode),
            emitting_rows=sequences if emitting is None else emitting,
        )

    def counts(self) -> dict[str, int]:
        """The arguments of ``StepModel.step``. Raises TypeError for a mix of arrays."""
        return {name: int(np.asarray(value)) for name, value in self._asdict().items()}


@dataclass(frozen=True, slots=True)
class Group:
    """One group of a step, on one board; arrays of one shape.

    ``flop``, ``traffic_bytes`` of its memory and ``link_bytes`` it sends; seconds,
    and those of its arithmetic and of its memory alone, of which ``time_s`` is
    the larger (0 for what is neither: links and host). ``bound`` is what it waits
    for: compute, memory, link, latency (of the link), host, or none for a group
    that is not in the step.
    """

    name: str
    flop: Floats
    traffic_bytes: Floats
    link_bytes: Floats
    time_s: Floats
    compute_s: Floats
    memory_s: Floats
    bound: Strings


def breakdown(model: StepModel, mix: Mix) -> tuple[Group, ...]:
    """Every group of a step of this mix, also those that are not in it, in the order of the layers.

    Their times add up to ``StepModel.step(...).duration_s``, FLOP and bytes
    likewise. Shapes broadcast over the mix.
    """
    g = model.groups
    parts = np.broadcast_arrays(*(np.asarray(part, float) for part in mix))
    fresh, fresh_pairs, span, decoding, context, emitting = parts
    rows, seen = fresh + decoding, context + decoding
    talks = np.full(rows.shape, model.shards > 1)
    eager = (fresh > 0) | (decoding > g.graph_rows)
    return (
        *(_product(g, gemm, rows) for gemm in g.gemms),
        _kernel(
            g,
            "prefill attention",
            g.pair_flop * fresh_pairs,
            g.new_bytes * fresh + g.span_bytes * span,
            fresh > 0,
        ),
        _kernel(
            g,
            "decode attention",
            g.pair_flop * seen,
            g.new_bytes * decoding + g.span_bytes * seen,
            decoding > 0,
        ),
        _kernel(
            g,
            "LM head",
            g.head_flop * emitting,
            g.head_weight_bytes + g.head_row_bytes * emitting,
            emitting > 0,
        ),
        _exchange("all-reduce", g.link_base_s, g.link_byte_s, g.link_row_bytes * rows, talks),
        _exchange(
            "gather of logits",
            g.gather_base_s,
            g.link_byte_s,
            g.gather_row_bytes * emitting,
            talks & (emitting > 0),
        ),
        _group("host", eager | True, 0.0, 0.0, 0.0, np.where(eager, g.eager_s, g.graph_s), "host"),
    )


def _product(g: Groups, gemm: Gemm, rows: Floats) -> Group:
    weights = np.where(rows <= g.fused_rows, gemm.stored_bytes, gemm.weight_bytes)
    if gemm.experts:
        weights = weights * gemm.touched(rows)
    flop, moved = gemm.flop * rows, gemm.row_bytes * rows + weights
    return _limited(gemm.name, flop, moved, flop * gemm.flop_s, moved * g.byte_s, rows > 0)


def _kernel(g: Groups, name: str, flop: Floats, moved: Floats, used: npt.NDArray[np.bool_]) -> Group:
    return _limited(name, flop, moved, flop * g.math_s, moved * g.byte_s, used)


def _limited(
    name: str, flop: Floats, moved: Floats, compute_s: Floats, memory_s: Floats, used: npt.NDArray[np.bool_]
) -> Group:
    bound = np.where(compute_s > memory_s, "compute", "memory")
    time_s = np.maximum(compute_s, memory_s)
    return _group(name, used, flop, moved, 0.0, time_s, bound, compute_s, memory_s)


def _exchange(
    name: str, base_s: float, byte_s: float, sent_bytes: Floats, used: npt.NDArray[np.bool_]
) -> Group:
    sending_s = byte_s * sent_bytes
    bound = np.where(sending_s > base_s, "link", "latency")
    return _group(name, used, 0.0, 0.0, sent_bytes, base_s + sending_s, bound)


def _group(
    name: str,
    used: npt.NDArray[np.bool_],
    flop: Floats | float,
    moved: Floats | float,
    sent: Floats | float,
    time_s: Floats,
    bound: Strings | str,
    compute_s: Floats | float = 0.0,
    memory_s: Floats | float = 0.0,
) -> Group:
    flop, moved, sent, time_s, compute_s, memory_s = (
        np.where(used, value, 0.0) for value in (flop, moved, sent, time_s, compute_s, memory_s)
    )
    return Group(name, flop, moved, sent, time_s, compute_s, memory_s, np.where(used, bound, "none"))


class RequestCost(NamedTuple):
    """A static batch of requests: seconds, and joules of all its boards, of both phases."""

    prefill_s: Floats
    prefill_j: Floats
    decode_s: Floats
    decode_j: Floats


def prefill_mix(prompt_tokens: npt.ArrayLike, batch: npt.ArrayLike = 1) -> Mix:
    """One forward over ``batch`` whole prompts, each of which emits a token."""
    s, b = np.asarray(prompt_tokens, float), np.asarray(batch, float)
    return Mix(b * s, b * s * (s + 1) / 2, b * s, 0, 0, b)


def request_cost(
    model: StepModel, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike, batch: int = 1
) -> RequestCost:
    """What ``batch`` equal requests cost together: one prefill, then g - 1 decode steps of all of them.

    Step k of n = g - 1 finds ``b (s + k)`` tokens cached. Its duration is linear in them
    (``StepModel.decode_line``), so the sum is n times that of the middle step, exactly. Energy
    is smooth in k, but where it reaches the TDP, and summed by Gauss-Legendre quadrature over
    [-1/2, n - 1/2] (relative error 1e-7; 5e-5 where the TDP is reached on the way); so is the duration
    where no line holds. Prompts and outputs of at least 1 token broadcast. Raises ConfigError otherwise.
    """
    s, g = np.broadcast_arrays(_whole("prompt_tokens", prompt_tokens), _whole("output_tokens", output_tokens))
    _whole("batch", batch)
    groups = breakdown(model, prefill_mix(s, batch))
    prefill_s, flop, moved = _totals(groups)
    prefill_j = model.shards * prefill_s * _watts(model, prefill_s, flop, moved)
    context, weight = _decode_nodes(s, g, batch)
    line = model.decode_line(batch)
    if line is None:
        seconds, flop, moved = _totals(breakdown(model, decode_mix(context, batch)))
        decode_s = np.sum(weight * seconds, axis=-1)
    else:
        seconds = line.base_s + line.slope_s * context
        flop = line.flop + line.flop_slope * context
        moved = line.traffic_bytes + line.traffic_slope * context
        decode_s = (g - 1) * (line.base_s + line.slope_s * batch * (s + (g - 2) / 2))
    joules = model.shards * seconds * _watts(model, seconds, flop, moved)
    return RequestCost(prefill_s, prefill_j, decode_s, np.sum(weight * joules, axis=-1))


def decode_mix(context_tokens: npt.ArrayLike, rows: npt.ArrayLike) -> Mix:
    """One decode step of so many rows with so many tokens cached in all; every row emits."""
    return Mix(decode_rows=rows, decode_context_tokens=context_tokens, emitting_rows=rows)


def decode_groups(
    model: StepModel, prompt_tokens: int, output_tokens: int, batch: int = 1
) -> tuple[Group, ...]:
    """The groups of all decode steps of a static batch, added up over them (shapes ``()``).

    Exact where each group is bound by the same thing in every step; ``mixed`` where one is not.
    """
    s, g = _whole("prompt_tokens", prompt_tokens), _whole("output_tokens", output_tokens)
    context, weight = _decode_nodes(s, g, batch)

    def added(values: Floats) -> Floats:
        return np.asarray(np.sum(weight * values, axis=-1))

    def shared(bounds: Strings) -> Strings:
        known = np.unique(bounds)
        return np.array("none" if g == 1 else known[0] if len(known) == 1 else "mixed")

    return tuple(
        Group(
            group.name,
            added(group.flop),
            added(group.traffic_bytes),
            added(group.link_bytes),
            added(group.time_s),
            added(group.compute_s),
            added(group.memory_s),
            shared(group.bound),
        )
        for group in breakdown(model, decode_mix(context, batch))
    )


def _totals(groups: Sequence[Group]) -> tuple[Floats, Floats, Floats]:
    """Seconds, FLOP and bytes of all groups."""
    seconds, flop, moved = (
        np.asarray(sum(values))
        for values in zip(*((g.time_s, g.flop, g.traffic_bytes) for g in groups), strict=True)
    )
    return seconds, flop, moved


def _watts(model: StepModel, seconds: Floats, flop: Floats, moved: Floats) -> Floats:
    return np.asarray(np.frompyfunc(model.power_w, 3, 1)(seconds, flop, moved), float)


@lru_cache(maxsize=1)
def _rule() -> tuple[Floats, Floats]:
    """Gauss-Legendre places and weights on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(_NODES)
    return (places + 1) / 2, weights / 2


def _decode_nodes(s: Floats, g: Floats, batch: int) -> tuple[Floats, Floats]:
    """Cached tokens at the places of the rule, and how many steps each stands for; (..., nodes)."""
    places, weights = _rule()
    steps = (g - 1)[..., np.newaxis]
    return batch * (s[..., np.newaxis] - 0.5 + steps * places), steps * weights


def _whole(name: str, value: npt.ArrayLike) -> Floats:
    numbers = np.asarray(value, float)
    bad = numbers[~((numbers >= 1) & (numbers == np.floor(numbers)) & np.isfinite(numbers))]
    if bad.size:
        raise ConfigError(f"{name}: expected whole numbers >= 1, got {bad.flat[0]:g}")
    return numbers
