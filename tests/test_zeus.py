"""AMD, Apple silicon and Jetson through a fake of the part of zeus 0.16 that loadgen calls.

The fake's names and signatures are compared with the real library where that is installed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_zeus import (
    AMDGPU,
    AMDGPUs,
    AppleSilicon,
    AppleSiliconMeasurement,
    Jetson,
    JetsonMeasurement,
    NVIDIAGPUs,
    install,
)

from loadgen import clock, target
from loadgen.errors import PowerError
from loadgen.power.local import open_local, openings
from loadgen.power.nvml import NvmlSource
from loadgen.power.zeus_source import ZeusSource
from loadgen.scenario import Power
from loadgen.sidecar.sources import HostSource

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock, moved by hand: its one entry."""
    at = [100.0]
    monkeypatch.setattr(clock, "now", lambda: at[0])
    return at


def test_amd_boards_give_joules_and_watts_under_their_hip_index(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(3), AMDGPU(0, power_w=120.0, average=False)]))
    source = ZeusSource.open()
    kinds = [(d.name, d.method) for d in source.domains()]
    assert kinds == [
        ("gpu3", "counter"),
        ("gpu3.instant", "instant"),
        ("gpu3.average", "average"),
        ("gpu0", "counter"),
        ("gpu0.instant", "instant"),
    ]
    first = {r.domain: r for r in source.read()}
    now[0] += 2.0
    second = {r.domain: r for r in source.read()}
    for name, power_w in (("gpu3", 500.0), ("gpu0", 120.0)):
        a_j, b_j = first[name].energy_j, second[name].energy_j
        assert a_j is not None and b_j is not None
        assert b_j - a_j == pytest.approx(2.0 * power_w, abs=1e-3)
        assert second[f"{name}.instant"].power_w == pytest.approx(power_w)
        assert (first[name].t_s, second[name].t_s) == (100.0, 102.0)
    assert source.boards[0] == {
        "domain": "gpu3",
        "index": 3,
        "uuid": None,
        "name": "AMD Instinct MI300X",
        "driver": None,
        "power_limit_w": 750.0,
        "mig": False,
    }
    assert source.warnings == []
    source.close()
    source.close()


def test_boards_are_chosen_by_index_and_one_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(0), AMDGPU(1)]))
    assert {d.name.partition(".")[0] for d in ZeusSource.open([1]).domains()} == {"gpu1"}
    with pytest.raises(PowerError, match=r"power\.gpus: no board '7'; there are the HIP indices 0, 1"):
        ZeusSource.open(["7"])


def test_a_counter_that_zeus_found_false_is_named_and_the_power_stays(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(0, counter=False)]))
    source = ZeusSource.open()
    assert [d.name for d in source.domains()] == ["gpu0.instant", "gpu0.average"]
    assert "frozen" in source.warnings[0] and "integrated" in source.warnings[0]


def test_a_counter_that_freezes_later_is_a_gap_never_0_j(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(0, frozen_at_s=101.0)]))
    source = ZeusSource.open()
    seen: list[tuple[float, float]] = []
    for tick in range(60):
        now[0] = 100.0 + 0.05 * tick
        seen += [(r.t_s, r.energy_j) for r in source.read() if r.energy_j is not None]
    assert seen[-1][0] == pytest.approx(101.95), "1 s after the last change it gives nothing"
    assert [w for w in source.warnings if w.startswith("power: gpu0: the energy counter has stood still")]
    assert len(source.warnings) == 1
    assert {r.domain for r in source.read()} == {"gpu0.instant", "gpu0.average"}


def test_the_second_chiplet_of_an_mi250_shows_nothing_and_the_first_says_what_it_includes(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    name = "AMD Instinct MI250X"
    odd = AMDGPU(1, name, counter=False, average=False, instant=False)
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(0, name), odd]))
    source = ZeusSource.open()
    assert {d.name.partition(".")[0] for d in source.domains()} == {"gpu0"}
    assert all("both chiplets" in d.note for d in source.domains())
    assert "gpu1" in source.warnings[0] and "second chiplet" in source.warnings[0]
    install(monkeypatch, gpus=AMDGPUs([odd]))
    with pytest.raises(PowerError, match="shows no energy and no power"):
        ZeusSource.open()


def test_a_board_that_is_lost_leaves_gaps_and_one_warning_and_all_of_them_an_error(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    boards = [AMDGPU(0, instant=False, average=False), AMDGPU(1, instant=False, average=False)]
    install(monkeypatch, gpus=AMDGPUs(boards))
    source = ZeusSource.open()
    boards[0].lost = True
    assert [r.domain for r in source.read()] == ["gpu1"]
    source.read()
    assert source.warnings == ["power: gpu0: Device not found"]
    boards[1].lost = True
    with pytest.raises(PowerError, match="no device answered"):
        source.read()


def test_apple_silicon_gives_gpu_cpu_memory_and_neural_engine(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    shown = AppleSiliconMeasurement(cpu_total_mj=4_000, dram_mj=500, gpu_mj=7_000, gpu_sram_mj=30, ane_mj=0)
    install(monkeypatch, soc=AppleSilicon(shown))
    source = ZeusSource.open()
    assert {r.domain: r.energy_j for r in source.read()} == pytest.approx(
        {"gpu0": 7.03, "cpu0.package": 4.0, "ram": 0.5, "ane0": 0.0}
    )
    assert {d.method for d in source.domains()} == {"counter"}
    assert [row["name"] for row in source.boards] == ["Apple silicon"]
    now[0] += 60.0  # a gated GPU and an unused Neural Engine rightly stand still
    assert len(source.read()) == 4 and source.warnings == []


def test_what_an_apple_chip_does_not_show_is_no_domain(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    install(monkeypatch, soc=AppleSilicon(AppleSiliconMeasurement(cpu_total_mj=1, gpu_mj=2)))
    assert [d.name for d in ZeusSource.open().domains()] == ["gpu0", "cpu0.package"]
    install(monkeypatch, soc=AppleSilicon(AppleSiliconMeasurement()))
    with pytest.raises(PowerError, match="shows no energy"):
        ZeusSource.open()


def test_a_jetsons_rails_say_what_they_include_and_the_module_is_no_summand(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    chip = Jetson(JetsonMeasurement(1500.0, 2500.0, 9000.0))
    install(monkeypatch, gpus=NVIDIAGPUs(), soc=chip)
    source = ZeusSource.open([0])
    assert {r.domain: r.energy_j for r in source.read()} == pytest.approx(
        {"gpu0": 2.5, "cpu0.package": 1.5, "soc0": 9.0}
    )
    notes = {d.name: d.note for d in source.domains()}
    assert "never add" in notes["soc0"] and {d.update_s for d in source.domains()} == {0.1}
    with pytest.raises(PowerError, match="this chip has one GPU"):
        ZeusSource.open([1])


def test_an_estimate_gives_way_to_what_a_chip_measures(
    monkeypatch: pytest.MonkeyPatch, now: list[float], tmp_path: Path
) -> None:
    """With power.cpu_tdp_w on a Jetson, cpu0.package was opened twice: an error, and nothing was closed."""

    def refuse(gpus: object) -> None:
        raise PowerError("nvml: no library")

    monkeypatch.setattr(NvmlSource, "open", refuse)
    install(monkeypatch, soc=Jetson(JetsonMeasurement(1500.0, 2500.0, 9000.0)))
    source, reasons = open_local(openings(None, cpu_tdp_w=30.0, powercap=tmp_path))
    assert source is not None
    assert [(d.name, d.method) for d in source.domains()] == [
        ("gpu0", "counter"),
        ("cpu0.package", "counter"),
        ("soc0", "counter"),
        ("ram", "estimated"),
    ]
    assert reasons == {"gpu": None, "cpu": None, "ram": None}
    source.close()


def test_a_sidecar_gives_no_domain_two_sources(
    monkeypatch: pytest.MonkeyPatch, now: list[float], tmp_path: Path
) -> None:
    """As above: the sidecar wrote the estimate and the counter into one column."""

    def refuse(gpus: object) -> None:
        raise PowerError("nvml: no library")

    async def opened() -> HostSource:
        parts = openings(None, cpu_tdp_w=30.0, powercap=tmp_path)
        source = HostSource(parts, {}, lambda kind, text, **more: None)
        await source.mend()
        return source

    monkeypatch.setattr(NvmlSource, "open", refuse)
    install(monkeypatch, soc=Jetson(JetsonMeasurement(1500.0, 2500.0, 9000.0)))
    source = asyncio.run(opened())
    assert [d.name for d in source.domains()] == ["gpu0", "cpu0.package", "soc0", "ram"]
    assert "cpu0.package is read with another part already" in str(source.reasons["cpu"])
    assert [r.domain for r in source.read()].count("cpu0.package") == 1
    source.close()


def test_a_jetsons_late_answer_is_never_taken_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    chip = Jetson(JetsonMeasurement(total_energy_mj=1.0))
    install(monkeypatch, soc=chip)
    source = ZeusSource.open()
    chip.answers = False
    with pytest.raises(PowerError, match="no answer in 1 s"):
        source.read()
    chip.answers = True
    with pytest.raises(PowerError, match="no answer in 1 s"):
        source.read()


def test_without_zeus_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    with pytest.raises(PowerError, match=r"pip install 'loadgen\[zeus\]'"):
        ZeusSource.open()


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        (None, "NVML and AMDSMI unavailable"),
        (NVIDIAGPUs(), "which power.source: nvml reads"),
        (ValueError("invalid literal for int() with base 10: 'GPU-1'"), "invalid literal"),
    ],
)
def test_no_device_is_one_line_with_every_reason(
    gpus: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, gpus=gpus)
    with pytest.raises(PowerError, match=words) as caught:
        ZeusSource.open()
    assert "No observable SoC" in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_reads_what_zeus_finds_when_told_to_or_when_nvml_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    def power_of(source: str) -> Any:
        scenario = SimpleNamespace(
            power=Power(source=source),  # type: ignore[arg-type]
            server=SimpleNamespace(url="http://localhost:8080"),
        )
        return target._local_power(scenario)  # type: ignore[arg-type]

    def refuse(gpus: object) -> None:
        raise PowerError("nvml: no library")

    monkeypatch.setattr(NvmlSource, "open", refuse)
    install(monkeypatch, gpus=AMDGPUs([AMDGPU(0)]))
    told, reasons, _ = power_of("zeus")
    assert [d.name for d in told.domains()] == ["gpu0", "gpu0.instant", "gpu0.average"]
    assert reasons["gpu"] is None and "power.source is zeus" in reasons["cpu"]
    found, reasons, _ = power_of("auto")
    assert "gpu0" in [d.name for d in found.domains()] and reasons["gpu"] is None
    with pytest.raises(PowerError, match=r"nvml: no library$"):
        power_of("nvml")
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    assert power_of("auto")[1]["gpu"] == "nvml: no library"


LIKE_THE_REAL_ONE = """
import inspect, json
from dataclasses import fields
from zeus.device import get_gpus
from zeus.device.gpu import AMDGPUs
from zeus.device.gpu.amd import AMDGPU
from zeus.device.soc import get_soc
from zeus.device.soc.apple import AppleSilicon, AppleSiliconMeasurement
from zeus.device.soc.jetson import Jetson, JetsonMeasurement
from zeus.exception import ZeusBaseError
import zeus.device.gpu.common as gpus, zeus.device.soc.common as socs
assert issubclass(gpus.ZeusGPUInitError, ZeusBaseError) and issubclass(socs.ZeusSoCInitError, ZeusBaseError)
assert "self.result_queue" in inspect.getsource(Jetson.__init__) and AMDGPUs.gpus
calls = {c.__name__: {n: list(inspect.signature(f).parameters) for n, f in inspect.getmembers(c, callable)
    if n.startswith(("get_", "supports_"))} for c in (AMDGPU, AppleSilicon, Jetson)}
calls["get_gpus"], calls["get_soc"] = ([*inspect.signature(f).parameters] for f in (get_gpus, get_soc))
shown = {c.__name__: [f.name for f in fields(c)] for c in (AppleSiliconMeasurement, JetsonMeasurement)}
print(json.dumps([calls, shown]))
"""


def test_the_fake_obeys_the_real_librarys_names_and_signatures() -> None:
    """Run with the Python in LOADGEN_ZEUS_PYTHON, or this one if it has zeus."""
    import json
    from dataclasses import fields

    python = os.environ.get("LOADGEN_ZEUS_PYTHON")
    if python is None and importlib.util.find_spec("zeus") is None:
        pytest.skip("zeus is not installed: pip install 'loadgen[zeus]', or set LOADGEN_ZEUS_PYTHON")
    done = subprocess.run(
        [python or sys.executable, "-c", LIKE_THE_REAL_ONE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    calls, shown = json.loads(done.stdout.splitlines()[-1])
    for fake in (AMDGPU, AppleSilicon, Jetson):
        methods = {n: f for n, f in vars(fake).items() if n.startswith(("get_", "supports_"))}
        for name, method in methods.items():
            assert calls[fake.__name__][name] == list(inspect.signature(method).parameters), name
    assert (calls["get_gpus"], calls["get_soc"]) == (["ensure_homogeneous"], [])
    for measurement in (AppleSiliconMeasurement, JetsonMeasurement):
        assert {f.name for f in fields(measurement)} <= set(shown[measurement.__name__])


def test_the_real_library_without_a_device_is_one_line() -> None:
    """As above; here it must refuse, in words of its own, and end by itself."""
    python = os.environ.get("LOADGEN_ZEUS_PYTHON")
    if python is None:
        pytest.skip("set LOADGEN_ZEUS_PYTHON to a Python that has zeus and no board")
    look = "from loadgen.power.zeus_source import ZeusSource; ZeusSource.open()"
    done = subprocess.run(
        [python, "-c", look],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PowerError: zeus: no device can be read: NVML and AMDSMI unavailable" in done.stderr
    assert done.stdout == ""
