"""Runs of a queue made by hand whose energy per request is known: one server, fixed service times.

The board draws ``idle_w``, and ``active_w`` more while it works. A request of p prompt tokens takes
``service_s`` x p / 1000, so over a long run a success costs idle_w / rate + active_w x mean service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from made_runs import COUNTER, INSTANT, power, record

from analysis.run import Run, build_run
from loadgen.types import Domain, Record

IDLE_W, ACTIVE_W = 100.0, 300.0


def arrivals(n: int, rate_rps: float, seed: int | None) -> np.ndarray:
    """Poisson by ``seed``, or evenly spaced for None; from 0."""
    gaps = np.full(n, 1.0) if seed is None else np.random.default_rng(seed).exponential(1.0, n)
    return (np.cumsum(gaps) - gaps[0]) / rate_rps


def queue(
    at_s: np.ndarray,
    prompts: Sequence[int],
    *,
    name: str = "made",
    service_s: float = 0.1,
    idle_w: float = IDLE_W,
    gain: float = 1.0,
    domains: Sequence[Domain] = (COUNTER, INSTANT),
    powered: bool = True,
    seed: int = 0,
    fails: frozenset[int] = frozenset(),
    **manifest: Any,
) -> Run:
    """The run of these arrivals, (n,), and prompts, tokens each. ``gain``: of the board's sensor.

    Requests in ``fails`` end with an error when their service would have.
    """
    starts, ends, free_s = [], [], 0.0
    for at, tokens in zip(at_s, prompts, strict=True):
        starts.append(max(float(at), free_s))
        free_s = starts[-1] + service_s * tokens / 1000
        ends.append(free_s)
    busy_from, busy_to = np.array(starts), np.array(ends)

    def busy_s(t: np.ndarray) -> np.ndarray:
        return np.clip(t[:, None] - busy_from, 0.0, busy_to - busy_from).sum(axis=1)

    def joules(t: np.ndarray) -> np.ndarray:
        return gain * (idle_w * t + ACTIVE_W * busy_s(t))

    def watts(t: np.ndarray) -> np.ndarray:
        return gain * (idle_w + ACTIVE_W * ((t[:, None] >= busy_from) & (t[:, None] < busy_to)).any(axis=1))

    records = [_record(i, *row, fails) for i, row in enumerate(zip(at_s, starts, ends, prompts, strict=True))]
    plan = [
        {"id": i, "phase": "measure", "due_s": float(at), "prompt_tokens": tokens, "max_new_tokens": 16}
        | {"output_tokens": None, "source_id": f"synthetic-{i}"}
        for i, (at, tokens) in enumerate(zip(at_s, prompts, strict=True))
    ]
    whole: dict[str, Any] = {
        "schema": 1,
        "status": "complete",
        "name": name,
        "seed": seed,
        "clock": "real",
        "closed_loop": False,
        "protocol": "tgi",
        "scenario": {
            "name": name,
            "seed": seed,
            "prompts": {"source": "synthetic"},
            "load": {"pattern": "p"},
        },
        "server": {"kind": "tgi", "url": "http://gpu-host:8080", "model": None, "gpu": None, "dtype": None},
        "counts": {"planned": len(plan), "warmup": 0},
        "power": {
            "interval_s": 0.1 if powered else None,
            "baseline_s": 2.0,
            "domains": [asdict(d) for d in domains] if powered else [],
            "reason": None if powered else "no power source on this machine",
        },
        "gpus": [{"domain": "gpu0", "index": 0, "name": "made", "power_limit_w": 700.0, "uuid": "GPU-a"}],
        "window": {"start_s": 0.0, "end_s": free_s},
        "anchors": {"wall_utc": "2026-01-01T00:00:00+00:00"},
        "warnings": [],
        "slo": None,
    }
    readings = power(watts, joules, free_s) if powered else []
    return build_run(Path(f"runs/{name}-{seed}"), {**whole, **manifest}, records, readings, plan)


def _record(i: int, at_s: float, start_s: float, end_s: float, tokens: int, fails: frozenset[int]) -> Record:
    made = {"sent_s": float(at_s), "first_s": (start_s + end_s) / 2, "done_s": end_s, "prompt_tokens": tokens}
    if i in fails:
        made |= {"status": "error", "error": "refused", "http_status": 500, "first_s": None}
        made |= {"prompt_tokens": None, "output_tokens": None, "chunk_s": (), "chunk_tokens": ()}
    else:
        made |= {"chunk_s": ((start_s + end_s) / 2, end_s), "chunk_tokens": (1, 10)}
    return record(i, float(at_s), **made)
