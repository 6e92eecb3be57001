"""What our client costs and how late it is, beside a plain aiohttp client, in one run.

    python benchmarks/client_speed.py --mock-source PATH/mockllm.c [--repetitions 3] [--json]

The mock server is pinned to core 0, each client run is a process of its own on core 1,
and the two clients take turns, so that a busy machine hits both alike. Costs are the
CPU-seconds of the client process while the load lasts: every record of ours is decoded
and kept. Lateness is judged twice: by the kernel's time stamps of the first byte of
each request at the server, and by the client's own sending stamps, both against the
ideal grid. A client that falls behind looks cheap because reads merge: hence the share
of tokens that got a read of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gc
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLIENTS = ("ours", "plain")
LEAD_S = 0.5


@dataclass(frozen=True)
class Case:
    """A load: ``in_flight`` in a closed loop, or ``rate_rps`` for ``load_s`` seconds."""

    name: str
    tokens: int
    mock: tuple[str, ...]
    in_flight: int | None = None
    requests: int = 0
    rate_rps: float = 0.0


def cases(load_s: float, closed_requests: int) -> list[Case]:
    return [
        Case("closed 64, -n 128 -i 0", 128, ("-i", "0"), in_flight=64, requests=closed_requests),
        Case(
            "200/s, -n 52 -t 20 -i 20", 52, ("-t", "20", "-i", "20"), rate_rps=200, requests=int(200 * load_s)
        ),
        Case(
            "1000/s, -n 32 -t 20 -i 5",
            32,
            ("-t", "20", "-i", "5"),
            rate_rps=1000,
            requests=int(1000 * load_s),
        ),
    ]


# One client run, in a process of its own


async def drive_ours(base_url: str, case: Case, due_s: list[float]) -> list[Any]:
    """The production runner and client, keeping every Record."""
    from loadgen.clients import make_client
    from loadgen.runner import run_plan
    from loadgen.types import Arrival, Plan, Record, Request

    body = {"prompt": "Thank you! " * 20, "max_new_tokens": case.tokens}
    closed = case.in_flight is not None
    zero_s = due_s[0]
    arrivals = [
        Arrival(0.0 if closed else due - zero_s, 0.0 if closed else due - zero_s, Request(k, "text", body))
        for k, due in enumerate(due_s)
    ]
    plan = Plan(tuple(arrivals), case.in_flight, "queue", 0, closed)
    records: list[Record] = []
    async with make_client("openai-chat", base_url, model="mock", headers={}) as client:
        await run_plan(plan, client, zero_s=zero_s, timeout_s=120.0, on_record=records.append)
    return records


async def drive_baseline(base_url: str, case: Case, due_s: list[float]) -> list[Any]:
    from benchmarks.baseline_client import PlainClient, drive_plain

    async with PlainClient(base_url, case.tokens) as client:
        return list(await drive_plain(client, due_s, case.in_flight))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def measure(name: str, base_url: str, case: Case) -> dict[str, Any]:
    drive = drive_ours if name == "ours" else drive_baseline
    # One request first: imports, caches and the first connection are not the load's cost.
    await drive(base_url, Case("warm-up", case.tokens, (), in_flight=1, requests=1), [0.0])
    gc.collect()
    gc.freeze()
    start_s = time.monotonic() + LEAD_S
    wall_s = time.time() - time.monotonic()
    rate = case.rate_rps
    due_s = [start_s + k / rate if rate else start_s for k in range(case.requests)]
    if case.in_flight is not None:
        await asyncio.sleep(LEAD_S)
    before_s = cpu_s()
    records = await drive(base_url, case, due_s)
    used_s = cpu_s() - before_s
    took_s = time.monotonic() - start_s
    counts = [n for r in records for n in r.chunk_tokens]
    tokens = sum(counts)
    assert len(records) == case.requests
    assert all(r.output_tokens == case.tokens and r.finish_reason == "length" for r in records)
    assert tokens == case.tokens * case.requests
    sent = sorted(r.sent_s for r in records)
    last_s = sent[-1] - sent[0]
    return {
        "cpu_s": used_s,
        "cpu_s_per_million_tokens": used_s / tokens * 1e6,
        "achieved_rps": (case.requests - 1) / last_s if rate else case.requests / took_s,
        "own_read_share": sum(n == 1 for n in counts) / tokens,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "late_client_ms": [1e3 * (r.sent_s - r.due_s) for r in records] if rate else [],
        "due_wall_s": [due + wall_s for due in due_s] if rate else [],
    }


# The comparison


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pinned(core: int, command: Sequence[str]) -> list[str]:
    able = shutil.which("taskset") and (os.cpu_count() or 1) > 1
    return ["taskset", "-c", str(core), *command] if able else list(command)


def run_once(mock: Path, name: str, case: Case, index: int, options: argparse.Namespace) -> dict[str, Any]:
    port = free_port()
    arrivals = mock.with_name("arrivals.csv")
    command = [str(mock), "-p", str(port), "-n", str(case.tokens), *case.mock, "-o", str(arrivals)]
    server = subprocess.Popen(pinned(0, command))
    try:
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        child = [
            sys.executable,
            __file__,
            "--child",
            name,
            "--case",
            str(index),
            "--url",
            f"http://127.0.0.1:{port}",
            "--load-s",
            str(options.load_s),
            "--closed-requests",
            str(options.closed_requests),
        ]
        done = subprocess.run(pinned(1, child), capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{name}, {case.name}: {done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    due = result.pop("due_wall_s")
    late = sorted(result.pop("late_client_ms"))
    if due:
        with arrivals.open() as rows:
            seen = sorted(int(row["kernel_rx_wall_ns"]) / 1e9 for row in csv.DictReader(rows))[1:]
        at_server = sorted(1e3 * (s - d) for s, d in zip(seen, due, strict=True))
        for where, values in (("client", late), ("server", at_server)):
            result[f"late_{where}_p50_ms"] = values[len(values) // 2]
            result[f"late_{where}_p99_ms"] = values[int(len(values) * 0.99)]
        # Drift: does lateness grow between the first and the last tenth of the grid?
        tenth = max(1, len(due) // 10)
        lateness = [1e3 * (s - d) for s, d in zip(seen, due, strict=True)]
        result["drift_ms"] = statistics.median(lateness[-tenth:]) - statistics.median(lateness[:tenth])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mock-source", type=Path, help="mockllm.c")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--load-s", type=float, default=10.0, help="seconds of open-loop load")
    parser.add_argument("--closed-requests", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", type=int, help="index of the only case to run")
    parser.add_argument("--child", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    all_cases = cases(options.load_s, options.closed_requests)
    if options.child:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(measure(options.child, options.url, all_cases[options.case]))))
        return
    if options.mock_source is None:
        parser.error("--mock-source PATH/mockllm.c is needed")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        mock = Path(folder) / "mockllm"
        subprocess.run(["gcc", "-O2", "-w", "-o", mock, options.mock_source], check=True)
        for index, case in enumerate(all_cases):
            if options.only not in (None, index):
                continue
            of_case = results[case.name] = {name: [] for name in CLIENTS}
            for repetition in range(options.repetitions):
                order = CLIENTS if repetition % 2 == 0 else CLIENTS[::-1]
                for name in order:
                    print(f"{case.name}: {name} {repetition + 1}/{options.repetitions}", file=sys.stderr)
                    of_case[name].append(run_once(mock, name, case, index, options))
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for case_name, of_case in results.items():
        print(f"\n{case_name}  (min / median / max of {options.repetitions})")
        for key in of_case["ours"][0]:
            columns = []
            for name in CLIENTS:
                values = sorted(run[key] for run in of_case[name])
                columns.append(f"{values[0]:9.3f} /{statistics.median(values):9.3f} /{values[-1]:9.3f}")
            print(f"  {key:26} ours {columns[0]}    plain {columns[1]}")


if __name__ == "__main__":
    main()
