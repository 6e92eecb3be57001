"""Sensors of known period and window, polled and then recovered."""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

import fake_nvml
import numpy as np
import pytest

from analysis.energy import sensor
from loadgen.types import Floats

OFF_W, ON_W = 90.0, 650.0
WAVES = ((0.37, 8.0), (1.3, 8.0), (5.3, 16.0))
"""Period and length of the square waves, one after the other."""


def loaded_stretches() -> Floats:
    """(k, 2): load in the first half of each period."""
    edges, start_s = [], 1.0
    for period_s, length_s in WAVES:
        edges += [
            (start_s + k * period_s, start_s + (k + 0.5) * period_s) for k in range(int(length_s / period_s))
        ]
        start_s += length_s
    return np.array(edges)


LOADED = loaded_stretches()
END_S = 34.0


def energy_j(t_s: float) -> float:
    """The truth: joules of the load's power in [0, t]."""
    on_s = sum(max(0.0, min(t_s, end_s) - start_s) for start_s, end_s in LOADED)
    return OFF_W * t_s + (ON_W - OFF_W) * on_s


@dataclass(frozen=True)
class Made:
    """A sensor that publishes at ``phase + k period`` the mean of the last ``window``, plus noise."""

    period_s: float
    window_s: float
    phase_s: float = 0.0234
    noise_w: float = 0.0
    jitter_s: float = 0.0
    delay_s: float = 0.0

    def poll(self, poll_s: float, seed: int = 1, end_s: float = END_S) -> tuple[Floats, Floats]:
        """Polls ``poll_s`` apart, a fifth of that uneven."""
        rng = np.random.default_rng(seed)
        count = int((end_s + self.period_s) / self.period_s)
        at_s = self.phase_s + self.period_s * np.arange(count) + rng.uniform(0, self.jitter_s, count)
        seen_s = at_s - self.delay_s
        value = np.array([(energy_j(t) - energy_j(t - self.window_s)) / self.window_s for t in seen_s])
        value = np.round(value + rng.normal(0, self.noise_w, count), 3)  # NVML's milliwatts
        t_s = np.arange(self.phase_s + 0.2, end_s, poll_s)
        t_s = np.sort(t_s + rng.uniform(0, 0.2 * poll_s, len(t_s)))
        return t_s, value[np.searchsorted(at_s, t_s, side="right") - 1]


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
def test_the_update_period_is_recovered_within_its_stated_error(period_s: float, jitter_s: float) -> None:
    t_s, value = Made(period_s, 0.025, noise_w=0.5, jitter_s=jitter_s).poll(1e-3)
    found = sensor.update_period(t_s, value)
    assert found.reason is None and found.period_s is not None and found.error_s is not None
    assert found.period_s == pytest.approx(period_s, abs=found.error_s)
    assert found.error_s < 0.01 * period_s
    assert found.p5_s is not None and found.p95_s is not None and found.jitter_s is not None
    spread_s = 1.5e-3 + 2 * jitter_s
    assert found.median_s == pytest.approx(period_s, abs=spread_s)
    assert period_s - spread_s < found.p5_s <= found.p95_s < period_s + spread_s
    assert found.jitter_s < spread_s


def test_renewals_with_an_equal_value_do_not_lengthen_the_period() -> None:
    t_s, value = Made(0.1, 0.025).poll(1e-3)  # without noise the value changes at the load's edges only
    found = sensor.update_period(t_s, value)
    assert found.period_s == pytest.approx(0.1, abs=found.error_s)
    assert found.p95_s is not None and found.p95_s > 0.15
    rng = np.random.default_rng(4)
    t_s = np.arange(0, 60, 1e-3)
    coarse = rng.integers(0, 2, 700)[np.floor(t_s / 0.1 + 1e-9).astype(int)].astype(float)
    half = sensor.update_period(t_s, coarse)
    assert half.period_s == pytest.approx(0.1, abs=half.error_s)


@pytest.mark.parametrize(("period_s", "poll_s"), [(0.001, 0.001), (0.0015, 0.001), (0.1, 0.05), (0.02, 0.1)])
def test_a_period_near_the_polls_is_not_claimed(period_s: float, poll_s: float) -> None:
    """50 ms polls of a 100 ms sensor may keep step with it: a period from them would be the polls' own."""
    t_s, value = Made(period_s, period_s, noise_w=1.0).poll(poll_s, end_s=8.0)
    found = sensor.update_period(t_s, value)
    assert found.period_s is None and found.reason is not None and "as often as it was polled" in found.reason


def test_a_value_that_stands_still_or_was_never_read_has_a_reason() -> None:
    t_s = np.arange(0, 10, 1e-3)
    still = sensor.update_period(t_s, np.full(len(t_s), 71.8))
    assert (still.changes, still.period_s) == (0, None) and still.reason == "changed 0 times in 10 s"
    assert sensor.update_period(t_s, np.full(len(t_s), math.nan)).reason == "no reading"


def window_of(made: Made, poll_s: float = 1e-3) -> tuple[sensor.Window, sensor.Update]:
    t_s, value = made.poll(poll_s)
    update = sensor.update_period(t_s, value)
    assert update.period_s is not None
    at_s, power_w = sensor.renewals(t_s, value, update.period_s)
    return sensor.averaging_window(at_s, power_w, LOADED, update.poll_s), update


@pytest.mark.parametrize(
    "made",
    [
        Made(0.1, 0.025),
        Made(0.1, 0.025, noise_w=3.0, delay_s=0.02),
        Made(0.1, 0.1, noise_w=3.0),
        Made(0.1, 1.0, noise_w=3.0, jitter_s=0.002),
        Made(0.02, 0.01, noise_w=3.0),
        Made(0.1, 0.5, noise_w=1.0, delay_s=0.1),
    ],
    ids=lambda m: f"{m.window_s:g}-of-{m.period_s:g}s",
)
def test_the_averaging_window_is_recovered_within_its_stated_error(made: Made) -> None:
    found, update = window_of(made)
    assert found.reason is None and found.low_s is not None and found.high_s is not None
    assert found.low_s <= made.window_s <= found.high_s
    assert found.high_s - found.low_s < max(0.3 * made.window_s, 0.008)
    assert found.lag_s == pytest.approx(made.delay_s, abs=0.01 + 0.05 * made.window_s)
    assert found.off_w == pytest.approx(OFF_W, abs=6.0) and found.on_w == pytest.approx(ON_W, abs=6.0)
    share = sensor.seen_share(found, update)
    assert share == pytest.approx(min(1.0, made.window_s / made.period_s), abs=0.05)


def test_a_load_that_moves_nothing_gives_no_window() -> None:
    rng = np.random.default_rng(2)
    at_s = np.arange(1, 33, 0.1)
    quiet = sensor.averaging_window(at_s, 70 + rng.normal(0, 1, len(at_s)), LOADED, 1e-3)
    assert quiet.window_s is None and quiet.reason is not None and "does not follow" in quiet.reason
    still = sensor.averaging_window(at_s, np.full(len(at_s), 70.0), LOADED, 1e-3)
    assert still.reason == "the power did not move"
    assert sensor.averaging_window(at_s[:5], at_s[:5], LOADED, 1e-3).window_s is None


def counter(period_s: float, window_s: float, poll_s: float = 1e-3) -> tuple[Floats, Floats]:
    """A counter that adds ``period x mean of the last window`` at each update: window = period sees all."""
    at_s = 0.0234 + period_s * np.arange(int(END_S / period_s))
    steps = [(energy_j(t) - energy_j(t - window_s)) / window_s * period_s for t in at_s]
    total_mj = np.floor(1e6 + 1e3 * np.cumsum(steps))
    t_s = np.arange(0.1, END_S - 0.2, poll_s)
    return t_s, total_mj[np.searchsorted(at_s, t_s, side="right") - 1] / 1e3


@pytest.mark.parametrize("window_s", [0.1, 0.025])
def test_a_counter_that_sums_a_part_time_sensor_is_told_from_one_that_sees_everything(
    window_s: float,
) -> None:
    t_s, value_j = counter(0.1, window_s)
    update = sensor.update_period(t_s, value_j)
    assert update.period_s == pytest.approx(0.1, abs=update.error_s)
    at_s, power_w = sensor.counter_power(t_s, value_j, 0.1)
    found = sensor.averaging_window(at_s, power_w, LOADED, update.poll_s)
    assert found.window_s == pytest.approx(window_s, abs=0.004)


def test_the_counters_step_is_the_common_divisor_of_what_it_moved_by() -> None:
    _, value_j = counter(0.1, 0.1)
    assert sensor.counter_step_mj(np.round(value_j * 1e3)) == (1, 9000)
    assert sensor.counter_step_mj(np.array([100.0, 100.0, 600.0, math.nan, 1350.0])) == (250, 500)
    assert sensor.counter_step_mj(np.full(5, 7.0)) is None


def test_counter_and_integral_of_a_steady_stretch_agree_with_the_truth() -> None:
    start_s, end_s = float(LOADED[-1, 0]) + 0.2, float(LOADED[-1, 1])
    t_s, value_j = counter(0.1, 0.1)
    found = sensor.counter_window(t_s, value_j, start_s, end_s)
    assert found is not None
    first_s, last_s, total_j = found
    assert start_s <= first_s < start_s + 0.11 and end_s - 0.11 < last_s <= end_s
    assert total_j == pytest.approx(ON_W * (last_s - first_s), rel=1e-3)
    polls_s, power_w = Made(0.1, 0.025).poll(1e-3)
    held_j = sensor.held_integral_j(polls_s, power_w, first_s, last_s)
    assert held_j == pytest.approx(ON_W * (last_s - first_s), rel=1e-6)
    assert sensor.held_integral_j(polls_s, power_w, first_s, END_S + 5) is None
    assert sensor.counter_window(t_s, np.full(len(t_s), 5.0), start_s, end_s) is None


TOOL = Path(__file__).resolve().parent.parent / "benchmarks" / "board_sensor.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("board_sensor", TOOL)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(TOOL.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules["board_sensor"] = module
    spec.loader.exec_module(module)
    return module


def test_the_tool_finds_what_the_fake_driver_does(library: Path, tool: ModuleType, tmp_path: Path) -> None:
    """A part-time instant power (25 of 100 ms), a counter and a 1 s average that see everything."""
    period_s, seconds = 2.37, 24.0
    board = fake_nvml.Board(
        low=90, high=640, period=period_s, phase=2.0, window=0.025, stamp=fake_nvml.CALLED
    )
    averaging = replace(board, window=0.1, average=1.0)
    driven = fake_nvml.drive(library, [board, averaging], seconds=seconds, interval_s=2e-3, jitter_s=5e-4)
    assert driven.error is None
    with gzip.open(tmp_path / "readings.jsonl.gz", "wt") as file:
        for read in driven.reads:
            values = {
                name: (t_s, power_w if joules is None else joules) for t_s, name, power_w, joules in read
            }
            shown = [round(1e3 * values[name][1]) for name in ("gpu0", "gpu0.instant", "gpu1.average")]
            row = {"t_s": values["gpu0"][0], "value": [*shown, None], "call_s": [1e-5, 2e-5, 1e-5]}
            file.write(json.dumps(row) + "\n")
    waves = [(2.0 + k * period_s, 2.0 + (k + 0.5) * period_s) for k in range(-1, 10)]
    about = {"name": "Fake", "driver": "1", "power_limit_w": 700.0}
    phases = [
        asdict(tool.Phase("idle", 0.0, 6.0)),
        asdict(tool.Phase("square 2.37 s", 1.5, 23.5, {"pstate": 0}, waves)),
    ]
    (tmp_path / "run.json").write_text(json.dumps({"board": about, "phases": phases, "failure": None}))
    found = tool.evaluate(tmp_path)
    for name, window_s, share in (("counter", 0.1, 1.0), ("instant", 0.025, 0.25), ("average", 1.0, 1.0)):
        entry = found["fields"][name]
        update, window = entry["update"], entry["window"]
        assert update["period_s"] == pytest.approx(0.1, abs=update["error_s"]), name
        assert window["low_s"] <= window_s <= window["high_s"], (name, window)
        assert entry["seen_share"] == pytest.approx(share, abs=0.05)
    assert found["fields"]["usage"]["update"]["reason"] == "no reading"
    assert found["counter_step_mj"]["divisor"] >= 1
    idle = found["phases"][0]
    start_s, seconds_seen = 1.5, idle["seconds"]
    assert idle["counter_w"] == pytest.approx(board.energy_j(start_s, 6.0) / 4.5, rel=0.06)
    assert seconds_seen == pytest.approx(4.5, abs=0.2)
    text = tool.page(found, tmp_path)
    assert "| instant | 100 ms" in text and "| 25 % |" in text and "| usage | no reading |" in text


def test_the_tool_runs_without_a_load_and_evaluates_its_own_files_again(
    library: Path, tmp_path: Path
) -> None:
    """In real time, idle only: no torch and no --load-command."""
    env = fake_nvml.environment(library, [fake_nvml.Board(low=120)], real_time=True)
    command = [sys.executable, str(TOOL), "--seconds", "8", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no load" in done.stderr, done.stderr
    folder = Path(done.stdout.strip())
    assert {p.name for p in folder.iterdir()} >= {"readings.jsonl.gz", "run.json", "result.json", "page.md"}
    again = subprocess.run(
        [sys.executable, str(TOOL), "--from", str(folder), "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(again.stdout)
    assert found == json.loads((folder / "result.json").read_text())
    assert found["phases"][0]["counter_w"] == pytest.approx(120.0, rel=0.02)
    assert found["fields"]["counter"]["update"]["median_s"] == pytest.approx(0.1, abs=0.03)
    assert found["polls"] > 200 and found["fields"]["instant"]["update"]["changes"] == 0


def test_a_load_command_is_stopped_and_continued_and_ended(library: Path, tmp_path: Path) -> None:
    """What the command did is seen from outside: it writes the clock as long as it runs."""
    log = tmp_path / "log"
    program = tmp_path / "burn.py"
    program.write_text(
        f"import time\nlog = open({str(log)!r}, 'a', buffering=1)\n"
        "while True: print(time.monotonic(), file=log); time.sleep(0.01)\n"
    )
    env = fake_nvml.environment(library, [fake_nvml.Board(low=120)], real_time=True)
    command = [sys.executable, str(TOOL), "--seconds", "4", "--output-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [*command, "--load-command", f"{sys.executable} {program}"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((Path(done.stdout.strip()) / "run.json").read_text())
    assert run["failure"] is None
    assert [p["name"] for p in run["phases"]] == [
        "idle",
        "command",
        "square 0.37 s",
        "square 1.3 s",
        "square 5.3 s",
    ]
    edges = [edge for p in run["phases"] for edge in p["loaded_s"]]
    alive_s = [float(line) for line in log.read_text().split()]
    outside = [t for t in alive_s if not any(a - 0.02 <= t <= b + 0.02 for a, b in edges)]
    assert len(alive_s) > 50 and len(outside) <= 1, (outside, edges)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", "the command ended in '(command|square .*)' with status 0"),
        ("/nowhere/x", "cannot be started"),
    ],
)
def test_a_load_that_fails_leaves_what_was_polled_and_says_so(
    library: Path, tmp_path: Path, command: str, words: str
) -> None:
    env = fake_nvml.environment(library, [fake_nvml.Board(low=120)], real_time=True)
    told = ["--seconds", "0.5", "--output-dir", str(tmp_path), "--load-command", command]
    done = subprocess.run(
        [sys.executable, str(TOOL), *told], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and re.search(words, done.stderr), done.stderr
    assert (
        f"Incomplete: {done.stderr.strip().removeprefix('board_sensor: ')}."
        in (Path(done.stdout.strip()) / "page.md").read_text()
    )


def test_torch_on_a_cpu_goes_the_way_of_a_board(library: Path, tmp_path: Path) -> None:
    """Run with the Python in LOADGEN_TORCH_PYTHON, or this one if it has torch."""
    python = os.environ.get("LOADGEN_TORCH_PYTHON")
    if python is None and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: set LOADGEN_TORCH_PYTHON to a Python that has it")
    env = fake_nvml.environment(library, [fake_nvml.Board(low=120)], real_time=True)
    command = [python or sys.executable, str(TOOL), "--device", "cpu", "--seconds", "3"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    run = json.loads((Path(done.stdout.strip()) / "run.json").read_text())
    assert [p["name"] for p in run["phases"]][:4] == ["idle", "idle with a CUDA context", "matmul", "decode"]
    assert len(run["phases"]) == 7 and run["failure"] is None
    assert all(p["work"]["tflop_per_s"] > 0 for p in run["phases"][2:])
    for phase in run["phases"][4:]:
        period_s = float(phase["name"].split()[1])
        start_s, end_s = phase["loaded_s"][0]
        assert 0.05 < end_s - start_s < period_s / 2 + 0.2


def test_without_a_driver_the_tool_says_where_to_ask(tmp_path: Path) -> None:
    env = {"PATH": "", "LD_LIBRARY_PATH": ""}
    command = [sys.executable, str(TOOL), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("a real NVIDIA driver is here")
    assert done.returncode == 2 and "loadgen doctor" in done.stderr and "Traceback" not in done.stderr
