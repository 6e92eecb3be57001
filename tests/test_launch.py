"""The launch of an embedded server: flags and scenario keys mean the same; mistakes are one line each."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from loadgen import launch_flags
from loadgen.cli import main
from loadgen.errors import CapacityError, ConfigError
from loadgen.launch import Faults, Hardware, Launch, Launcher
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.scenario_file import load_scenario
from loadgen.section import Section
from loadgen.server.deployment import Deployment
from loadgen.server.limits import tgi_prefill_tokens
from loadgen.server.tgi_policy import TgiPolicy, UnchunkedTgiPolicy
from loadgen.server.vllm_policy import VllmPolicy

DOC = (Path(__file__).parent.parent / "docs" / "server.md").read_text(encoding="utf-8")


def launch(*words: str) -> Launch:
    parser = argparse.ArgumentParser()
    launch_flags.add_flags(parser)
    return launch_flags.launch_of(parser.parse_args(words))


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        launch(*words)
    return str(caught.value)


def test_no_flags_are_the_default_launch() -> None:
    assert launch() == Launch()


def test_a_launchers_command_line_can_be_pasted(tmp_path: Path) -> None:
    words = (
        "--model-id llama-3.1-70b --num-shard 4 --quantize fp8 --max-concurrent-requests 512 "
        "--max-input-length 4000 --max-total-tokens 4096 --waiting-served-ratio 1.2 --cuda-graphs 1,2,64 "
        "--no-prefill-chunking --revision main --json-output --fault reset_rate=0.25 --board-seed 3 --seed 7"
    )
    found = launch(*words.split())
    assert (found.model, found.dtype, found.seed, found.max_concurrent_requests) == (
        "llama-3.1-70b", "fp8", 7, 512,
    )  # fmt: skip
    flags = found.launcher
    assert (flags.num_shard, flags.max_input_tokens, flags.max_total_tokens) == (4, 4000, 4096)
    assert (flags.waiting_served_ratio, flags.cuda_graphs, flags.prefill_chunking) == (1.2, (1, 2, 64), False)
    assert (found.faults.reset_rate, found.hardware.board_seed) == (0.25, 3)
    file = tmp_path / "same.yaml"
    file.write_text(
        "name: same\nseed: 7\nload: {pattern: constant, interval_s: 1, requests: 1}\n"
        "server:\n  model: llama-3.1-70b\n  dtype: fp8\n  max_concurrent_requests: 512\n"
        "  launcher: {num_shard: 4, max_input_tokens: 4000, max_total_tokens: 4096,"
        " waiting_served_ratio: 1.2, cuda_graphs: [1, 2, 64], prefill_chunking: false}\n"
        "  hardware: {board_seed: 3}\n  faults: {reset_rate: 0.25}\n"
    )
    scenario = load_scenario(file)
    assert scenario.server.launch(scenario.seed) == found


def test_flags_without_effect_are_named() -> None:
    parser = argparse.ArgumentParser()
    launch_flags.add_flags(parser)
    args = parser.parse_args(["--trust-remote-code", "--otlp-endpoint", "http://x"])
    assert set(launch_flags.without_effect(args)) == {"--trust-remote-code", "--otlp-endpoint"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-best-of", "zero"], "--max-best-of: Input should be a valid integer, got zero"),
        (["--num-shard", "0"], "--num-shard: Input should be greater than 0, got 0"),
        (["--fault", "reset_rate=1.5"], "--fault reset_rate: Input should be less than or equal to 1"),
        (["--fault", "rest_rate=0.5"], "--fault rest_rate: expected one of spike_rate"),
        (["--fault", "reset"], "--fault reset: expected KEY=VALUE"),
        (["--dtype", "int8", "--quantize", "awq"], "expected one of the two"),
        (["--speculate", "2"], "--speculate: is not simulated"),
        (["--seed", "-1"], "--seed: expected a whole number >= 0, got -1"),
    ],
)
def test_a_wrong_flag_is_told_in_its_own_name(words: list[str], expected: str) -> None:
    assert expected in refusal(*words)


def test_what_does_not_fit_is_refused_with_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model-id", "llama-3.1-70b", "--port", "0"]) == 2
    line = capsys.readouterr().err
    # 70.55e9 parameters of 2 bytes; an H100 has 85.5e9 bytes, a tenth of which TGI leaves alone.
    terms = [float(x) for x in re.findall(r"([\d.]+) GB", line)]
    assert terms[0] == pytest.approx(70.55e9 * 2 / 1e9, abs=0.1)
    assert sum(terms[:4]) == pytest.approx(terms[4], abs=0.2)
    assert terms[4] > terms[5] == pytest.approx(81559 * 2**20 / 1e9, abs=0.05)
    assert "fits with --num-shard 2|4|8 or --dtype fp8" in line


@pytest.mark.parametrize("section", [Launcher, Hardware, Faults])
def test_the_documentation_lists_every_setting(section: type[Section]) -> None:
    table = DOC.split(f"\n### {section.__name__.lower()}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", table, re.MULTILINE)
    fields = section.model_fields
    assert [(name, text) for name, _, text in rows] == [(n, f.description) for n, f in fields.items()]
    for name, default, _ in rows:
        value: Any = fields[name].default
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        assert default.replace("_", "") == shown, name


@pytest.mark.parametrize("table", [GPUS, MODELS, DTYPES])
def test_the_documentation_lists_every_board_model_and_format(table: dict[str, object]) -> None:
    simulated = DOC.split("## What is simulated")[1].split("```")[0]
    assert all(re.search(rf"[` ]{re.escape(name)}[` ]", simulated) for name in table)


def test_the_dialect_chooses_the_scheduler_and_a_flag_the_other() -> None:
    assert isinstance(Deployment(Launch()).policy(), TgiPolicy)
    assert isinstance(Deployment(Launch(dialect="vllm")).policy(), VllmPolicy)
    assert isinstance(Deployment(Launch(scheduler="vllm")).policy(), VllmPolicy)
    assert isinstance(Deployment(Launch(dialect="vllm", scheduler="tgi")).policy(), TgiPolicy)
    flags = Launcher(prefill_chunking=False)
    assert isinstance(Deployment(Launch(launcher=flags)).policy(), UnchunkedTgiPolicy)


def test_vllm_replays_larger_steps_as_cuda_graphs_unless_told() -> None:
    def step_s(rows: int, **kwargs: Any) -> float:
        model = Deployment(Launch(**kwargs)).step_model
        return model.step(decode_rows=rows, decode_context_tokens=0, emitting_rows=rows).duration_s

    told = Launcher(cuda_graphs=(1, 2, 64))
    # Above the largest graph a step costs 8 ms instead of 2.5 ms of overhead.
    for rows, launcher, above_s in [(32, Launcher(), 0.0), (33, Launcher(), 0.0055), (64, told, 0.0)]:
        tgi_s = step_s(rows, launcher=launcher)
        assert tgi_s - step_s(rows, dialect="vllm", launcher=launcher) == pytest.approx(above_s, abs=1e-9)
    # TGI's own sizes, given to vLLM, are taken at their word.
    given = Launcher(cuda_graphs=(1, 2, 4, 8, 16, 32))
    assert step_s(33, dialect="vllm", launcher=given) == pytest.approx(step_s(33), abs=1e-9)
    assert step_s(65, dialect="vllm", launcher=told) - step_s(65, dialect="vllm") == pytest.approx(0.0055)


def test_limits_follow_model_board_and_flags() -> None:
    def limits(**kwargs: Any) -> Any:
        return Deployment(Launch(**kwargs)).limits

    prefill = {
        g: limits(gpu=g).max_batch_prefill_tokens for g in ("h100-sxm", "h200-sxm", "a100-sxm", "l40s")
    }
    # As TGI's launcher derives them for Llama-3.1-8B.
    assert prefill == {"h100-sxm": 59_870, "h200-sxm": 65_791, "a100-sxm": 20_755, "l40s": 24_147}
    assert limits(gpu="rtx-4090", dtype="int8").max_batch_prefill_tokens == 4096  # TGI does not know the name
    assert limits(launcher=Launcher(num_shard=2)).max_batch_prefill_tokens == 2 * 59_870 + 1
    short = limits(launcher=Launcher(max_total_tokens=4096))
    assert (short.max_total_tokens, short.max_input_tokens) == (4096, 4095)
    whole = limits(launcher=Launcher(prefill_chunking=False, max_batch_prefill_tokens=3000))
    assert whole.max_input_tokens == 3000
    vllm = limits(dialect="vllm")
    assert (vllm.max_batch_prefill_tokens, vllm.max_batch_size, vllm.block_tokens) == (8192, 1024, 16)
    assert vllm.max_concurrent_requests is None
    small = limits(dialect="vllm", gpu="a100-sxm")
    assert (small.max_batch_prefill_tokens, small.max_batch_size) == (2048, 256)


def test_the_launchers_own_estimate_of_what_fits_counts_the_memory_fraction() -> None:
    def prefill(fraction: float) -> int:
        return tgi_prefill_tokens(
            MODELS["llama-3.1-8b"], GPUS["h100-sxm"], DTYPES["bfloat16"], 1, memory_fraction=fraction
        )

    # (0.95 x 0.5 x 81,559 MiB - 16.06 GB) / 131,072 bytes a token = 187 thousand, more than the card's
    # rate asks for; a quarter of the board holds 32 thousand.
    assert prefill(0.5) == 59_870
    assert prefill(0.25) == pytest.approx((0.95 * 0.25 * 81_559 * 2**20 - 16.06e9) / 131_072, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"max_total_tokens": 1}, "max_total_tokens: expected >= 2"),
        (
            {"max_total_tokens": 100, "max_input_tokens": 100},
            r"max_input_tokens: expected < max_total_tokens \(100\), got 100",
        ),
        ({"max_input_tokens": 131_072}, r"max_input_tokens: expected < max_total_tokens \(131072\)"),
        (
            {"max_batch_prefill_tokens": 300_000},
            r"max_batch_prefill_tokens: expected <= the KV cache's \d+ tokens, got 300000",
        ),
        (
            {"prefill_chunking": False, "max_input_tokens": 3001, "max_batch_prefill_tokens": 3000},
            r"max_input_tokens: expected <= max_batch_prefill_tokens \(3000\) without .*, got 3001",
        ),
    ],
)
def test_limits_that_contradict_each_other_are_refused(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Deployment(Launch(launcher=Launcher(**flags)))


def test_more_total_tokens_than_fit_are_refused_with_the_sum() -> None:
    expected = (
        r"max_total_tokens: expected <= the KV cache's \d+ tokens, got 1000000; llama-3\.1-8b .* "
        r"leaving [\d.]+ GB for the KV cache"
    )
    with pytest.raises(CapacityError, match=expected):
        Deployment(Launch(launcher=Launcher(max_total_tokens=10**6)))


def test_only_vllm_keeps_to_the_models_positions() -> None:
    flags = Launcher(max_total_tokens=200_000)
    assert Deployment(Launch(launcher=flags)).limits.max_total_tokens == 200_000
    with pytest.raises(ConfigError, match="expected <= the model's 131072 positions, got 200000"):
        Deployment(Launch(dialect="vllm", launcher=flags))


def test_any_config_json_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,'
        ' "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,'
        ' "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,'
        ' "tie_word_embeddings": true}'
    )
    for path in (tmp_path, tmp_path / "config.json"):
        model = Deployment(Launch(model=str(path))).model
        assert model.parameters == pytest.approx(134.5e6, rel=1e-3)  # SmolLM2-135M's shape


def test_unknown_names_are_refused_with_the_near_one() -> None:
    names = {"model": "llama-3.1-8B", "gpu": "h100-smx", "dtype": "bfloat"}
    meant = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
    for field, value in names.items():
        near = meant[field]
        with pytest.raises(ConfigError, match=rf"server\.{field}: expected one of .*did you mean '{near}'"):
            Deployment(Launch(**{field: value}))
    with pytest.raises(CapacityError, match=r"KV cache|GB >"):
        Deployment(Launch(gpu="l4", model="qwen2.5-14b"))


def test_vllm_needs_a_token_for_every_sequence() -> None:
    with pytest.raises(ConfigError, match=r"max_num_batched_tokens: expected >= max_num_seqs \(6\), got 5"):
        Deployment(Launch(dialect="vllm", launcher=Launcher(max_num_batched_tokens=5, max_num_seqs=6)))
    few = Deployment(Launch(dialect="vllm", launcher=Launcher(max_num_batched_tokens=512))).limits
    assert few.max_batch_size == 512
