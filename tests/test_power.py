"""Power sources and the sampling loop: a fake board in virtual time, real nvidia-ml-py on a fake driver."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.ram import dimm_count, ram_power_w
from loadgen.power.sampler import Sampled, sample
from loadgen.power.simulated import SimulatedSource
from loadgen.types import Domain, Reading

REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class _Shown:
    energy_j: float
    instant_w: float
    average_w: float


@dataclass(frozen=True)
class _Sensor:
    publish_s: float = 0.1
    instant_window_s: float = 0.025
    average_window_s: float = 1.0


class _ConstantBoard:
    """``power_w`` for ever, published every 100 ms; off from ``off_s`` on."""

    sensor = _Sensor()

    def __init__(self, power_w: float = 100.0, off_s: float = float("inf")) -> None:
        self.power_w, self.off_s = power_w, off_s

    def published(self, t_s: float, /) -> _Shown:
        if t_s >= self.off_s:
            raise PowerError("the board is off")
        return _Shown(self.power_w * (int(t_s * 10 + 1e-9) / 10), self.power_w, self.power_w)


class _Scripted:
    """A source that obeys the protocol; ``fails_at`` are the indices of reads that raise."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), slow_at: dict[int, float] | None = None) -> None:
        self.fails_at, self.slow_at = fails_at, slow_at or {}
        self.calls = 0

    def domains(self) -> list[Domain]:
        return [Domain("gpu0.instant", "instant")]

    def read(self) -> list[Reading]:
        call, self.calls = self.calls, self.calls + 1
        now_s = clock.now()
        if call in self.slow_at:  # a driver call that blocks the loop
            loop = asyncio.get_running_loop()
            assert isinstance(loop, clock.VirtualLoop)
            loop.virtual_s += self.slow_at[call]
        if call in self.fails_at:
            raise PowerError("the board did not answer")
        return [Reading(now_s, "gpu0.instant", power_w=100.0)]

    def close(self) -> None:
        pass


def _sampled(source: Any, interval_s: float, seconds: float) -> tuple[list[Reading], Sampled]:
    async def main() -> tuple[list[Reading], Sampled]:
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(seconds, stop.set)
        return rows, await sample(source, interval_s, rows.extend, stop)

    return clock.run_virtual(main())


def test_samples_start_at_once_tick_absolutely_and_end_with_the_stop() -> None:
    rows, done = _sampled(_Scripted(), 0.1, 10.05)
    assert rows[0].t_s == 0.0
    assert rows[-1].t_s == pytest.approx(10.05)
    assert [r.t_s for r in rows[:-1]] == pytest.approx([k * 0.1 for k in range(101)], abs=1e-9)
    assert (done.reads, done.skipped, done.failed, done.warnings) == (102, 0, 0, [])


def test_equal_values_are_kept_not_deduplicated() -> None:
    rows, _ = _sampled(_Scripted(), 0.5, 5.0)
    assert len(rows) >= 11
    assert {r.power_w for r in rows} == {100.0}


def test_a_slow_read_skips_ticks_and_says_so_without_drift() -> None:
    rows, done = _sampled(_Scripted(slow_at={3: 0.35}), 0.1, 2.05)
    assert done.skipped == 3
    assert "3 samples skipped" in done.warnings[0]
    assert [round(r.t_s, 6) for r in rows[3:6]] == [0.3, 0.7, 0.8]


def test_a_failed_read_is_a_gap_and_a_warning() -> None:
    rows, done = _sampled(_Scripted(fails_at=(2, 3)), 0.1, 1.05)
    assert done.failed == 2
    assert len(rows) == done.reads == 10
    assert "power: the board did not answer" in done.warnings
    assert "power: 2 of 12 reads failed" in done.warnings


def test_simulated_source_has_the_boards_domains_and_a_labelled_host() -> None:
    async def make() -> SimulatedSource:
        return SimulatedSource([_ConstantBoard()])

    source = clock.run_virtual(make())
    methods = {d.name: d.method for d in source.domains()}
    assert methods == {
        "gpu0": "simulated",
        "gpu0.instant": "simulated",
        "gpu0.average": "simulated",
        "cpu0.package": "estimated",
        "ram": "estimated",
    }
    assert all(d.note for d in source.domains())


def test_simulated_source_adds_up_over_virtual_time() -> None:
    async def main() -> list[Reading]:
        source = SimulatedSource([_ConstantBoard()], cpu_w=50.0, ram_gb=16.0)
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(60.0, stop.set)
        await sample(source, 0.1, rows.extend, stop)
        source.close()
        return rows

    last = {r.domain: r for r in clock.run_virtual(main())}
    assert last["cpu0.package"].energy_j == pytest.approx(50.0 * 60)
    assert last["ram"].energy_j == pytest.approx(10.0 * 60)
    assert last["gpu0"].energy_j == pytest.approx(6000.0)
    assert last["gpu0.instant"].power_w == 100.0


def test_several_simulated_boards_are_a_series_and_a_row_each() -> None:
    async def main() -> tuple[SimulatedSource, list[Reading]]:
        boards = [_ConstantBoard(100.0), _ConstantBoard(300.0)]
        source = SimulatedSource(boards, gpu="Fake H100", power_limit_w=700.0)
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(10.0, stop.set)
        await sample(source, 0.1, rows.extend, stop)
        return source, rows

    source, rows = clock.run_virtual(main())
    assert [d.name for d in source.domains()][:6] == [
        *("gpu0", "gpu0.instant", "gpu0.average"),
        *("gpu1", "gpu1.instant", "gpu1.average"),
    ]
    assert [d.averaging_s for d in source.domains()][:3] == [None, 0.025, 1.0]
    assert [(b["domain"], b["index"], b["power_limit_w"]) for b in source.boards] == [
        ("gpu0", 0, 700.0),
        ("gpu1", 1, 700.0),
    ]
    last = {r.domain: r for r in rows}
    assert last["gpu0"].energy_j == pytest.approx(1000.0) and last["gpu1"].energy_j == pytest.approx(3000.0)
    assert last["gpu1.average"].power_w == 300.0


def test_a_simulated_board_that_goes_off_leaves_a_gap_and_one_warning() -> None:
    now_s = [0.0]
    source = SimulatedSource([_ConstantBoard(), _ConstantBoard(off_s=1.0)], now=lambda: now_s[0])
    domains = []
    for t_s in (0.0, 1.0, 2.0):
        now_s[0] = t_s
        domains.append({r.domain for r in source.read()})
    assert "gpu1" in domains[0] and domains[1] == domains[2] == domains[0] - {
        *("gpu1", "gpu1.instant", "gpu1.average")
    }
    assert source.warnings == ["power: gpu1: the board is off"]


def test_impossible_host_is_a_power_error() -> None:
    with pytest.raises(PowerError, match="no board"):
        SimulatedSource([], now=lambda: 0.0)
    with pytest.raises(PowerError, match=r"power\.ram_gb: expected > 0, got 0"):
        SimulatedSource([_ConstantBoard()], ram_gb=0, now=lambda: 0.0)
    with pytest.raises(PowerError, match=r"power\.cpu_w"):
        SimulatedSource([_ConstantBoard()], cpu_w=-1, now=lambda: 0.0)


@pytest.mark.parametrize(
    ("capacity_gb", "dimms", "power_w"),
    [
        (1, 1, 10.0),
        (2, 1, 10.0),
        (16, 2, 10.0),
        (64, 4, 20.0),
        (128, 8, 38.0),
        (256, 8, 38.0),
        (1024, 8, 38.0),
    ],
)
def test_ram_power_of_published_sizes(capacity_gb: float, dimms: int, power_w: float) -> None:
    assert dimm_count(capacity_gb) == dimms
    assert ram_power_w(capacity_gb) == pytest.approx(power_w)


def test_many_dimms_get_the_lower_tiers_and_arm_is_lower() -> None:
    # 4 TB in 128 GB modules: 32 DIMMs = 4 + 4 x 0.9 + 8 x 0.8 + 16 x 0.7 = 25.2 full ones
    assert ram_power_w(4096) == pytest.approx(25.2 * 5)
    assert ram_power_w(4096, arm=True) == pytest.approx(25.2 * 1.5)


# A driver of two boards. Board 0: a 300/100 W square wave of period 2 s and its integral;
# board 1: constant 70 W, no energy counter, no field values. The time is set by the test.
FAKE_DRIVER = r"""
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
typedef struct { unsigned id, scope; long long stamp, latency; int type, ret;
                 union { double d; unsigned ui; unsigned long long ull; } v; } Field;
static double now_s;
static int boards[2] = {0, 1};
void fake_set_time(double t) { now_s = t; }
static int option(const char *name, int other) { const char *v = getenv(name); return v ? atoi(v) : other; }
static double published(void) { return (long long)(now_s * 10 + 1e-9) / 10.0; }
static int lost(void) { const char *v = getenv("FAKE_LOST_AT"); return v && now_s >= atof(v); }
static double watts(double t) { return t - 2.0 * (long long)(t / 2.0) < 1.0 - 1e-9 ? 300 : 100; }
static double joules(double t) {
    long long whole = (long long)(t / 2.0); double p = t - 2.0 * whole;
    return 400.0 * whole + (p <= 1.0 ? 300.0 * p : 300.0 + 100.0 * (p - 1.0));
}
int nvmlInitWithFlags(unsigned f) { return option("FAKE_INIT", 0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int r) { static char s[32]; sprintf(s, "error %d", r); return s; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "570.01", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = option("FAKE_BOARDS", 2); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = &boards[i]; return 0; }
int nvmlDeviceGetUUID(int *h, char *s, unsigned n) { snprintf(s, n, "GPU-%d0000000-aaaa", *h + 1); return 0; }
int nvmlDeviceGetName(int *h, char *s, unsigned n) { snprintf(s, n, "Fake H%d00", *h + 1); return 0; }
int nvmlDeviceGetEnforcedPowerLimit(int *h, unsigned *mw) { *mw = 700000; return 0; }
int nvmlDeviceGetMigMode(int *h, unsigned *a, unsigned *b) { if (*h == 0) return 3; *a = *b = 1; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(int *h, unsigned long long *mj) {
    if (*h) return 3;
    if (lost()) return 15;
    double t = published(), reset = option("FAKE_RESET_AT", 0);
    *mj = (joules(t) - (reset && t >= reset ? joules(reset) : 0)) * 1000 + 0.5;
    return 0;
}
int nvmlDeviceGetPowerUsage(int *h, unsigned *mw) { *mw = *h ? 70000 : 200000; return 0; }
int nvmlDeviceGetFieldValues(int *h, int n, Field *f) {
    for (int i = 0; i < n; i++) {
        f[i].stamp = (long long)(now_s * 1e6); f[i].type = 1;
        f[i].ret = *h || f[i].scope != 0 || f[i].id != 186 ? 3 : lost() ? 15 : 0;
        f[i].v.ui = (unsigned)(watts(published()) * 1000);
    }
    return 0;
}
"""

DRIVE = r"""
import ctypes, dataclasses, json, sys
from loadgen.errors import PowerError
from loadgen.power.nvml import NvmlSource
options = json.loads(sys.argv[1])
lib = ctypes.CDLL("libnvidia-ml.so.1")
lib.fake_set_time.argtypes = [ctypes.c_double]
try:
    source = NvmlSource.open(options.get("gpus"))
except PowerError as exc:
    print(json.dumps({"error": str(exc)}))
    sys.exit()
rows, errors = [], []
for k in range(options.get("ticks", 0)):
    lib.fake_set_time(k / 10)
    try:
        rows += [[k / 10, r.domain, r.power_w, r.energy_j] for r in source.read()]
    except PowerError as exc:
        errors.append(str(exc))
source.close(); source.close()
print(json.dumps({"domains": [dataclasses.asdict(d) for d in source.domains()], "boards": source.boards,
                  "warnings": source.warnings, "rows": rows, "errors": errors}))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs gcc to build the fake NVML library")
    folder = tmp_path_factory.mktemp("nvml")
    source = folder / "fake.c"
    source.write_text(FAKE_DRIVER)
    build = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(build, check=True)
    yield folder


def _drive(driver: Path, options: dict[str, Any], **environment: str) -> dict[str, Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAKE_", "CUDA_"))}
    env = {**kept, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": str(REPO), **environment}
    command = [sys.executable, "-c", DRIVE, json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nvml_lists_boards_by_uuid_and_only_the_sensors_they_have(driver: Path) -> None:
    got = _drive(driver, {"ticks": 1})
    assert [(d["name"], d["method"]) for d in got["domains"]] == [
        ("gpu0", "counter"),
        ("gpu0.instant", "instant"),
        ("gpu0.average", "average"),
        ("gpu1.average", "average"),
    ]
    first, second = got["boards"]
    assert first["uuid"] == "GPU-10000000-aaaa"
    assert (first["name"], first["driver"], first["power_limit_w"]) == ("Fake H100", "570.01", 700.0)
    assert second["mig"] is True
    assert any("MIG" in w and "GPU-20000000" in w for w in got["warnings"])
    assert any("no energy counter" in w for w in got["warnings"])


def test_nvml_counter_and_power_agree_with_the_signals_integral(driver: Path) -> None:
    got = _drive(driver, {"ticks": 101})
    energy = [(t, e) for t, domain, _, e in got["rows"] if domain == "gpu0"]
    instant = [w for _, domain, w, _ in got["rows"] if domain == "gpu0.instant"]
    assert energy[-1][1] - energy[0][1] == pytest.approx(5 * 400.0)  # five periods of 300 J + 100 J
    assert sum(instant[:-1]) * 0.1 == pytest.approx(2000.0)
    assert {w for _, domain, w, _ in got["rows"] if domain == "gpu1.average"} == {70.0}


@pytest.mark.parametrize("gpus", [["GPU-2"], [1], ["1"], ["GPU-20000000-aaaa", 1]])
def test_nvml_selection_by_uuid_prefix_or_index(driver: Path, gpus: list[str | int]) -> None:
    got = _drive(driver, {"gpus": gpus, "ticks": 1})
    assert [b["domain"] for b in got["boards"]] == ["gpu1"]
    assert {row[1] for row in got["rows"]} == {"gpu1.average"}


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        ({}, {"FAKE_INIT": "9"}, "load the NVIDIA driver"),
        ({}, {"FAKE_INIT": "4"}, "run as a user who may read /dev/nvidia*"),
        ({}, {"FAKE_BOARDS": "0"}, "shows no board"),
        ({"gpus": ["GPU-9"]}, {}, "no board for 'GPU-9'; there are 0: GPU-10000000-aaaa"),
        ({"gpus": ["GPU-"]}, {}, "2 boards for 'GPU-'"),
    ],
)
def test_nvml_says_what_to_do(
    driver: Path, options: dict[str, Any], environment: dict[str, str], words: str
) -> None:
    assert words in _drive(driver, options, **environment)["error"]


def test_nvml_board_lost_midway_leaves_a_gap_and_one_warning(driver: Path) -> None:
    got = _drive(driver, {"gpus": [0], "ticks": 20}, FAKE_LOST_AT="1.0")
    assert max(t for t, domain, _, _ in got["rows"] if domain == "gpu0") == 0.9
    assert sum("gpu0:" in w for w in got["warnings"]) == 1
    assert any("fallen off the bus" in w for w in got["warnings"])


def test_nvml_reset_shows_as_a_smaller_counter_not_as_a_clamped_one(driver: Path) -> None:
    got = _drive(driver, {"gpus": [0], "ticks": 40}, FAKE_RESET_AT="2")
    counts = [e for _, domain, _, e in got["rows"] if domain == "gpu0"]
    assert min(b - a for a, b in pairwise(counts)) < -300


def test_without_a_driver_the_error_says_so(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("this machine has an NVIDIA driver")
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    code = (
        "from loadgen.power.nvml import NvmlSource\nfrom loadgen.errors import PowerError\n"
        "try: NvmlSource.open()\nexcept PowerError as exc: print(exc)"
    )
    env["PYTHONPATH"] = str(REPO)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "install the NVIDIA driver" in done.stdout
