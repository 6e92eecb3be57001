"""Seconds and memory of analysing large runs.

    python benchmarks/analysis_speed.py [--only chunks|bare] [--requests N] [--keep FOLDER]

Two synthetic run directories, written as a run writes them: 10,000 requests of 100 tokens with
their chunk times, and 1,000,000 requests without chunk times; 1 % of the requests fail, power is
read at 10 Hz as a counter and as watts. Each is analysed in a fresh process, stage by stage: loaded,
summarised, its energy attributed by the default method, cut into a timeline; and in another one
as `loadgen analyze` does it, loaded and studied. Totals count from starting the process to its end,
imports included. Exit status 1 when one is above the limit: 5 s; 60 s and 4 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.rundir import RunWriter
from loadgen.types import Arrival, Domain, Plan, Reading, Record, Request

STEP_S, PREFILL_S, JITTER_S = 0.02, 0.05, 1e-4
IDLE_W, REQUEST_W = 118.0, 6.0
PERIOD_S, BASELINE_S = 0.1, 2.0
TOKENS = 100
WAYS = ("stages", "study")
PEAK = "peak_gb"


@dataclass(frozen=True)
class Case:
    """``most_s`` and ``most_gb``: the limits; 1 GB is 1e9 bytes."""

    name: str
    requests: int
    rate_rps: float
    chunks: bool
    most_s: float
    most_gb: float


CASES = (
    Case("chunks", 10_000, 10.0, True, 5.0, 4.0),
    Case("bare", 1_000_000, 100.0, False, 60.0, 4.0),
)


def records(case: Case, rng: np.random.Generator) -> Iterator[Record]:
    """Synthetic records in due order: Poisson arrivals, all tokens at the ends of shared steps."""
    n = case.requests
    due_s = np.round(np.cumsum(rng.exponential(1 / case.rate_rps, n)), 6)
    due_s -= due_s[0]
    late_s = rng.exponential(2e-4, n)
    prompts = np.clip(np.exp(rng.normal(6.5, 0.9, n)), 16, 8000).astype(int)
    replies = np.full(n, TOKENS) if case.chunks else np.clip(rng.exponential(TOKENS, n), 1, 1000).astype(int)
    fails = rng.random(n) < 0.01
    for i in range(n):
        due, sent, reply = float(due_s[i]), float(due_s[i] + late_s[i]), int(replies[i])
        steps = (np.ceil((sent + PREFILL_S) / STEP_S) + np.arange(reply)) * STEP_S
        stamps = (steps + rng.uniform(0, JITTER_S, reply)).tolist() if case.chunks else [steps[0], steps[-1]]
        chunks = tuple(stamps) if case.chunks else ()
        failed = bool(fails[i])
        yield Record(
            id=i,
            phase="measure",
            block=0,
            demand_s=due,
            due_s=due,
            sent_s=sent,
            first_s=None if failed else float(stamps[0]),
            done_s=float(stamps[-1]),
            chunk_s=() if failed else chunks,
            chunk_tokens=() if failed else (1,) * len(chunks),
            prompt_tokens=None if failed else int(prompts[i]),
            output_tokens=None if failed else reply,
            tokens_from=None if failed else "server",
            finish_reason=None if failed else "length",
            http_status=500 if failed else 200,
            server_times={},
            status="error" if failed else "ok",
            error="HTTP 500" if failed else None,
        )


def make(case: Case, path: Path) -> None:
    """Writes the run directory of a case."""
    rng = np.random.default_rng(7)
    domains = [Domain("gpu0", "counter", None, "", PERIOD_S), Domain("gpu0.instant", "instant", 0.025)]
    writer = RunWriter(path, manifest(case, domains), f"name: {case.name}\n")
    writer.set_zero(0.0)
    arrivals, spans = [], []
    for record in records(case, rng):
        body = {
            "prompt_tokens": record.prompt_tokens or 665,
            "max_new_tokens": 256,
            "source_id": str(record.id),
        }
        arrivals.append(Arrival(record.due_s, record.demand_s, Request(record.id, "text", body)))
        spans.append((record.sent_s, record.done_s))
        writer.requests.append(record)
    writer.write_plan(Plan((), None, "queue", 1), Plan(tuple(arrivals), None, "queue", 1))
    sent_s, done_s = (np.sort(np.array(column)) for column in zip(*spans, strict=True))
    end_s = float(done_s[-1])
    at_s = np.arange(-BASELINE_S, end_s + BASELINE_S, PERIOD_S)
    there = np.searchsorted(sent_s, at_s) - np.searchsorted(done_s, at_s)
    watts = IDLE_W + np.minimum(REQUEST_W * there, 500.0)
    joules = np.concatenate([[0.0], np.cumsum(0.5 * (watts[1:] + watts[:-1]) * PERIOD_S)])
    for t, w, j in zip(at_s.tolist(), watts.tolist(), joules.tolist(), strict=True):
        writer.power.append(Reading(t, "gpu0", energy_j=j))
        writer.power.append(Reading(t, "gpu0.instant", power_w=w))
    writer.manifest["window"] = {"start_s": 0.0, "end_s": end_s}
    writer.seal("complete")


def manifest(case: Case, domains: list[Domain]) -> dict[str, Any]:
    """What `run.json` of a real run says, as far as the analysis reads it."""
    rows = [{name: getattr(d, name) for name in Domain.__slots__} for d in domains]
    return {
        "name": case.name,
        "seed": 1,
        "clock": "real",
        "closed_loop": False,
        "protocol": "openai-completions",
        "server": {
            "kind": "vllm",
            "url": "http://127.0.0.1:8000",
            "model": "llama-3.1-8b",
            "gpu": "h100-sxm",
            "dtype": "bfloat16",
        },
        "counts": {"planned": case.requests, "warmup": 0},
        "power": {"interval_s": PERIOD_S, "baseline_s": BASELINE_S, "domains": rows, "reason": None},
        "sidecars": None,
        "metrics": None,
        "slo": {"ttft_s": 0.2, "tpot_s": 0.05},
        "gpus": [{"domain": "gpu0", "index": 0, "name": "NVIDIA H100 80GB HBM3", "power_limit_w": 700.0}],
        "warnings": [],
    }


def analyse(path: Path, way: str) -> dict[str, float]:
    """Seconds of each stage in this process, and its peak resident memory in GB."""
    took: dict[str, float] = {}
    last_s = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last_s
        now_s = time.perf_counter()
        took[stage], last_s = now_s - last_s, now_s

    from analysis.attribution import Attribution
    from analysis.run import load_run
    from analysis.study import as_object, study
    from analysis.summary import summarize
    from analysis.timeline import timeline

    lap("import")
    run = load_run(path)
    lap("load")
    if way == "study":
        as_object(study(run))
        lap("study")
    else:
        summarize(run)
        lap("summarize")
        Attribution(run).window()
        lap("attribution")
        timeline(run)
        lap("timeline")
    unit = 1 if sys.platform == "darwin" else 1024
    took[PEAK] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return took


def measured(case: Case, folder: Path) -> bool:
    """Makes the run unless it is there, analyses it both ways, prints; whether the limits hold."""
    path = folder / f"{case.name}-{case.requests}"
    if not (path / "run.json").exists():
        made_s = time.perf_counter()
        make(case, path)
        print(f"(made in {time.perf_counter() - made_s:.0f} s)", file=sys.stderr)
    size_mb = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    what = f"with {TOKENS} chunk times each" if case.chunks else "without chunk times"
    print(f"{case.requests:,} requests {what}, {size_mb:.0f} MB of files")
    hold = True
    for way in WAYS:
        begun_s = time.perf_counter()
        command = [sys.executable, __file__, "--analyse", str(path), "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        total_s = time.perf_counter() - begun_s
        if done.returncode:
            raise SystemExit(done.stderr)
        took = json.loads(done.stdout)
        peak_gb = took.pop(PEAK)
        took["start and end"] = total_s - sum(took.values())
        holds = total_s < case.most_s and peak_gb < case.most_gb
        hold &= holds
        print(f"  {way}: " + ", ".join(f"{stage} {took_s:.2f}" for stage, took_s in took.items()))
        print(
            f"    total {total_s:.2f} s (limit {case.most_s:.0f}), peak {peak_gb:.2f} GB "
            f"(limit {case.most_gb:.0f}): {'holds' if holds else 'DOES NOT HOLD'}"
        )
    return hold


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--requests", type=int, help="instead of the case's own number; with --only")
    parser.add_argument("--keep", type=Path, help="where the run directories are made and stay")
    parser.add_argument("--analyse", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.analyse is not None:
        print(json.dumps(analyse(asked.analyse, asked.way)))
        return 0
    cases = [case for case in CASES if asked.only in (None, case.name)]
    if asked.requests is not None:
        cases = [Case(**{**vars(case), "requests": asked.requests}) for case in cases]
    with tempfile.TemporaryDirectory() as folder:
        holds = [measured(case, asked.keep or Path(folder)) for case in cases]
    return 0 if all(holds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
