"""The boards: peaks, memory and power constants, each with its source.

A constant whose source begins with ``assumed`` was not found in a data sheet or
a public measurement; it is a guess kept in one place until a calibration on the
real board replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator board.

    ``sources`` maps the name of every numeric field to where its value is from.
    Powers obey ``bare_idle_w <= context_idle_w <= active_w <= tdp_w``:
    ``bare_idle_w`` without a CUDA context, ``context_idle_w`` with a model
    loaded and nothing running, ``active_w`` the intercept of the busy law of
    ``loadgen.physics.power``. Peaks are dense rates, without sparsity.
    """

    id: str
    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flop_per_s: Mapping[str, float]
    tdp_w: float
    bare_idle_w: float
    context_idle_w: float
    active_w: float
    memory_weight: float
    compute_weight: float
    compute_knee: float
    tgi_f16_flop_per_s: float
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How far below the peaks kernels run, and the fixed cost of one step.

    ``graph_overhead_s`` applies to a pure decode step of at most
    ``graph_max_rows`` rows (replayed as a CUDA graph), ``eager_overhead_s`` to
    any other: a larger batch, or a step with prefill rows, launches every
    kernel from the host.
    """

    compute: float = 0.55
    bandwidth: float = 0.80
    graph_overhead_s: float = 2.5e-3
    eager_overhead_s: float = 8.0e-3
    graph_max_rows: int = 32
    sources: Mapping[str, str] = field(
        default_factory=lambda: {
            "compute": "overall MFU; GEMM MFU .40 at 256 rows to .77 at >= 1024 in Vidur's H100 profile",
            "bandwidth": "GEMM efficiency .75-.79 up to 64 rows in Vidur's H100 profile, rounded up",
            "graph_overhead_s": "assumed, within 2-3 ms",
            "eager_overhead_s": "assumed, within 8-12 ms",
            "graph_max_rows": "TGI v3 captures CUDA graphs for batches 1, 2, 4, 8, 16 and 32",
        }
    )


_BUSY_FIT = "fit to public decode and prefill powers of 8B models on H100 SXM"
_SPLITWISE = "fit to splitwise-sim perf_model.csv (Llama-2-70B, TP2 and TP8)"

GPUS: dict[str, Gpu] = {
    gpu.id: gpu
    for gpu in (
        Gpu(
            id="h100-sxm",
            name="NVIDIA H100 80GB HBM3",
            memory_bytes=81559 * 2**20,
            bandwidth_bytes_per_s=3.35e12,
            peak_flop_per_s={"float32": 67e12, "bfloat16": 989e12},
            tdp_w=700.0,
            bare_idle_w=71.8,
            context_idle_w=120.0,
            active_w=200.0,
            memory_weight=0.33,
            compute_weight=0.90,
            compute_knee=0.14,
            tgi_f16_flop_per_s=900e12,
            sources={
                "memory_bytes": "nvidia-smi total of the 80 GB SXM5 board, 81559 MiB",
                "bandwidth_bytes_per_s": "NVIDIA H100 data sheet, SXM",
                "peak_flop_per_s": "NVIDIA H100 data sheet, SXM: FP32 67 (no TF32), BF16 dense 989 TFLOP/s",
                "tdp_w": "NVIDIA H100 data sheet, SXM",
                "bare_idle_w": "about 72 W in public nvidia-smi logs without a context",
                "context_idle_w": "100-153 W seen with a model resident (arXiv 2605.23918; study notebook)",
                "active_w": _BUSY_FIT,
                "memory_weight": _BUSY_FIT,
                "compute_weight": _BUSY_FIT,
                "compute_knee": _BUSY_FIT,
                "tgi_f16_flop_per_s": "TGI v3 launcher, table of cards (db931fc)",
            },
        ),
        Gpu(
            id="a100-sxm",
            name="NVIDIA A100-SXM4-80GB",
            memory_bytes=81920 * 2**20,
            bandwidth_bytes_per_s=2.039e12,
            peak_flop_per_s={"float32": 19.5e12, "bfloat16": 312e12},
            tdp_w=400.0,
            bare_idle_w=55.0,
            context_idle_w=90.0,
            active_w=130.0,
            memory_weight=0.90,
            compute_weight=0.90,
            compute_knee=0.14,
            tgi_f16_flop_per_s=312e12,
            sources={
                "memory_bytes": "nvidia-smi total of the 80 GB SXM4 board, 81920 MiB",
                "bandwidth_bytes_per_s": "NVIDIA A100 data sheet, 80 GB SXM",
                "peak_flop_per_s": "NVIDIA A100 data sheet: FP32 19.5 (no TF32), BF16 dense 312 TFLOP/s",
                "tdp_w": "NVIDIA A100 data sheet, SXM",
                "bare_idle_w": "assumed, within 50-60 W",
                "context_idle_w": "assumed: bare idle + 35 W (a CUDA context adds 26-50 W, arXiv 2605.23918)",
                "active_w": _SPLITWISE,
                "memory_weight": _SPLITWISE,
                "compute_weight": _SPLITWISE,
                "compute_knee": "assumed equal to the H100's",
                "tgi_f16_flop_per_s": "TGI v3 launcher, table of cards (db931fc)",
            },
        ),
    )
}
