"""What a person may write as a claim, what is refused, and how the judgement is printed."""

from __future__ import annotations

import argparse
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_claims import STUDY, found, judged

from analysis.claims import view as claim_view
from analysis.claims.claim import KEYS, Range, parse_claim
from analysis.claims.rules import judge
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.hardware import Efficiency
from loadgen.physics.models import MODELS
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import write_profile
from loadgen.verbs.lint import add_verb


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gpu", "expected K=V, got 'gpu'"),
        ("gpu=", "expected K=V, got 'gpu='"),
        ("=h100-sxm", "expected K=V"),
        ("gpu=h100-sxm gpu=l4", "gpu is claimed twice"),
        ("gpu=h100-sxm energy_kwh=1", "no such key; did you mean 'energy_wh'?"),
        ("gpu=h100-sxm zzz=1", "no such key; known: gpu, gpus, model"),
        ("energy_wh=1", "gpu missing, e.g. gpu=h100-sxm"),
        ("gpu=h100-sxm", "energy_wh missing, e.g. energy_wh=1.1e-3"),
        ("interval_s=1", "gpu and energy_wh missing"),
        ("gpu=h100-sxn energy_wh=1 interval_s=1", "did you mean 'h100-sxm'?"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 model=lama-3.1-8b", "did you mean 'llama-3.1-8b'?"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 dtype=bfloat17", "did you mean 'bfloat16'?"),
        ("gpu=H100 energy_wh=1 interval_s=1", "did you mean 'h100-sxm'?"),  # PCIe or SXM: not the same power
        ("gpu=unknown energy_wh=1 interval_s=1", "gpu=unknown: expected one of h100-sxm"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 model=qwen2.5-15b", "did you mean 'qwen2.5-1.5b'?"),
        ("gpu=A100-40GB-SXM energy_wh=1 interval_s=1", "expected one of h100-sxm"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 prefix_cache=yes", "expected one of on, off, unknown"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 speculation=maybe", "expected one of on, off, unknown"),
        ("gpu=h100-sxm energy_wh=0 interval_s=1", "--claim energy_wh=0: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=-1 interval_s=1", "energy_wh=-1: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=nan interval_s=1", "energy_wh=nan: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=inf interval_s=1", "energy_wh=inf: expected a number > 0, at most 1e+15"),
        (
            "gpu=h100-sxm energy_wh=1e308 interval_s=1",
            "energy_wh=1e308: expected a number > 0, at most 1e+15",
        ),
        ("gpu=h100-sxm energy_wh=1 interval_s=1e-320", "interval_s=1e-320: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=1.1mWh interval_s=1", "energy_wh=1.1mWh: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=1 interval_s=50ms", "interval_s=50ms: expected a number > 0"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 gpus=1.5", "gpus=1.5: expected a whole number >= 1"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 gpus=0", "gpus=0: expected a whole number >= 1"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 max_in_flight=0", "expected a whole number >= 1"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 prompt_tokens=0", "prompt_tokens=0: expected a number >= 1"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 output_tokens=0.5", "expected a number >= 1"),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 cached_tokens=5", "expected prompt_tokens beside it"),
        (
            "gpu=h100-sxm energy_wh=1 prompt_tokens=9 model=llama-3.1-8b cached_tokens=9",
            "at most prompt_tokens - 1, 8",
        ),
        (
            "gpu=h100-sxm energy_wh=1 interval_s=1 prompt_tokens=9 cached_tokens=1 prefix_cache=off",
            "expected 0 with",
        ),
        ("gpu=h100-sxm energy_wh=1", "nothing bounds an energy alone: add interval_s"),
        ("gpu=h100-sxm energy_wh=1 model=llama-3.1-8b", "nothing bounds an energy alone"),
        (
            "gpu=h100-sxm energy_wh=1 spacing=constant low_s=0 high_s=1",
            "expected interval_s, got low_s and high_s",
        ),
        ("gpu=h100-sxm energy_wh=1 low_s=0 high_s=1 interval_s=1", "which give the mean"),
        ("gpu=h100-sxm energy_wh=1 low_s=0", "expected both low_s and high_s"),
        ("gpu=h100-sxm energy_wh=1 spacing=uniform", "expected both low_s and high_s"),
        ("gpu=h100-sxm energy_wh=1 low_s=2 high_s=1", "low_s=2: expected at most high_s, 1"),
        ("gpu=h100-sxm energy_wh=1 low_s=-1 high_s=1", "low_s=-1: expected a number >= 0"),
        (
            "gpu=h100-sxm energy_wh=1 spacing=poison interval_s=1",
            "spacing=poison: expected one of constant, uniform",
        ),
        ("gpu=h100-sxm energy_wh=1 interval_s=1 model=nothere.json", "nothere.json"),
    ],
)
def test_refusals_name_key_value_and_expectation(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_claim(words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boards_and_models_go_by_their_own_names_too() -> None:
    claim = parse_claim(
        [
            "gpu=NVIDIA H100 80GB HBM3",
            "model=meta-llama/Llama-3.1-8B-Instruct",
            "dtype=bf16",
            "energy_wh=1",
            "prompt_tokens=1200.5",
        ]
    )
    assert claim.gpu is GPUS["h100-sxm"]
    assert claim.model is MODELS["llama-3.1-8b"]
    assert claim.dtype is DTYPES["bfloat16"]
    assert claim.prompt_tokens == 1200.5
    assert claim.cached_tokens == Range(0.0, 1199.5)


@pytest.mark.parametrize("gpu", ["H100 SXM", "NVIDIA H100-SXM5-80GB", "h100_sxm", "nvidia h100 80gb hbm3"])
@pytest.mark.parametrize("model", ["LLaMA 3.1 8B", "Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"])
@pytest.mark.parametrize("dtype", ["BF16", "bfloat-16", "torch.bfloat16"])
def test_names_as_people_write_them_are_understood(gpu: str, model: str, dtype: str) -> None:
    judgement = judged(gpu=gpu, model=model, dtype=dtype, energy_wh="1.1e-3", interval_s="0.05")
    assert judgement.verdict == (
        "impossible: below the loaded-idle floor whatever was cached; "
        "below the FLOP floor unless prompts were cached"
    )


def test_what_is_claimed_to_be_unknown_is_not_claimed() -> None:
    judgement = judged(model="Unknown", dtype="unknown", energy_wh=1.1e-3, interval_s=0.05)
    assert judgement.verdict == "impossible: below the loaded-idle floor whatever was cached"
    assert found(judgement, "flop-floor").reason == "not judged: model not claimed"
    hidden = judged(dtype="unknown", energy_wh=1.1e-3, interval_s=0.05)
    left_out = judged(dtype="-", energy_wh=1.1e-3, interval_s=0.05)
    assert found(hidden, "flop-floor") == found(left_out, "flop-floor")


def test_a_model_of_ones_own_comes_from_its_config_json(tmp_path: Path) -> None:
    keys = {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }
    (tmp_path / "config.json").write_text(json.dumps(keys), encoding="utf-8")
    own = judged(energy_wh=1.1e-3, interval_s=0.05, model=tmp_path)
    known = judged(energy_wh=1.1e-3, interval_s=0.05)
    assert [f.bound for f in own.findings] == [f.bound for f in known.findings]


@pytest.mark.parametrize("size", ["1e-15", "1e15"])
def test_the_largest_and_the_smallest_claims_stay_finite(size: str) -> None:
    for key in ("energy_wh", "interval_s", "prompt_tokens", "output_tokens"):
        if key.endswith("tokens") and size == "1e-15":
            continue
        found_object = claim_view.as_object(judged(**{"energy_wh": 1, "interval_s": 1, key: size}))
        json.dumps(found_object, allow_nan=False)


# --- the verb ---


def _lint(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadgen")
    add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter, lambda args: 0)
    return parser.parse_args(["lint", *argv])


def test_claims_may_follow_one_flag_or_many() -> None:
    together = _lint("--claim", "gpu=l4", "energy_wh=1", "--json")
    apart = _lint("--claim", "gpu=l4", "--claim", "energy_wh=1")
    assert together.claim == apart.claim == ["gpu=l4", "energy_wh=1"]
    assert (together.json, apart.json) == (True, False)
    assert together.go(together) == 0


@pytest.mark.parametrize("order", [["runs/x", "--json"], ["--json", "runs/x"]])
def test_a_run_stands_before_or_after_the_flags(order: list[str]) -> None:
    args = _lint(*order)
    assert (args.run, args.claim, args.json, args.go(args)) == (Path("runs/x"), None, True, 0)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "expected a run directory, or a published figure as --claim K=V"),
        (["runs/x", "--claim", "gpu=l4"], "--claim: not allowed with argument RUN"),
        (["--claim", "gpu=l4", "--strict"], "--strict: expected a run directory; a claim has no warnings"),
    ],
)
def test_exactly_one_of_a_run_and_a_claim_is_judged(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        args = _lint(*argv)
        args.go(args)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _lint("--help")
    text = capsys.readouterr().out
    assert [key for key in KEYS if key not in text] == []


def test_json_holds_every_figure_in_wh_and_has_no_nan() -> None:
    found_object = claim_view.as_object(judged(energy_wh=1.1e-3, interval_s=0.05))
    again = json.loads(json.dumps(found_object, allow_nan=False))
    assert again["possible"] is False
    assert again["claim"]["cached_tokens"] == {"least": 0.0, "most": 1199.0}
    rules = {rule["id"]: rule for rule in again["rules"]}
    assert rules["loaded-idle-floor"]["figure"] == pytest.approx(1.1e-3)
    assert rules["loaded-idle-floor"]["bound"] == pytest.approx(1.358e-3, rel=1e-3)
    assert rules["mean-power"]["unit"] == "W"
    assert rules["mean-power"]["figure"] == pytest.approx(79.2)
    assert math.isclose(
        rules["loaded-idle-floor"]["impossible_beyond"], 0.95 * (71.8 / 1.05 + 26) * 0.05 / 3600
    )


@pytest.mark.parametrize(
    ("energy_wh", "interval_s", "possible"), [("1.1e-3", "0.05", False), ("9.6e-3", "0.175", True)]
)
def test_report_prints_one_object_and_says_whether_it_is_possible(
    energy_wh: str, interval_s: str, possible: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = STUDY | {"energy_wh": energy_wh, "interval_s": interval_s}
    words = [f"{key}={value}" for key, value in stated.items()]
    assert claim_view.report(words, as_json=True) is possible
    assert json.loads(capsys.readouterr().out)["possible"] is possible
    assert claim_view.report(words, as_json=False) is possible
    assert "verdict  " in capsys.readouterr().out


def test_table_fits_80_columns_and_begins_with_the_verdict() -> None:
    out = io.StringIO()
    claim_view.render(judged(energy_wh=1.1e-3, interval_s=0.05), Console(file=out, width=80))
    rows = out.getvalue().splitlines()
    assert max(map(len, rows)) <= 80
    flowing = " ".join(out.getvalue().split())
    assert flowing.startswith("verdict impossible: below the loaded-idle floor whatever was cached; below")
    assert "arXiv 2605.23918" in flowing
    assert "E >= G P_idle T" in flowing


def test_the_board_of_a_claim_may_be_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    write_profile(file, Profile(replace(GPUS["l4"], tdp_w=60.0), Efficiency(), "l4"))
    assert parse_claim([f"gpu={file}", "energy_wh=1", "interval_s=1"]).gpu.tdp_w == 60.0
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        parse_claim([f"gpu={tmp_path / 'none.json'}", "energy_wh=1", "interval_s=1"])


def test_partial_claim_renders_what_it_has() -> None:
    out = io.StringIO()
    partial = judge(parse_claim(["gpu=l4", "energy_wh=1e-3", "interval_s=0.5"]))
    claim_view.render(partial, Console(file=out, width=80))
    assert "1 x l4, one per 500 ms" in " ".join(out.getvalue().split())
    assert "not judged: model and prompt_tokens not claimed" in " ".join(out.getvalue().split())
    assert claim_view.as_object(partial)["claim"]["model"] is None
