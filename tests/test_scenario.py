from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from loadgen import overrides, shipped
from loadgen.config import read_yaml
from loadgen.errors import ConfigError
from loadgen.scenario import Scenario
from loadgen.scenario_file import load_scenario, validate

GOOD = """\
name: t
seed: 0
server:
  model: llama-3.1-8b
load:
  pattern: constant
  interval_s: 0.05
  requests: 10
prompts:
  source: synthetic
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(GOOD)
    return path


def with_flags(path: Path, *words: str) -> Scenario:
    parser = argparse.ArgumentParser()
    overrides.add_flags(parser)
    tree = read_yaml(path)
    overrides.apply(tree, parser.parse_args(words))
    return validate(tree, path.parent)


def mistakes(path: Path, text: str, *flags: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        with_flags(path, *flags)
    return [line.removeprefix(f"{path}") for line in str(refusal.value).splitlines()]


def test_a_good_file_gives_what_it_says(file: Path) -> None:
    scenario = load_scenario(file)
    assert scenario.seed == 0 and scenario.load.requests == 10
    assert scenario.power.interval_s == 0.1 and scenario.prompts.max_new_tokens == 256


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "interval_s: 0.05",
            "intervall_s: 0.05",
            ":7 load.intervall_s: unknown key, got 0.05; *'interval_s'?",
        ),
        ("interval_s: 0.05", "interval_s: -3", ":7 load.interval_s: expected > 0, got -3"),
        ("interval_s: 0.05", "interval_s: fast", ':7 load.interval_s: expected a number, got "fast"'),
        ("interval_s: 0.05", "interval_s: yes", ":7 load.interval_s: expected a number, got true"),
        ("interval_s: 0.05", "interval_s: .nan", ":7 load.interval_s: expected * got nan"),
        (
            "interval_s: 0.05",
            "rate_rps: 2\n  interval_s: 1",
            ":8 load.interval_s: expected either *, got both",
        ),
        ("requests: 10", "requests: 10.5", ":8 load.requests: expected a whole number, got 10.5"),
        ("requests: 10", "requests: 0", ":8 load.requests: expected > 0, got 0"),
        ("  requests: 10\n", "", ":5 load.requests: expected a count of requests *, got nothing"),
        (
            "pattern: constant",
            "pattern: poison",
            ":6 load.pattern: expected one of * \"poison\"; *'poisson'?",
        ),
        ("  pattern: constant\n", "", ":5 load.pattern: expected one of *; missing"),
        ("source: synthetic", "source: sythetic", ":10 prompts.source: expected one of *'synthetic'?"),
        ("name: t", "nmae: t", ":1 nmae: unknown key, got \"t\"; *'name'?"),
        ("seed: 0", "seed: -1", ":2 seed: expected >= 0, got -1"),
        ("model: llama-3.1-8b", "url: gpu-host", ':4 server.url: expected *, got "gpu-host"'),
        (
            "source: synthetic",
            "source: jsonl\n  path: no.jsonl",
            ":11 prompts.path: expected an existing file, *",
        ),
        ("source: synthetic", "source: trace", ":9 prompts: expected a trace file *"),
        ("seed: 0", "seed: 0\nseed: 1", ":3 seed: given twice (first on line 2)"),
        ("seed: 0", "seed: [", "* not valid YAML: *"),
        ("seed: 0", f"seed: {10**30}", ":2: not valid YAML: an integer of more than 63 bits"),
    ],
)
def test_each_mistake_is_one_line_with_place_key_value_and_expectation(
    file: Path, old: str, new: str, line: str
) -> None:
    assert old in GOOD
    found = mistakes(file, GOOD.replace(old, new))
    pieces = line.split("*")
    text = next((f for f in found if f.startswith(pieces[0])), "")
    assert text, found
    at = 0
    for piece in pieces:
        at = text.find(piece.strip(" "), at)
        assert at >= 0, (text, piece)


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    broken = GOOD.replace("interval_s: 0.05", "interval_s: 0").replace("requests: 10", "requests: x")
    assert len(mistakes(file, broken)) == 2


def test_a_flag_is_named_as_the_origin_of_its_mistake(file: Path) -> None:
    assert mistakes(file, GOOD, "--set", "load.interval_s=abc") == [
        '--set load.interval_s: expected a number, got "abc"'
    ]
    assert mistakes(file, GOOD, "--seed", "-4") == ["--seed seed: expected >= 0, got -4"]
    assert "KEY=VALUE" in mistakes(file, GOOD, "--set", "load.interval_s")[0]
    assert "not a section" in mistakes(file, GOOD, "--set", "name.x=1")[0]


@pytest.mark.parametrize(
    "text",
    ["name: x\nload: fixed\n", "name: 2024-13-45\n", "name: x\nload: &a {b: *a}\n", 'name: "x\x07"\n'],
    ids=["load is text", "no such date", "alias of itself", "control character"],
)
def test_unreadable_yaml_is_a_mistake_not_a_crash(file: Path, text: str) -> None:
    assert all(line and "Traceback" not in line for line in mistakes(file, text))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--url", "http://h:99999"], "--url server.url: expected http://HOST"),
        (["--url", "http://[h"], "--url server.url: expected http://HOST"),
        (["--header", "a b: v"], "--header server.headers: expected header names of letters"),
        (["--header", "a: v\r\nX: y"], "expected no line breaks in the value of a"),
        (["--extra-body", '{"a": NaN}'], "--extra-body: expected a JSON object: NaN"),
        (["--request-count", "100000000000"], "--request-count load.requests: expected <= 10000000"),
        (
            ["--arrival-pattern", "closed_loop", "--concurrency", "2", "--set", "load.duration_s=5"],
            "its count",
        ),
        (["--arrival-pattern", "steps"], "load.stages: missing; expected a list of {rate_rps, duration_s}"),
        (["--arrival-pattern", "closed_loop"], "load.max_in_flight: missing; expected a whole number (--con"),
    ],
)
def test_what_no_server_could_take_is_refused_before_the_run(file: Path, flags: list[str], said: str) -> None:
    found = mistakes(file, GOOD, *flags)
    assert len(found) == 1 and said in found[0]


def test_prompts_without_a_source_are_synthetic_unless_they_name_a_file(file: Path) -> None:
    text = GOOD.replace("  source: synthetic\n", "  max_new_tokens: 64\n")
    assert "max_new_tokens" in text
    file.write_text(text)
    assert load_scenario(file).prompts.max_new_tokens == 64
    unnamed = mistakes(file, GOOD.replace("source: synthetic", f"path: {file}"))
    assert len(unnamed) == 1 and "prompts.source: expected one of" in unnamed[0]


def test_secrets_do_not_show_up_in_errors(file: Path) -> None:
    broken = GOOD.replace("model: llama-3.1-8b", "headers: {X-Api-Key: 12345}")
    assert "12345" not in " ".join(mistakes(file, broken))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--set", "load.interval_s=0.3"], {"load.interval_s": 0.3}),
        (["--set", "load.interval_s=1e-1"], {"load.interval_s": 0.1}),
        (
            ["--request-rate", "20"],
            {"load.pattern": "constant", "load.rate_rps": 20.0, "load.interval_s": None},
        ),
        (["--request-rate", "inf"], {"load.pattern": "all_at_once"}),
        (["--arrival-pattern", "poisson"], {"load.pattern": "poisson", "load.rate_rps": 20.0}),
        (["--arrival-pattern", "uniform"], {"load.low_s": 0.0, "load.high_s": 0.1}),
        (["--burstiness", "0.5"], {"load.pattern": "gamma", "load.burstiness": 0.5, "load.rate_rps": 20.0}),
        (["--max-concurrency", "8"], {"load.max_in_flight": 8}),
        (["--num-requests", "7"], {"load.requests": 7}),
        (["--num-prompts", "7"], {"load.requests": 7}),
        (
            ["--arrival-pattern", "closed_loop", "--concurrency", "4"],
            {"load.pattern": "closed_loop", "load.max_in_flight": 4},
        ),
        (["--goodput", "ttft:200,tpot:50"], {"slo.ttft_s": 0.2, "slo.tpot_s": 0.05}),
        (["--duration", "60"], {"load.duration_s": 60.0, "load.requests": None}),
        (["--duration", "60", "--request-count", "7"], {"load.duration_s": 60.0, "load.requests": 7}),
        (["--goodput", "ttft:200", "tpot:50"], {"slo.ttft_s": 0.2, "slo.tpot_s": 0.05, "slo.e2e_s": None}),
        (["--no-streaming"], {"server.streaming": False}),
        (["--header", "X-A: b: c"], {"server.headers": {"X-A": "b: c"}}),
        (["--extra-body", '{"top_k": 3}'], {"server.extra_body": {"top_k": 3}}),
        (["--seed", "0"], {"seed": 0}),
        (["--set", "power.gpus=[0, GPU-1a]"], {"power.gpus": ["0", "GPU-1a"]}),
        (["--url", "http://h:1"], {"server.url": "http://h:1"}),
    ],
)
def test_flags_override_the_file(file: Path, flags: list[str], expected: dict[str, Any]) -> None:
    dumped = with_flags(file, *flags).model_dump()
    for dotted, value in expected.items():
        node: Any = dumped
        for key in dotted.split("."):
            node = node.get(key)
        assert node == pytest.approx(value) if isinstance(value, float) else node == value, dotted


def test_a_pattern_change_keeps_the_mean_rate(file: Path) -> None:
    for pattern in ("constant", "poisson", "uniform", "gamma", "uniform_script"):
        load = with_flags(file, "--arrival-pattern", pattern).load.model_dump()
        assert overrides.mean_rate(load) == pytest.approx(20.0)


def test_paths_count_from_the_file_unless_a_flag_gave_them(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hi"}\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    file.write_text(GOOD.replace("source: synthetic", "source: jsonl\n  path: p.jsonl"))
    assert load_scenario(file).prompts.path == tmp_path / "p.jsonl"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"--set prompts\.path"):
        with_flags(file, "--set", "prompts.path=p.jsonl")


def test_shipped_scenarios_are_found_by_name_and_say_their_question() -> None:
    names = {path.stem for path in shipped.shipped("scenario")}
    assert {"fixed_50ms", "gate_2s", "azure_conversation", "random_script_coded"} <= names
    assert shipped.find("fixed_50ms", "scenario").name == "fixed_50ms.yaml"
    for path in shipped.shipped("scenario"):
        head = path.read_text().splitlines()[:2]
        assert head[0].startswith("# Question: ") and head[1].startswith("# Takes:"), path
        if path.stem != "azure_conversation":
            assert load_scenario(path).name == path.stem
    with pytest.raises(ConfigError, match=r"did you mean 'fixed_50ms'"):
        shipped.find("fixed_5ms.yaml", "scenario")


def test_fixed_50ms_is_the_contract() -> None:
    scenario = load_scenario(shipped.find("scenarios/fixed_50ms.yaml", "scenario"))
    tree = read_yaml(shipped.find("fixed_50ms", "scenario")).data
    assert scenario.seed == 1
    assert tree["server"] == {"model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
    assert tree["load"] == {
        "pattern": "constant",
        "interval_s": 0.05,
        "requests": 10000,
        "warmup_requests": 5,
        "timeout_s": 120,
    }
    assert tree["prompts"] == {"source": "synthetic", "max_new_tokens": 256}
    assert tree["power"] == {"interval_s": 0.1, "baseline_s": 2}
