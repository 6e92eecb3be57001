"""What steps do, group of kernels by group: the step model's formula as arrays, its constants left out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loadgen.physics.formats import Dtype
from loadgen.physics.groups import Groups, groups_of, layer_peak_flop_per_s
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.types import Floats

Matrix = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of S steps, (S,) each, as `StepModel.step` takes them."""

    prefill_tokens: Floats
    prefill_pairs: Floats
    prefill_span_tokens: Floats
    decode_rows: Floats
    decode_context_tokens: Floats
    emitting_rows: Floats

    def some(self, which: Bools) -> Rows:
        """Those of some steps."""
        return Rows(*(getattr(self, name)[which] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Work:
    """Work of S steps of one board.

    ``compute_s``, ``memory_s``: (K, S), seconds of each group's arithmetic and traffic at full
    efficiency; ``fixed_s``: (S,), exchanges between boards and what quantised products add;
    ``eager``: (S,), whether the host launches every kernel. ``flop_s``, ``traffic_s``: (S,), all
    arithmetic and traffic over the peaks that utilisations are taken of.
    """

    compute_s: Matrix
    memory_s: Matrix
    fixed_s: Floats
    eager: Bools
    flop_s: Floats
    traffic_s: Floats

    def seconds(self, efficiency: Efficiency) -> Floats:
        """Durations under these constants, (S,), as `StepModel` gives them."""
        overhead = np.where(self.eager, efficiency.eager_overhead_s, efficiency.graph_overhead_s)
        groups = np.maximum(self.compute_s / efficiency.compute, self.memory_s / efficiency.bandwidth)
        found: Floats = self.fixed_s + overhead + groups.sum(axis=0)
        return found


def work_of(
    rows: Rows, model: Transformer, gpu: Gpu, dtype: Dtype, shards: int, efficiency: Efficiency
) -> Work:
    """The work of the steps. Of the efficiency only what is not fitted counts.

    Raises ConfigError when the model cannot be split so, or the board cannot run the format.
    """
    bare = replace(efficiency, compute=1.0, bandwidth=1.0, graph_overhead_s=0.0, eager_overhead_s=0.0)
    g = groups_of(model, gpu, dtype, shards, bare)
    flop, traffic, rate_s = _groups(rows, g)
    emits = rows.emitting_rows > 0
    fixed = g.link_base_s + g.link_row_bytes * g.link_byte_s * (rows.prefill_tokens + rows.decode_rows)
    fixed = fixed + emits * (g.gather_base_s + g.gather_row_bytes * g.link_byte_s * rows.emitting_rows)
    eager = (rows.prefill_tokens > 0) | (rows.decode_rows > g.graph_rows)
    return Work(
        flop * rate_s[:, None],
        traffic * g.byte_s,
        fixed + np.where(eager, g.eager_s, g.graph_s),
        eager,
        flop.sum(axis=0) / layer_peak_flop_per_s(gpu, dtype),
        traffic.sum(axis=0) / gpu.bandwidth_bytes_per_s,
    )


def _groups(rows: Rows, g: Groups) -> tuple[Matrix, Matrix, Floats]:
    """FLOP and bytes of each group in each step, (K, S) each, and seconds a FLOP takes, (K,)."""
    n = rows.prefill_tokens + rows.decode_rows
    fused = n <= g.fused_rows
    flop, traffic, rate_s = [], [], []
    for gemm in g.gemms:
        weights = np.where(fused, gemm.stored_bytes, gemm.weight_bytes)
        flop.append(gemm.flop * n)
        traffic.append(gemm.row_bytes * n + (weights * gemm.touched(n) if gemm.experts else weights))
        rate_s.append(gemm.flop_s)
    fills, decodes, emits = rows.prefill_tokens > 0, rows.decode_rows > 0, rows.emitting_rows > 0
    pairs = rows.decode_context_tokens + rows.decode_rows
    flop += [g.pair_flop * rows.prefill_pairs, g.pair_flop * pairs, g.head_flop * rows.emitting_rows]
    traffic += [
        fills * (g.new_bytes * rows.prefill_tokens + g.span_bytes * rows.prefill_span_tokens),
        decodes * (g.new_bytes * rows.decode_rows + g.span_bytes * pairs),
        emits * (g.head_weight_bytes + g.head_row_bytes * rows.emitting_rows),
    ]
    return np.stack(flop), np.stack(traffic), np.array([*rate_s, *3 * [g.math_s]])
