"""Decoder-only transformers: shapes, memory, and the roofline time of one step.

One definition serves the embedded server and every check: a step costs a fixed
overhead plus, for each group of kernels, the larger of its arithmetic time and
its memory time. Groups: the four GEMMs of a layer (QKV, O, gate and up, down),
attention of the prefill rows, attention of the decode rows, the LM head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.power import busy_power_w


@dataclass(frozen=True, slots=True)
class Dtype:
    """A number format for weights, activations and KV cache alike."""

    name: str
    size_bytes: int


DTYPES: dict[str, Dtype] = {d.name: d for d in (Dtype("float32", 4), Dtype("bfloat16", 2))}


@dataclass(frozen=True, slots=True)
class Transformer:
    """The shape of a grouped-query, gated-MLP decoder. All fields are counts."""

    id: str
    hub_id: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    max_position_embeddings: int
    tied_embeddings: bool
    source: str

    @property
    def gemm_shapes(self) -> tuple[tuple[int, int], ...]:
        """``(K, N)`` of a layer's QKV, O, gate and up, and down products."""
        q = self.heads * self.head_dim
        kv = self.kv_heads * self.head_dim
        return (
            (self.hidden, q + 2 * kv),
            (q, self.hidden),
            (self.hidden, 2 * self.ffn),
            (self.ffn, self.hidden),
        )

    @property
    def parameters(self) -> int:
        """Weights in memory: layers with two norms each, embedding, final norm, LM head."""
        layer = sum(k * n for k, n in self.gemm_shapes) + 2 * self.hidden
        tables = 1 if self.tied_embeddings else 2
        return self.layers * layer + tables * self.vocabulary * self.hidden + self.hidden

    def weights_bytes(self, dtype: Dtype) -> int:
        """Resident size of all weights."""
        return self.parameters * dtype.size_bytes

    def kv_token_bytes(self, dtype: Dtype) -> int:
        """KV cache of one token over all layers: keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.size_bytes


MODELS: dict[str, Transformer] = {
    model.id: model
    for model in (
        Transformer(
            id="llama-3.1-8b",
            hub_id="meta-llama/Llama-3.1-8B-Instruct",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            ffn=14336,
            vocabulary=128256,
            max_position_embeddings=131072,
            tied_embeddings=False,
            source="config.json of meta-llama/Llama-3.1-8B-Instruct",
        ),
    )
}


class StepCost(NamedTuple):
    """One step: wall time, mean board power, and the work behind them."""

    duration_s: float
    power_w: float
    flop: float
    traffic_bytes: float


class StepModel:
    """Roofline time and power of one iteration of a model on a board.

    ``t = t0 + sum_k max(F_k / (mfu peak), D_k / (eff bandwidth))`` over the
    kernel groups k. A GEMM ``[M,K]x[K,N]`` has ``F = 2MKN`` and
    ``D = (KN + M(K+N)) w``, once per layer. Attention of rows with n new tokens
    after c cached ones has ``F = 4 h_q pairs`` with ``pairs = nc + n(n+1)/2``
    and ``D = (2 n h_q + 2 (c+n) h_kv + 2 n h_kv) w``. The LM head runs on one
    row per sequence that emits a token. Activation functions, norms and rotary
    embedding are fused or negligible (0.05 % of a decode step, 2.7 % of a
    prefill) and are left out. Raises KeyError when the board has no peak for
    the dtype.
    """

    def __init__(
        self, model: Transformer, gpu: Gpu, dtype: Dtype, efficiency: Efficiency | None = None
    ) -> None:
        self.model = model
        self.gpu = gpu
        self.dtype = dtype
        self.efficiency = efficiency = Efficiency() if efficiency is None else efficiency
        w = dtype.size_bytes
        layers = model.layers
        self._peak = gpu.peak_flop_per_s[dtype.name]
        self._flop_s = 1.0 / (efficiency.compute * self._peak)
        self._byte_s = 1.0 / (efficiency.bandwidth * gpu.bandwidth_bytes_per_s)
        # Per group: FLOP per row, bytes per row, bytes regardless of rows.
        self._gemms = [(2.0 * k * n * layers, float((k + n) * w * layers), float(k * n * w * layers))
                       for k, n in model.gemm_shapes]  # fmt: skip
        self._gemm_flop = sum(f for f, _, _ in self._gemms)
        self._gemm_row_bytes = sum(r for _, r, _ in self._gemms)
        self._gemm_weight_bytes = sum(b for _, _, b in self._gemms)
        # Rows below which a GEMM is memory bound: F f = (r M + b) g solved for M.
        ridges = [self._ridge_rows(f, r, b) for f, r, b in self._gemms]
        self._all_memory_rows = min(ridges)
        self._all_compute_rows = max(ridges)
        q = model.heads * model.head_dim
        kv = model.kv_heads * model.head_dim
        self._pair_flop = 4.0 * q * layers
        self._new_bytes = float((2 * q + 2 * kv) * w * layers)
        self._span_bytes = float(2 * kv * w * layers)
        self._head_flop = 2.0 * model.hidden * model.vocabulary
        self._head_row_bytes = float((model.hidden + model.vocabulary) * w)
        self._head_weight_bytes = float(model.hidden * model.vocabulary * w)

    def _ridge_rows(self, flop: float, row_bytes: float, weight_bytes: float) -> float:
        slope = flop * self._flop_s - row_bytes * self._byte_s
        return weight_bytes * self._byte_s / slope if slope > 0 else float("inf")

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
        Seconds, watts, FLOP, bytes.
        """
        f_s = self._flop_s
        b_s = self._byte_s
        rows = prefill_tokens + decode_rows
        flop = self._gemm_flop * rows
        traffic = self._gemm_weight_bytes + self._gemm_row_bytes * rows
        if rows <= self._all_memory_rows:
            time = traffic * b_s
        elif rows >= self._all_compute_rows:
            time = flop * f_s
        else:
            time = sum(max(f * rows * f_s, (r * rows + b) * b_s) for f, r, b in self._gemms)
        if prefill_tokens:
            f = self._pair_flop * prefill_pairs
            b = self._new_bytes * prefill_tokens + self._span_bytes * prefill_span_tokens
            time += max(f * f_s, b * b_s)
            flop += f
            traffic += b
        if decode_rows:
            pairs = decode_context_tokens + decode_rows
            f = self._pair_flop * pairs
            b = self._new_bytes * decode_rows + self._span_bytes * pairs
            time += max(f * f_s, b * b_s)
            flop += f
            traffic += b
        if emitting_rows:
            f = self._head_flop * emitting_rows
            b = self._head_weight_bytes + self._head_row_bytes * emitting_rows
            time += max(f * f_s, b * b_s)
            flop += f
            traffic += b
        e = self.efficiency
        if prefill_tokens or decode_rows > e.graph_max_rows:
            time += e.eager_overhead_s
        else:
            time += e.graph_overhead_s
        power = busy_power_w(
            self.gpu,
            traffic / (time * self.gpu.bandwidth_bytes_per_s),
            flop / (time * self._peak),
        )
        return StepCost(time, power, flop, traffic)
