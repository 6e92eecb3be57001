"""Shapes, roofline and power against published figures, bounds and limits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import MODELS
from loadgen.physics.power import busy_power_w
from loadgen.physics.transformer import StepCost, StepModel

LLAMA = MODELS["llama-3.1-8b"]
H100 = GPUS["h100-sxm"]
A100 = GPUS["a100-sxm"]
BF16 = DTYPES["bfloat16"]
FP32 = DTYPES["float32"]
# Matrix weights that a decode step streams: all parameters but the input embedding and the norms.
STREAMED = 8_030_261_248 - 128256 * 4096 - (2 * 32 + 1) * 4096


def decode(model: StepModel, batch: int, context: int) -> StepCost:
    return model.step(decode_rows=batch, decode_context_tokens=batch * context, emitting_rows=batch)


def prefill(model: StepModel, tokens: int) -> StepCost:
    return model.step(
        prefill_tokens=tokens,
        prefill_pairs=tokens * (tokens + 1) // 2,
        prefill_span_tokens=tokens,
        emitting_rows=1,
    )


def test_llama_has_the_size_of_the_published_checkpoint() -> None:
    # "total_size" of the hub's model.safetensors.index.json is 16,060,522,496 bytes.
    assert LLAMA.weights_bytes(BF16) == 16_060_522_496
    assert LLAMA.kv_token_bytes(BF16) == 128 * 1024
    assert LLAMA.kv_token_bytes(FP32) == 256 * 1024


def test_decode_of_one_streams_the_weights() -> None:
    model = StepModel(LLAMA, H100, BF16)
    floor_s = 2.5e-3 + 2 * STREAMED / (0.80 * 3.35e12)
    assert decode(model, 1, 1).duration_s == pytest.approx(floor_s, rel=2e-3)
    # 1000 tokens of context are 1000 x 128 KiB more to read.
    further_s = decode(model, 1, 1001).duration_s - decode(model, 1, 1).duration_s
    assert further_s == pytest.approx(1000 * 131072 / (0.80 * 3.35e12), rel=1e-9)


def test_a_long_prefill_computes_two_flop_per_weight_and_token() -> None:
    model = StepModel(LLAMA, H100, BF16)
    matrices = STREAMED - 128256 * 4096
    slope_s = (prefill(model, 1400).duration_s - prefill(model, 1200).duration_s) / 200
    attention_s = 4 * 4096 * 32 * 1300 / (0.55 * 989e12)
    assert slope_s == pytest.approx(2 * matrices / (0.55 * 989e12) + attention_s, rel=1e-3)


def test_splitting_a_prefill_conserves_flop() -> None:
    model = StepModel(LLAMA, H100, BF16)
    whole = prefill(model, 3000)
    first = model.step(prefill_tokens=1000, prefill_pairs=500_500, prefill_span_tokens=1000)
    rest = model.step(
        prefill_tokens=2000,
        prefill_pairs=2000 * 1000 + 2_001_000,
        prefill_span_tokens=3000,
        emitting_rows=1,
    )
    assert first.flop + rest.flop == pytest.approx(whole.flop, rel=1e-12)
    assert first.traffic_bytes + rest.traffic_bytes > whole.traffic_bytes


def test_graph_limit_adds_the_launch_overhead() -> None:
    model = StepModel(LLAMA, H100, BF16)
    jump_s = decode(model, 33, 500).duration_s - decode(model, 32, 500).duration_s
    assert 5.5e-3 < jump_s < 5.8e-3


@pytest.mark.parametrize(("batch", "watts"), [(1, 298), (8, 338), (16, 377), (32, 440)])
def test_h100_decode_power_of_a_published_fit(batch: int, watts: float) -> None:
    assert decode(StepModel(LLAMA, H100, BF16), batch, 900).power_w == pytest.approx(watts, rel=0.01)


@pytest.mark.parametrize(("batch", "watts"), [(64, 524), (128, 611)])
def test_h100_large_batch_power_was_fitted_without_launch_overhead(batch: int, watts: float) -> None:
    # The anchors are engines whose graphs reach those batches; ours then adds 5.5 ms and draws less.
    graphs = StepModel(LLAMA, H100, BF16, efficiency=Efficiency(graph_max_rows=256))
    assert decode(graphs, batch, 600).power_w == pytest.approx(watts, rel=0.015)
    assert decode(StepModel(LLAMA, H100, BF16), batch, 600).power_w < watts


@pytest.mark.parametrize("tokens", [1000, 1300, 2048, 4096])
def test_h100_prefill_power(tokens: int) -> None:
    # Published 634-684 W; the fit's own range is 658-674 W.
    assert 0.985 * 658 < prefill(StepModel(LLAMA, H100, BF16), tokens).power_w < 674


def test_fp32_power_at_the_measured_step_time() -> None:
    # transformers in FP32: 26.1 ms a token, 293 W recorded; not used in the fit.
    step_s = 26.1e-3
    power_w = busy_power_w(
        H100, 4 * STREAMED / step_s / 3.35e12, 2 * STREAMED / step_s / H100.peak_flop_per_s["float32"]
    )
    assert power_w == pytest.approx(289, rel=0.02)


@settings(deadline=None)
@given(
    prefill_tokens=st.integers(0, 60_000),
    chunk_start=st.integers(0, 60_000),
    batch=st.integers(0, 300),
    context=st.integers(0, 100_000),
    gpu=st.sampled_from(list(GPUS.values())),
    dtype=st.sampled_from([BF16, FP32]),
)
def test_any_step_lies_between_perfect_overlap_and_none(
    prefill_tokens: int, chunk_start: int, batch: int, context: int, gpu: Gpu, dtype: Dtype
) -> None:
    if prefill_tokens + batch == 0:
        return
    model = StepModel(LLAMA, gpu, dtype)
    cost = model.step(
        prefill_tokens=prefill_tokens,
        prefill_pairs=prefill_tokens * chunk_start + prefill_tokens * (prefill_tokens + 1) // 2,
        prefill_span_tokens=(chunk_start + prefill_tokens) if prefill_tokens else 0,
        decode_rows=batch,
        decode_context_tokens=batch * context,
        emitting_rows=batch,
    )
    arithmetic_s = cost.flop / (0.55 * gpu.peak_flop_per_s[dtype.name])
    memory_s = cost.traffic_bytes / (0.80 * gpu.bandwidth_bytes_per_s)
    overhead_s = 2.5e-3 if prefill_tokens == 0 and batch <= 32 else 8e-3
    kernels_s = cost.duration_s - overhead_s
    assert kernels_s >= max(arithmetic_s, memory_s) * (1 - 1e-9)
    assert kernels_s <= (arithmetic_s + memory_s) * (1 + 1e-9)
    assert gpu.active_w <= cost.power_w <= gpu.tdp_w


def test_time_has_no_jump_where_gemms_turn_compute_bound() -> None:
    # The shortcut for all-memory and all-compute steps must meet the general sum.
    model = StepModel(LLAMA, H100, BF16)
    times = [model.step(prefill_tokens=n).duration_s for n in range(100, 600)]
    steps = [b - a for a, b in pairwise(times)]
    assert min(steps) > 0
    assert max(steps) < 2 * 6.98e9 / (0.55 * 989e12) * 1.01
    assert all(b >= a - 1e-12 for a, b in pairwise(steps))  # a sum of maxima is convex


def test_power_saturates_at_tdp() -> None:
    assert busy_power_w(A100, 1.0, 1.0) == A100.tdp_w
    assert busy_power_w(H100, 0.0, 0.0) == H100.active_w
    assert busy_power_w(replace(H100, tdp_w=500.0), 1.0, 1.0) == 500.0
