"""What a board and its kernels are: named constants, each with a source and an uncertainty.

A constant whose source begins with ``assumed`` was not found in a data sheet or
a public measurement; it is a guess kept in one place until a calibration on the
real board replaces it. The boards themselves stand in ``loadgen.physics.boards``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")


class Constant(NamedTuple, Generic[V]):
    """A value, where it is from, and how far off it may be.

    ``relative_uncertainty`` r is the half-width of a 95 % interval on a
    logarithmic scale: value / (1 + r) to value * (1 + r). 0 for what a data
    sheet or a program's source fixes.
    """

    value: V
    source: str
    relative_uncertainty: float = 0.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator board.

    ``name`` is what NVML reports. ``peak_flop_per_s`` are dense rates without
    sparsity, by number format (float32, bfloat16, float16, fp8, int8); a format
    the board has no unit for is absent. ``link_bytes_per_s`` is the bandwidth
    to its peers in one direction (NVLink, or PCIe where there is none) and
    ``allreduce_latency_s`` the time of an all-reduce of nothing.

    Powers obey ``bare_idle_w <= context_idle_w <= tail_w <= active_w <= tdp_w``:
    ``bare_idle_w`` without a CUDA context, ``context_idle_w`` with a model
    loaded and nothing running, ``tail_w`` what it falls to at the end of work
    and holds for ``tail_s`` before it falls to ``context_idle_w``, ``active_w``
    the intercept of the busy law of ``loadgen.physics.power``, whose weights
    and knee follow. ``tgi_f16_flop_per_s`` is what TGI's launcher takes the
    board for, None where it does not recognise the name.

    ``power_spread`` is the relative standard deviation of the power of equal
    boards at equal work; ``sensor_gain_error`` the largest relative error of the
    gain of a board's power sensor (a constant of the board, not noise).

    ``sources`` maps every numeric field to where its value is from,
    ``uncertainty`` to its relative uncertainty as in ``Constant``.
    """

    id: str
    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flop_per_s: Mapping[str, float]
    link_bytes_per_s: float
    allreduce_latency_s: float
    tdp_w: float
    bare_idle_w: float
    context_idle_w: float
    tail_w: float
    tail_s: float
    active_w: float
    memory_weight: float
    compute_weight: float
    compute_knee: float
    power_spread: float
    sensor_gain_error: float
    tgi_f16_flop_per_s: float | None
    sources: Mapping[str, str]
    uncertainty: Mapping[str, float]


def in_order(gpu: Gpu, tail_rise_w: float) -> Gpu:
    """The board with powers that rise from bare idle to the TDP: each is lowered to the next where above it.

    ``tail_rise_w``: watts that the tail stays above the level it decays to, within ``active_w``.
    """
    active_w = min(gpu.active_w, gpu.tdp_w)
    context_idle_w = min(gpu.context_idle_w, active_w)
    return replace(
        gpu,
        active_w=active_w,
        context_idle_w=context_idle_w,
        tail_w=min(context_idle_w + tail_rise_w, active_w),
        bare_idle_w=min(gpu.bare_idle_w, context_idle_w),
    )


_KERNELS: dict[str, Constant[float]] = {
    "compute": Constant(
        0.55, "overall MFU; GEMM MFU .40 at 256 rows to .77 at >= 1024 in Vidur's H100 profile", 0.25
    ),
    "bandwidth": Constant(
        0.80, "GEMM efficiency .75-.79 up to 64 rows in Vidur's H100 profile, rounded up", 0.07
    ),
    "graph_overhead_s": Constant(2.5e-3, "assumed, within 2-3 ms", 0.20),
    "eager_overhead_s": Constant(8.0e-3, "assumed, within 8-12 ms", 0.50),
    "decomposition_s": Constant(
        0.2e-3,
        "assumed: (step - weights / bandwidth) / products is .16 (RTX 4090) to .35 ms (H100) for an 8B "
        "model, INT8+Decomp, in bitsandbytes' benchmark of 0.45.0",
        0.80,
    ),
    "graph_max_rows": Constant(32, "TGI v3 captures CUDA graphs for batches 1, 2, 4, 8, 16 and 32"),
}

VLLM_GRAPH_ROWS = 512
"""Decode rows up to which vLLM V1 captures CUDA graphs when not told (its max_cudagraph_capture_size)."""


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How far below the peaks kernels run, and the fixed cost of one step.

    ``graph_overhead_s`` applies to a pure decode step of at most
    ``graph_max_rows`` rows (replayed as a CUDA graph), ``eager_overhead_s`` to
    any other: a larger batch, a step with prefill rows, or a number format
    whose kernels cannot be captured, launches every kernel from the host.
    ``decomposition_s`` is what LLM.int8() adds to each product of a layer: its
    inputs are scaled, quantised and searched for outlier columns by kernels of
    their own. ``sources`` and ``uncertainty`` as in ``Gpu``.
    """

    compute: float = _KERNELS["compute"].value
    bandwidth: float = _KERNELS["bandwidth"].value
    graph_overhead_s: float = _KERNELS["graph_overhead_s"].value
    eager_overhead_s: float = _KERNELS["eager_overhead_s"].value
    decomposition_s: float = _KERNELS["decomposition_s"].value
    graph_max_rows: int = int(_KERNELS["graph_max_rows"].value)
    sources: Mapping[str, str] = field(
        default_factory=lambda: {name: c.source for name, c in _KERNELS.items()}
    )
    uncertainty: Mapping[str, float] = field(
        default_factory=lambda: {name: c.relative_uncertainty for name, c in _KERNELS.items()}
    )
