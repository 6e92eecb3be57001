"""Runs of the engine with no network between: what a client saw, what the board published, the steps."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from made_runs import record, run_of

from analysis.attribution import METHODS, WHOLE, Attributed
from analysis.attribution.shapley import truth
from analysis.run import Run
from loadgen.launch import Launch
from loadgen.server.deployment import Deployment
from loadgen.server.engine import Sequence
from loadgen.server.gpu import Board
from loadgen.types import Domain, Reading, Step

DEPLOYMENT = Deployment(Launch(model="llama-3.1-8b", gpu="h100-sxm", dtype="bfloat16"))
SERVER = {"kind": "embedded", "model": "llama-3.1-8b", "gpu": "h100-sxm", "dtype": "bfloat16", "shards": 1}
BASELINE_S = 2.0
DENSITIES = [m for m in METHODS if m not in WHOLE]


def simulated(
    sent_s: np.ndarray, prompts: np.ndarray, replies: np.ndarray, deployment: Deployment = DEPLOYMENT
) -> tuple[Run, list[Step]]:
    """The run, and its steps for scoring."""
    engine, board = deployment.engine(), Board(deployment.gpu, -BASELINE_S)
    waiting = [
        (float(t), Sequence(k, int(p), int(g), int(g)))
        for k, (t, p, g) in enumerate(zip(sent_s, prompts, replies, strict=True))
    ]
    stamps: dict[int, list[float]] = {s.id: [] for _, s in waiting}
    readings: list[Reading] = []
    steps: list[Step] = []
    read_s, now_s = -BASELINE_S, 0.0

    def look(until_s: float) -> None:
        nonlocal read_s
        while read_s < until_s:
            readings.append(Reading(read_s, "gpu0", energy_j=board.published(read_s).energy_j))
            read_s += 0.1

    while waiting or engine.batch_size or engine.queue_size:
        while waiting and waiting[0][0] <= now_s:
            engine.submit(waiting[0][1], waiting.pop(0)[0])
        work = engine.start_step(now_s)
        if work is None:
            look(waiting[0][0])
            now_s = waiting[0][0]
            continue
        joules = board.busy(now_s, work.duration_s, work.power_w)
        steps.append(Step(now_s, work.duration_s, joules, work.rows))
        now_s += work.duration_s
        for sequence, _, _ in engine.finish_step(now_s):
            stamps[sequence.id].append(now_s)
        look(now_s)
    look(now_s + BASELINE_S)
    records = [
        record(
            k,
            float(t),
            first_s=stamps[k][0],
            done_s=stamps[k][-1],
            chunk_s=tuple(stamps[k]),
            chunk_tokens=(1,) * len(stamps[k]),
            prompt_tokens=int(p),
            output_tokens=len(stamps[k]),
        )
        for k, (t, p) in enumerate(zip(sent_s, prompts, strict=True))
    ]
    domain = Domain("gpu0", "simulated", None, "", 0.1)
    run = run_of(records, readings, domains=(domain,), end_s=now_s, server=SERVER)
    return run, steps


@cache
def busy(deployment: Deployment = DEPLOYMENT) -> tuple[Run, list[Step]]:
    """Half a minute of mixed requests, from one at a time to about forty."""
    rng = np.random.default_rng(5)
    n = 150
    sent_s = np.sort(np.concatenate([rng.uniform(0, 12, 30), rng.uniform(12, 20, n - 30)]))
    prompts = np.clip(np.exp(rng.normal(np.log(600), 0.9, n)), 20, 5000).astype(int)
    replies = np.clip(np.exp(rng.normal(np.log(90), 0.8, n)), 1, 500).astype(int)
    return simulated(sent_s, prompts, replies, deployment)


def total_j(found: Attributed) -> float:
    return float(found.requests["total_j"].sum()) + found.unattributed_j


def l1(found: Attributed, true: pd.DataFrame) -> float:
    off = found.requests["total_j"].sub(true["total_j"], fill_value=0.0).abs().sum()
    return float(off / true["total_j"].sum())


def true_costs(run: Run, steps: list[Step], deployment: Deployment = DEPLOYMENT) -> pd.DataFrame:
    assert run.end_s is not None
    return truth(steps, deployment.step_model, deployment.gpu.context_idle_w, 0.0, run.end_s)
