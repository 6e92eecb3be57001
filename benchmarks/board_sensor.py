"""What an NVIDIA board's power sensor does: update periods, averaging windows, counter against integral.

    python benchmarks/board_sensor.py [--gpu 0] [--seconds 120] [--output-dir runs] [--json]
    python benchmarks/board_sensor.py --load-command './burn'   # without torch
    python benchmarks/board_sensor.py --from runs/board-sensor-...   # evaluate again

Polls the energy counter, the instant power (field 186), the average (field 185) and
nvmlDeviceGetPowerUsage about 1000 times a second through idle, idle with a CUDA context, a
matrix product, a decode-like stretch (a matrix read over and over) and square waves of load of
three periods that are no multiples of 100 ms. The load is a process of its own: torch, or
``--load-command`` (what it has queued on the board still runs after a stop), or nothing, which
leaves the idle stretch. Writes readings.jsonl.gz, run.json, result.json and page.md, a section
for docs/hardware/BOARD.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from board_load import CommandLoad, LoadError, TorchLoad

from analysis.energy import sensor

POLL_S = 1e-3
WAVES_S = (0.37, 1.3, 5.3)
SETTLE_S = 1.5
"""Left out at the beginning of a steady stretch, and waited after each: the 1 s average and the clocks
have settled. Shorter where the whole is shorter than 2 minutes."""
FIELDS = ("counter", "instant", "average", "usage")


@dataclass
class Phase:
    """A stretch of the run. ``state``: the board's clocks half-way; ``loaded_s``: begin and end of each
    load in it; ``work``: what the load did."""

    name: str
    start_s: float
    end_s: float
    state: dict[str, Any] = field(default_factory=dict)
    loaded_s: list[tuple[float, float]] = field(default_factory=list)
    work: dict[str, float] = field(default_factory=dict)


class Polls:
    """Polls of one board, a line each: ``t_s``, ``value`` (mJ or mW, null where refused), ``call_s``."""

    def __init__(self, gpu: str, file: IO[str]) -> None:
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        by_uuid = gpu.startswith("GPU-")
        self.handle = (pynvml.nvmlDeviceGetHandleByUUID if by_uuid else pynvml.nvmlDeviceGetHandleByIndex)(
            gpu if by_uuid else int(gpu)
        )
        self.uuid = str(pynvml.nvmlDeviceGetUUID(self.handle))
        power = ("NVML_FI_DEV_POWER_INSTANT", "NVML_FI_DEV_POWER_AVERAGE")
        self.fields = [(getattr(pynvml, name), pynvml.NVML_POWER_SCOPE_GPU) for name in power]
        self.file = file

    def board(self) -> dict[str, Any]:
        asked: dict[str, Callable[[], Any]] = {
            "name": lambda: self.nvml.nvmlDeviceGetName(self.handle),
            "uuid": lambda: self.uuid,
            "driver": self.nvml.nvmlSystemGetDriverVersion,
            "power_limit_w": lambda: self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1e3,
            "mig": lambda: bool(self.nvml.nvmlDeviceGetMigMode(self.handle)[0]),
            "persistence": lambda: bool(self.nvml.nvmlDeviceGetPersistenceMode(self.handle)),
        }
        return {key: self._or_none(ask) for key, ask in asked.items()}

    def state(self) -> dict[str, Any]:
        nvml = self.nvml
        asked: dict[str, Callable[[], Any]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU),
            "pstate": lambda: nvml.nvmlDeviceGetPerformanceState(self.handle),
            "event_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle),
        }
        return {key: self._or_none(ask) for key, ask in asked.items()}

    def _or_none(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (self.nvml.NVMLError, AttributeError):  # the board, or this nvidia-ml-py, does not have it
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

    def until(self, end_s: float) -> dict[str, Any]:
        """Polls at absolute instants, one that is late is not made up for; the board's state half-way."""
        due_s = time.monotonic()
        half_s = (due_s + end_s) / 2
        state: dict[str, Any] = {}
        while (now_s := time.monotonic()) < end_s:
            if now_s < due_s:
                time.sleep(due_s - now_s)
            self.once()
            if not state and now_s >= half_s:
                state = self.state()
            due_s = max(due_s + POLL_S, time.monotonic() - POLL_S)
        return state


def record(gpu: str, device: str, seconds: float, command: str | None, folder: Path) -> None:
    """Runs the stretches and writes readings.jsonl.gz and run.json, also when the load fails."""
    # A poll is about 150 bytes: two minutes of them are 20 MB as text and 3 MB so.
    with gzip.open(folder / "readings.jsonl.gz", "wt", compresslevel=1, encoding="utf-8") as file:
        run = _recorded(Polls(gpu, file), device, seconds, command)
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def _recorded(polls: Polls, device: str, seconds: float, command: str | None) -> dict[str, Any]:
    phases: list[Phase] = []
    load: TorchLoad | CommandLoad | None = None
    failure: str | None = None

    def idle(name: str, for_s: float) -> None:
        start_s = time.monotonic()
        phases.append(Phase(name, start_s, 0.0, polls.until(start_s + for_s)))
        phases[-1].end_s = time.monotonic()

    def loaded(by: TorchLoad | CommandLoad, name: str, period_s: float | None, for_s: float) -> None:
        edges, state, work = by.run(polls.until, name, period_s, for_s)
        phases.append(Phase(name, edges[0][0], edges[-1][1], state, edges, work))
        polls.until(time.monotonic() + min(SETTLE_S, seconds / 80))

    try:
        idle("idle", 0.1 * seconds)
        load = TorchLoad(device, polls.uuid) if command is None else CommandLoad(command)
        if not load.work:
            failure = f"no load: this Python has no torch that can use {device!r}, and no --load-command"
        elif command is None:
            polls.until(time.monotonic() + min(SETTLE_S, seconds / 80))
            idle("idle with a CUDA context", 0.1 * seconds)
        for kind in load.work:
            loaded(load, kind, None, 0.3 * seconds / len(load.work))
        for period_s, share in zip(WAVES_S if load.work else (), (0.1, 0.15, 0.25), strict=False):
            loaded(load, f"square {period_s:g} s", period_s, share * seconds)
    except LoadError as exc:
        failure = str(exc)
    finally:
        if load is not None:
            load.close()
    if failure is not None:
        print(f"board_sensor: {failure}", file=sys.stderr)
    return {
        "board": polls.board(),
        "phases": [asdict(p) for p in phases],
        "command": command,
        "device": device,
        "seconds": seconds,
        "failure": failure,
    }


def evaluate(folder: Path) -> dict[str, Any]:
    """Everything that the recorded polls tell, from `analysis.energy.sensor`."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with gzip.open(folder / "readings.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    t_s = np.array([row["t_s"] for row in rows])
    call_s = np.array([row["call_s"] for row in rows])
    # A value is as old as the end of the call that brought it: columns counter, both fields, usage.
    ends_s = t_s[:, None] + np.cumsum(call_s, axis=1)
    values = np.array([row["value"] for row in rows], dtype=np.float64)
    at = {"counter": 0, "instant": 1, "average": 1, "usage": 2}
    series = {name: (ends_s[:, at[name]], values[:, i] / 1e3) for i, name in enumerate(FIELDS)}
    loaded_s = [edge for p in run["phases"] if p["name"].startswith("square") for edge in p["loaded_s"]]
    waves = [p for p in run["phases"] if p["name"].startswith("square")]
    found: dict[str, Any] = {
        "board": run["board"],
        "failure": run["failure"],
        "polls": len(rows),
        "fields": {},
        "phases": [],
    }
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
            split = sensor.counter_power if name == "counter" else sensor.renewals
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
        entry = {key: phase[key] for key in ("name", "state", "work")}
        entry |= {"counter_w": None, "integral_over_counter": {}}
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
    if found["failure"] is not None:
        yield f"Incomplete: {found['failure']}."
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
        mean = window.get("reason") or ("" if update["reason"] else "no load")
        if window.get("window_s") is not None:
            mean = f"{_ms(window['window_s'])} ({_ms(window['low_s'])} - {_ms(window['high_s'])})"
        share = "" if entry["seen_share"] is None else f"{100 * entry['seen_share']:.0f} %"
        lag = _ms(window.get("lag_s"))
        yield f"| {name} | {every} | {spread} | {mean} | {lag} | {share} |"
    yield ""
    yield "| stretch | counter | instant / counter | average / counter | usage / counter | state | work |"
    yield "|---|---|---|---|---|---|---|"
    for phase in found["phases"]:
        watts = (
            "none"
            if phase["counter_w"] is None
            else f"{phase['counter_w']:.1f} W over {phase['seconds']:.1f} s"
        )
        ratios = (phase["integral_over_counter"].get(name) for name in FIELDS[1:])
        shown = " | ".join("" if r is None else f"{r:.4f}" for r in ratios)
        work = ", ".join(f"{value:.4g} {unit.replace('_per_', '/')}" for unit, value in phase["work"].items())
        yield f"| {phase['name']} | {watts} | {shown} | {_state(phase['state'])} | {work} |"
    yield ""
    step = found["counter_step_mj"]
    if step is not None:
        yield f"The counter moves in multiples of {step['divisor']} mJ, by {step['least']} mJ at least."
    calls = (
        f"{name} {1e6 * c['p50']:.0f} us (p99 {1e6 * c['p99']:.0f})" for name, c in found["call_s"].items()
    )
    yield f"A call takes: {', '.join(calls)}."


def _state(state: dict[str, Any]) -> str:
    units = {"sm_clock_mhz": "SM {} MHz", "memory_clock_mhz": "memory {} MHz", "temperature_c": "{} C"}
    units |= {"pstate": "P{}", "event_reasons": "reasons {:#x}"}
    return ", ".join(text.format(state[key]) for key, text in units.items() if state.get(key) is not None)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu", default="0", metavar="UUID|index", help="as NVML counts (default 0)")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of the whole, pauses apart (default 120)"
    )
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), metavar="PARENT")
    parser.add_argument("--load-command", metavar="CMD", help="loads the board instead of torch")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="torch's; cpu only tries this tool out"
    )
    parser.add_argument(
        "--from", dest="folder", type=Path, metavar="DIR", help="evaluate a recorded run again"
    )
    parser.add_argument("--json", action="store_true", help="the result on stdout instead of its directory")
    args = parser.parse_args()
    folder: Path = args.folder
    if folder is None:
        try:
            import pynvml
        except ImportError:
            print("board_sensor: pynvml is missing: pip install nvidia-ml-py", file=sys.stderr)
            return 2
        folder = args.output_dir / f"board-sensor-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        folder.mkdir(parents=True)
        try:
            record(args.gpu, args.device, args.seconds, args.load_command, folder)
        except pynvml.NVMLError as exc:
            print(f"board_sensor: {exc}: `loadgen doctor` says what to do", file=sys.stderr)
            return 2
    found = evaluate(folder)
    (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "page.md").write_text(page(found, folder), encoding="utf-8")
    print(json.dumps(found) if args.json else folder)
    return 1 if found["failure"] else 0


if __name__ == "__main__":
    sys.exit(main())
