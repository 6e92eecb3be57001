"""What an NVIDIA board's power sensor does: update periods, averaging windows, counter against integral.

    python benchmarks/board_sensor.py [--gpu 0] [--seconds 60] [--output-dir runs] [--json]
    python benchmarks/board_sensor.py --load-command './burn'   # without torch
    python benchmarks/board_sensor.py --from runs/board-sensor-...   # evaluate again

Polls the energy counter, the instant power (field 186), the average (field 185) and
nvmlDeviceGetPowerUsage about 1000 times a second through idle, a matrix product, a
decode-like stretch (a matrix read over and over) and square waves of load of three periods
that are no multiples of 100 ms. The load is a process of its own, so that it cannot delay a
poll: torch, or ``--load-command`` (stopped and continued for the square waves; what it has
queued on the board still runs then), or nothing, which leaves the idle stretch. Writes
readings.jsonl, run.json, result.json and page.md, a section for docs/hardware/BOARD.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from analysis import sensor

POLL_S = 1e-3
WAVES_S = (0.37, 1.3, 5.3)
SETTLE_S = 1.5
"""Left out at the beginning of a steady stretch: the 1 s average and the clocks have settled."""
FIELDS = ("counter", "instant", "average", "usage")


@dataclass
class Phase:
    """A stretch of the run; ``loaded_s``: begin and end of each load in it."""

    name: str
    start_s: float
    end_s: float
    loaded_s: list[tuple[float, float]] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=dict)


class Polls:
    """Polls of one board, a line each: ``t_s``, ``value`` (mJ or mW, null where refused), ``call_s``."""

    def __init__(self, gpu: str, path: Path) -> None:
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        by_uuid = gpu.startswith("GPU-")
        self.handle = (pynvml.nvmlDeviceGetHandleByUUID if by_uuid else pynvml.nvmlDeviceGetHandleByIndex)(
            gpu if by_uuid else int(gpu)
        )
        power = ("NVML_FI_DEV_POWER_INSTANT", "NVML_FI_DEV_POWER_AVERAGE")
        self.fields = [(getattr(pynvml, name), pynvml.NVML_POWER_SCOPE_GPU) for name in power]
        self.file = path.open("w", encoding="utf-8", buffering=1 << 16)

    def board(self) -> dict[str, Any]:
        asked: dict[str, Callable[[], Any]] = {
            "name": lambda: self.nvml.nvmlDeviceGetName(self.handle),
            "uuid": lambda: self.nvml.nvmlDeviceGetUUID(self.handle),
            "driver": self.nvml.nvmlSystemGetDriverVersion,
            "power_limit_w": lambda: self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1e3,
            "mig": lambda: bool(self.nvml.nvmlDeviceGetMigMode(self.handle)[0]),
            "persistence": lambda: bool(self.nvml.nvmlDeviceGetPersistenceMode(self.handle)),
        }
        return {key: self._or_none(ask) for key, ask in asked.items()}

    def _or_none(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self.nvml.NVMLError:
            return None

    def once(self) -> None:
        nvml, now = self.nvml, time.monotonic
        t0 = now()
        counter = self._or_none(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        t1 = now()
        answers = self._or_none(lambda: nvml.nvmlDeviceGetFieldValues(self.handle, self.fields)) or (
            None,
            None,
        )
        t2 = now()
        usage = self._or_none(lambda: nvml.nvmlDeviceGetPowerUsage(self.handle))
        t3 = now()
        instant, average = (
            None if a is None or a.nvmlReturn != nvml.NVML_SUCCESS else int(a.value.uiVal) for a in answers
        )
        stamps = [None if a is None else int(a.timestamp) for a in answers]
        row = {"t_s": t0, "value": [counter, instant, average, usage], "call_s": [t1 - t0, t2 - t1, t3 - t2]}
        self.file.write(json.dumps(row | {"stamp_us": stamps}) + "\n")

    def until(self, end_s: float) -> None:
        """Polls at absolute instants; one that is late is not made up for."""
        due_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s:
            if now_s < due_s:
                time.sleep(due_s - now_s)
            self.once()
            due_s = max(due_s + POLL_S, time.monotonic() - POLL_S)


class Load:
    """The process that loads the board. ``kinds``: the steady loads it knows."""

    def __init__(self, uuid: str, command: str | None) -> None:
        self.command = command
        self.child: subprocess.Popen[str] | None = None
        self.kinds: tuple[str, ...] = ("command",) if command else ()
        if command is None:
            env = os.environ | {"CUDA_VISIBLE_DEVICES": uuid}
            self.child = subprocess.Popen(
                [sys.executable, __file__, "--load-child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=env,
            )  # fmt: skip
            if self._answer().get("ready"):
                self.kinds = ("matmul", "decode")

    def _answer(self) -> dict[str, Any]:
        assert self.child is not None and self.child.stdout is not None
        line = self.child.stdout.readline()
        return dict(json.loads(line)) if line.strip() else {}

    def run(self, polls: Polls, name: str, period_s: float | None, seconds: float) -> Phase:
        """Loads the board for ``seconds``, or in the first half of each period, and polls it meanwhile."""
        start_s = time.monotonic()
        if self.command is not None:
            return self._command(polls, name, period_s, seconds)
        assert self.child is not None and self.child.stdin is not None
        kind = "matmul" if period_s else name
        self.child.stdin.write(json.dumps({"kind": kind, "period_s": period_s, "seconds": seconds}) + "\n")
        self.child.stdin.flush()
        polls.until(start_s + seconds)
        said = self._answer()
        loaded_s = [tuple(edge) for edge in said.pop("loaded_s")]
        return Phase(name, loaded_s[0][0], loaded_s[-1][1], loaded_s, said)

    def _command(self, polls: Polls, name: str, period_s: float | None, seconds: float) -> Phase:
        start_s = time.monotonic()
        child = subprocess.Popen(shlex.split(str(self.command)), start_new_session=True)
        edges: list[tuple[float, float]] = []
        while (now_s := time.monotonic()) < start_s + seconds and child.poll() is None:
            half_s = period_s / 2 if period_s else seconds
            os.killpg(child.pid, signal.SIGCONT)
            polls.until(min(now_s + half_s, start_s + seconds))
            edges.append((now_s, time.monotonic()))
            if period_s and child.poll() is None:
                os.killpg(child.pid, signal.SIGSTOP)
                polls.until(edges[-1][1] + half_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return Phase(name, start_s, time.monotonic(), edges)

    def close(self) -> None:
        if self.child is not None:
            if self.child.stdin is not None:
                self.child.stdin.close()
            self.child.wait(timeout=30)


def load_child() -> None:
    """Takes {"kind", "period_s", "seconds"} a line, runs it, says what it did; ends with its input."""
    try:
        import torch

        ready = bool(torch.cuda.is_available())
    except ImportError:
        ready = False
    print(json.dumps({"ready": ready}), flush=True)
    if not ready:
        return
    n = 4096
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    free_bytes = torch.cuda.mem_get_info()[0]
    rows = int(min(free_bytes // 4, 8 << 30)) // (2 * 8192)
    weights = torch.randn(rows, 8192, device="cuda", dtype=torch.bfloat16)
    vector = torch.randn(8192, device="cuda", dtype=torch.bfloat16)
    loads: dict[str, tuple[Callable[[], Any], float, float]] = {
        "matmul": (lambda: torch.mm(a, b), 2.0 * n**3, 6.0 * n * n),
        "decode": (lambda: torch.mv(weights, vector), 2.0 * rows * 8192, 2.0 * rows * 8192),
    }
    for step, _, _ in loads.values():
        step()
    torch.cuda.synchronize()
    for line in sys.stdin:
        job = json.loads(line)
        step, flop, moved_bytes = loads[job["kind"]]
        start_s = time.monotonic()
        edges, count, on_s = [], 0, 0.0
        half_s = job["period_s"] / 2 if job["period_s"] else job["seconds"]
        k = 0
        while (due_s := start_s + 2 * k * half_s) < start_s + job["seconds"]:
            time.sleep(max(0.0, due_s - time.monotonic()))
            on = time.monotonic()
            while time.monotonic() < min(due_s + half_s, start_s + job["seconds"]):
                for _ in range(4):
                    step()
                torch.cuda.synchronize()  # a few ms of queue at most, so that the edges are true
                count += 4
            edges.append((on, time.monotonic()))
            on_s += edges[-1][1] - on
            k += 1
        did = {"tflop_per_s": count * flop / on_s / 1e12, "gb_per_s": count * moved_bytes / on_s / 1e9}
        print(json.dumps({"loaded_s": edges} | did), flush=True)


def record(gpu: str, seconds: float, command: str | None, folder: Path) -> None:
    """Runs the phases and writes readings.jsonl and run.json."""
    polls = Polls(gpu, folder / "readings.jsonl")
    board = polls.board()
    load = Load(board["uuid"], command)
    phases: list[Phase] = []
    idle_start_s = time.monotonic()
    polls.until(idle_start_s + 0.2 * seconds)
    phases.append(Phase("idle", idle_start_s, time.monotonic()))
    try:
        for kind in load.kinds:
            phases.append(load.run(polls, kind, None, 0.3 * seconds / len(load.kinds)))
            polls.until(time.monotonic() + SETTLE_S)
        for period_s, share in zip(WAVES_S if load.kinds else (), (0.1, 0.15, 0.25), strict=False):
            phases.append(load.run(polls, f"square {period_s:g} s", period_s, share * seconds))
            polls.until(time.monotonic() + SETTLE_S)
    finally:
        load.close()
        polls.file.close()
    run = {"board": board, "phases": [asdict(p) for p in phases], "command": command, "seconds": seconds}
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def evaluate(folder: Path) -> dict[str, Any]:
    """Everything that the recorded polls tell, from `analysis.sensor`."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "readings.jsonl").read_text(encoding="utf-8").splitlines()]
    t_s = np.array([row["t_s"] for row in rows])
    call_s = np.array([row["call_s"] for row in rows])
    # A value is as old as the end of the call that brought it: columns counter, both fields, usage.
    ends_s = t_s[:, None] + np.cumsum(call_s, axis=1)
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    at = {"counter": 0, "instant": 1, "average": 1, "usage": 2}
    series = {name: (ends_s[:, at[name]], values[:, i] / 1e3) for i, name in enumerate(FIELDS)}
    loaded_s = [edge for p in run["phases"] if p["name"].startswith("square") for edge in p["loaded_s"]]
    waves = [p for p in run["phases"] if p["name"].startswith("square")]
    found: dict[str, Any] = {"board": run["board"], "polls": len(rows), "fields": {}, "phases": []}
    found["call_s"] = {
        name: dict(
            zip(("p50", "p99", "max"), np.percentile(call_s[:, i], (50, 99, 100)).tolist(), strict=True)
        )
        for i, name in enumerate(("counter", "both fields", "usage"))
    }
    for name, (when_s, value) in series.items():
        update = sensor.update_period(when_s, value)
        entry: dict[str, Any] = {"update": asdict(update), "window": None, "seen_share": None}
        if update.period_s is not None and loaded_s:
            inside = (when_s >= waves[0]["start_s"]) & (when_s <= waves[-1]["end_s"])
            split = sensor.counter_power if name == "counter" else sensor.publications
            at_s, power_w = split(when_s[inside], value[inside], update.period_s)
            window = sensor.averaging_window(at_s, power_w, np.array(loaded_s), update.poll_s)
            entry |= {"window": asdict(window), "seen_share": sensor.seen_share(window, update)}
        found["fields"][name] = entry
    step = sensor.counter_step_mj(values[:, 0])
    found["counter_step_mj"] = None if step is None else {"divisor": step[0], "least": step[1]}
    for phase in run["phases"]:
        if phase["name"].startswith("square"):
            continue
        cut_s = min(SETTLE_S, (phase["end_s"] - phase["start_s"]) / 4)
        whole = sensor.counter_window(*series["counter"], phase["start_s"] + cut_s, phase["end_s"])
        entry = {"name": phase["name"], "work": phase["work"], "counter_w": None, "integral_over_counter": {}}
        if whole is not None:
            start_s, end_s, energy_j = whole
            entry |= {
                "seconds": end_s - start_s,
                "counter_j": energy_j,
                "counter_w": energy_j / (end_s - start_s),
            }
            for name in FIELDS[1:]:
                held_j = sensor.held_integral_j(*series[name], start_s, end_s)
                entry["integral_over_counter"][name] = None if held_j is None else held_j / energy_j
        found["phases"].append(entry)
    return found


def page(found: dict[str, Any], folder: Path) -> str:
    """A section of docs/hardware/BOARD.md."""
    return "\n".join(_page_lines(found, folder)) + "\n"


def _page_lines(found: dict[str, Any], folder: Path) -> Iterator[str]:
    board = found["board"]
    limit_w = board["power_limit_w"]
    limit = "unknown" if limit_w is None else f"{limit_w:g} W"
    yield f"## {board['name']}, driver {board['driver']}, power limit {limit}"
    yield ""
    yield f"`benchmarks/board_sensor.py`, {found['polls']} polls, raw readings `{folder.name}`."
    yield ""
    yield "| field | renewed every | p5-p95 of the changes | averaging window (95 %) | lag | time seen |"
    yield "|---|---|---|---|---|---|"
    for name, entry in found["fields"].items():
        update, window = entry["update"], entry["window"] or {}
        every = (
            f"{_ms(update['period_s'])} +- {_ms(update['error_s'])}"
            if update["reason"] is None
            else update["reason"]
        )
        spread = "" if update["p5_s"] is None else f"{_ms(update['p5_s'])} - {_ms(update['p95_s'])}"
        mean = window.get("reason") or "no load"
        if window.get("window_s") is not None:
            mean = f"{_ms(window['window_s'])} ({_ms(window['low_s'])} - {_ms(window['high_s'])})"
        share = "" if entry["seen_share"] is None else f"{100 * entry['seen_share']:.0f} %"
        lag = _ms(window.get("lag_s"))
        yield f"| {name} | {every} | {spread} | {mean} | {lag} | {share} |"
    yield ""
    yield "| stretch | counter | instant / counter | average / counter | usage / counter | work |"
    yield "|---|---|---|---|---|---|"
    for phase in found["phases"]:
        watts = (
            "none"
            if phase["counter_w"] is None
            else f"{phase['counter_w']:.1f} W over {phase['seconds']:.1f} s"
        )
        ratios = (phase["integral_over_counter"].get(name) for name in FIELDS[1:])
        shown = " | ".join("" if r is None else f"{r:.4f}" for r in ratios)
        work = ", ".join(f"{value:.4g} {unit.replace('_per_', '/')}" for unit, value in phase["work"].items())
        yield f"| {phase['name']} | {watts} | {shown} | {work} |"
    yield ""
    step = found["counter_step_mj"]
    if step is not None:
        yield f"The counter moves in multiples of {step['divisor']} mJ, by {step['least']} mJ at least."
    calls = (
        f"{name} {1e6 * c['p50']:.0f} us (p99 {1e6 * c['p99']:.0f})" for name, c in found["call_s"].items()
    )
    yield f"A call takes: {', '.join(calls)}."


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="0", metavar="UUID|index", help="as NVML counts (default 0)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the whole, pauses apart (default 60)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), metavar="PARENT")
    parser.add_argument("--load-command", metavar="CMD", help="loads the board instead of torch")
    parser.add_argument(
        "--from", dest="folder", type=Path, metavar="DIR", help="evaluate a recorded run again"
    )
    parser.add_argument("--json", action="store_true", help="the result on stdout instead of its directory")
    parser.add_argument("--load-child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load_child:
        load_child()
        return 0
    folder: Path = args.folder
    if folder is None:
        import pynvml

        folder = args.output_dir / f"board-sensor-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        folder.mkdir(parents=True)
        try:
            record(args.gpu, args.seconds, args.load_command, folder)
        except pynvml.NVMLError as exc:
            print(f"board_sensor: {exc}: `loadgen doctor` says what to do", file=sys.stderr)
            return 2
    found = evaluate(folder)
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "page.md").write_text(page(found, folder), encoding="utf-8")
    print(json.dumps(found) if args.json else folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
