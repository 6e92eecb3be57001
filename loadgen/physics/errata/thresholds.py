"""The paper's appendix B: from how many tokens a block is compute bound; B10 to B13."""

from __future__ import annotations

from loadgen.physics import thresholds
from loadgen.physics.errata.erratum import Erratum, Figure
from loadgen.physics.thresholds import PrintedAccelerator, Row

SECTION = "Appendix B: compute-bound thresholds"

_ROWS: dict[str, Row] = {row.printed.name: row for row in thresholds.table()}


def entries() -> tuple[Erratum, ...]:
    """B10 to B13."""
    h100, l4 = _ROWS["NVIDIA H100 SXM"], _ROWS["NVIDIA L4"]
    return (
        Erratum(
            "B10",
            "paper",
            SECTION,
            "appendix B, 3.4",
            "attention is compute bound above 295 tokens, the MLP above 590",
            (
                Figure("attention, rightly counted", 295, h100.corrected.attention_tokens, "tokens"),
                Figure("MLP, rightly counted", 590, h100.corrected.mlp_tokens, "tokens"),
                Figure(
                    "attention by the printed rule", 295, h100.rule.attention_tokens, "tokens", role="beside"
                ),
                Figure("MLP by the printed rule", 590, h100.rule.mlp_tokens, "tokens", role="beside"),
                Figure(
                    "MLP, exact root of the printed intensity",
                    590,
                    h100.rule.mlp_root_tokens or float("nan"),
                    "tokens",
                    role="beside",
                ),
                Figure('"above 290" in the text', 290, h100.rule.attention_tokens, "tokens", fault="typo"),
            ),
            "wrong",
            "The bytes of attention lack a factor of 2 (it reads Q, K and V and writes O), the FLOP of the "
            "MLP another; the errors have opposite signs, so the order of the two turns around.",
        ),
        Erratum(
            "B11",
            "paper",
            SECTION,
            "Table 7, NVIDIA L4",
            "beta of 605 FLOP/byte, thresholds 605 and 1210",
            (
                *_checks(l4),
                Figure(
                    "beta at 0.2 TB/s",
                    l4.printed.beta_flop_per_byte,
                    l4.printed.peak_flop_per_s / 0.2e12,
                    "FLOP/byte",
                    role="cause",
                ),
            ),
            "typo",
            "121 TFLOP/s over 0.3 TB/s. 605 belongs to another bandwidth, or to the sparse rate over 0.4 "
            "TB/s.",
        ),
        Erratum(
            "B12",
            "paper",
            SECTION,
            "Table 7, peaks",
            'peaks of the RTX 4090 and of an "AMD M3250X"',
            tuple(
                Figure(
                    f"{name}, dense with 32-bit accumulation",
                    _ROWS[name].printed.peak_flop_per_s,
                    _ROWS[name].printed.dense_flop_per_s or float("nan"),
                    "FLOP/s",
                    source="vendor's figure",
                )
                for name in ("RTX 4090", "AMD M3250X")
            ),
            "inconsistent",
            "Other conventions than the other rows': accumulation in 16 bits, and sparsity. The AMD board "
            "is the MI325X.",
        ),
        Erratum(
            "B13",
            "paper",
            SECTION,
            "Table 7, other rows",
            "beta and thresholds by the printed rules",
            tuple(figure for name, row in _ROWS.items() if name != "NVIDIA L4" for figure in _checks(row)),
        ),
    )


def _checks(row: Row) -> tuple[Figure, ...]:
    """The printed row beside its own peak over bandwidth."""
    said: PrintedAccelerator = row.printed
    return (
        Figure(f"{said.name}, beta", said.beta_flop_per_byte, row.rule.beta_flop_per_byte, "FLOP/byte"),
        Figure(f"{said.name}, attention", said.attention_tokens, row.rule.attention_tokens, "tokens"),
        Figure(f"{said.name}, MLP", said.mlp_tokens, row.rule.mlp_tokens, "tokens"),
    )
