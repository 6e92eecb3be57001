"""Whole runs against the embedded server, in virtual time: client, HTTP, engine, board, files, analysis."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from rich.console import Console

from analysis.run import load_run
from analysis.summary import summarize
from loadgen import clock, rundir
from loadgen.errors import ConfigError
from loadgen.experiment import Order, execute
from loadgen.plan import build
from loadgen.progress import RunView
from loadgen.scenario import Scenario
from loadgen.scenario_file import load_scenario

DOCS = Path(__file__).resolve().parent.parent / "docs"


def scenario(**changes: Any) -> Scenario:
    load = {"pattern": "constant", "interval_s": 0.05, "requests": 120, "warmup_requests": 2}
    base: dict[str, Any] = {"name": "t", "seed": 1, "load": load | changes.pop("load", {})}
    return Scenario.model_validate(base | changes)


async def go(what: Scenario, parent: Path, *, stop_after_s: float | None = None) -> Path:
    view = RunView(Console(stderr=True), 1, quiet=True)
    task = asyncio.create_task(execute(Order(what, "name: t\n", build(what), parent), view))
    if stop_after_s is not None:
        await asyncio.sleep(stop_after_s)
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        assert view.path is not None
        return view.path


def run(what: Scenario, parent: Path, *, stop_after_s: float | None = None) -> Path:
    return clock.run_virtual(go(what, parent, stop_after_s=stop_after_s))


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(scenario(load={"requests": 400}), tmp_path_factory.mktemp("runs"))


def test_every_planned_request_has_one_successful_record_on_time(fixed: Path) -> None:
    records, plan = rundir.read_records(fixed), rundir.read_plan(fixed)
    assert Counter(r.id for r in records) == Counter(row["id"] for row in plan)
    measured = sorted((r for r in records if r.phase == "measure"), key=lambda r: r.id)
    assert len(measured) == 400 and len(records) == 402
    for record in measured:
        assert record.status == "ok" and record.error is None and record.tokens_from == "server"
        assert record.demand_s == record.due_s == record.sent_s == pytest.approx(0.05 * record.id)
        assert record.sent_s is not None and record.first_s is not None and record.done_s is not None
        assert record.sent_s < record.first_s <= record.done_s
        assert sum(record.chunk_tokens) == record.output_tokens
        assert record.finish_reason == ("length" if record.output_tokens == 256 else "eos_token")
        assert list(record.chunk_s) == sorted(record.chunk_s)
    assert all(r.done_s is not None and r.done_s < 0 for r in records if r.phase == "warmup")


def test_steps_and_idle_add_up_and_the_integrated_energy_is_the_engines(fixed: Path) -> None:
    manifest, steps = rundir.read_manifest(fixed), list(rundir.read_steps(fixed))
    total_j = math.fsum(step.energy_j for step in steps)
    assert total_j == pytest.approx(manifest["engine"]["energy_j"], rel=1e-9)
    for before, after in itertools.pairwise(steps):
        assert after.start_s == pytest.approx(before.start_s + before.duration_s, abs=2e-9)
    end_s = manifest["window"]["end_s"]

    def inside(start_s: float, duration_s: float) -> float:
        return max(0.0, min(start_s + duration_s, end_s) - max(start_s, 0.0)) / duration_s

    truth_j = math.fsum(s.energy_j * inside(s.start_s, s.duration_s) for s in steps if s.duration_s > 0)
    measured_j = summarize(load_run(fixed))["energy"]["gpu"]["total_j"]["value"]
    assert measured_j == pytest.approx(truth_j, rel=0.01)


def test_the_engines_log_holds_each_requests_tokens(fixed: Path) -> None:
    found: dict[int, int] = {}  # tokens of the prompt that the prefix cache held
    prefill: Counter[int] = Counter()
    decode: Counter[int] = Counter()
    for step in rundir.read_steps(fixed):
        for id, prefill_tokens, decode_tokens, context_tokens in step.sequences:
            found.setdefault(id, context_tokens)
            prefill[id] += prefill_tokens
            decode[id] += decode_tokens
    for record in rundir.read_records(fixed):
        assert found[record.id] + prefill[record.id] == record.prompt_tokens
        # The step that ends the prefill emits the first token; each later token is a decode row.
        assert decode[record.id] == (record.output_tokens or 0) - 1
    measured = [found[record.id] for record in rundir.read_records(fixed) if record.phase == "measure"]
    # Synthetic chats share the template's first tokens and little else.
    assert 0 < max(measured) < 40


def test_fixed_50ms_costs_what_physics_allows(fixed: Path) -> None:
    summary = summarize(load_run(fixed))
    assert summary["valid"], summary["reasons"]
    gpu = summary["energy"]["gpu"]
    assert gpu["label"] == "simulated" and summary["clock"] == "virtual"
    assert 6e-3 < gpu["energy_per_request_wh"]["value"] < 11e-3
    assert gpu["energy_per_request"]["value"] > 120 * 0.05  # idle power times spacing
    assert summary["lateness_s"] is None and "virtual" in summary["lateness_reason"]


def test_a_server_that_crashes_leaves_a_board_without_a_context(tmp_path: Path) -> None:
    path = run(scenario(server={"faults": {"crash_after_requests": 50}}), tmp_path)
    assert {r.status for r in rundir.read_records(path)} == {"ok", "error"}
    last = [r for r in rundir.read_readings(path) if r.domain == "gpu0.instant"][-1]
    assert last.power_w == pytest.approx(71.8)  # an H100 without a context, in public nvidia-smi logs
    steps = rundir.read_steps(path)
    engine = rundir.read_manifest(path)["engine"]
    assert sum(step.energy_j for step in steps) == pytest.approx(engine["energy_j"], rel=1e-9)


def test_two_runs_of_the_same_scenario_are_the_same_to_the_bit(fixed: Path, tmp_path: Path) -> None:
    again = run(scenario(load={"requests": 400}), tmp_path)
    for name in ("plan.jsonl", "requests.jsonl", "power.jsonl", "server.jsonl"):
        assert (fixed / name).read_bytes() == (again / name).read_bytes(), name


def test_the_resolved_scenario_in_the_manifest_runs_again_as_the_same_run(tmp_path: Path) -> None:
    gate = {"policy": "gate", "interval_s": 2.0}
    load = {"pattern": "poisson", "rate_rps": 2.0, "requests": 30, "shaping": gate}
    what = {"name": "t", "load": load, "slo": {"ttft_s": 0.2}}
    first = run(Scenario.model_validate(what), tmp_path / "1")
    saved = rundir.read_manifest(first)["scenario"]
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(saved))
    again = run(load_scenario(file), tmp_path / "2")
    assert (first / "requests.jsonl").read_bytes() == (again / "requests.jsonl").read_bytes()
    assert rundir.read_manifest(again)["scenario_hash"] == rundir.read_manifest(first)["scenario_hash"]


def test_another_seed_gives_other_requests_and_replies(tmp_path: Path) -> None:
    what = scenario(load={"requests": 20})
    one, two = (run(what.model_copy(update={"seed": s}), tmp_path / str(s)) for s in (0, 1))
    assert (one / "requests.jsonl").read_bytes() != (two / "requests.jsonl").read_bytes()


def test_little_law_and_the_engines_batch_agree(fixed: Path) -> None:
    """Mean in flight as clients see it against the engine's own time-averaged batch (and its queue)."""
    records = [r for r in rundir.read_records(fixed) if r.phase == "measure"]
    end_s = rundir.read_manifest(fixed)["window"]["end_s"]
    in_flight = sum((r.done_s or 0) - (r.sent_s or 0) for r in records) / end_s
    rows = (
        math.fsum(s.duration_s * len(s.sequences) for s in rundir.read_steps(fixed) if s.start_s >= 0) / end_s
    )
    assert summarize(load_run(fixed))["rate"]["in_flight_mean"]["value"] == pytest.approx(in_flight, rel=1e-6)
    assert rows <= in_flight * (1 + 1e-9)  # what waits for admission is in flight but in no step
    assert rows >= 0.9 * in_flight


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_the_openai_routes_give_the_same_work(tmp_path: Path, protocol: str) -> None:
    paths = [
        run(scenario(load={"requests": 30}, server={"protocol": p}), tmp_path / p) for p in ("tgi", protocol)
    ]
    lengths = [
        {r.id: (r.prompt_tokens, r.output_tokens, r.status) for r in rundir.read_records(path)}
        for path in paths
    ]
    assert lengths[0] == lengths[1]


def test_known_reply_lengths_are_generated_exactly(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(f'{{"prompt": "Say {k} words.", "output_tokens": {k + 1}}}' for k in range(40)))
    what = scenario(
        load={"requests": 40, "warmup_requests": 0}, prompts={"source": "jsonl", "path": str(path)}
    )
    records = rundir.read_records(run(what, tmp_path / "runs"))
    assert {r.id: r.output_tokens for r in records} == {k: k + 1 for k in range(40)}
    assert {r.finish_reason for r in records} == {"length"}


def test_beyond_128_in_flight_the_server_refuses_and_the_run_says_so(tmp_path: Path) -> None:
    load = {"pattern": "all_at_once", "requests": 200}
    path = run(Scenario.model_validate({"name": "t", "load": load}), tmp_path)
    statuses = Counter(r.status for r in rundir.read_records(path))
    assert statuses == {"ok": 128, "rejected": 72}
    refused = [r for r in rundir.read_records(path) if r.status == "rejected"]
    assert all(r.error and "overloaded" in r.error and r.output_tokens is None for r in refused)
    summary = summarize(load_run(path))
    assert summary["requests"]["success_ratio"]["value"] == pytest.approx(0.64)
    gpu = summary["energy"]["gpu"]
    assert gpu["energy_per_request"]["value"] == pytest.approx(gpu["energy_per_attempt"]["value"] / 0.64)


def test_an_interruption_seals_the_run_with_all_its_records(tmp_path: Path) -> None:
    path = run(scenario(), tmp_path, stop_after_s=8.0)
    manifest, records = rundir.read_manifest(path), rundir.read_records(path)
    assert manifest["status"] == "interrupted" and len(records) == 122
    statuses = Counter(r.status for r in records)
    assert statuses["cancelled"] > 0 and statuses["ok"] > 0
    summary = summarize(load_run(path))
    assert not summary["valid"] and summary["requests"]["missing"] == 0


def test_an_interruption_during_warm_up_leaves_every_record_too(tmp_path: Path) -> None:
    server = {"launcher": {"warm_up": False}}
    path = run(scenario(server=server), tmp_path, stop_after_s=0.05)
    records = rundir.read_records(path)
    assert len(records) == 122 and {r.status for r in records} == {"cancelled"}
    assert summarize(load_run(path))["valid"] is False


def test_ctrl_c_while_the_run_is_being_sealed_leaves_it_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sealed = rundir.RunWriter.seal

    def interrupted_seal(writer: rundir.RunWriter, status: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # asyncio turns only the second one into KeyboardInterrupt
        write_sealed(writer, status)

    monkeypatch.setattr(rundir.RunWriter, "seal", interrupted_seal)
    handler = signal.getsignal(signal.SIGINT)
    path = run(scenario(load={"requests": 3}), tmp_path)
    assert rundir.read_manifest(path)["status"] == "complete"
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_does_not_exist_or_fit_is_refused_before_a_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama-3\.1-8b"):
        run(scenario(server={"model": "llama-3.1-8"}), tmp_path)
    with pytest.raises(ConfigError, match="h100-sxm"):
        run(scenario(server={"gpu": "h100"}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_secrets_reach_no_file(tmp_path: Path) -> None:
    server = {"headers": {"Authorization": "Bearer hunter2", "X-Team": "blue"}}
    text = "server: {headers: {Authorization: Bearer hunter2, X-Team: blue}}\n# http://me:hunter2@host/\n"
    what = scenario(load={"requests": 3}, server=server)
    view = RunView(Console(stderr=True), 1, quiet=True)
    path = clock.run_virtual(execute(Order(what, text, build(what), tmp_path, "hunter2"), view))
    assert all(b"hunter2" not in file.read_bytes() for file in path.iterdir())
    headers = rundir.read_manifest(path)["scenario"]["server"]["headers"]
    assert headers == {"Authorization": "***", "X-Team": "blue"}
    assert "X-Team: blue" in (path / "scenario.yaml").read_text()


def test_a_secret_folded_over_lines_reaches_no_file_and_an_empty_one_changes_nothing(tmp_path: Path) -> None:
    """Found: a folded header value stayed in scenario.yaml; an empty one put *** between all characters."""
    server = {"headers": {"Authorization": "Bearer hunter2", "X-Token": ""}}
    text = "server:\n  headers:\n    Authorization: Bearer\n      hunter2\n    X-Token: ''\n"
    what = scenario(load={"requests": 3}, server=server)
    view = RunView(Console(stderr=True), 1, quiet=True)
    path = clock.run_virtual(execute(Order(what, text, build(what), tmp_path), view))
    kept = (path / "scenario.yaml").read_text()
    assert kept == "server:\n  headers:\n    Authorization: ***\n    X-Token: ''\n"


def test_the_window_of_a_closed_loop_holds_all_its_requests(tmp_path: Path) -> None:
    """Found: it began 0.2 s before the window, whose energy then missed that work."""
    load = {"pattern": "closed_loop", "requests": 12, "max_in_flight": 3, "warmup_requests": 1}
    what = Scenario.model_validate({"name": "closed", "load": load})
    path = run(what, tmp_path)
    records = [r for r in rundir.read_records(path) if r.phase == "measure"]
    assert min(r.sent_s or 0 for r in records) == 0.0
    span_s = rundir.read_manifest(path)["window"]["end_s"]
    held_s = sum((r.done_s or 0) - (r.sent_s or 0) for r in records)
    assert held_s / span_s <= 3 + 1e-6  # Little: never more in flight than the cap


def documented(heading: str) -> set[str]:
    """The keys in the first column of a section's table in docs/format.md."""
    section = (DOCS / "format.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`([^`]+)`", " ".join(cells)))


def test_the_format_page_lists_exactly_the_keys_of_a_run(fixed: Path) -> None:
    def keys(name: str) -> set[str]:
        return {key for line in (fixed / name).read_bytes().splitlines() for key in orjson.loads(line)}

    assert set(rundir.read_manifest(fixed)) == documented("run.json")
    for name in ("plan.jsonl", "requests.jsonl", "power.jsonl", "server.jsonl"):
        assert keys(name) == documented(name), name
    assert {p.name for p in fixed.iterdir()} == {
        "run.json",
        "scenario.yaml",
        "plan.jsonl",
        "requests.jsonl",
        "power.jsonl",
        "server.jsonl",
    }
