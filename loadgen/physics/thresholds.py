"""From how many tokens on a block of a diffusion transformer is bound by arithmetic, by accelerator.

The text-to-video study's Appendix B and Table 7. Its two rules each lose a factor
of 2, in opposite directions: bytes of the attention (it reads Q, K and V and writes
O: 4 l d values, not 2) and FLOP of the MLP's products (2 each, not 1). Rightly
counted the attention is the later of the two, not the earlier.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from loadgen.errors import ConfigError
from loadgen.types import Floats

SCALAR_BYTES = 2.0
HIDDEN = 2048
EXPANSION = 4.0


class PrintedAccelerator(NamedTuple):
    """A row of Table 7: 16-bit peak, bandwidth, their ratio beta and the two thresholds as printed.

    ``dense_flop_per_s`` is the peak where the printed one is of another
    convention than the other rows'; ``note`` what is wrong with the row.
    """

    name: str
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float
    beta_flop_per_byte: float
    attention_tokens: float
    mlp_tokens: float
    dense_flop_per_s: float | None = None
    note: str = ""


TABLE: tuple[PrintedAccelerator, ...] = (
    PrintedAccelerator("NVIDIA H100 SXM", 989e12, 3.35e12, 295, 295, 590),
    PrintedAccelerator("NVIDIA A100 SXM", 312e12, 2.0e12, 156, 156, 312),
    PrintedAccelerator(
        "RTX 4090",
        330e12,
        1.0e12,
        330,
        330,
        660,
        165.2e12,
        "330 TFLOP/s accumulates in 16 bits; in 32 bits, as the other rows do, it is 165.2",
    ),
    PrintedAccelerator(
        "NVIDIA L4",
        121e12,
        0.3e12,
        605,
        605,
        1210,
        note="121 / 0.3 is 403 FLOP/byte; 605 is 121 / 0.2, or the sparse 242 / 0.4",
    ),
    PrintedAccelerator("TPU v6", 918e12, 1.6e12, 574, 574, 1148),
    PrintedAccelerator(
        "AMD M3250X",
        2500e12,
        6.0e12,
        417,
        417,
        834,
        1307e12,
        "the MI325X; 2500 TFLOP/s is with sparsity, dense it is about 1307",
    ),
    PrintedAccelerator("Intel Gaudi3", 1678e12, 3.7e12, 453, 453, 906),
)
"""Table 7 of the study, its name of the AMD board included."""


def printed_attention_tokens(beta: npt.ArrayLike, *, scalar_bytes: float = SCALAR_BYTES) -> Floats:
    """The study's rule for attention, ``s beta / 2``."""
    return np.asarray(scalar_bytes * _checked(beta) / 2, float)


def printed_mlp_tokens(beta: npt.ArrayLike, *, scalar_bytes: float = SCALAR_BYTES) -> Floats:
    """The study's rule for the MLP, ``s beta``."""
    return np.asarray(scalar_bytes * _checked(beta), float)


def attention_tokens(beta: npt.ArrayLike, *, scalar_bytes: float = SCALAR_BYTES) -> Floats:
    """``s beta``: ``4 l^2 d`` FLOP over ``4 l d s`` bytes, Q, K and V read and O written."""
    return np.asarray(scalar_bytes * _checked(beta), float)


def mlp_tokens(
    beta: npt.ArrayLike,
    *,
    scalar_bytes: float = SCALAR_BYTES,
    hidden: float = HIDDEN,
    expansion: float = EXPANSION,
    flop_per_product: float = 2.0,
) -> Floats:
    """The root l of ``k f l d^2 = beta s (f d^2 + (1 + f) l d)``, k = ``flop_per_product``.

    ``beta s f d / (k f d - beta s (1 + f))`` tokens for one product of d by f d;
    infinite where activations alone keep the memory busy. k = 1 is the exact root of
    the intensity that the study prints, which its rule ``s beta`` approximates.
    """
    traffic = scalar_bytes * _checked(beta)
    slope = flop_per_product * expansion * hidden - traffic * (1 + expansion)
    with np.errstate(divide="ignore"):
        return np.asarray(
            np.where(slope > 0, traffic * expansion * hidden / np.maximum(slope, 0), np.inf), float
        )


class Thresholds(NamedTuple):
    """Tokens from which attention and one product of the MLP are bound by arithmetic, at beta FLOP/byte.

    ``mlp_root_tokens`` is the exact root of the study's intensity; only its printed rules have one.
    """

    beta_flop_per_byte: float
    attention_tokens: float
    mlp_tokens: float
    mlp_root_tokens: float | None = None


class Row(NamedTuple):
    """An accelerator as printed, by the study's rules at peak / bandwidth, rightly counted, so at ``dense``.

    ``dense`` is None where the printed peak already is the dense one.
    """

    printed: PrintedAccelerator
    rule: Thresholds
    corrected: Thresholds
    dense: Thresholds | None


def table() -> list[Row]:
    """Table 7, recomputed and corrected, with the study's d = 2048, f = 4 and 2 bytes a value."""
    return [
        Row(
            printed,
            by_rule(printed.peak_flop_per_s / printed.bandwidth_bytes_per_s),
            corrected(printed.peak_flop_per_s / printed.bandwidth_bytes_per_s),
            None
            if printed.dense_flop_per_s is None
            else corrected(printed.dense_flop_per_s / printed.bandwidth_bytes_per_s),
        )
        for printed in TABLE
    ]


def by_rule(beta: float) -> Thresholds:
    """The study's rules at this beta."""
    return Thresholds(
        beta,
        float(printed_attention_tokens(beta)),
        float(printed_mlp_tokens(beta)),
        float(mlp_tokens(beta, flop_per_product=1.0)),
    )


def corrected(beta: float) -> Thresholds:
    """The thresholds rightly counted at this beta."""
    return Thresholds(beta, float(attention_tokens(beta)), float(mlp_tokens(beta)))


def _checked(beta: npt.ArrayLike) -> Floats:
    values = np.asarray(beta, float)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ConfigError("beta: expected FLOP/s over bytes/s > 0")
    return values
