"""The roofline time and power of one step of a model on a board.

One definition serves the embedded server and every check: a step costs a fixed
overhead plus, for each group of kernels, the larger of its arithmetic time and
its memory time. Groups: the four GEMMs of a layer (QKV, O, gate and up, down),
attention of the prefill rows, attention of the decode rows, the LM head; and
what the boards of one replica tell each other.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple, TypedDict

from loadgen.physics.formats import Dtype
from loadgen.physics.groups import Gemm, groups_of, layer_peak_flop_per_s
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.physics.power import busy_power_w


class StepCost(NamedTuple):
    """One step: wall time, and the mean power and work of one board."""

    duration_s: float
    power_w: float
    flop: float
    traffic_bytes: float


class StepRows(TypedDict, total=False):
    """The arguments of `StepModel.step`, for those that hand them on."""

    prefill_tokens: int
    prefill_pairs: int
    prefill_span_tokens: int
    decode_rows: int
    decode_context_tokens: int
    emitting_rows: int


class DecodeLine(NamedTuple):
    """A pure decode step of a fixed number of rows, as a function of their cached tokens c.

    duration = base_s + slope_s c; work of one board = flop + flop_slope c and
    traffic_bytes + traffic_slope c.
    """

    base_s: float
    slope_s: float
    flop: float
    flop_slope: float
    traffic_bytes: float
    traffic_slope: float


class StepModel:
    """Roofline time and power of one iteration of a model on ``shards`` equal boards.

    ``t = t0 + sum_k max(F_k / (mfu peak), D_k / (eff bandwidth)) + t_link`` over
    the kernel groups k of one board. A GEMM ``[M,K]x[K,N]`` has ``F = 2MKN`` and
    ``D = KN w + M(K+N) a``, once per layer, w and a the bytes of a weight and an
    activation; weights that are expanded before use add ``2KN a``, and a search
    for outlier columns adds ``decomposition_s`` a product to t0. Of E experts
    with k per token, M rows touch ``E (1 - (1 - k/E)^M)``. Attention of rows
    with n new tokens after c cached ones has ``F = 4 h_q pairs`` with
    ``pairs = nc + n(n+1)/2`` and ``D = 2 n h_q a + (2 (c+n) + 2 n) h_kv w_kv``.
    The LM head runs on one row per sequence that emits a token, in the 16-bit
    format that quantisation leaves it. Activation functions, norms and rotary
    embedding are fused or negligible (0.05 % of a decode step, 2.7 % of a
    prefill) and are left out.

    With p boards heads, MLP and vocabulary are divided by p (a KV head is
    repeated when there are fewer than p), and ``t_link`` is two all-reduces a
    layer of ``2 (p-1)/p M h a / B_link + t_lat`` and one gather of the logits,
    during which the boards compute nothing. Raises ConfigError when the model
    cannot be split so, or the board cannot run the format.
    """

    def __init__(
        self,
        model: Transformer,
        gpu: Gpu,
        dtype: Dtype,
        *,
        shards: int = 1,
        efficiency: Efficiency | None = None,
    ) -> None:
        self.model = model
        self.gpu = gpu
        self.dtype = dtype
        self.shards = shards
        self.efficiency = efficiency = Efficiency() if efficiency is None else efficiency
        self.groups = groups = groups_of(model, gpu, dtype, shards, efficiency)
        self.peak_flop_per_s = layer_peak_flop_per_s(gpu, dtype)
        self._lines: dict[int, DecodeLine | None] = {}
        gemms = groups.gemms
        self._gemm_flop = sum(g.flop for g in gemms)
        self._gemm_row_bytes = sum(g.row_bytes for g in gemms)
        self._gemm_weight_bytes = sum(g.weight_bytes for g in gemms)
        self._gemm_flop_s = sum(g.flop * g.flop_s for g in gemms)
        self._link_row_s = groups.link_row_bytes * groups.link_byte_s
        self._gather_row_s = groups.gather_row_bytes * groups.link_byte_s
        # All GEMMs are memory bound up to the first number of rows, compute bound from the second.
        ridges = [self._ridge_rows(g) for g in gemms]
        self._all_memory_rows = -1.0 if model.experts else min(ridges)
        self._all_compute_rows = inf if model.experts else max(ridges)

    def _ridge_rows(self, gemm: Gemm) -> float:
        byte_s = self.groups.byte_s
        slope = gemm.flop * gemm.flop_s - gemm.row_bytes * byte_s
        return gemm.weight_bytes * byte_s / slope if slope > 0 else inf

    def _gemm_time(self, rows: int) -> tuple[float, float]:
        """Seconds and bytes of every layer's products, group by group."""
        time = traffic = 0.0
        byte_s, fused = self.groups.byte_s, rows <= self.groups.fused_rows
        for g in self.groups.gemms:
            weights = g.stored_bytes if fused else g.weight_bytes
            moved = g.row_bytes * rows + (weights * g.touched(rows) if g.experts else weights)
            time += max(g.flop * rows * g.flop_s, moved * byte_s)
            traffic += moved
        return time, traffic

    def step(
        self,
        *,
        prefill_tokens: int = 0,
        prefill_pairs: int = 0,
        prefill_span_tokens: int = 0,
        decode_rows: int = 0,
        decode_context_tokens: int = 0,
        emitting_rows: int = 0,
    ) -> StepCost:
        """The cost of one forward pass over a mix of prefill and decode rows.

        ``prefill_tokens`` = sum of n, ``prefill_pairs`` = sum of nc + n(n+1)/2
        and ``prefill_span_tokens`` = sum of c + n over the prefill rows;
        ``decode_context_tokens`` = sum of tokens cached before the step over
        the ``decode_rows``; ``emitting_rows`` = sequences that emit a token.
        Seconds; watts, FLOP and bytes of one board.
        """
        g = self.groups
        b_s = g.byte_s
        math_s = g.math_s
        rows = prefill_tokens + decode_rows
        flop = self._gemm_flop * rows
        if g.fused_rows < rows <= self._all_memory_rows:
            traffic = self._gemm_weight_bytes + self._gemm_row_bytes * rows
            time = traffic * b_s
        elif rows >= self._all_compute_rows:
            traffic = self._gemm_weight_bytes + self._gemm_row_bytes * rows
            time = self._gemm_flop_s * rows
        else:
            time, traffic = self._gemm_time(rows)
        time += g.link_base_s + self._link_row_s * rows
        if prefill_tokens:
            f = g.pair_flop * prefill_pairs
            b = g.new_bytes * prefill_tokens + g.span_bytes * prefill_span_tokens
            time += max(f * math_s, b * b_s)
            flop += f
            traffic += b
        if decode_rows:
            pairs = decode_context_tokens + decode_rows
            f = g.pair_flop * pairs
            b = g.new_bytes * decode_rows + g.span_bytes * pairs
            time += max(f * math_s, b * b_s)
            flop += f
            traffic += b
        if emitting_rows:
            f = g.head_flop * emitting_rows
            b = g.head_weight_bytes + g.head_row_bytes * emitting_rows
            time += max(f * math_s, b * b_s) + g.gather_base_s + self._gather_row_s * emitting_rows
            flop += f
            traffic += b
        time += g.eager_s if prefill_tokens or decode_rows > g.graph_rows else g.graph_s
        return StepCost(time, self.power_w(time, flop, traffic), flop, traffic)

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        """Mean watts of one board that does this work in this time.

        Utilisations are over the bandwidth and over the peak of the rate that
        the layers' products run at.
        """
        return busy_power_w(
            self.gpu,
            traffic_bytes / (duration_s * self.gpu.bandwidth_bytes_per_s),
            flop / (duration_s * self.peak_flop_per_s),
        )

    def decode_line(self, rows: int) -> DecodeLine | None:
        """The cost of decoding ``rows`` >= 1 rows as a line in their cached tokens; kept per ``rows``.

        None when attention of so many rows is memory bound for short contexts
        and compute bound for long ones: then no one line holds.
        """
        try:
            return self._lines[rows]
        except KeyError:
            line = self._lines[rows] = self._make_line(rows)
            return line

    def _make_line(self, rows: int) -> DecodeLine | None:
        g = self.groups
        compute_slope_s = g.pair_flop * g.math_s
        memory_slope_s = g.span_bytes * g.byte_s
        slope_s = max(compute_slope_s, memory_slope_s)
        compute_bound_at_0 = compute_slope_s >= memory_slope_s + g.new_bytes * g.byte_s
        if slope_s > memory_slope_s and not compute_bound_at_0:
            return None
        base = self.step(decode_rows=rows, emitting_rows=rows)
        return DecodeLine(base.duration_s, slope_s, base.flop, g.pair_flop, base.traffic_bytes, g.span_bytes)
