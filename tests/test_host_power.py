"""A host's memory and CPU by estimate, and whole runs that have CPU energy and no GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Time
from powercap import EPYC_RANGE_UJ, Powercap
from rich.console import Console

from analysis.energy import PARTS
from analysis.run import load_run
from analysis.summary import summarize
from loadgen import clock, rundir, target
from loadgen.clients import make_client
from loadgen.clients.probe import Target as Probed
from loadgen.errors import PowerError
from loadgen.experiment import Order, execute
from loadgen.launch import Launch
from loadgen.plan import build
from loadgen.power import local
from loadgen.power.host import CpuEstimate, RamEstimate, installed_gb
from loadgen.power.rapl import RaplSource
from loadgen.progress import RunView
from loadgen.scenario import Power, Scenario
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Domain, PowerSource, Reading


def energy_j(source: PowerSource) -> float:
    (reading,) = source.read()
    assert reading.energy_j is not None
    return reading.energy_j


def ticks(root: Path, *, user: int, idle: int, iowait: int = 0, steal: int = 0) -> None:
    lines = [f"cpu  {user} 0 0 {idle} {iowait} 0 0 {steal} 0 0", "cpu0 1 1 1 1 1 1 1 1 0 0", "intr 5"]
    (root / "stat").write_text("\n".join(lines))


@pytest.mark.parametrize(("version", "power_w"), [(3, 38.0), (2, 96.0)])
def test_memory_is_a_constant_of_its_size(time: Time, version: Any, power_w: float) -> None:
    """256 GB: v3 counts 8 DIMMs, 20 + 18 W; v2 says 3 W for 8 GB."""
    source = RamEstimate(256, version, arm=False)
    (domain,) = source.domains()
    assert (domain.name, domain.method) == ("ram", "estimated") and f"CodeCarbon v{version}" in domain.note
    assert energy_j(source) == 0.0
    time.now_s += 10
    assert energy_j(source) == pytest.approx(10 * power_w)


def test_memory_on_arm_is_lower_and_none_is_refused(time: Time) -> None:
    source = RamEstimate(64, arm=True)
    time.now_s += 1
    assert energy_j(source) == pytest.approx(4 * 1.5)
    with pytest.raises(PowerError, match="expected > 0, got 0"):
        RamEstimate(0)


@pytest.mark.parametrize(
    ("shown_kib", "gb"),
    [(263_700_000, 256), (1_056_000_000, 1024), (65_600_000, 64), (395_000_000, 384), (16_777_216, 16)],
)
def test_the_kernels_own_share_does_not_change_the_dimms(tmp_path: Path, shown_kib: int, gb: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal:       {shown_kib} kB\nMemFree:  1 kB\n")
    assert installed_gb(tmp_path) == gb


@pytest.mark.parametrize("text", [None, "", "MemTotal: x kB\n", "MemTotal: 0 kB\n"])
def test_unknown_memory_is_an_error_not_a_guess(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    with pytest.raises(PowerError, match=r"ram: .*meminfo"):
        installed_gb(tmp_path)


def test_the_cpu_estimate_is_its_power_times_the_busy_time(tmp_path: Path, time: Time) -> None:
    ticks(tmp_path, user=1000, idle=5000)
    source = CpuEstimate(200.0, tmp_path)
    (domain,) = source.domains()
    assert (domain.name, domain.method) == ("cpu0.package", "estimated") and "200 W" in domain.note
    assert energy_j(source) == 0.0
    time.now_s += 2.0
    ticks(tmp_path, user=1100, idle=5300)  # a quarter busy
    assert energy_j(source) == pytest.approx(2.0 * 200 / 4)
    time.now_s += 3.0
    ticks(tmp_path, user=1500, idle=5300)  # all of it
    assert energy_j(source) == pytest.approx(100 + 3.0 * 200)
    time.now_s += 5.0
    ticks(tmp_path, user=1500, idle=5400, iowait=300, steal=100)  # none
    assert energy_j(source) == pytest.approx(700.0)


def test_reads_between_two_ticks_lose_nothing(tmp_path: Path, time: Time) -> None:
    ticks(tmp_path, user=0, idle=0)
    source = CpuEstimate(100.0, tmp_path)
    found = []
    for k in range(1, 101):
        time.now_s += 0.004
        tick = k * 4 // 10  # 100 Hz
        ticks(tmp_path, user=tick, idle=tick)
        found.append(energy_j(source))
    assert found == sorted(found)
    assert found[-1] == pytest.approx(0.4 * 100 / 2)


def test_a_host_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PowerError, match=r"cpu: .*leave power\.cpu_tdp_w out"):
        CpuEstimate(100.0, tmp_path)
    (tmp_path / "stat").write_text("intr 1 2 3 4 5 6 7 8\n")
    with pytest.raises(PowerError, match="does not begin with"):
        CpuEstimate(100.0, tmp_path)
    with pytest.raises(PowerError, match=r"power\.cpu_tdp_w"):
        CpuEstimate(0.0, tmp_path)


# Whole runs against a server on "this machine": the embedded one in memory, under a url.

NO_BOARD = "nvml: no library: install the NVIDIA driver"
PACKAGE_W = 100.0


class Host:
    """What ``target`` finds on this machine. The packages' counters go on at 100 W, every 10 ms."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, *, packages: int = 2) -> None:
        self.tree = Powercap(root / "powercap")
        for k in range(packages):
            # The first wraps in the run's window, 7 s after the machine's start.
            start_j = EPYC_RANGE_UJ * 1e-6 - 7.0 * PACKAGE_W if k == 0 else 10.0
            self.tree.zone(f"intel-rapl:{k}", f"package-{k}", start_j=start_j, range_uj=EPYC_RANGE_UJ)
            self.tree.zone(f"intel-rapl:{k}:0", "dram", range_uj=EPYC_RANGE_UJ)
        proc = root / "proc"
        proc.mkdir()
        (proc / "meminfo").write_text("MemTotal: 263700000 kB\n")
        ticks(proc, user=0, idle=0)
        patch.setattr(local, "NvmlSource", SimpleNamespace(open=self._no_board))
        patch.setattr(local, "RaplSource", SimpleNamespace(open=self._rapl))
        patch.setattr(local, "installed_gb", lambda: installed_gb(proc))
        patch.setattr(local, "CpuEstimate", lambda tdp_w, **how: CpuEstimate(tdp_w, proc, **how))
        self.patch, self.packages = patch, packages
        self.wrapped_s: list[float] = []

    @staticmethod
    def _no_board(gpus: object) -> PowerSource:
        raise PowerError(NO_BOARD)

    def _rapl(self, root: Path, **how: Any) -> RaplSource:
        return RaplSource.open(self.tree.root, sleep=self.tree.settle, **how)

    def run(self, parent: Path, url: str = "http://127.0.0.1:8080", **power: Any) -> Path:
        return clock.run_virtual(self._run(parent, url, power))

    async def _run(self, parent: Path, url: str, power: dict[str, Any]) -> Path:
        load = {"pattern": "constant", "interval_s": 0.05, "requests": 40, "warmup_requests": 1}
        # No scrape: it would look the host's name up, which virtual time cannot wait for.
        server = {"url": url, "metrics_interval_s": 0}
        tree = {"name": "t", "seed": 1, "load": load, "server": server, "power": power}
        tree["prompts"] = {"source": "synthetic", "max_new_tokens": 8}
        what = Scenario.model_validate(tree)
        launch = Launch(model="llama-3.1-8b", gpu="h100-sxm", dtype="bfloat16", seed=1)
        ticking = asyncio.create_task(self._tick())
        try:
            async with serving(Service(launch), address=None) as server:

                async def dial(factory: Any) -> Any:
                    near = factory()
                    return clock.connect_memory(near, server.protocol())[0], near

                async def probe(url: str, headers: object) -> Probed:
                    return Probed("tgi", "tgi", "llama-3.1-8b")

                def client(protocol: str, url: str, **options: Any) -> Any:
                    return make_client(protocol, url, **options | {"dial": dial})

                self.patch.setattr(target, "probe", probe)
                self.patch.setattr(target, "make_client", client)
                view = RunView(Console(stderr=True), 1, quiet=True)
                return await execute(Order(what, "name: t\n", build(what), parent), view)
        finally:
            ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            before_uj = (
                int((self.tree.root / "intel-rapl:0" / "energy_uj").read_text()) if self.packages else 0
            )
            self.tree.add(PACKAGE_W * 0.01)
            if self.packages and int((self.tree.root / "intel-rapl:0" / "energy_uj").read_text()) < before_uj:
                self.wrapped_s.append(clock.now())


def test_a_run_with_cpu_power_only_is_measured_and_says_why_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, monkeypatch)
    path = host.run(tmp_path)
    manifest = rundir.read_manifest(path)
    power = manifest["power"]
    assert (power["label"], power["reason"]) == ("measured", NO_BOARD) and manifest["gpus"] == []
    methods = {row["name"]: row["method"] for row in power["domains"]}
    assert methods == {
        **{f"cpu{k}.{part}": "counter" for k in (0, 1) for part in ("package", "dram")},
        "ram": "estimated",
    }
    summary = summarize(load_run(path))
    assert summary["valid"], summary["reasons"]
    energy = summary["energy"]
    assert (energy["label"], energy["reason"]) == ("unavailable", NO_BOARD)
    assert energy["gpu"]["label"] == "unavailable" and energy["gpu"]["total_j"]["value"] is None
    assert NO_BOARD in energy["gpu"]["total_j"]["method"]
    window_s = manifest["window"]["end_s"]
    made_s = manifest["anchors"]["clock_s"]  # then a warm-up and 2 s of baseline
    assert len(host.wrapped_s) == 1 and made_s + 2.7 < host.wrapped_s[0] < made_s + 2.0 + window_s
    cpu, ram = energy["cpu"], energy["ram"]
    assert (cpu["label"], cpu["methods"]) == ("measured", ["counter"])
    assert cpu["domains"] == ["cpu0.package", "cpu1.package"]  # no DRAM in it
    # The counters move every 10 ms: 1 J a package at either edge.
    assert cpu["total_j"]["value"] == pytest.approx(2 * PACKAGE_W * window_s, abs=4.0)
    assert cpu["energy_per_request"]["value"] == pytest.approx(2 * PACKAGE_W * window_s / 40, abs=4.0 / 40)
    assert (ram["label"], ram["methods"]) == ("estimated", ["estimated"])
    assert ram["mean_power_w"]["value"] == pytest.approx(38.0)


def test_without_rapl_the_cpu_is_unavailable_with_its_reason_never_0_j(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Host(tmp_path, monkeypatch, packages=0).run(tmp_path)
    manifest = rundir.read_manifest(path)
    assert [row["name"] for row in manifest["power"]["domains"]] == ["ram"]
    assert manifest["power"]["label"] == "unavailable" and manifest["power"]["reason"] == NO_BOARD
    assert any(w.startswith("power: cpu: rapl: ") and "cpu_tdp_w" in w for w in manifest["warnings"])
    energy = summarize(load_run(path))["energy"]
    assert energy["cpu"]["label"] == "unavailable" and energy["cpu"]["total_j"]["value"] is None
    assert energy["ram"]["label"] == "estimated"


def test_the_cpu_estimate_is_only_for_who_asks_and_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Host(tmp_path, monkeypatch, packages=0).run(tmp_path, cpu_tdp_w=150, ram_version=2)
    manifest = rundir.read_manifest(path)
    assert {row["name"]: row["method"] for row in manifest["power"]["domains"]} == {
        "cpu0.package": "estimated",
        "ram": "estimated",
    }
    assert any("cpu0.package is an estimate: rapl: " in w for w in manifest["warnings"])
    assert summarize(load_run(path))["energy"]["ram"]["mean_power_w"]["value"] == pytest.approx(96.0)


def test_rapl_is_preferred_to_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Host(tmp_path, monkeypatch).run(tmp_path, cpu_tdp_w=150)
    cpu = summarize(load_run(path))["energy"]["cpu"]
    assert cpu["label"] == "measured"


class Board:
    """One board at a constant 200 W, by its counter."""

    blocking = False
    boards = ({"domain": "gpu0", "power_limit_w": 700.0},)
    warnings = ("power: gpu0 is odd",)
    closed = False

    def domains(self) -> list[Domain]:
        return [Domain("gpu0", "counter")]

    def read(self) -> list[Reading]:
        return [Reading(clock.now(), "gpu0", energy_j=200.0 * clock.now())]

    def close(self) -> None:
        self.closed = True


def test_boards_packages_and_memory_are_read_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, board = Host(tmp_path, monkeypatch), Board()
    monkeypatch.setattr(local, "NvmlSource", SimpleNamespace(open=lambda gpus: board))
    path = host.run(tmp_path)
    manifest = rundir.read_manifest(path)
    assert (manifest["power"]["label"], manifest["power"]["reason"]) == ("measured", None)
    assert manifest["gpus"] == [{"domain": "gpu0", "power_limit_w": 700.0}] and board.closed
    assert "power: gpu0 is odd" in manifest["warnings"]
    energy = summarize(load_run(path))["energy"]
    shown = {
        part: (energy[part]["label"], energy[part]["mean_power_w"]["value"])
        for part in energy
        if part in PARTS
    }
    assert shown == {
        "gpu": ("measured", pytest.approx(200.0)),
        "cpu": ("measured", pytest.approx(2 * PACKAGE_W, rel=0.02)),
        "ram": ("estimated", pytest.approx(38.0)),
    }


@pytest.mark.parametrize(
    ("url", "power", "reason"),
    [
        ("http://gpu-host:8080", {}, "the server is on another machine"),
        ("http://127.0.0.1:8080", {"source": "none"}, "power.source is none"),
    ],
)
def test_a_host_that_is_not_the_servers_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, power: dict[str, Any], reason: str
) -> None:
    path = Host(tmp_path, monkeypatch).run(tmp_path, url, **power)
    found = rundir.read_manifest(path)["power"]
    assert found["domains"] == [] and found["label"] == "unavailable" and reason in found["reason"]


def test_a_package_that_is_lost_in_mid_run_makes_the_run_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, monkeypatch)
    real = host.tree.add

    def add(joules: float, *keys: str) -> None:
        if clock.now() > 6.5:
            host.tree.frozen.add("intel-rapl:1")
        real(joules, *keys)

    monkeypatch.setattr(host.tree, "add", add)
    path = host.run(tmp_path)
    summary = summarize(load_run(path))
    assert not summary["valid"] and any("cpu1.package" in r for r in summary["reasons"])
    assert any("cpu1.package: the counter has stood still" in w for w in summary["warnings"])


def test_the_keys_are_checked() -> None:
    assert (Power().cpu_tdp_w, Power().ram_version) == (None, 3)
    for wrong in ({"cpu_tdp_w": 0}, {"cpu_tdp_w": float("inf")}, {"ram_version": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Power.model_validate(wrong)
