"""Runs of the embedded server in virtual time, made once a session and never written to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from loadgen import clock
from loadgen.experiment import Order, execute
from loadgen.plan import build
from loadgen.progress import RunView
from loadgen.scenario_file import load_scenario

SERVER = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16"}
POWER = {"interval_s": 0.1, "baseline_s": 2}


def run(scenario: Mapping[str, Any], folder: Path) -> Path:
    """Runs a scenario given as its YAML's object; the run's directory, under ``folder``."""
    file = folder / f"{scenario['name']}.yaml"
    file.write_text(yaml.safe_dump(dict(scenario)))
    resolved = load_scenario(file)
    order = Order(resolved, file.read_text(), build(resolved), folder)

    async def go() -> Path:
        return await execute(order, RunView(Console(stderr=True), 1, quiet=True))

    return clock.run_virtual(go())


def mixed(folder: Path) -> Path:
    """300 requests of mixed lengths, Poisson at 4 a second, 3 of them warm-ups more, with an SLO."""
    rng = np.random.default_rng(11)
    n = 300
    prompts = np.clip(np.exp(rng.normal(np.log(700), 0.9, n)), 32, 6000).astype(int)
    replies = np.clip(np.exp(rng.normal(np.log(90), 0.8, n)), 4, 600).astype(int)
    at_s = np.cumsum(rng.exponential(0.25, n))
    rows = [
        f"2026-01-01 00:{int(t // 60):02d}:{t % 60:09.6f},{p},{g}"
        for t, p, g in zip(at_s.tolist(), prompts.tolist(), replies.tolist(), strict=True)
    ]
    (folder / "lengths.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return run(
        {
            "name": "mixed",
            "seed": 11,
            "server": SERVER,
            "load": {"pattern": "trace", "path": "lengths.csv", "warmup_requests": 3, "timeout_s": 120},
            "prompts": {"source": "trace"},
            "power": POWER,
            "slo": {"ttft_s": 0.3, "tpot_s": 0.03},
        },
        folder,
    )


def spaced(folder: Path, pattern: str) -> Path:
    """200 short requests at a mean gap of 0.5 s: ``constant`` or ``poisson``, the same prompts in both."""
    rate = {"interval_s": 0.5} if pattern == "constant" else {"rate_rps": 2.0}
    return run(
        {
            "name": f"{pattern}_500ms",
            "seed": 3,
            "server": SERVER,
            "load": {"pattern": pattern, **rate, "requests": 200, "warmup_requests": 2},
            "prompts": {"source": "synthetic", "max_new_tokens": 48},
            "power": POWER,
        },
        folder,
    )
