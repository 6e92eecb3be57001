"""Decode lines, tensor parallelism and experts: what one step costs beyond one dense board."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES, Dtype
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import MODELS, Transformer, transformer_from
from loadgen.physics.transformer import StepCost, StepModel

BF16 = DTYPES["bfloat16"]
H100 = GPUS["h100-sxm"]
SMALL, LARGE = MODELS["llama-3.1-8b"], MODELS["llama-3.1-70b"]
MIXTRAL = transformer_from(
    {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "mixtral-8x7b",
    "mistralai/Mixtral-8x7B-v0.1",
    "its config.json",
)


def decode(model: StepModel, rows: int, context_tokens: int) -> StepCost:
    return model.step(decode_rows=rows, decode_context_tokens=context_tokens, emitting_rows=rows)


def prefill(model: StepModel, tokens: int) -> StepCost:
    return model.step(
        prefill_tokens=tokens,
        prefill_pairs=tokens * (tokens + 1) // 2,
        prefill_span_tokens=tokens,
        emitting_rows=1,
    )


@settings(deadline=None, max_examples=200)
@given(
    model=st.sampled_from([*MODELS.values(), MIXTRAL]),
    gpu=st.sampled_from(list(GPUS.values())),
    dtype=st.sampled_from(list(DTYPES.values())),
    shards=st.sampled_from([1, 2, 4]),
    rows=st.integers(1, 300),
    context_tokens=st.integers(0, 2_000_000),
)
def test_a_decode_line_is_what_stepping_gives(
    model: Transformer, gpu: Gpu, dtype: Dtype, shards: int, rows: int, context_tokens: int
) -> None:
    if model.heads % shards:
        return
    costs = StepModel(model, gpu, dtype, shards=shards)
    line = costs.decode_line(rows)
    assert line is not None
    stepped = decode(costs, rows, context_tokens)
    duration_s = line.base_s + line.slope_s * context_tokens
    flop = line.flop + line.flop_slope * context_tokens
    traffic_bytes = line.traffic_bytes + line.traffic_slope * context_tokens
    assert duration_s == pytest.approx(stepped.duration_s, rel=1e-12)
    assert flop == pytest.approx(stepped.flop, rel=1e-12)
    assert traffic_bytes == pytest.approx(stepped.traffic_bytes, rel=1e-12)
    assert costs.power_w(duration_s, flop, traffic_bytes) == pytest.approx(stepped.power_w, rel=1e-12)


def test_a_decode_line_is_kept() -> None:
    costs = StepModel(SMALL, H100, BF16)
    assert costs.decode_line(7) is costs.decode_line(7)
    assert costs.decode_line(8) != costs.decode_line(7)


def test_there_is_no_line_where_attention_turns_compute_bound_with_context() -> None:
    # One KV head for 64 queries on a slow FP32 unit: 4 x 64 x 128 FLOP a token against 2 x 128 x 4 bytes.
    wide = replace(SMALL, heads=64, kv_heads=1)
    slow = replace(H100, peak_flop_per_s={"float32": 10e12})
    costs = StepModel(wide, slow, DTYPES["float32"])
    assert costs.decode_line(4) is None
    # Its time is convex in the context, and not a line.
    times = [decode(costs, 4, c).duration_s for c in (0, 4, 8, 12, 4000, 8000)]
    slopes = [(b - a) / step for (a, b), step in zip(pairwise(times), (4, 4, 4, 3988, 4000), strict=True)]
    assert slopes[-1] == pytest.approx(4 * 64 * 128 * 32 / (0.55 * 10e12), rel=1e-6)
    assert slopes[0] < slopes[-1]
    # So slow that even without context arithmetic decides: a line again, of the other kind.
    slower = StepModel(wide, replace(H100, peak_flop_per_s={"float32": 1e9}), DTYPES["float32"])
    line = slower.decode_line(4)
    assert line is not None
    assert line.base_s + 1000 * line.slope_s == pytest.approx(decode(slower, 4, 1000).duration_s, rel=1e-12)


def test_two_boards_exchange_two_all_reduces_a_layer_and_the_logits() -> None:
    deaf = replace(H100, link_bytes_per_s=float("inf"), allreduce_latency_s=0.0)
    for rows in (1, 64):
        talking = decode(StepModel(LARGE, H100, BF16, shards=2), rows, 500 * rows)
        silent = decode(StepModel(LARGE, deaf, BF16, shards=2), rows, 500 * rows)
        # 160 all-reduces of rows of 8192 16-bit values: a ring of 2 sends 2 x 1/2; and half the logits.
        exchanged_s = 160 * (rows * 8192 * 2 / 450e9 + 10e-6)
        gathered_s = rows * 128256 * 2 / 2 / 450e9 + 10e-6
        assert talking.duration_s - silent.duration_s == pytest.approx(exchanged_s + gathered_s, rel=1e-6)
        assert (talking.flop, talking.traffic_bytes) == (silent.flop, silent.traffic_bytes)
        assert talking.power_w < silent.power_w


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_the_boards_share_the_arithmetic_equally(shards: int) -> None:
    whole, part = StepModel(LARGE, H100, BF16), StepModel(LARGE, H100, BF16, shards=shards)
    for mine, all_of_it in (
        (decode(part, 8, 8000), decode(whole, 8, 8000)),
        (prefill(part, 1500), prefill(whole, 1500)),
    ):
        assert shards * mine.flop == pytest.approx(all_of_it.flop, rel=1e-12)
        # Every board reads the whole of the shared activations, and only its part of the weights.
        assert shards * mine.traffic_bytes > all_of_it.traffic_bytes
    assert shards * decode(part, 1, 1).traffic_bytes == pytest.approx(
        decode(whole, 1, 1).traffic_bytes, rel=2e-3
    )


def test_more_boards_than_kv_heads_repeat_a_head() -> None:
    # 16 boards, 8 KV heads: each holds one head of 128, as with 8 boards.
    on_8, on_16 = (StepModel(LARGE, H100, BF16, shards=p) for p in (8, 16))
    per_token = 2 * 80 * 128 * 2
    for costs in (on_8, on_16):
        line = costs.decode_line(4)
        assert line is not None
        assert line.traffic_slope == per_token
        assert costs.model.kv_token_bytes_per_shard(BF16, costs.shards) == per_token


def test_more_boards_are_faster_but_not_in_proportion() -> None:
    costs = [StepModel(LARGE, H100, BF16, shards=p) for p in (1, 2, 4, 8)]
    for times in (
        [decode(c, 16, 16_000).duration_s for c in costs],
        [prefill(c, 2000).duration_s for c in costs],
    ):
        assert all(b < a < 2 * b for a, b in pairwise(times))


def test_published_power_of_70b_in_fp8_on_four_h100() -> None:
    # A public gist: 480 W a board at 64 sequences, 520 W at 128. Engine with graphs up to there.
    costs = StepModel(LARGE, H100, DTYPES["fp8"], shards=4)
    graphs = StepModel(
        LARGE, H100, DTYPES["fp8"], shards=4, efficiency=replace(costs.efficiency, graph_max_rows=256)
    )
    for rows, watts in ((64, 480), (128, 520)):
        assert decode(graphs, rows, 1000 * rows).power_w == pytest.approx(watts, rel=0.12)


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_shard: qwen2\.5-0\.5b has 14 heads"):
        StepModel(MODELS["qwen2.5-0.5b"], H100, BF16, shards=4)


def test_one_row_reads_two_experts_and_many_rows_read_all() -> None:
    costs = StepModel(MIXTRAL, GPUS["h200-sxm"], BF16)
    active, total = 12.9e9, 46_702_792_704  # the announcement's "12.9B"; the checkpoint
    embedding = 32000 * 4096
    assert decode(costs, 1, 1).traffic_bytes == pytest.approx(2 * (active - embedding), rel=3e-3)
    everything = decode(costs, 4000, 1).traffic_bytes - 4000 * (
        decode(costs, 4001, 1).traffic_bytes - decode(costs, 4000, 1).traffic_bytes
    )
    assert everything == pytest.approx(2 * (total - embedding), rel=3e-3)


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_rows_touch_as_many_experts_as_random_routing_does(rows: int) -> None:
    rng = np.random.default_rng(5)
    n = 4000
    chosen = rng.permuted(np.tile(np.arange(8), (n * rows, 1)), axis=1)[:, :2].reshape(n, rows * 2)
    touched = np.array([len(set(row)) for row in chosen])
    costs = StepModel(MIXTRAL, H100, BF16)
    grown = costs.step(decode_rows=rows).traffic_bytes - costs.step(decode_rows=1).traffic_bytes
    # Inputs and outputs of QKV, O, both experts' gate and up and down, router; attention of one token.
    values = (4096 + 6144) + 2 * 4096 + 2 * (4096 + 2 * 14336) + 2 * (14336 + 4096) + (4096 + 8)
    values += 2 * 4096 + 4 * 1024
    expert_bytes = 3 * 4096 * 14336 * 32 * 2
    counted = 2 + (grown - (rows - 1) * values * 32 * 2) / expert_bytes
    assert counted == pytest.approx(touched.mean(), abs=4 * touched.std() / n**0.5)


def test_experts_compute_only_what_their_tokens_need() -> None:
    costs = StepModel(MIXTRAL, H100, BF16)
    per_row = costs.step(decode_rows=2).flop - costs.step(decode_rows=1).flop
    # Two FLOP per active weight outside the tables, and one pair of attention.
    active = 12.9e9 - 2 * 32000 * 4096
    assert per_row == pytest.approx(2 * active + 4 * 4096 * 32, rel=3e-3)


def test_one_expert_for_all_is_a_dense_model() -> None:
    single = replace(SMALL, experts=1, experts_per_token=1)
    dense, routed = StepModel(SMALL, H100, BF16), StepModel(single, H100, BF16)
    for rows in (1, 100, 400):
        a, b = decode(dense, rows, 10 * rows), decode(routed, rows, 10 * rows)
        assert b.duration_s == pytest.approx(a.duration_s, rel=3e-3)  # the router
        assert b.flop == pytest.approx(a.flop, rel=1e-4)


@pytest.mark.parametrize(
    ("gpu", "rows", "decode_ms", "prompt_tokens", "prefill_ms"),
    [
        ("a100-sxm", 1, 54.9, 512, 196),
        ("a100-sxm", 16, 65.5, 2048, 688),
        ("a100-sxm", 32, 72.2, 8192, 2990),
        ("h100-sxm", 1, 37.0, 512, 84),
        ("h100-sxm", 16, 42.0, 2048, 310),
        ("h100-sxm", 32, 52.3, 8192, 1340),
    ],
)
def test_steps_of_70b_on_two_boards_take_about_the_published_times(
    gpu: str, rows: int, decode_ms: float, prompt_tokens: int, prefill_ms: float
) -> None:
    # splitwise-sim perf_model.csv, Llama-2-70B, TP2: token_time after 512 tokens, prompt_time of one prompt.
    # Its engine of 2023 replays no graphs, and its decode steps grow with the batch more than their traffic.
    costs = StepModel(LARGE, GPUS[gpu], BF16, shards=2)
    assert 0.55 * decode_ms < 1e3 * decode(costs, rows, 576 * rows).duration_s < decode_ms
    assert 1e3 * prefill(costs, prompt_tokens).duration_s == pytest.approx(prefill_ms, rel=0.26)


def test_prefill_in_fp8_has_the_watts_of_bfloat16_and_the_published_speed_up() -> None:
    # SerialAlice, H200: 661.7 W in FP8 and 662.8 W in bfloat16, and 68 % more throughput.
    fp8, bf16 = (prefill(StepModel(SMALL, GPUS["h200-sxm"], DTYPES[d]), 2048) for d in ("fp8", "bfloat16"))
    assert fp8.power_w == pytest.approx(bf16.power_w, rel=0.01) == pytest.approx(662, rel=0.03)
    assert bf16.duration_s / fp8.duration_s == pytest.approx(1.68, rel=0.04)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda g: g.id)
def test_every_board_model_format_and_split_is_sane_or_refused_by_its_heads(gpu: Gpu) -> None:
    refused = set()
    for model, dtype, shards in product(MODELS.values(), DTYPES.values(), (1, 2, 4, 8)):
        try:
            costs = StepModel(model, gpu, dtype, shards=shards)
        except ConfigError as error:
            assert "num_shard" in str(error)
            refused.add((model.id, shards))
            continue
        one, *more = (decode(costs, rows, 900 * rows) for rows in (1, 2, 8, 32, 33, 64, 128, 512))
        spans = [decode(costs, 4, 4 * context) for context in (1, 100, 1000, 10_000, 100_000)]
        prompts = [prefill(costs, tokens) for tokens in (1, 16, 128, 512)]
        for cost in (one, *more, *spans, *prompts):
            assert gpu.active_w <= cost.power_w <= gpu.tdp_w
        joules = [
            c.duration_s * c.power_w / rows
            for c, rows in zip(more, (2, 8, 32, 33, 64, 128, 512), strict=True)
        ]
        # Energy a token falls with the batch, but for the end of the graphs and of the fused 4-bit product.
        assert all(b < a for a, b in pairwise(joules[:3])) and all(b < a for a, b in pairwise(joules[3:]))
        assert joules[0] < one.duration_s * one.power_w or dtype.fused_rows
        assert all(b.duration_s * b.power_w > a.duration_s * a.power_w for a, b in pairwise(spans))
        each = [c.duration_s * c.power_w / n for c, n in zip(prompts, (1, 16, 128, 512), strict=True)]
        assert all(b < a for a, b in pairwise(each))
    few = {"qwen2.5-0.5b": (4, 8), "qwen2.5-1.5b": (8,), "qwen2.5-7b": (8,)}  # 14, 12 and 28 heads
    assert refused == {(name, shards) for name, splits in few.items() for shards in splits}
