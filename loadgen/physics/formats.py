"""Number formats: what a weight, an activation and a cached value take, and the units that multiply them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadgen.errors import ConfigError
from loadgen.physics.hardware import Gpu


@dataclass(frozen=True, slots=True)
class Dtype:
    """How a model is stored and multiplied. Sizes in bytes per element.

    ``weight_bytes``: one weight of a layer's matrices, its share of scales
    included. ``table_bytes``: embedding, LM head, norms and biases, which
    quantisation leaves alone. ``activation_bytes`` and ``kv_bytes``: what flows
    between kernels and what the cache holds.

    ``rate`` names the peak (``Gpu.peak_flop_per_s``) of the layers' products;
    a board without that unit computes them in ``math`` if
    ``falls_back``, and cannot run the format otherwise. ``math`` names the peak
    of attention and LM head.

    ``materialised``: every step of more than ``fused_rows`` rows first expands
    the weights to ``activation_bytes`` in memory and then reads those.
    ``outlier_share``: the share of input columns multiplied in ``math`` beside
    the low-precision product, their weights expanded likewise; finding them
    costs every product ``Efficiency.decomposition_s``. ``graphs``: whether
    decode steps can be captured as CUDA graphs.
    """

    name: str
    weight_bytes: float
    table_bytes: int
    activation_bytes: int
    kv_bytes: int
    rate: str
    math: str
    source: str
    falls_back: bool = False
    materialised: bool = False
    fused_rows: int = 0
    outlier_share: float = 0.0
    graphs: bool = True

    def rate_on(self, gpu: Gpu) -> str:
        """The peak that the layers' products run at on this board.

        Raises ConfigError when the board has neither the format's unit nor one
        to fall back on.
        """
        peaks = gpu.peak_flop_per_s
        if self.rate in peaks and self.math in peaks:
            return self.rate
        if self.falls_back and self.math in peaks:
            return self.math
        missing = self.rate if self.rate not in peaks and not self.falls_back else self.math
        able = [d.name for d in DTYPES.values() if _able(d, peaks)]
        raise ConfigError(
            f"dtype: {gpu.id} has no {missing} arithmetic, which {self.name} needs; "
            f"it can run {', '.join(able) or 'none of the known formats'}"
        )


def _able(dtype: Dtype, peaks: Mapping[str, float]) -> bool:
    return dtype.math in peaks and (dtype.rate in peaks or dtype.falls_back)


_BITSANDBYTES = (
    "bitsandbytes 4-bit: 64 weights share a 4-byte scale; expanded to 16 bits before each product, but for "
    "a single row, which matmul_4bit multiplies by them as they are"
)

DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", 4, 4, 4, 4, "float32", "float32", "IEEE binary32 on the CUDA cores, no TF32"),
        Dtype("bfloat16", 2, 2, 2, 2, "bfloat16", "bfloat16", "bfloat16 throughout"),
        Dtype("float16", 2, 2, 2, 2, "float16", "float16", "IEEE binary16 throughout"),
        Dtype(
            "fp8",
            1,
            2,
            2,
            2,
            "fp8",
            "bfloat16",
            "E4M3 weights and products, 16-bit activations and cache; without an FP8 unit only the weights",
            falls_back=True,
        ),
        Dtype(
            "int8",
            1,
            2,
            2,
            2,
            "int8",
            "float16",
            "LLM.int8() of bitsandbytes: 0.1 % of the feature columns in 16 bits (arXiv 2208.07339); "
            "TGI turns CUDA graphs off",
            outlier_share=0.001,
            graphs=False,
        ),
        Dtype(
            "int4",
            0.5 + 4 / 64,
            2,
            2,
            2,
            "bfloat16",
            "bfloat16",
            f"NF4, {_BITSANDBYTES}; TGI does not quantise the scales again (0.5 + 1/64 B if it did)",
            materialised=True,
            fused_rows=1,
            graphs=False,
        ),
        Dtype(
            "fp4",
            0.5 + 4 / 64,
            2,
            2,
            2,
            "bfloat16",
            "bfloat16",
            f"FP4, {_BITSANDBYTES}",
            materialised=True,
            fused_rows=1,
            graphs=False,
        ),
        Dtype(
            "awq",
            0.5 + 2.5 / 128,
            2,
            2,
            2,
            "float16",
            "float16",
            "128 weights share a 2-byte scale and a 4-bit zero; dequantised inside the product",
        ),
    )
}
