"""Runs made by hand for the tests of the analysis: known records, known power signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.run import Run, build_run
from loadgen.types import Domain, Reading, Record

COUNTER = Domain("gpu0", "counter")
INSTANT = Domain("gpu0.instant", "instant", 0.025)
AVERAGE = Domain("gpu0.average", "average", 1.0)


def record(i: int, due_s: float, **changes: Any) -> Record:
    """A successful request: sent when due, first token after 100 ms, 11 tokens 10 ms apart."""
    sent_s = changes.get("sent_s", due_s)
    chunks = tuple(sent_s + 0.1 + 0.01 * k for k in range(11)) if sent_s is not None else ()
    made = Record(
        id=i,
        phase="measure",
        block=0,
        demand_s=due_s,
        due_s=due_s,
        sent_s=sent_s,
        first_s=chunks[0] if chunks else None,
        done_s=chunks[-1] if chunks else None,
        chunk_s=chunks,
        chunk_tokens=(1,) * len(chunks),
        prompt_tokens=1200,
        output_tokens=len(chunks),
        tokens_from="server",
        finish_reason="length",
        http_status=200,
        server_times={},
        status="ok",
        error=None,
    )
    return replace(made, **changes)


def failed(i: int, due_s: float, status: Any = "error", **changes: Any) -> Record:
    """A request that was sent, waited a second and got nothing."""
    nothing: dict[str, Any] = {"first_s": None, "done_s": due_s + 1.0, "chunk_s": (), "chunk_tokens": ()}
    nothing |= {"prompt_tokens": None, "output_tokens": None, "tokens_from": None, "finish_reason": None}
    return record(i, due_s, **{**nothing, "status": status, "error": "HTTP 500", **changes})


def lattice(n: int, gap_s: float, **changes: Any) -> list[Record]:
    """n successful requests, one every gap."""
    return [record(i, i * gap_s, **changes) for i in range(n)]


def power(
    watts: Callable[[np.ndarray], np.ndarray],
    joules: Callable[[np.ndarray], np.ndarray],
    end_s: float,
    *,
    period_s: float = 0.1,
    baseline_s: float = 2.0,
) -> list[Reading]:
    """Readings of ``gpu0`` and ``gpu0.instant`` from a signal and its exact integral."""
    n = round((end_s + 2 * baseline_s) / period_s) + 1
    t_s = -baseline_s + period_s * np.arange(n)
    readings: list[Reading] = []
    for t, e, p in zip(t_s, joules(t_s) - joules(t_s[:1]), watts(t_s), strict=True):
        readings.append(Reading(float(t), "gpu0", energy_j=float(e)))
        readings.append(Reading(float(t), "gpu0.instant", power_w=float(p)))
    return readings


def constant(watts: float, end_s: float, **options: Any) -> list[Reading]:
    """A board that draws the same power for ever."""
    return power(lambda t: np.full(len(t), watts), lambda t: watts * t, end_s, **options)


def run_of(
    records: Sequence[Record],
    readings: Sequence[Reading] = (),
    *,
    domains: Sequence[Domain] = (COUNTER, INSTANT),
    end_s: float | None = None,
    **manifest: Any,
) -> Run:
    """A complete real-time run over TGI on an unknown board, unless ``manifest`` says otherwise."""
    done = [r.done_s for r in records if r.done_s is not None]
    complete: dict[str, Any] = {
        "schema": 1,
        "status": "complete",
        "name": "made",
        "clock": "real",
        "closed_loop": False,
        "protocol": "tgi",
        "server": {"kind": "tgi", "url": "http://gpu-host:8080", "model": None, "gpu": None, "dtype": None},
        "counts": {"planned": len(records), "warmup": 0},
        "power": {
            "interval_s": 0.1 if readings else None,
            "baseline_s": 2.0,
            "domains": [asdict(d) for d in domains] if readings else [],
            "reason": None if readings else "no power source on this machine",
        },
        "window": {"start_s": 0.0, "end_s": end_s if end_s is not None else max(done, default=None)},
        "warnings": [],
        "slo": None,
    }
    return build_run(Path("runs/made"), {**complete, **manifest}, records, readings)
