"""The study's roofline of a dense decoder: every operation of its Tables 7 and 8, and their times.

An operation takes the larger of its arithmetic and its memory time, and a
phase the sum over its operations. Differences from the printed tables are
repairs of misprints: those are named where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadgen.config import near
from loadgen.errors import ConfigError
from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import Transformer

Numbers = NDArray[np.float64]
Scope = Literal["dominant", "dominant+wo", "full"]
Where = Literal["once", "block", "after"]
Bound = Literal["compute", "memory"]

SCOPES: tuple[Scope, ...] = ("dominant", "dominant+wo", "full")
_DOMINANT = frozenset({"q", "k", "v", "flash", "up", "gate", "down", "lm_head"})


class Efficiency(NamedTuple):
    """Shares of the peaks that the study takes kernels to reach."""

    name: str
    compute: float
    bandwidth: float


EFFICIENCIES: dict[str, Efficiency] = {
    pair.name: pair
    for pair in (
        Efficiency("main", 0.675, 0.443),
        Efficiency("appendix", 0.7, 0.28),
        Efficiency("raw", 1.0, 1.0),
    )
}
"""``main``: the study's section 3.4.1; ``appendix``: its Table 5; ``raw``: the peaks, as in its Table 7."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of a table, in one phase of a batch.

    ``count`` is how often it is executed in the phase. ``flop``,
    ``traffic_bytes`` and ``time_s`` are those of all executions together, so that the times of a
    phase's operations add up to the phase's. ``compute_bound``: whether its
    arithmetic takes longer than its memory traffic, over the whole phase.
    Arrays of the phase's broadcast shape.
    """

    name: str
    where: Where
    count: Numbers
    flop: Numbers
    traffic_bytes: Numbers
    time_s: Numbers
    compute_bound: NDArray[np.bool_]

    @property
    def bound(self) -> Bound:
        """What limits it; for a single phase, not an array of them."""
        return "compute" if bool(self.compute_bound) else "memory"


class _Row(NamedTuple):
    """A row of a table: one execution at context l costs ``flop + flop_slope l``, and likewise moves values.

    ``repeats``: executions in one forward pass.
    """

    name: str
    where: Where
    repeats: int
    flop: Numbers
    values: Numbers
    flop_slope: Numbers | float = 0.0
    values_slope: Numbers | float = 0.0


def at_least(name: str, value: ArrayLike, least: float) -> Numbers:
    """The numbers as float64. Raises ConfigError unless all are finite and >= ``least``."""
    numbers = np.asarray(value, dtype=np.float64)
    wrong = ~(np.isfinite(numbers) & (numbers >= least))
    if wrong.any():
        raise ConfigError(f"{name}: expected >= {least:g}, got {numbers[wrong].flat[0]:g}")
    return numbers


@dataclass(frozen=True, slots=True)
class Roofline:
    """A dense model on a board, at one word size.

    ``flop_per_s`` and ``bytes_per_s`` are the effective ceilings, mu_comp F_max
    and mu_mem B_max; ``word_bytes`` is taken for weights, activations and cache
    alike. ``scope``: the products, attention and LM head without the output
    projection (``dominant``, the study's equations 2 to 11), with it
    (``dominant+wo``), or every row of the tables (``full``). The formulas have
    one width h_q for hidden state and queries; here they may differ.

    Token counts and batch sizes are arrays that broadcast; times are seconds
    for the whole batch. Raises ConfigError for a model with experts, ceilings
    or a word size that are not positive, or an unknown scope.
    """

    model: Transformer
    flop_per_s: float
    bytes_per_s: float
    word_bytes: float
    scope: Scope = "dominant+wo"

    def __post_init__(self) -> None:
        for name, value in (
            ("flop_per_s", self.flop_per_s),
            ("bytes_per_s", self.bytes_per_s),
            ("word_bytes", self.word_bytes),
        ):
            if not 0.0 < value < float("inf"):
                raise ConfigError(f"{name}: expected a finite number > 0, got {value:g}")
        if self.scope not in SCOPES:
            hint = near(self.scope, SCOPES)
            raise ConfigError(f"scope: expected one of {', '.join(SCOPES)}, got {self.scope}{hint}")
        if self.model.experts:
            raise ConfigError(
                f"model: the study's formulas are of dense MLPs, but {self.model.id} has "
                f"{self.model.experts} experts a layer"
            )

    @classmethod
    def of(
        cls,
        model: Transformer,
        gpu: Gpu,
        dtype: Dtype,
        efficiency: Efficiency,
        scope: Scope = "dominant+wo",
    ) -> Roofline:
        """The ceilings of a board for a number format: its peak rate, its bandwidth, the size of a weight.

        Raises ConfigError when the board cannot run the format.
        """
        peak = gpu.peak_flop_per_s[dtype.rate_on(gpu)]
        return cls(
            model,
            efficiency.compute * peak,
            efficiency.bandwidth * gpu.bandwidth_bytes_per_s,
            dtype.weight_bytes,
            scope,
        )

    @property
    def q_width(self) -> int:
        """h_q: width of all queries."""
        return self.model.heads * self.model.head_dim

    @property
    def kv_width(self) -> int:
        """h_kv: width of all keys, and of all values."""
        return self.model.kv_heads * self.model.head_dim

    @property
    def ridge_flop_per_byte(self) -> float:
        """F_eff / B_eff: operations are memory bound below this intensity."""
        return self.flop_per_s / self.bytes_per_s

    @property
    def ridge_flop_per_value(self) -> float:
        """r = b_w F_eff / B_eff: the same, per value moved."""
        return self.word_bytes * self.ridge_flop_per_byte

    def prefill_operations(self, prompt_tokens: ArrayLike, batch: ArrayLike = 1) -> tuple[Operation, ...]:
        """Table 7: a forward pass over ``batch`` prompts of s = ``prompt_tokens`` >= 1 each, in order."""
        s, b = at_least("prompt_tokens", prompt_tokens, 1), at_least("batch", batch, 1)
        m = self.model
        q, kv = self.q_width, self.kv_width
        flash = _Row(
            "flash",
            "block",
            m.layers,
            b * s**2 * (4.0 * q + 5.0 * m.heads),
            4.0 * b * s * q + b * s * kv + b * m.heads * s**2,
        )
        rows = self._rows(b, s, flash, 2.0 * b * s * m.hidden)
        return tuple(self._executed(row, np.asarray(0.0), np.asarray(1.0), s + b) for row in rows)

    def decode_operations(
        self, prompt_tokens: ArrayLike, output_tokens: ArrayLike, batch: ArrayLike = 1
    ) -> tuple[Operation, ...]:
        """Table 8, over the g - 1 steps after the first token (none for g = ``output_tokens`` <= 1).

        The step at context l runs over l = s+1 .. s+g-1. Table 8's row for flash
        attention is blank and is taken from equation 8; its rotary rows are
        blank or misprinted and are Table 7's with s = 1.
        """
        s, b = at_least("prompt_tokens", prompt_tokens, 1), at_least("batch", batch, 1)
        g = at_least("output_tokens", output_tokens, 0)
        steps = np.maximum(g - 1.0, 0.0)
        rows = self._decode_rows(b)
        return tuple(self._executed(row, s, steps, s + b + g) for row in rows)

    def step_operations(self, context_tokens: ArrayLike, batch: ArrayLike = 1) -> tuple[Operation, ...]:
        """Table 8 as it stands: one token of each sequence at context l = ``context_tokens`` >= 1."""
        context, b = at_least("context_tokens", context_tokens, 1), at_least("batch", batch, 1)
        return tuple(
            self._executed(row, context - 1.0, np.asarray(1.0), context + b) for row in self._decode_rows(b)
        )

    def prefill_s(self, prompt_tokens: ArrayLike, batch: ArrayLike = 1) -> Numbers:
        """Seconds of ``prefill_operations``: equations 2 to 6."""
        return _total_s(self.prefill_operations(prompt_tokens, batch))

    def decode_s(self, prompt_tokens: ArrayLike, output_tokens: ArrayLike, batch: ArrayLike = 1) -> Numbers:
        """Seconds of ``decode_operations``: equation 11. The sum over steps is exact and takes no loop."""
        return _total_s(self.decode_operations(prompt_tokens, output_tokens, batch))

    def step_s(self, context_tokens: ArrayLike, batch: ArrayLike = 1) -> Numbers:
        """Seconds of ``step_operations``."""
        return _total_s(self.step_operations(context_tokens, batch))

    def _decode_rows(self, b: Numbers) -> list[_Row]:
        m = self.model
        flash = _Row(
            "flash",
            "block",
            m.layers,
            0.0 * b,
            4.0 * b * self.q_width,
            b * (4.0 * self.q_width + 5.0 * m.heads),
            b * float(self.kv_width + m.heads),
        )
        # Table 8 prints the final norm with twice the bytes of Table 7's.
        return self._rows(b, np.asarray(1.0), flash, 4.0 * b * m.hidden)

    def _rows(self, b: Numbers, t: Numbers, flash: _Row, final_norm_values: Numbers) -> list[_Row]:
        """The rows in scope, of ``t`` new tokens a sequence; what differs between the tables is handed in."""
        m = self.model
        h, q, kv, f, v = m.hidden, self.q_width, self.kv_width, m.ffn, m.vocabulary
        x, n = b * t, m.layers  # x: rows of every product

        def product(name: str, k: int, width: int) -> _Row:
            return _Row(name, "block", n, 2.0 * x * k * width, x * float(k + width) + float(k * width))

        def light(name: str, width: int, flop: float, values: float, extra: int = 0, times: int = 1) -> _Row:
            return _Row(name, "block", n * times, flop * x * width, values * x * (width + extra))

        rows = [
            _Row("lookup", "once", 1, 0.0 * x, x * float(h)),
            light("ln1", h, 5, 2),
            product("q", h, q),
            product("k", h, kv),
            product("v", h, kv),
            light("rope_q", q, 5, 2, m.head_dim),
            light("rope_k", kv, 5, 2, m.head_dim),
            flash,
            product("o", q, h),
            light("residual", h, 1, 2, times=2),
            light("ln2", h, 5, 2),
            product("up", h, f),
            product("gate", h, f),
            light("silu", f, 4, 2),
            light("mult", f, 1, 2),
            product("down", f, h),
            _Row("final_ln", "after", 1, 5.0 * x * h, final_norm_values),
            # Of the last position only, as the table has it (the text multiplies by s).
            _Row("lm_head", "after", 1, 2.0 * b * h * v, b * float(h) + float(v * h) + b),
            _Row("softmax", "after", 1, 5.0 * b * v, 2.0 * b * v),
            _Row("sampling", "after", 1, 0.1 * b * v, b * float(v)),
            _Row("post", "after", 1, 0.0 * b, b * float(v)),
        ]
        return [row for row in rows if self._in_scope(row.name)]

    def _in_scope(self, name: str) -> bool:
        return self.scope == "full" or name in _DOMINANT or (name == "o" and self.scope == "dominant+wo")

    def _executed(self, row: _Row, before: Numbers, steps: Numbers, shape: Numbers) -> Operation:
        """The row over l = before+1 .. before+steps, in the broadcast shape of ``shape``.

        Arithmetic minus memory time is a line in l that starts below zero if it
        rises, so one crossing splits the sum of the maxima into two series.
        """
        contexts = _sum_of_contexts(before, steps)
        flop = row.flop * steps + row.flop_slope * contexts
        moved = self.word_bytes * (row.values * steps + row.values_slope * contexts)
        byte_s = self.word_bytes / self.bytes_per_s
        slope_s = np.asarray(row.flop_slope / self.flop_per_s - row.values_slope * byte_s)
        base_s = row.flop / self.flop_per_s - row.values * byte_s
        rising = slope_s > 0.0
        crossing = np.where(
            rising, -base_s / np.where(rising, slope_s, 1.0), np.where(base_s > 0, 0.0, np.inf)
        )
        memory_steps = np.clip(np.floor(crossing) - before, 0.0, steps)
        compute_steps = steps - memory_steps
        excess_s = base_s * compute_steps + slope_s * _sum_of_contexts(before + memory_steps, compute_steps)
        time_s = moved / self.bytes_per_s + excess_s

        def whole(values: Numbers | float) -> Numbers:
            return np.asarray(values + 0.0 * shape, dtype=np.float64)

        compute_bound = whole(flop / self.flop_per_s) > whole(moved / self.bytes_per_s)
        return Operation(
            row.name,
            row.where,
            whole(row.repeats * steps),
            whole(row.repeats * flop),
            whole(row.repeats * moved),
            whole(row.repeats * time_s),
            compute_bound,
        )


def _sum_of_contexts(before: Numbers, steps: Numbers) -> Numbers:
    """Sum of l over l = before+1 .. before+steps."""
    return np.asarray(steps * (2.0 * before + steps + 1.0) / 2.0)


def _total_s(operations: tuple[Operation, ...]) -> Numbers:
    return np.asarray(sum(operation.time_s for operation in operations), dtype=np.float64)
