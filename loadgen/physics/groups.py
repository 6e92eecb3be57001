"""The kernel groups of a forward pass: what each does for a row, a pair of tokens, a sequence.

The one place where they are counted. ``transformer.StepModel`` adds them up fast,
``breakdown`` lists them one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, TypeVar

from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.types import Floats

Rows = TypeVar("Rows", float, Floats)


class Gemm(NamedTuple):
    """A product of every layer, on one board: FLOP and bytes per row, bytes moved for the weights.

    ``weight_bytes`` include their expansion, ``stored_bytes`` do not; both are of
    one expert where there are ``experts``, of which a row uses ``per_token``.
    ``flop_s`` is the seconds a FLOP takes.
    """

    name: str
    flop: float
    flop_s: float
    row_bytes: float
    weight_bytes: float
    stored_bytes: float
    experts: int = 0
    per_token: int = 0

    def touched(self, rows: Rows) -> Rows:
        """Experts that so many rows use on average, ``E (1 - (1 - k/E)^rows)``."""
        used: Rows = self.experts * (1.0 - (1.0 - self.per_token / self.experts) ** rows)
        return used


@dataclass(frozen=True, slots=True)
class Groups:
    """All groups of a model on one of ``shards`` boards; FLOP, bytes and seconds of all layers.

    ``math_s`` and ``byte_s``: seconds a FLOP of attention and LM head and a byte
    of memory take. Per pair of a new and a seen token ``pair_flop``; per new
    token ``new_bytes`` (queries, outputs, its key and value), per token seen
    ``span_bytes``. A sequence that emits a token costs ``head_flop`` and
    ``head_row_bytes``. Boards exchange ``link_row_bytes`` a row and
    ``gather_row_bytes`` an emitting sequence, at ``link_byte_s`` each, after
    ``link_base_s`` and ``gather_base_s``. A step costs ``graph_s`` on the host when
    it decodes at most ``graph_rows`` rows and nothing else, else ``eager_s``.
    Weights of up to ``fused_rows`` rows are not expanded.
    """

    gemms: tuple[Gemm, ...]
    math_s: float
    byte_s: float
    fused_rows: int
    pair_flop: float
    new_bytes: float
    span_bytes: float
    head_flop: float
    head_row_bytes: float
    head_weight_bytes: float
    link_byte_s: float
    link_base_s: float
    link_row_bytes: float
    gather_base_s: float
    gather_row_bytes: float
    graph_rows: int
    graph_s: float
    eager_s: float


def layer_peak_flop_per_s(gpu: Gpu, dtype: Dtype) -> float:
    """The peak of a layer's products; outlier columns take their share of the work at the slower rate.

    Raises ConfigError when the board cannot run the format.
    """
    x = dtype.outlier_share
    rate, math = gpu.peak_flop_per_s[dtype.rate_on(gpu)], gpu.peak_flop_per_s[dtype.math]
    return 1.0 / ((1.0 - x) / rate + x / math)


def groups_of(model: Transformer, gpu: Gpu, dtype: Dtype, shards: int, efficiency: Efficiency) -> Groups:
    """The groups of one of ``shards`` boards, as ``transformer.StepModel`` defines them.

    Raises ConfigError when the model cannot be split so, or the board cannot run the format.
    """
    model.check_shards(shards)
    layers, a, kv_size = model.layers, dtype.activation_bytes, dtype.kv_bytes
    gemm_s = 1.0 / (efficiency.compute * layer_peak_flop_per_s(gpu, dtype))
    math_s = 1.0 / (efficiency.compute * gpu.peak_flop_per_s[dtype.math])
    expansion = 2.0 * a * (1.0 if dtype.materialised else dtype.outlier_share)
    q = model.heads * model.head_dim // shards
    kv = max(model.kv_heads // shards, 1) * model.head_dim
    h, f = model.hidden, model.ffn // shards

    def gemm(name: str, k: int, n: int, per_token: int = 1, experts: int = 0) -> Gemm:
        return Gemm(
            name,
            2.0 * k * n * layers * per_token,
            gemm_s,
            float((k + n) * a * layers * per_token),
            k * n * (dtype.weight_bytes + expansion) * layers,
            k * n * dtype.weight_bytes * layers,
            experts,
            per_token,
        )

    gemms = [gemm("QKV", h, q + 2 * kv), gemm("attention output", q, h)]
    if model.experts:
        k, experts = model.experts_per_token, model.experts
        gemms += [gemm("experts' gate and up", h, 2 * f, k, experts), gemm("experts' down", f, h, k, experts)]
        router = h * experts * layers
        held = float(router * dtype.table_bytes)
        row = float((h + experts) * a * layers)
        gemms.append(Gemm("router", 2.0 * router, math_s, row, held, held))
        if model.shared_ffn:
            f = model.shared_ffn // shards
            gemms += [gemm("shared gate and up", h, 2 * f), gemm("shared down", f, h)]
    else:
        gemms += [gemm("gate and up", h, 2 * f), gemm("down", f, h)]
    products = layers * (len(gemms) if dtype.outlier_share else 0)
    vocabulary = ceil(model.vocabulary / shards)
    share, talks = (shards - 1) / shards, shards > 1
    return Groups(
        gemms=tuple(gemms),
        math_s=math_s,
        byte_s=1.0 / (efficiency.bandwidth * gpu.bandwidth_bytes_per_s),
        fused_rows=dtype.fused_rows,
        pair_flop=4.0 * q * layers,
        new_bytes=float((2 * q * a + 2 * kv * kv_size) * layers),
        span_bytes=float(2 * kv * kv_size * layers),
        head_flop=2.0 * h * vocabulary,
        head_row_bytes=float((h + vocabulary) * a),
        head_weight_bytes=float(h * vocabulary * dtype.table_bytes),
        link_byte_s=1.0 / gpu.link_bytes_per_s,
        link_base_s=2 * layers * gpu.allreduce_latency_s if talks else 0.0,
        link_row_bytes=4 * layers * share * h * a,
        gather_base_s=gpu.allreduce_latency_s if talks else 0.0,
        gather_row_bytes=share * model.vocabulary * a,
        graph_rows=efficiency.graph_max_rows if dtype.graphs else -1,
        graph_s=efficiency.graph_overhead_s,
        eager_s=efficiency.eager_overhead_s + products * efficiency.decomposition_s,
    )
