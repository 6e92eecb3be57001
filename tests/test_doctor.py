"""loadgen doctor: the real nvidia-ml-py on a fake driver, RAPL on a fake powercap tree."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
import test_zeus
from fake_nvml import Board
from rich.console import Console

from loadgen import clock, doctor
from loadgen.doctor import power
from loadgen.doctor.host import _in_virtual_machine, machine
from loadgen.power import local
from loadgen.types import Domain, Reading


class Host:
    """A powercap tree whose domains draw constant power on a clock that `pause` moves."""

    def __init__(self, root: Path, powers_w: dict[str, float]) -> None:
        self.root, self.now_s, self.powers_w = root, 1000.0, powers_w
        for zone in powers_w:
            name, _, part = zone.partition(".")
            self._zone(self.file(zone).parent, f"package-{name}" if part == "package" else part)
        self.write()

    def _zone(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(name + "\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
        (folder / "energy_uj").write_text("5000000\n")

    def file(self, zone: str) -> Path:
        name, _, part = zone.partition(".")
        folder = f"intel-rapl:{name}" if part == "package" else f"intel-rapl:{name}:0"
        return self.root / folder / "energy_uj"

    def write(self) -> None:
        for zone, power_w in self.powers_w.items():
            energy_uj = round(5e6 + power_w * (self.now_s - 1000.0) * 1e6)
            self.file(zone).write_text(f"{energy_uj}\n")

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        self.write()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    from loadgen.errors import PowerError

    def refuse(gpus: object) -> None:
        raise PowerError("nvml: no library: install the NVIDIA driver")

    monkeypatch.setattr(local.NvmlSource, "open", refuse)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    def make(**powers_w: float) -> Host:
        made = Host(tmp_path / "powercap", {zone.replace("_", ".")[1:]: w for zone, w in powers_w.items()})
        monkeypatch.setattr(clock, "now", lambda: made.now_s)
        return made

    return make


def rows_of(seen: power.Power) -> dict[str, power.Finding]:
    found = {finding.domain: finding for finding in seen.findings}
    assert len(found) == len(seen.findings)
    return found


@pytest.mark.usefixtures("no_driver")
def test_packages_and_dram_are_measured_with_the_power_they_draw(host: Callable[..., Host]) -> None:
    made = host(_0_package=80.0, _0_dram=12.5, _1_package=60.0)
    seen = power.power_here(powercap=made.root, pause=made.pause)
    assert [f.domain for f in seen.findings] == ["gpu", "cpu0.package", "cpu0.dram", "cpu1.package", "ram"]
    rows = rows_of(seen)
    for name, power_w in (("cpu0.package", 80.0), ("cpu0.dram", 12.5), ("cpu1.package", 60.0)):
        assert (rows[name].method, rows[name].reason) == ("counter", None)
        assert rows[name].power_w == pytest.approx(power_w, rel=1e-6)
        assert (rows[name].update_s, rows[name].update_from) == (1e-3, "documented")
    assert rows["gpu"].method is None and "nvml: no library: install the NVIDIA driver" in str(
        rows["gpu"].reason
    )
    assert "pip install 'loadgen[zeus]'" in str(rows["gpu"].reason)
    assert rows["ram"].method == "estimated" and rows["ram"].power_w is not None


@pytest.mark.usefixtures("no_driver")
def test_a_stuck_counter_and_a_missing_tree_are_unavailable_with_a_reason(
    host: Callable[..., Host], tmp_path: Path
) -> None:
    made = host(_0_package=0.0)
    stuck = rows_of(power.power_here(powercap=made.root, pause=made.pause))["cpu"]
    assert stuck.reason and "stands still" in stuck.reason and stuck.power_w is None
    absent = rows_of(power.power_here(powercap=tmp_path / "nowhere", pause=made.pause))["cpu"]
    assert absent.method is None and absent.reason and "powercap" in absent.reason


@pytest.mark.usefixtures("no_driver")
def test_a_dram_zone_that_was_left_out_is_a_row_with_its_reason(host: Callable[..., Host]) -> None:
    made = host(_0_package=80.0, _0_dram=12.5)
    (made.file("0.dram").parent / "max_energy_range_uj").unlink()
    seen = power.power_here(powercap=made.root, pause=made.pause)
    rows = rows_of(seen)
    assert rows["cpu0.package"].power_w == pytest.approx(80.0, rel=1e-6)
    assert rows["cpu0.dram"].method is None and "max_energy_range_uj" in str(rows["cpu0.dram"].reason)
    assert seen.warnings == ()


def test_a_domain_is_judged_by_its_two_readings() -> None:
    domain = Domain("gpu0", "counter", None, "NVML total energy")

    def judge(before: Any, after: Any, failure: str | None = None) -> power.Finding:
        return power.judge(domain, before, after, 0.1, failure)

    def energy(t_s: float, energy_j: float) -> dict[str, Reading]:
        return {"gpu0": Reading(t_s, "gpu0", energy_j=energy_j)}

    good = judge(energy(5.0, 100.0), energy(5.5, 140.0))
    assert (good.power_w, good.reason) == (80.0, None)
    assert "did not advance" in str(judge(energy(5.0, 100.0), energy(5.5, 100.0)).reason)
    assert "backwards" in str(judge(energy(5.0, 100.0), energy(5.5, 1.0)).reason)
    assert judge(energy(5.0, 1.0), "the board fell off").reason == "the board fell off"
    assert judge("no power", energy(5.0, 1.0)).reason == "no power"
    assert judge(energy(5.0, 1.0), {}, "lost").reason == "lost"
    assert judge({}, energy(5.0, 1.0)).reason == "it did not answer; try again"
    dark = {"gpu0": Reading(5.0, "gpu0", power_w=0.0)}
    assert "0 W" in str(judge(dark, dark).reason)


LOOK = r"""
import asyncio, ctypes, json, time
from pathlib import Path
lib = ctypes.CDLL("libnvidia-ml.so.1")
lib.fake_set_time.argtypes = [ctypes.c_double]
lib.fake_now.restype = lib.fake_wall.restype = ctypes.c_double
lib.fake_set_time(0.0)
time.time = lib.fake_wall
from loadgen import clock, doctor
clock.now = lib.fake_now
found = asyncio.run(doctor.report(powercap=Path("/nowhere"),
                                  pause=lambda s: lib.fake_set_time(lib.fake_now() + s)))
print(json.dumps(found))
"""


def look(library: Path, boards: Sequence[Board], host: fake_nvml.Host | None = None) -> dict[str, Any]:
    """The doctor's report of a machine with these boards, in simulated time."""
    found: dict[str, Any] = json.loads(fake_nvml.python(library, LOOK, boards, host))
    return found


def test_boards_have_a_row_for_each_sensor_and_one_for_the_counter_they_lack(library: Path) -> None:
    found = look(library, [replace(fake_nvml.PLAIN_PAIR[0], average_ret=0), fake_nvml.PLAIN_PAIR[1]])
    rows = [(d["domain"], d["method"], d["reason"] is None) for d in found["domains"]]
    assert rows == [
        ("gpu0", "counter", True),
        ("gpu0.instant", "instant", True),
        ("gpu0.average", "average", True),
        ("gpu1", None, False),
        ("gpu1.average", "average", True),
        ("cpu", None, False),
        ("ram", "estimated", True),
    ]
    assert "no energy counter" in found["domains"][3]["reason"]
    assert found["measured"] == ["gpu0", "gpu0.instant", "gpu0.average", "gpu1.average"] and found["ok"]
    assert [d["averaging_s"] for d in found["domains"][:3]] == [None, 0.025, 1.0]
    assert found["domains"][0]["power_w"] == pytest.approx(233, abs=15), "1 s at 300 W, 0.5 s at 100 W"
    assert found["domains"][4]["power_w"] == 70.0
    assert [b["mig"] for b in found["boards"]] == [False, True]
    assert any("MIG" in w for w in found["warnings"])
    assert "power.cpu_tdp_w" in found["domains"][5]["reason"]


def test_a_counters_update_period_is_the_one_seen_here_and_a_sensors_the_documented(library: Path) -> None:
    """The last board's counter is renewed as often as it is polled, so nothing was seen of its period."""
    periods_s = (0.02, 0.1, 0.25, 0.005)
    found = look(library, [Board(low=150, publish=p, window=p) for p in periods_s])
    rows = {d["domain"]: d for d in found["domains"]}
    for index, period_s in enumerate(periods_s[:3]):
        assert rows[f"gpu{index}"]["update_from"] == "measured"
        assert rows[f"gpu{index}"]["update_s"] == pytest.approx(period_s, abs=0.005)
    for name in ("gpu0.instant", "gpu3"):
        assert (rows[name]["update_from"], rows[name]["update_s"]) == ("documented", 0.1)
    assert rows["ram"]["update_from"] is None


def test_a_boards_stuck_counter_is_unavailable_and_its_sensors_are_not(library: Path) -> None:
    found = look(library, [Board(low=150, still=0.0)])
    assert "did not advance in 1.5 s" in found["domains"][0]["reason"]
    assert found["measured"] == ["gpu0.instant", "gpu0.average"]


def test_a_board_that_falls_off_while_it_is_read_says_so_in_its_rows(library: Path) -> None:
    found = look(library, [Board(low=150, lost=0.5), Board(low=70)])
    rows = {d["domain"]: d["reason"] for d in found["domains"]}
    assert "fallen off the bus" in rows["gpu0"] and "fallen off the bus" in rows["gpu0.instant"]
    assert found["measured"] == ["gpu1", "gpu1.instant", "gpu1.average"]
    assert not any("fallen off" in w for w in found["warnings"])


def test_what_is_said_of_the_processes_is_no_reason_why_a_domain_is_missing(library: Path) -> None:
    """A board without a counter whose processes are not told either."""
    board = Board(counter=fake_nvml.NO_COUNTER, processes_ret=fake_nvml.NO_PERMISSION)
    found = look(library, [board])
    rows = {d["domain"]: d["reason"] for d in found["domains"]}
    assert "no energy counter" in rows["gpu0"] and "who computes" not in rows["gpu0"]
    assert any("who computes on it is not known" in w for w in found["warnings"])


def test_grace_hoppers_counter_is_the_modules_and_the_gpus_row_says_so(library: Path) -> None:
    found = look(library, [Board(low=150, name="NVIDIA GH200", counter=fake_nvml.MODULE_COUNTER, c2c=1)])
    rows = {d["domain"]: d for d in found["domains"]}
    assert "gpu0.module_energy" in found["measured"] and "gpu0" not in found["measured"]
    assert "whole module" in rows["gpu0"]["reason"]
    assert "module" in rows["gpu0.module_energy"]["note"]


def test_who_computes_on_a_board_is_told_or_why_it_is_not(library: Path) -> None:
    busy = Board(low=150, processes=((os.getpid(), 3 << 30),))
    found = look(library, [busy, Board(low=70), Board(low=70, processes_ret=fake_nvml.NO_PERMISSION)])
    assert [p["pid"] for p in found["processes"]["gpu0"]] == [os.getpid()]
    assert found["processes"]["gpu1"] == [] and found["processes"]["gpu2"] is None
    assert any("gpu2" in w and "who computes on it is not known" in w for w in found["warnings"])
    text = printed(found)
    assert f"({os.getpid()}, 3.0 GiB)" in text
    assert "compute processes: none" in text and "compute processes: not told" in text


@pytest.mark.parametrize(
    ("code", "words"), [(9, "load the NVIDIA driver"), (4, "run as a user who may read /dev/nvidia*")]
)
def test_a_driver_that_refuses_is_one_row_that_says_what_to_do(library: Path, code: int, words: str) -> None:
    found = look(library, [Board()], fake_nvml.Host(init=code))
    assert [d["domain"] for d in found["domains"]] == ["gpu", "cpu", "ram"]
    assert words in found["domains"][0]["reason"]
    assert found["measured"] == [] and not found["ok"]


@pytest.mark.usefixtures("no_driver")
def test_without_nvidia_boards_what_zeus_finds_is_examined(
    monkeypatch: pytest.MonkeyPatch, host: Callable[..., Host]
) -> None:
    made = host(_0_package=80.0)
    test_zeus.install(monkeypatch, gpus=test_zeus.AMDGPUs([test_zeus.AMDGPU(0, power_w=300.0)]))
    rows = rows_of(power.power_here(powercap=made.root, pause=made.pause))
    assert rows["gpu0"].power_w == pytest.approx(300.0, rel=1e-3)
    assert rows["gpu0.average"].power_w == pytest.approx(300.0)
    test_zeus.install(monkeypatch)
    lone = rows_of(power.power_here(powercap=made.root, pause=made.pause))["gpu"]
    assert lone.reason and "nvml: no library" in lone.reason and "zeus: no device can be read" in lone.reason


class Failing:
    """A board whose instant sensor ends, after which its counter is said to stand still."""

    boards = ()

    def __init__(self, now: list[float]) -> None:
        self.now, self.warnings = now, ["power: gpu0: something known before"]

    def domains(self) -> list[Domain]:
        return [Domain("gpu0", "counter"), Domain("gpu0.instant", "instant")]

    def read(self) -> list[Reading]:
        late = self.now[0] > 0.5
        if late and len(self.warnings) == 1:
            self.warnings += ["power: gpu0: it hangs: reset it", "power: gpu0: its counter stands still"]
        counted = Reading(self.now[0], "gpu0", energy_j=self.now[0])
        return [counted] if late else [counted, Reading(self.now[0], "gpu0.instant", power_w=5.0)]

    def close(self) -> None:
        pass


def test_a_reason_is_all_that_was_said_while_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last thing said was kept, which need not be why."""
    now = [0.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    monkeypatch.setattr(power, "open_boards", lambda gpus: Failing(now))

    def pause(seconds: float) -> None:
        now[0] += seconds

    rows = rows_of(power.power_here(powercap=Path("/nowhere"), pause=pause))
    assert rows["gpu0"].reason is None
    assert rows["gpu0.instant"].reason == "it hangs: reset it; then its counter stands still"


@pytest.mark.usefixtures("no_driver")
def test_a_chip_that_meters_its_processor_has_no_row_that_says_it_cannot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chip = test_zeus.Jetson(test_zeus.JetsonMeasurement(1500.0, 2500.0, 9000.0))
    test_zeus.install(monkeypatch, soc=chip)
    now = [0.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])

    def pause(seconds: float) -> None:
        now[0] += seconds
        old = chip.now
        chip.now = test_zeus.JetsonMeasurement(1500 + now[0], 2500 + now[0], 9000 + 2 * now[0])
        assert old is not chip.now

    seen = power.power_here(powercap=tmp_path / "nowhere", pause=pause)
    assert [(f.domain, f.reason) for f in seen.findings if f.domain != "ram"] == [
        ("gpu0", None),
        ("cpu0.package", None),
        ("soc0", None),
    ]


def made_report(**changes: Any) -> dict[str, Any]:
    uuid = "GPU-3f9c1d2e-0123-4567-89ab-cdef01234567"
    domains = [
        power.Finding(
            "gpu0", "counter", 0.1, None, 71.84, f"NVML total energy; NVIDIA H100 80GB HBM3 {uuid}"
        ),
        power.Finding("cpu0.package", "counter", 1e-3, reason="permission denied: " + "chmod a+r it " * 12),
    ]
    return {
        "ok": True,
        "measured": ["gpu0"],
        "domains": [asdict(d) for d in domains],
        "boards": [
            {"domain": "gpu0", "index": 0, "uuid": uuid, "name": "NVIDIA H100 80GB HBM3"}
            | {"driver": "570.01", "power_limit_w": 700.0, "mig": True}
        ],
        "warnings": ["power: gpu0 is shared"],
        "processes": {},
        "machine": asyncio.run(machine()),
        "server": None,
        "sidecar": None,
    } | changes


def printed(found: dict[str, Any]) -> str:
    out = io.StringIO()
    doctor.render(found, Console(file=out, width=80))
    return out.getvalue()


def test_the_table_fits_80_columns_and_keeps_identifiers_whole() -> None:
    text = printed(made_report())
    table = text.partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert table[1].split()[:5] == ["gpu0", "counter", "100", "ms", "71.8"]
    assert "unavailable" in table[2] and sum(line.count("chmod") for line in table) == 12
    assert "GPU-3f9c1d2e-0123-4567-89ab-cdef01234567" in text
    assert "power limit 700 W, driver 570.01, MIG on" in text
    assert "\nenergy   gpu0\n" in text and "\nnote: power: gpu0 is shared\n" in text


def test_what_a_server_says_of_itself_is_shown_and_cannot_draw_on_the_terminal() -> None:
    server = {"url": "http://far:1", "local": False, "kind": "tgi", "protocol": "tgi", "reason": None}
    text = printed(
        made_report(
            server=server
            | {"model": "m\x1b[31m[red]", "limits": {"max_total_tokens": 4096}, "metrics": "tgi"}
        )
    )
    assert "tgi at http://far:1 (loadgen speaks tgi)" in text
    assert "m?[31m[red]" in text and "\x1b" not in text
    assert "max_total_tokens 4096" in text and "on another machine" in text
    assert "connection refused" in printed(made_report(server={"reason": "connection refused"}))


def test_the_machines_facts_are_those_of_this_process() -> None:
    facts = asyncio.run(machine())
    assert 0 < facts["clock_step_s"] < 1e-3
    assert facts["kernel_timer"] is (sys.platform == "linux")
    assert 1 <= facts["cores_usable"] <= facts["cores"]


def test_a_hypervisor_is_seen_in_the_cpus_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert _in_virtual_machine(cpuinfo) is None
    cpuinfo.write_text("processor : 0\nmodel name : hypervisor\nflags\t\t: fpu vme\n")
    assert _in_virtual_machine(cpuinfo) is False
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu hypervisor vme\n")
    assert _in_virtual_machine(cpuinfo) is True
