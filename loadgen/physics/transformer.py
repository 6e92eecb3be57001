"""The roofline time and power of one step of a model on a board.

One definition serves the embedded server and every check: a step costs a fixed
overhead plus, for each group of kernels, the larger of its arithmetic time and
its memory time. Groups: the four GEMMs of a layer (QKV, O, gate and up, down),
attention of the prefill rows, attention of the decode rows, the LM head; and
what the boards of one replica tell each other.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.physics.power import busy_power_w


class StepCost(NamedTuple):
    """One step: wall time, and the mean power and work of one board."""

    duration_s: float
    power_w: float
    flop: float
    traffic_bytes: float


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


class _Gemm(NamedTuple):
    """A product of every layer: FLOP and bytes per row, bytes moved for the weights; of experts, how many.

    ``weight_bytes`` include their expansion, ``stored_bytes`` do not.
    """

    flop: float
    flop_s: float
    row_bytes: float
    weight_bytes: float
    stored_bytes: float
    experts: int = 0


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
        model.check_shards(shards)
        self.model = model
        self.gpu = gpu
        self.dtype = dtype
        self.shards = shards
        self.efficiency = efficiency = Efficiency() if efficiency is None else efficiency
        self._lines: dict[int, DecodeLine | None] = {}
        layers, a, kv_size = model.layers, dtype.activation_bytes, dtype.kv_bytes
        rate = gpu.peak_flop_per_s[dtype.rate_on(gpu)]
        math = gpu.peak_flop_per_s[dtype.math]
        # Outlier columns take their share of the work at the slower rate.
        x = dtype.outlier_share
        self._peak = 1.0 / ((1.0 - x) / rate + x / math)
        self._math_s = 1.0 / (efficiency.compute * math)
        self._byte_s = 1.0 / (efficiency.bandwidth * gpu.bandwidth_bytes_per_s)
        self._graph_rows = efficiency.graph_max_rows if dtype.graphs else -1
        self._fused_rows = dtype.fused_rows

        expansion = 2.0 * a * (1.0 if dtype.materialised else x)
        gemm_s = 1.0 / (efficiency.compute * self._peak)
        q = model.heads * model.head_dim // shards
        kv = max(model.kv_heads // shards, 1) * model.head_dim
        h, f = model.hidden, model.ffn // shards

        def gemm(k: int, n: int, uses: int = 1, experts: int = 0) -> _Gemm:
            return _Gemm(
                2.0 * k * n * layers * uses,
                gemm_s,
                float((k + n) * a * layers * uses),
                k * n * (dtype.weight_bytes + expansion) * layers,
                k * n * dtype.weight_bytes * layers,
                experts,
            )

        self._gemms = [gemm(h, q + 2 * kv), gemm(q, h)]
        if model.experts:
            per_token, experts = model.experts_per_token, model.experts
            self._gemms += [gemm(h, 2 * f, per_token, experts), gemm(f, h, per_token, experts)]
            router = h * experts * layers
            row = float((h + experts) * a * layers)
            held = float(router * dtype.table_bytes)
            self._gemms.append(_Gemm(2.0 * router, self._math_s, row, held, held))
        if not model.experts or model.shared_ffn:
            f = f if not model.experts else model.shared_ffn // shards
            self._gemms += [gemm(h, 2 * f), gemm(f, h)]
        products = layers * (len(self._gemms) if dtype.outlier_share else 0)
        self._graph_s = efficiency.graph_overhead_s
        self._eager_s = efficiency.eager_overhead_s + products * efficiency.decomposition_s
        self._gemm_flop = sum(g.flop for g in self._gemms)
        self._gemm_row_bytes = sum(g.row_bytes for g in self._gemms)
        self._gemm_weight_bytes = sum(g.weight_bytes for g in self._gemms)
        self._gemm_flop_s = sum(g.flop * g.flop_s for g in self._gemms)
        # All GEMMs are memory bound up to the first number of rows, compute bound from the second.
        ridges = [self._ridge_rows(g) for g in self._gemms]
        self._all_memory_rows = -1.0 if model.experts else min(ridges)
        self._all_compute_rows = inf if model.experts else max(ridges)

        self._pair_flop = 4.0 * q * layers
        self._new_bytes = float((2 * q * a + 2 * kv * kv_size) * layers)
        self._span_bytes = float(2 * kv * kv_size * layers)
        vocabulary = ceil(model.vocabulary / shards)
        self._head_flop = 2.0 * h * vocabulary
        self._head_row_bytes = float((h + vocabulary) * a)
        self._head_weight_bytes = float(h * vocabulary * dtype.table_bytes)
        share = (shards - 1) / shards / gpu.link_bytes_per_s
        self._link_base_s = 2 * layers * gpu.allreduce_latency_s if shards > 1 else 0.0
        self._link_row_s = 4 * layers * share * h * a
        self._gather_base_s = gpu.allreduce_latency_s if shards > 1 else 0.0
        self._gather_row_s = share * model.vocabulary * a

    def _ridge_rows(self, gemm: _Gemm) -> float:
        slope = gemm.flop * gemm.flop_s - gemm.row_bytes * self._byte_s
        return gemm.weight_bytes * self._byte_s / slope if slope > 0 else inf

    def _gemm_time(self, rows: int) -> tuple[float, float]:
        """Seconds and bytes of every layer's products, group by group."""
        time = traffic = 0.0
        for g in self._gemms:
            touched = 1.0
            if g.experts:
                touched = g.experts * (1.0 - (1.0 - self.model.experts_per_token / g.experts) ** rows)
            weights = g.stored_bytes if rows <= self._fused_rows else g.weight_bytes
            moved = g.row_bytes * rows + weights * touched
            time += max(g.flop * rows * g.flop_s, moved * self._byte_s)
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
        b_s = self._byte_s
        math_s = self._math_s
        rows = prefill_tokens + decode_rows
        flop = self._gemm_flop * rows
        if self._fused_rows < rows <= self._all_memory_rows:
            traffic = self._gemm_weight_bytes + self._gemm_row_bytes * rows
            time = traffic * b_s
        elif rows >= self._all_compute_rows:
            traffic = self._gemm_weight_bytes + self._gemm_row_bytes * rows
            time = self._gemm_flop_s * rows
        else:
            time, traffic = self._gemm_time(rows)
        time += self._link_base_s + self._link_row_s * rows
        if prefill_tokens:
            f = self._pair_flop * prefill_pairs
            b = self._new_bytes * prefill_tokens + self._span_bytes * prefill_span_tokens
            time += max(f * math_s, b * b_s)
            flop += f
            traffic += b
        if decode_rows:
            pairs = decode_context_tokens + decode_rows
            f = self._pair_flop * pairs
            b = self._new_bytes * decode_rows + self._span_bytes * pairs
            time += max(f * math_s, b * b_s)
            flop += f
            traffic += b
        if emitting_rows:
            f = self._head_flop * emitting_rows
            b = self._head_weight_bytes + self._head_row_bytes * emitting_rows
            time += max(f * math_s, b * b_s) + self._gather_base_s + self._gather_row_s * emitting_rows
            flop += f
            traffic += b
        time += self._eager_s if prefill_tokens or decode_rows > self._graph_rows else self._graph_s
        return StepCost(time, self.power_w(time, flop, traffic), flop, traffic)

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        """Mean watts of one board that does this work in this time.

        Utilisations are over the bandwidth and over the peak of the rate that
        the layers' products run at.
        """
        return busy_power_w(
            self.gpu,
            traffic_bytes / (duration_s * self.gpu.bandwidth_bytes_per_s),
            flop / (duration_s * self._peak),
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
        compute_slope_s = self._pair_flop * self._math_s
        memory_slope_s = self._span_bytes * self._byte_s
        slope_s = max(compute_slope_s, memory_slope_s)
        compute_bound_at_0 = compute_slope_s >= memory_slope_s + self._new_bytes * self._byte_s
        if slope_s > memory_slope_s and not compute_bound_at_0:
            return None
        base = self.step(decode_rows=rows, emitting_rows=rows)
        return DecodeLine(
            base.duration_s, slope_s, base.flop, self._pair_flop, base.traffic_bytes, self._span_bytes
        )
