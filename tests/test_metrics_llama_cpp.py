"""The counters of a real llama.cpp over TCP against the records of a real run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console
from test_llama_cpp import url  # noqa: F401 - the fixture that starts the server, or skips with the reason

from analysis.run import load_run
from analysis.server_metrics import disagreements, load_over_time, token_deltas
from loadgen.experiment import Order, execute
from loadgen.plan import build
from loadgen.progress import RunView
from loadgen.scenario import Scenario


def test_a_run_against_llama_cpp_agrees_with_its_counters(url: str, tmp_path: Path) -> None:  # noqa: F811
    """8 chats at once on 4 slots: the others wait, and every token is on both sides."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Count from {i}, please."}}\n' for i in range(9)))
    scenario: dict[str, Any] = {
        "name": "llama",
        "server": {"url": url, "metrics_interval_s": 0.1, "extra_body": {"cache_prompt": False}},
        "load": {"pattern": "all_at_once", "requests": 8, "warmup_requests": 1},
        "prompts": {"source": "jsonl", "path": str(prompts), "max_new_tokens": 8},
        "power": {"source": "none"},
    }
    what = Scenario.model_validate(scenario)
    view = RunView(Console(stderr=True), 1, quiet=True)
    run = load_run(asyncio.run(execute(Order(what, "name: llama\n", build(what), tmp_path), view)))
    assert (run.requests["status"] == "ok").all()
    said = run.manifest["metrics"]
    assert (said["family"], said["reason"], said["samples"] > 5) == ("llama.cpp", None, True)
    prompt, output = token_deltas(run)
    assert prompt.server == prompt.records and output.server == output.records
    assert prompt.agrees and output.agrees and disagreements(run) == []
    _, running, waiting = load_over_time(run)
    assert 0 < running.max() <= 4
    assert 0 < waiting.max() <= 4
    assert running[-1] == waiting[-1] == 0
