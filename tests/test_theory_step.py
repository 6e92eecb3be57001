"""``loadgen theory step``: groups against the step, sums over steps, published figures, mistakes."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.errors import ConfigError, LoadgenError
from loadgen.physics.boards import GPUS
from loadgen.physics.breakdown import (
    Chunk,
    Mix,
    Rows,
    breakdown,
    decode_groups,
    decode_mix,
    prefill_mix,
    request_cost,
)
from loadgen.physics.formats import DTYPES
from loadgen.physics.hardware import Efficiency
from loadgen.physics.models import MODELS, Transformer, transformer_from
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import write_profile
from loadgen.physics.transformer import StepModel
from loadgen.verbs import theory_step

H100, BF16, FP32 = GPUS["h100-sxm"], DTYPES["bfloat16"], DTYPES["float32"]
SMALL, LARGE = MODELS["llama-3.1-8b"], MODELS["llama-3.1-70b"]


def moe(**more: Any) -> Transformer:
    keys = {
        "model_type": "qwen2_moe",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_hidden_layers": 24,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
    }
    return transformer_from(keys | more, "moe", "moe", "a test")


SHAPES = (
    SMALL,
    LARGE,
    MODELS["qwen2.5-0.5b"],
    moe(),
    moe(shared_expert_intermediate_size=None, tie_word_embeddings=True),
)

Talk = Callable[..., dict[str, Any]]


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str]) -> Talk:
    """What ``theory step WORDS --json`` prints; without ``as_json`` the text stands under ``text``."""

    def run(*words: object, as_json: bool = True) -> dict[str, Any]:
        parser = argparse.ArgumentParser(prog="theory")
        verbs = parser.add_subparsers(required=True)
        theory_step.add_step(verbs, argparse.RawDescriptionHelpFormatter, theory_step.show)
        args = parser.parse_args(["step", *map(str, words)] + ["--json"] * as_json)
        assert args.go(args) == 0
        out = capsys.readouterr().out
        found = json.loads(out) if as_json else {"text": out}
        assert isinstance(found, dict)
        return found

    return run


def random_mixes(rng: np.random.Generator, n: int) -> list[Mix]:
    def size(most: float) -> int:
        return int(10 ** rng.uniform(0, math.log10(most)))

    mixes = []
    for _ in range(n):
        chunks = [
            Chunk(size(9000), size(20000) * int(rng.integers(2)), size(6)) for _ in range(rng.integers(3))
        ]
        rows = [Rows(size(300), size(30000)) for _ in range(rng.integers(0 if chunks else 1, 3))]
        sequences = sum(c.sequences for c in chunks) + sum(r.rows for r in rows)
        emitting = None if rng.integers(2) else int(rng.integers(sequences + 1))
        mixes.append(Mix.of(chunks, rows, emitting))
    return mixes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_the_groups_add_up_to_the_step(dtype: Any) -> None:
    rng = np.random.default_rng(list(dtype.name.encode()))
    for shape in SHAPES:
        for gpu in (H100, GPUS["l4"], replace(H100, allreduce_latency_s=0.0)):
            if dtype.rate not in gpu.peak_flop_per_s and not dtype.falls_back:
                continue
            for shards in (1, 2) if shape.heads == 14 else (1, 4, 16):
                model = StepModel(shape, gpu, dtype, shards=shards)
                mixes = random_mixes(rng, 6)
                together = breakdown(model, Mix(*(np.array(part) for part in zip(*mixes, strict=True))))
                for k, mix in enumerate(mixes):
                    cost = model.step(**mix.counts())
                    for name, whole in (
                        ("time_s", cost.duration_s),
                        ("flop", cost.flop),
                        ("traffic_bytes", cost.traffic_bytes),
                    ):
                        alone = math.fsum(float(getattr(g, name)) for g in breakdown(model, mix))
                        assert alone == pytest.approx(whole, rel=1e-12)
                        assert math.fsum(float(getattr(g, name)[k]) for g in together) == pytest.approx(
                            alone, rel=1e-12
                        )


def test_a_mix_counts_tokens_pairs_and_spans() -> None:
    mix = Mix.of([Chunk(3, 10, 2), Chunk(5)], [Rows(4, 100)])
    # Each new token sees what was cached, what came before it in its chunk, and itself.
    pairs = 2 * sum(10 + i for i in (1, 2, 3)) + sum((1, 2, 3, 4, 5))
    assert mix == (2 * 3 + 5, pairs, 2 * 13 + 5, 4, 400, 2 + 1 + 4)
    assert Mix.of([Chunk(512)], emitting=0).emitting_rows == 0


def test_chunks_of_a_prompt_are_its_pairs_and_flop() -> None:
    model = StepModel(SMALL, H100, BF16)
    whole = Mix.of([Chunk(1000)])
    first, second = Mix.of([Chunk(400)], emitting=0), Mix.of([Chunk(600, 400)])
    flop = [model.step(**mix.counts()).flop for mix in (whole, first, second)]
    assert flop[1] + flop[2] == pytest.approx(flop[0], rel=1e-12)
    # But the weights are read twice, and the host is there twice.
    seconds = [model.step(**mix.counts()).duration_s for mix in (whole, first, second)]
    assert seconds[1] + seconds[2] > seconds[0] + 0.008


def test_the_link_by_hand() -> None:
    # 70B on 4 boards, 10 rows of 8192 16-bit values: each of 160 all-reduces of a ring sends 2 x 3/4 of them.
    model = StepModel(LARGE, H100, BF16, shards=4)
    groups = {g.name: g for g in breakdown(model, decode_mix(5000, 10))}
    reduce, gather = groups["all-reduce"], groups["gather of logits"]
    assert float(reduce.link_bytes) == 160 * 1.5 * 10 * 8192 * 2
    assert float(reduce.time_s) == pytest.approx(160 * (1.5 * 10 * 8192 * 2 / 450e9 + 10e-6), rel=1e-12)
    assert float(gather.time_s) == pytest.approx(0.75 * 10 * 128256 * 2 / 450e9 + 10e-6, rel=1e-12)
    assert reduce.bound == gather.bound == "latency"
    assert {g.name: g.bound for g in breakdown(model, prefill_mix(4000))}["all-reduce"] == "link"
    alone = {g.name: g for g in breakdown(StepModel(SMALL, H100, BF16), decode_mix(5000, 10))}
    assert alone["all-reduce"].bound == "none" and alone["all-reduce"].time_s == 0


@pytest.mark.parametrize("gpu", ["h100-sxm", "a100-sxm", "l4"])
@pytest.mark.parametrize(("prompt", "reply", "batch"), [(1, 1, 3), (7, 2, 1), (300, 150, 24), (2000, 900, 6)])
def test_a_static_batch_is_the_sum_of_its_steps(gpu: str, prompt: int, reply: int, batch: int) -> None:
    for shape, dtype, shards in ((SMALL, BF16, 1), (moe(), DTYPES["int4"], 2), (SMALL, FP32, 1)):
        model = StepModel(shape, GPUS[gpu], dtype, shards=shards)
        found = request_cost(model, prompt, reply, batch)
        first = model.step(**prefill_mix(prompt, batch).counts())
        assert float(found.prefill_s) == pytest.approx(first.duration_s, rel=1e-12)
        assert float(found.prefill_j) == pytest.approx(shards * first.duration_s * first.power_w, rel=1e-12)
        steps = [
            model.step(decode_rows=batch, decode_context_tokens=batch * c, emitting_rows=batch)
            for c in range(prompt, prompt + reply - 1)
        ]
        assert float(found.decode_s) == pytest.approx(math.fsum(s.duration_s for s in steps), rel=1e-12)
        joules = shards * math.fsum(s.duration_s * s.power_w for s in steps)
        assert float(found.decode_j) == pytest.approx(joules, rel=1e-8)
        groups = decode_groups(model, prompt, reply, batch)
        assert math.fsum(float(g.time_s) for g in groups) == pytest.approx(float(found.decode_s), rel=1e-10)
        assert math.fsum(float(g.flop) for g in groups) == pytest.approx(
            sum(s.flop for s in steps), rel=1e-10
        )


def test_a_static_batch_whose_attention_turns_has_no_line_and_still_adds_up() -> None:
    slow = replace(H100, peak_flop_per_s={"float32": 10e12})
    model = StepModel(replace(SMALL, heads=64, kv_heads=1), slow, FP32)
    assert model.decode_line(4) is None
    found = request_cost(model, 1, 60, 4)
    steps = [model.step(decode_rows=4, decode_context_tokens=4 * c, emitting_rows=4) for c in range(1, 60)]
    assert float(found.decode_s) == pytest.approx(math.fsum(s.duration_s for s in steps), rel=1e-5)
    (attention,) = (g for g in decode_groups(model, 1, 60, 4) if g.name == "decode attention")
    assert attention.bound == "mixed"


def test_request_costs_take_arrays() -> None:
    model = StepModel(SMALL, H100, BF16)
    prompts, replies = np.array([[100], [2000]]), np.array([1, 50, 700])
    found = request_cost(model, prompts, replies, 4)
    assert all(part.shape == (2, 3) for part in found)
    for i, j in np.ndindex(2, 3):
        alone = request_cost(model, prompts[i, 0], replies[j], 4)
        assert [float(part[i, j]) for part in found] == pytest.approx(
            [float(part) for part in alone], rel=1e-12
        )
    assert np.all(found.decode_j[:, 0] == 0) and np.all(np.diff(found.decode_j, axis=1) > 0)
    for wrong in ((0, 5, 1), (5, 0, 1), (5.5, 5, 1), (np.nan, 5, 1), ([5, -1], 5, 1), (5, 5, 0)):
        with pytest.raises(ConfigError, match="expected whole numbers >= 1"):
            request_cost(model, *wrong)


def test_energy_never_falls_under_the_idle_floor() -> None:
    rng = np.random.default_rng(3)
    for gpu in GPUS.values():
        for dtype in (BF16, DTYPES["int4"]):
            model = StepModel(MODELS["qwen2.5-1.5b"], gpu, dtype, shards=2)
            cost = request_cost(
                model, rng.integers(1, 3000, 40), rng.integers(2, 400, 40), int(rng.integers(1, 40))
            )
            for seconds, joules in ((cost.prefill_s, cost.prefill_j), (cost.decode_s, cost.decode_j)):
                assert np.all(joules > 2 * gpu.context_idle_w * seconds)
                assert np.all(joules <= 2 * gpu.tdp_w * seconds * (1 + 1e-12))


def test_predicted_powers_of_decoding_on_an_h100(talk: Talk) -> None:
    # The design's figures for 8B in bfloat16; its contexts are not stated, about 1,000 tokens.
    for rows, watts in ((1, 298), (8, 338), (16, 377), (32, 440)):
        assert talk("--decode", f"{rows}x1000")["step"]["power_w"] == pytest.approx(watts, rel=0.01)


def test_the_general_model_near_its_sanity_values(talk: Talk) -> None:
    # 0.38 s and 0.074 Wh are of other, illustrative constants; these have MFU 0.55 and 8 ms of host.
    full = talk("--dtype", "float32", "--request", "1200,52")["prefill"]
    assert full["duration_s"] == pytest.approx(0.4736, rel=1e-3)
    assert full["energy_j"] / 3600 == pytest.approx(0.0848, rel=1e-3)
    # By hand, without attention, whose share is 2 %: 2 FLOP a matrix weight and token at 0.55 x 67 TFLOP/s.
    matrices = 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    assert full["duration_s"] == pytest.approx(2 * matrices * 1200 / (0.55 * 67e12) + 0.008, rel=0.03)
    half = talk("--request", "1200,52")["prefill"]
    assert half["energy_j"] / 3600 == pytest.approx(5.8e-3, rel=0.3)


def test_public_parameter_counts(talk: Talk) -> None:
    public = {
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "mistral-7b": 7_248_023_552,
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "qwen2.5-3b": 3_085_938_688,
        "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-14b": 14_770_033_664,
    }
    assert set(public) == set(MODELS)
    for name, count in public.items():
        found = talk("--model", name, "--gpu", "h200-sxm", "--shards", 2, "--decode", "1x10")
        assert found["parameters"] == count
        # Halves of all matrices, norms on both boards: a little more than half.
        assert found["memory"]["weights_bytes"] == pytest.approx(count, rel=5e-4)


def test_the_answer_is_consistent(talk: Talk) -> None:
    found = talk("--model", "llama-3.1-70b", "--shards", 4, "--prefill", "2048@4096x2", "--decode", "8x1200")
    step, memory = found["step"], found["memory"]
    assert step["energy_j"] == pytest.approx(4 * step["power_w"] * step["duration_s"], rel=1e-12)
    idle_j = 4 * found["idle_w"] * step["duration_s"]
    assert step["above_idle_j"] == pytest.approx(step["energy_j"] - idle_j, rel=1e-12) and idle_j > 0
    assert step["energy_per_new_token_j"] == pytest.approx(step["energy_j"] / (2 * 2048 + 8))
    assert step["energy_per_emitted_token_j"] == pytest.approx(step["energy_j"] / 10)
    # The power law at the utilisations printed is the power printed.
    load = H100.memory_weight * step["memory_utilisation"]
    load += H100.compute_weight * (1 - math.exp(-step["compute_utilisation"] / H100.compute_knee))
    assert step["power_w"] == pytest.approx(H100.active_w + (H100.tdp_w - H100.active_w) * min(1, load))
    assert memory["kv_token_bytes"] == 2 * 80 * 2 * 128 * 2 and memory["held_tokens"] == 2 * 6144 + 8 * 1201
    assert memory["kv_tokens"] == int(memory["free_for_kv_bytes"] // memory["kv_token_bytes"])
    together = sum(memory["items_bytes"].values()) + memory["free_for_kv_bytes"]
    assert together == pytest.approx(H100.memory_bytes, rel=1e-12)
    request = talk("--request", "1200,52", "--batch", 8)
    assert request["total"]["energy_per_request_j"] * 8 == pytest.approx(
        request["prefill"]["energy_j"] + request["decode"]["energy_j"], rel=1e-12
    )
    assert request["decode"]["steps"] == 51
    only = talk("--request", "5,1")["decode"]
    assert only["groups"] == [] and only["power_w"] is None and only["energy_j"] == 0


def test_people_get_tables(talk: Talk) -> None:
    text = talk("--request", "1200,52", as_json=False)["text"]
    for words in (
        "prefill attention",
        "decode attention",
        "LM head",
        "host",
        "W",
        "above idle",
        "413,823 tokens",
    ):
        assert words in text
    assert "nan" not in talk("--request", "5,1", as_json=False)["text"].lower()
    text = talk("--model", "llama-3.1-70b", "--shards", 4, "--prefill", "70000", as_json=False)["text"]
    assert "all-reduce" in text and "a TGI server would split these 70000 new tokens" in text


def test_a_profile_and_a_config_are_taken(talk: Talk, tmp_path: Path) -> None:
    slow = Efficiency(graph_overhead_s=0.0125)
    path = tmp_path / "mine.json"
    write_profile(path, Profile(replace(H100, id="mine"), slow))
    config = tmp_path / "small" / "config.json"
    config.parent.mkdir()
    keys = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    keys |= {"num_hidden_layers": 32, "vocab_size": 128256, "max_position_embeddings": 131072}
    config.write_text(json.dumps({"model_type": "llama", **keys}))
    found = talk("--gpu", path, "--model", config, "--decode", "4x100")
    usual = talk("--decode", "4x100")
    assert found["gpu"] == "mine" and found["model"] == "small"
    assert found["step"]["duration_s"] - usual["step"]["duration_s"] == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "expected --prefill, --decode or --request"),
        (["--request", "5,5", "--decode", "1x1"], "--request is a whole batch by itself"),
        (["--decode", "1x1", "--batch", "2"], "--batch is of --request"),
        (["--prefill", "5x3", "--emitting", "4"], "--emitting: expected at most the 3 sequences"),
        (["--decode", "1x1", "--gpu", "h100"], r"--gpu: expected one of .*did you mean 'h100-sxm'"),
        (["--decode", "1x1", "--model", "llama-3-8b"], r"model: .*config.json, got llama-3-8b; did you mean"),
        (["--decode", "1x1", "--dtype", "bf16"], "dtype: expected one of .*got bf16"),
        (["--decode", "1x1", "--dtype", "fp8", "--gpu", "none.json"], "none.json: cannot be read"),
        (["--decode", "1x1", "--shards", "3"], "num_shard: llama-3.1-8b has 32 heads .*got 3"),
        (["--decode", "1x1", "--model", "llama-3.1-70b"], "141.1 GB .* fits with --num-shard 2"),
        (["--decode", "1000x1000"], "1001000 tokens to hold are more than fit; .*413823 tokens"),
        (["--request", "1000,1000", "--batch", "400"], "799600 tokens to hold are more than fit"),
        (["--decode", "1x131072"], "at most its 131072 positions, got 131073"),
    ],
)
def test_a_mistake_is_one_clear_line(talk: Talk, words: list[str], sentence: str) -> None:
    with pytest.raises(LoadgenError, match=sentence) as caught:
        talk(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("--prefill", ["0", "-1", "5@", "5x0", "5@1x", "1.5", "9" * 5000, "5@1000000001", "\uff15"]),
        ("--decode", ["16", "0x5", "x5", "5x-1", "5x1.5", "1x" + "9" * 13]),
        ("--request", ["5", "0,5", "5,0", "5,5,5", "a,b"]),
        ("--shards", ["0", "x"]),
    ],
)
def test_shapes_on_the_command_line_are_whole_numbers(
    talk: Talk, capsys: pytest.CaptureFixture[str], flag: str, wrong: list[str]
) -> None:
    for value in wrong:
        with pytest.raises(SystemExit):
            talk(f"{flag}={value}")
        assert f"argument {flag}" in capsys.readouterr().err
