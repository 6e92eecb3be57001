"""The boards' constants, their published power anchors, and random boards."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest

from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import MODELS, transformer_from
from loadgen.physics.power import busy_power_w
from loadgen.physics.transformer import StepModel
from loadgen.physics.uncertainty import draw

BF16 = DTYPES["bfloat16"]
LLAMA = MODELS["llama-3.1-8b"]
EACH_BOARD = pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda g: g.id)
DRAWS = 1500


def in_order(gpu: Gpu) -> bool:
    levels = [0.0, gpu.bare_idle_w, gpu.context_idle_w, gpu.tail_w, gpu.active_w, gpu.tdp_w]
    return levels == sorted(levels)


@cache
def draws(gpu_id: str) -> list[tuple[Gpu, Efficiency]]:
    rng = np.random.default_rng(7)
    return [draw(GPUS[gpu_id], Efficiency(), rng) for _ in range(DRAWS)]


def test_the_boards_are_those_listed() -> None:
    assert list(GPUS) == ["h100-sxm", "h200-sxm", "a100-sxm", "l40s", "l4", "rtx-4090"]


@EACH_BOARD
def test_every_constant_has_a_source_and_an_uncertainty(gpu: Gpu) -> None:
    constants = {f.name for f in fields(gpu)} - {"id", "name", "sources", "uncertainty"}
    assert set(gpu.sources) == set(gpu.uncertainty) == constants
    assert all(len(source) > 10 for source in gpu.sources.values())
    assert all(0 <= r <= 1 for r in gpu.uncertainty.values())
    # What was assumed is not claimed to be exact, unless the assumption is that there is none of it.
    for name, source in gpu.sources.items():
        if source.startswith("assumed") and not source.startswith("assumed none"):
            assert gpu.uncertainty[name] > 0, name
    assert in_order(gpu)


def test_every_efficiency_has_a_source_and_an_uncertainty() -> None:
    efficiency = Efficiency()
    constants = {f.name for f in fields(efficiency)} - {"sources", "uncertainty"}
    assert set(efficiency.sources) == set(efficiency.uncertainty) == constants


@EACH_BOARD
def test_every_format_runs_on_every_board(gpu: Gpu) -> None:
    for dtype in DTYPES.values():
        assert gpu.peak_flop_per_s[dtype.rate_on(gpu)] > 0


@pytest.mark.parametrize(
    ("gpu", "tokens"),
    [("h100-sxm", 59_870), ("h200-sxm", 65_791), ("a100-sxm", 20_755), ("l40s", 24_147), ("l4", 8_049)],
)
def test_prefill_budgets_that_tgi_derives_for_llama_8b(gpu: str, tokens: int) -> None:
    # FLOP per token as TGI counts them, by hand: QO 2 x 4096^2 x 3, KV 4 x 1024 x 4096, MLP 6 x 4096 x 14336.
    per_token = 32 * (6 * 4096**2 + 4 * 1024 * 4096 + 6 * 4096 * 14336)
    rate = GPUS[gpu].tgi_f16_flop_per_s
    assert rate is not None
    assert int(rate / per_token) == tokens


def test_tgi_does_not_know_the_name_an_rtx_4090_reports() -> None:
    assert GPUS["rtx-4090"].name == "NVIDIA GeForce RTX 4090"
    assert GPUS["rtx-4090"].tgi_f16_flop_per_s is None


@pytest.mark.parametrize(
    ("weights", "boards", "step_ms", "share_of_tdp", "tolerance"),
    [
        (69e9, 2, 54.86, 0.736, 0.05),
        (69e9, 4, 44.9, 0.599, 0.06),  # not used in the fit
        (69e9, 8, 44.9, 0.435, 0.05),
        (176e9, 8, 48.8, 0.635, 0.06),  # not used in the fit
    ],
    ids=["llama2-70b-tp2", "llama2-70b-tp4", "llama2-70b-tp8", "bloom-176b-tp8"],
)
def test_a100_decode_power_at_the_measured_step_times(
    weights: float, boards: int, step_ms: float, share_of_tdp: float, tolerance: float
) -> None:
    # splitwise-sim perf_model.csv, batch 1, 512 tokens in, 128 out: token_time and average_power.
    a100 = GPUS["a100-sxm"]
    held, step_s = weights / boards, step_ms / 1e3
    power_w = busy_power_w(a100, 2 * held / step_s / 2.039e12, 2 * held / step_s / 312e12)
    assert power_w == pytest.approx(share_of_tdp * 400, rel=tolerance)


def test_h200_power_of_a_3_8b_model() -> None:
    # SerialAlice: 517 W decoding 128 sequences, 593-662 W in prefill. Length not given: 512 tokens here.
    phi = transformer_from(
        {
            "model_type": "phi3",
            "num_hidden_layers": 32,
            "hidden_size": 3072,
            "num_attention_heads": 32,
            "intermediate_size": 8192,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
        "phi-3-mini",
        "microsoft/Phi-3-mini-4k-instruct",
        "here",
    )
    graphs = Efficiency(graph_max_rows=256)
    model = StepModel(phi, GPUS["h200-sxm"], BF16, efficiency=graphs)
    decode = model.step(decode_rows=128, decode_context_tokens=128 * 512, emitting_rows=128)
    assert decode.power_w == pytest.approx(517, rel=0.03)
    prefill = model.step(prefill_tokens=2048, prefill_pairs=2048 * 2049 // 2, prefill_span_tokens=2048)
    assert 593 < prefill.power_w < 662


@pytest.mark.parametrize(
    ("gpu", "low_w", "high_w"), [("l4", 40, 45), ("rtx-4090", 250, 350), ("l40s", 200, 280)]
)
def test_small_boards_between_one_sequence_and_prefill(gpu: str, low_w: float, high_w: float) -> None:
    board = GPUS[gpu]
    model = StepModel(LLAMA, board, BF16)
    one = model.step(decode_rows=1, decode_context_tokens=900, emitting_rows=1)
    assert low_w < one.power_w < high_w
    prefill = model.step(prefill_tokens=1300, prefill_pairs=845_650, prefill_span_tokens=1300)
    assert prefill.power_w == pytest.approx(board.tdp_w, rel=0.01)


@EACH_BOARD
def test_a_drawn_board_is_self_consistent(gpu: Gpu) -> None:
    for drawn, efficiency in draws(gpu.id):
        assert in_order(drawn)
        assert 0 < efficiency.compute < 1
        assert 0 < efficiency.bandwidth < 1
        assert efficiency.graph_overhead_s < efficiency.eager_overhead_s
        assert (drawn.id, drawn.name, drawn.sources) == (gpu.id, gpu.name, gpu.sources)


@EACH_BOARD
def test_draws_centre_on_the_nominal_and_spread_as_stated(gpu: Gpu) -> None:
    nominal: list[Gpu | Efficiency] = [gpu, Efficiency()]
    for part, constants in enumerate(nominal):
        for name, relative in constants.uncertainty.items():
            value = getattr(constants, name)
            drawn = [getattr(pair[part], name) for pair in draws(gpu.id)]
            if relative == 0 and name != "tail_w":
                assert all(one == value for one in drawn), name
                continue
            if name == "tail_w":
                continue
            # Median: its standard error in ranks is sqrt(n)/2, so 4 errors are 77 of 1500 ranks.
            below = sum(one < value for one in drawn)
            assert abs(below - DRAWS / 2) < 4 * DRAWS**0.5 / 2, name
            inside = sum(value / (1 + relative) <= one <= value * (1 + relative) for one in drawn)
            assert abs(inside - 0.95 * DRAWS) < 4 * (DRAWS * 0.95 * 0.05) ** 0.5, name


def test_a_tail_moves_with_the_level_it_decays_to() -> None:
    assert all(drawn.tail_w == drawn.context_idle_w for drawn, _ in draws("h100-sxm"))
    rises = [drawn.tail_w - drawn.context_idle_w for drawn, _ in draws("rtx-4090")]
    assert np.median(rises) == pytest.approx(112 - 50, rel=0.03)
    assert min(rises) > 0


def test_a_draw_repeats_and_takes_the_same_deviates_from_any_board() -> None:
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert draw(GPUS["h100-sxm"], Efficiency(), one) == draw(GPUS["h100-sxm"], Efficiency(), other)
    exact = replace(GPUS["l4"], uncertainty=dict.fromkeys(GPUS["l4"].uncertainty, 0.0))
    draw(GPUS["rtx-4090"], Efficiency(), one)
    drawn, _ = draw(exact, Efficiency(), other)
    assert drawn == exact
    assert one.random() == other.random()


def test_a_board_of_certain_constants_keeps_the_order_that_a_wild_draw_would_break() -> None:
    gpu = GPUS["h100-sxm"]
    wild = replace(gpu, uncertainty={name: 3.0 if name.endswith("_w") else 0.0 for name in gpu.uncertainty})
    rng = np.random.default_rng(11)
    drawn = [draw(wild, Efficiency(), rng)[0] for _ in range(300)]
    assert all(map(in_order, drawn))
    assert any(one.active_w == one.tdp_w for one in drawn)
    assert any(one.context_idle_w == one.active_w for one in drawn)
    assert any(one.bare_idle_w == one.context_idle_w for one in drawn)


def test_an_envelope_of_energy_contains_the_nominal_and_is_not_narrow() -> None:
    def joules(gpu: Gpu, efficiency: Efficiency) -> float:
        step = StepModel(LLAMA, gpu, BF16, efficiency=efficiency).step(
            decode_rows=8, decode_context_tokens=8 * 1400, emitting_rows=8
        )
        return step.duration_s * step.power_w / 8

    energies = [joules(*pair) for pair in draws("h100-sxm")]
    low, high = np.percentile(energies, [2.5, 97.5])
    nominal = joules(GPUS["h100-sxm"], Efficiency())
    assert low < nominal < high
    # Step time is known to about 7 %, its power to about 10 %.
    assert 1.15 < high / low < 1.5
