"""Table 7 of the text-to-video study: as printed, by its rules, rightly counted."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.thresholds import (
    TABLE,
    attention_tokens,
    mlp_tokens,
    printed_attention_tokens,
    printed_mlp_tokens,
    table,
)
from loadgen.verbs.theory_video import thresholds_object

H100 = 989e12 / 3.35e12
ROWS = {row.printed.name: row for row in table()}


def test_the_h100_by_the_printed_rules_and_rightly_counted() -> None:
    assert round(float(printed_attention_tokens(H100))) == 295
    assert round(float(printed_mlp_tokens(H100))) == 590
    assert round(float(attention_tokens(H100))) == 590
    assert round(float(mlp_tokens(H100))) == 360
    assert round(float(mlp_tokens(H100, hidden=1e12))) == 295
    assert round(float(mlp_tokens(H100, flop_per_product=1))) == 923


def test_the_two_slips_turn_the_order_of_the_thresholds() -> None:
    for row in ROWS.values():
        assert row.rule.attention_tokens < row.rule.mlp_tokens
        assert row.corrected.attention_tokens > row.corrected.mlp_tokens


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("NVIDIA H100 SXM", 295.2),
        ("NVIDIA A100 SXM", 156),
        ("RTX 4090", 330),
        ("TPU v6", 573.75),
        ("AMD M3250X", 416.7),
        ("Intel Gaudi3", 453.5),
    ],
)
def test_the_ratios_that_reproduce(name: str, beta: float) -> None:
    row = ROWS[name]
    assert row.rule.beta_flop_per_byte == pytest.approx(beta, abs=0.05)
    printed = row.printed
    assert row.rule.beta_flop_per_byte == pytest.approx(printed.beta_flop_per_byte, abs=0.55)
    assert row.rule.attention_tokens == pytest.approx(printed.attention_tokens, abs=0.55)
    assert row.rule.mlp_tokens == pytest.approx(printed.mlp_tokens, abs=1.1)


def test_the_l4_is_a_slip_of_the_division() -> None:
    row = ROWS["NVIDIA L4"]
    assert (row.printed.attention_tokens, row.printed.mlp_tokens) == (605, 1210)
    found = (row.rule.beta_flop_per_byte, row.rule.attention_tokens, row.rule.mlp_tokens)
    assert [round(x) for x in found] == [403, 403, 807]
    assert 121 / 0.2 == pytest.approx(242 / 0.4) == pytest.approx(605)


def test_peaks_of_another_convention_are_given_dense_too() -> None:
    dense = {name: row for name, row in ROWS.items() if row.dense is not None}
    assert set(dense) == {"RTX 4090", "AMD M3250X"}
    peak = GPUS["rtx-4090"].peak_flop_per_s["bfloat16"]
    assert dense["RTX 4090"].printed.dense_flop_per_s == peak
    for row in dense.values():
        assert row.dense is not None and row.printed.dense_flop_per_s is not None
        share = row.printed.dense_flop_per_s / row.printed.peak_flop_per_s
        assert row.dense.attention_tokens == pytest.approx(share * row.corrected.attention_tokens)
        assert row.dense.mlp_tokens < row.corrected.mlp_tokens


def test_at_the_threshold_arithmetic_and_traffic_take_equally_long() -> None:
    d, f, s = 2048, 4, 2
    for beta in np.geomspace(10, 700, 7):
        tokens = float(attention_tokens(beta))
        queries_keys_values_and_output = 4 * tokens * d * s
        assert 4 * tokens**2 * d == pytest.approx(beta * queries_keys_values_and_output)
        tokens = float(mlp_tokens(beta))
        weights, rows_in, rows_out = d * f * d, tokens * d, tokens * f * d
        assert 2 * tokens * d * f * d == pytest.approx(beta * s * (weights + rows_in + rows_out))


def test_a_narrow_product_is_never_bound_by_arithmetic() -> None:
    # Without its weights d x f d moves (1 + f) values a row for 2 f d FLOP.
    # That is enough only for d above beta s (1 + f) / 2f.
    least = H100 * 2 * 5 / 8
    assert float(mlp_tokens(H100, hidden=0.999 * least)) == inf
    assert float(mlp_tokens(H100, hidden=1.001 * least)) > 1e5


def test_thresholds_take_arrays_and_refuse_nonsense() -> None:
    assert mlp_tokens(np.array([100.0, 295.0])).shape == (2,)
    for beta in (0, -1, np.nan, inf):
        with pytest.raises(ConfigError, match="beta: expected"):
            attention_tokens(beta)


def test_the_object_of_the_command() -> None:
    found = thresholds_object()
    rows = found["accelerators"]
    assert [row["name"] for row in rows] == [row.name for row in TABLE]
    h100 = rows[0]
    assert h100["printed"] == {"beta_flop_per_byte": 295, "attention_tokens": 295, "mlp_tokens": 590}
    assert round(h100["corrected"]["attention_tokens"]) == 590
    assert round(h100["corrected"]["mlp_tokens"]) == 360
    assert round(h100["rule"]["mlp_root_tokens"]) == 923
    assert {row["name"] for row in rows if row["note"]} == {"RTX 4090", "NVIDIA L4", "AMD M3250X"}
