"""The boards: every constant with its source and its uncertainty.

A constant fixed by a data sheet, a firmware or a program has uncertainty 0. The
others' half-widths are wide on purpose: the spread of the public figures named,
or, for what is assumed, of the boards that are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadgen.physics.hardware import Constant, Gpu

MIB = 2.0**20


def _board(gpu_id: str, name: str, **constants: Constant[Any]) -> Gpu:
    """A board from its own constants and those that all boards share."""
    merged: Mapping[str, Constant[Any]] = _COMMON | constants
    return Gpu(
        id=gpu_id,
        name=name,
        **{field: c.value for field, c in merged.items()},
        sources={field: c.source for field, c in merged.items()},
        uncertainty={field: c.relative_uncertainty for field, c in merged.items()},
    )


def _peaks(fp32: float, half: float, int8: float, fp8: float | None = None) -> dict[str, float]:
    """Dense peak rates by format, from TFLOP/s."""
    peaks = {"float32": fp32, "bfloat16": half, "float16": half, "int8": int8}
    return {name: tera * 1e12 for name, tera in (peaks | ({} if fp8 is None else {"fp8": fp8})).items()}


_TGI = "TGI v3 launcher, table of cards (db931fc)"
_BUSY_FIT = "fit to public decode and prefill powers of 8B models on H100 SXM"
_SPLITWISE = "fit to splitwise-sim perf_model.csv (Llama-2-70B, TP2 and TP8)"
_NO_TAIL = "assumed none: no public figure separates a tail from idling with a context"
_AS_H100 = "assumed equal to the H100's"
_AS_H100_H200 = (
    "assumed equal to the H100's: 512 W decoding 128 rows of a 3.8B model (517 published), prefill 644 W "
    "(593-662 published by SerialAlice)"
)
_AS_4090 = "assumed equal to the RTX 4090's, the same AD102 chip"
_PCIE4 = "PCIe 4.0 x16, 31.5 GB/s in one direction; no NVLink"
_PCIE_LATENCY = "assumed: several times NVLink's, as the exchange passes through host memory"
_CONTEXT_HBM = "(a CUDA context adds 26-50 W on HBM boards, arXiv 2605.23918)"
_STANDBY = "RTX A6000 log of LLMServingSim fig. 6: 89 W for about 18 s after work, 33 W idle, TDP 300 W"
_STANDBY_IS_CONTEXT = (
    "assumed none: scaled to this board (21 % of TDP - idle above idle), the standby level after work of an "
    f"{_STANDBY}, is that of idling with a context"
)

_COMMON: dict[str, Constant[Any]] = {
    "power_spread": Constant(
        0.03,
        "assumed: equal boards differ in performance by 8 % on average (arXiv 2208.11035), in power by less",
        0.50,
    ),
    "sensor_gain_error": Constant(0.05, "NVML's gain error is within 5 % per board (arXiv 2312.02741)"),
    "compute_weight": Constant(1.0, "assumed: prefill reaches the TDP on small boards", 0.08),
    "compute_knee": Constant(0.14, _AS_H100, 0.30),
}

GPUS: dict[str, Gpu] = {
    gpu.id: gpu
    for gpu in (
        _board(
            "h100-sxm",
            "NVIDIA H100 80GB HBM3",
            memory_bytes=Constant(81559 * MIB, "nvidia-smi total of the 80 GB SXM5 board, 81559 MiB"),
            bandwidth_bytes_per_s=Constant(3.35e12, "NVIDIA H100 data sheet, SXM"),
            peak_flop_per_s=Constant(
                _peaks(67, 989, 1979, 1979),
                "NVIDIA H100 data sheet, SXM: FP32 67 (no TF32), dense 16-bit 989, FP8 and INT8 1979 T/s",
            ),
            link_bytes_per_s=Constant(450e9, "NVIDIA H100 data sheet: NVLink 900 GB/s both ways", 0.25),
            allreduce_latency_s=Constant(10e-6, "assumed, within 5-20 us over NVLink", 1.0),
            tdp_w=Constant(700.0, "NVIDIA H100 data sheet, SXM"),
            bare_idle_w=Constant(71.8, "about 72 W in public nvidia-smi logs without a context", 0.05),
            context_idle_w=Constant(
                120.0, "100-153 W seen with a model resident (arXiv 2605.23918; study notebook)", 0.22
            ),
            tail_w=Constant(120.0, _NO_TAIL),
            tail_s=Constant(0.0, _NO_TAIL),
            active_w=Constant(200.0, _BUSY_FIT, 0.10),
            memory_weight=Constant(0.33, _BUSY_FIT, 0.20),
            compute_weight=Constant(0.90, _BUSY_FIT, 0.08),
            compute_knee=Constant(0.14, _BUSY_FIT, 0.20),
            tgi_f16_flop_per_s=Constant(900e12, _TGI),
        ),
        _board(
            "h200-sxm",
            "NVIDIA H200",
            memory_bytes=Constant(143771 * MIB, "nvidia-smi total of the 141 GB board, 143771 MiB"),
            bandwidth_bytes_per_s=Constant(4.8e12, "NVIDIA H200 data sheet, SXM"),
            peak_flop_per_s=Constant(
                _peaks(67, 989, 1979, 1979),
                "NVIDIA H200 data sheet, SXM: FP32 67 (no TF32), dense 16-bit 989, FP8 and INT8 1979 T/s",
            ),
            link_bytes_per_s=Constant(450e9, "NVIDIA H200 data sheet: NVLink 900 GB/s both ways", 0.25),
            allreduce_latency_s=Constant(10e-6, "assumed, within 5-20 us over NVLink", 1.0),
            tdp_w=Constant(700.0, "NVIDIA H200 data sheet, SXM"),
            bare_idle_w=Constant(
                80.0, "SerialAlice's measurements; 73-78 W in public nvidia-smi logs without a context", 0.10
            ),
            context_idle_w=Constant(120.0, "119-120 W in public nvidia-smi logs; as the H100", 0.22),
            tail_w=Constant(120.0, _NO_TAIL),
            tail_s=Constant(0.0, _NO_TAIL),
            active_w=Constant(200.0, _AS_H100_H200, 0.15),
            memory_weight=Constant(0.33, _AS_H100_H200, 0.25),
            compute_weight=Constant(0.90, _AS_H100_H200, 0.10),
            tgi_f16_flop_per_s=Constant(989e12, _TGI),
        ),
        _board(
            "a100-sxm",
            "NVIDIA A100-SXM4-80GB",
            memory_bytes=Constant(81920 * MIB, "nvidia-smi total of the 80 GB SXM4 board, 81920 MiB"),
            bandwidth_bytes_per_s=Constant(2.039e12, "NVIDIA A100 data sheet, 80 GB SXM"),
            peak_flop_per_s=Constant(
                _peaks(19.5, 312, 624),
                "NVIDIA A100 data sheet, dense: FP32 19.5 (no TF32), 16-bit 312, INT8 624 TFLOP/s; no FP8",
            ),
            link_bytes_per_s=Constant(300e9, "NVIDIA A100 data sheet: NVLink 600 GB/s both ways", 0.25),
            allreduce_latency_s=Constant(10e-6, "assumed, within 5-20 us over NVLink", 1.0),
            tdp_w=Constant(400.0, "NVIDIA A100 data sheet, SXM"),
            bare_idle_w=Constant(55.0, "assumed, within 50-60 W", 0.10),
            context_idle_w=Constant(90.0, f"assumed: bare idle + 35 W {_CONTEXT_HBM}", 0.20),
            tail_w=Constant(90.0, _NO_TAIL),
            tail_s=Constant(0.0, _NO_TAIL),
            active_w=Constant(130.0, _SPLITWISE, 0.15),
            memory_weight=Constant(0.90, _SPLITWISE, 0.15),
            compute_weight=Constant(0.90, _SPLITWISE, 0.10),
            tgi_f16_flop_per_s=Constant(312e12, _TGI),
        ),
        _board(
            "l40s",
            "NVIDIA L40S",
            memory_bytes=Constant(46068 * MIB, "nvidia-smi total of the 48 GB board with ECC, 46068 MiB"),
            bandwidth_bytes_per_s=Constant(864e9, "NVIDIA L40S data sheet"),
            peak_flop_per_s=Constant(
                _peaks(91.6, 362.05, 733, 733),
                "NVIDIA L40S data sheet, dense: FP32 91.6, 16-bit 362.05, FP8 and INT8 733 TFLOP/s",
            ),
            link_bytes_per_s=Constant(31.5e9, _PCIE4, 0.30),
            allreduce_latency_s=Constant(30e-6, _PCIE_LATENCY, 1.0),
            tdp_w=Constant(350.0, "NVIDIA L40S data sheet"),
            bare_idle_w=Constant(30.0, "20-35 W in public nvidia-smi logs at P8", 0.30),
            context_idle_w=Constant(96.0, "bare idle + the 66 W a context adds (arXiv 2605.23918)", 0.20),
            tail_w=Constant(96.0, _STANDBY_IS_CONTEXT),
            tail_s=Constant(0.0, _STANDBY_IS_CONTEXT),
            active_w=Constant(130.0, "assumed: idle with a context + 10 % of the TDP", 0.20),
            memory_weight=Constant(0.67, _AS_4090, 0.30),
            tgi_f16_flop_per_s=Constant(363e12, _TGI),
        ),
        _board(
            "l4",
            "NVIDIA L4",
            memory_bytes=Constant(23034 * MIB, "nvidia-smi total of the 24 GB board with ECC, 23034 MiB"),
            bandwidth_bytes_per_s=Constant(300e9, "NVIDIA L4 data sheet"),
            peak_flop_per_s=Constant(
                _peaks(30.3, 121, 242.5, 242.5),
                "NVIDIA L4 data sheet, dense: FP32 30.3, 16-bit 121, FP8 and INT8 242.5 TFLOP/s",
            ),
            link_bytes_per_s=Constant(31.5e9, _PCIE4, 0.30),
            allreduce_latency_s=Constant(30e-6, _PCIE_LATENCY, 1.0),
            tdp_w=Constant(72.0, "NVIDIA L4 data sheet"),
            bare_idle_w=Constant(16.0, "10-17 W in public nvidia-smi logs at P8", 0.30),
            context_idle_w=Constant(
                28.0, "27-33 W in public nvidia-smi logs at P0, idle; 27 W with 20 GB loaded", 0.12
            ),
            tail_w=Constant(28.0, _STANDBY_IS_CONTEXT),
            tail_s=Constant(0.0, _STANDBY_IS_CONTEXT),
            active_w=Constant(33.0, "assumed with memory_weight: 40-45 W decoding one 8B sequence", 0.12),
            memory_weight=Constant(0.30, "assumed with active_w: 40-45 W decoding one 8B sequence", 0.30),
            tgi_f16_flop_per_s=Constant(121e12, _TGI),
        ),
        _board(
            "rtx-4090",
            "NVIDIA GeForce RTX 4090",
            memory_bytes=Constant(24564 * MIB, "nvidia-smi total of the 24 GB board, 24564 MiB"),
            bandwidth_bytes_per_s=Constant(1008e9, "NVIDIA Ada GPU architecture white paper"),
            peak_flop_per_s=Constant(
                _peaks(82.6, 165.2, 660.6, 330.3),
                "NVIDIA Ada GPU architecture white paper, dense with FP32 accumulation: "
                "FP32 82.6, 16-bit 165.2, FP8 330.3 TFLOP/s; INT8 660.6 TOP/s",
            ),
            link_bytes_per_s=Constant(31.5e9, f"{_PCIE4}; its driver allows no direct copies", 0.60),
            allreduce_latency_s=Constant(30e-6, _PCIE_LATENCY, 1.0),
            tdp_w=Constant(450.0, "NVIDIA GeForce RTX 4090 specification"),
            bare_idle_w=Constant(
                22.0, "19-36 W in public nvidia-smi logs at P8, boards with a display included", 0.40
            ),
            context_idle_w=Constant(50.0, "assumed, within 40-60 W", 0.22),
            tail_w=Constant(
                112.0, f"assumed: the same share of TDP - idle above idle, 21 %, as an {_STANDBY}", 0.30
            ),
            tail_s=Constant(18.0, f"assumed: {_STANDBY}", 0.50),
            active_w=Constant(150.0, "assumed with memory_weight: 250-350 W decoding one 8B sequence", 0.20),
            memory_weight=Constant(0.67, "assumed with active_w: 250-350 W decoding one 8B sequence", 0.25),
            tgi_f16_flop_per_s=Constant(
                None, "TGI v3 launcher (db931fc) knows nvidia-4090, which is not the name the driver gives"
            ),
        ),
    )
}
