"""loadgen doctor: the real nvidia-ml-py on a fake driver, RAPL on a fake powercap tree, scripted servers."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console
from test_power import REPO, driver

from loadgen import cli, clock, doctor
from loadgen.types import Domain, Reading

__all__ = ["driver"]

TGI_INFO = {"model_id": "m/chat", "max_concurrent_requests": 128, "max_total_tokens": 4096}


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

    def refuse() -> None:
        raise PowerError("nvml: no library: install the NVIDIA driver")

    monkeypatch.setattr(doctor.NvmlSource, "open", refuse)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Host]:
    def make(**powers_w: float) -> Host:
        made = Host(tmp_path / "powercap", {zone.replace("_", ".")[1:]: w for zone, w in powers_w.items()})
        monkeypatch.setattr(clock, "now", lambda: made.now_s)
        return made

    return make


def rows_of(power: doctor.Power) -> dict[str, doctor.Finding]:
    found = {finding.domain: finding for finding in power.findings}
    assert len(found) == len(power.findings)
    return found


@pytest.mark.usefixtures("no_driver")
def test_packages_and_dram_are_measured_with_the_power_they_draw(host: Callable[..., Host]) -> None:
    made = host(_0_package=80.0, _0_dram=12.5, _1_package=60.0)
    power = doctor.power_here(powercap=made.root, pause=made.pause)
    assert [f.domain for f in power.findings] == ["gpu", "cpu0.package", "cpu0.dram", "cpu1.package", "ram"]
    rows = rows_of(power)
    for name, power_w in (("cpu0.package", 80.0), ("cpu0.dram", 12.5), ("cpu1.package", 60.0)):
        assert (rows[name].method, rows[name].reason) == ("counter", None)
        assert rows[name].power_w == pytest.approx(power_w, rel=1e-6)
        assert rows[name].update_s == 1e-3
    assert rows["gpu"].method is None and rows["gpu"].reason == "nvml: no library: install the NVIDIA driver"
    assert rows["ram"].method == "estimated" and rows["ram"].power_w is not None


@pytest.mark.usefixtures("no_driver")
def test_a_stuck_counter_and_a_missing_tree_are_unavailable_with_a_reason(
    host: Callable[..., Host], tmp_path: Path
) -> None:
    made = host(_0_package=0.0)
    stuck = rows_of(doctor.power_here(powercap=made.root, pause=made.pause))["cpu"]
    assert stuck.reason and "stands still" in stuck.reason and stuck.power_w is None
    absent = rows_of(doctor.power_here(powercap=tmp_path / "nowhere", pause=made.pause))["cpu"]
    assert absent.method is None and absent.reason and "powercap" in absent.reason


@pytest.mark.usefixtures("no_driver")
def test_a_dram_zone_that_was_left_out_is_a_row_with_its_reason(host: Callable[..., Host]) -> None:
    made = host(_0_package=80.0, _0_dram=12.5)
    (made.file("0.dram").parent / "max_energy_range_uj").unlink()
    power = doctor.power_here(powercap=made.root, pause=made.pause)
    rows = rows_of(power)
    assert rows["cpu0.package"].power_w == pytest.approx(80.0, rel=1e-6)
    assert rows["cpu0.dram"].method is None and "max_energy_range_uj" in str(rows["cpu0.dram"].reason)
    assert power.warnings == ()


def test_a_domain_is_judged_by_its_two_readings() -> None:
    domain = Domain("gpu0", "counter", None, "NVML total energy")

    def judge(before: Any, after: Any, failure: str | None = None) -> doctor.Finding:
        return doctor.judge(domain, before, after, 0.1, failure)

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
import asyncio, ctypes, json, sys
from pathlib import Path
from loadgen import doctor
lib = ctypes.CDLL("libnvidia-ml.so.1")
lib.fake_set_time.argtypes = [ctypes.c_double]
lib.fake_set_time(0.0)
moves = sys.argv[1] == "moving"
pause = lambda s: moves and lib.fake_set_time(s + 1e-6)
found = asyncio.run(doctor.report(powercap=Path("/nowhere"), pause=pause))
print(json.dumps(found))
"""


def look(driver: Path, how: str, **environment: str) -> dict[str, Any]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FAKE_", "CUDA_"))}
    env = {**kept, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": str(REPO), **environment}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, how], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_boards_have_a_row_for_each_sensor_and_one_for_the_counter_they_lack(driver: Path) -> None:
    found = look(driver, "moving")
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
    assert [d["update_s"] for d in found["domains"][:3]] == [0.1] * 3
    assert [d["averaging_s"] for d in found["domains"][:3]] == [None, 0.025, 1.0]
    assert found["domains"][1]["power_w"] == 300.0 and found["domains"][4]["power_w"] == 70.0
    assert [b["uuid"] for b in found["boards"]] == ["GPU-10000000-aaaa", "GPU-20000000-aaaa"]
    assert [b["mig"] for b in found["boards"]] == [False, True]
    assert any("MIG" in w for w in found["warnings"])


def test_a_boards_stuck_counter_is_unavailable_and_its_sensors_are_not(driver: Path) -> None:
    found = look(driver, "still")
    assert "did not advance" in found["domains"][0]["reason"]
    assert found["measured"] == ["gpu0.instant", "gpu0.average", "gpu1.average"]


def test_a_board_that_falls_off_between_the_readings_says_so_in_its_rows(driver: Path) -> None:
    found = look(driver, "moving", FAKE_LOST_AT="0.2")
    rows = {d["domain"]: d["reason"] for d in found["domains"]}
    assert "fallen off the bus" in rows["gpu0"] and "fallen off the bus" in rows["gpu0.instant"]
    assert found["measured"] == ["gpu0.average", "gpu1.average"]
    assert not any("fallen off" in w for w in found["warnings"])


@pytest.mark.parametrize(
    ("code", "words"), [("9", "load the NVIDIA driver"), ("4", "run as a user who may read /dev/nvidia*")]
)
def test_a_driver_that_refuses_is_one_row_that_says_what_to_do(driver: Path, code: str, words: str) -> None:
    found = look(driver, "moving", FAKE_INIT=code)
    assert [d["domain"] for d in found["domains"]] == ["gpu", "cpu", "ram"]
    assert words in found["domains"][0]["reason"]
    assert found["measured"] == [] and not found["ok"]


async def at(
    routes: dict[str, Any], key: str | None = None, api_key: str | None = None, *, user: str = ""
) -> dict[str, Any]:
    """`server_at` of a server with these GET routes that demands ``key``."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return web.Response(status=401, text="no")
        reply = routes.get(request.path)
        if reply == "hang":
            await asyncio.sleep(60)
        return web.Response(status=404) if reply is None else web.json_response(reply)

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        return await doctor.server_at(f"http://{user}127.0.0.1:{runner.addresses[0][1]}", api_key)
    finally:
        await runner.cleanup()


def models(owner: str, **more: int) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "m-1", "object": "model", "owned_by": owner, **more}]}


@pytest.mark.parametrize(
    ("routes", "kind", "protocol", "model", "limits"),
    [
        (
            {"/info": TGI_INFO},
            "tgi",
            "tgi",
            "m/chat",
            {"max_concurrent_requests": 128, "max_total_tokens": 4096},
        ),
        (
            {"/v1/models": models("vllm", max_model_len=2048)},
            "vllm",
            "openai-chat",
            "m-1",
            {"max_model_len": 2048},
        ),
        ({"/v1/models": models("sglang")}, "sglang", "openai-chat", "m-1", {}),
        ({"/v1/models": models("llamacpp")}, "llama.cpp", "openai-chat", "m-1", {}),
    ],
)
def test_a_server_is_named_with_its_model_and_limits(
    routes: dict[str, Any], kind: str, protocol: str, model: str, limits: dict[str, int]
) -> None:
    facts = asyncio.run(at(routes, user="u:secret@"))
    assert facts["reason"] is None and facts["local"] is True
    assert (facts["kind"], facts["protocol"], facts["model"], facts["limits"]) == (
        kind,
        protocol,
        model,
        limits,
    )
    assert "secret" not in json.dumps(facts)


def test_a_server_that_wants_a_key_says_so_in_one_line_and_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOADGEN_API_KEY", raising=False)
    refused = asyncio.run(at({"/info": TGI_INFO}, "k1"))
    assert refused["kind"] is None
    assert "is an API key needed?" in refused["reason"] and "\n" not in refused["reason"]
    monkeypatch.setenv("LOADGEN_API_KEY", "k1\n")
    assert asyncio.run(at({"/info": TGI_INFO}, "k1"))["kind"] == "tgi"
    assert asyncio.run(at({"/info": TGI_INFO}, "k2", "k2"))["kind"] == "tgi"


def test_a_server_that_never_answers_is_given_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.05)
    facts = asyncio.run(at({"/info": "hang", "/v1/models": "hang"}, user="u:secret@"))
    assert facts["reason"] == f"{facts['url']}: no answer in 0.05 s"
    assert facts["kind"] is None and "secret" not in facts["url"]


def made_report(**changes: Any) -> dict[str, Any]:
    uuid = "GPU-3f9c1d2e-0123-4567-89ab-cdef01234567"
    domains = [
        doctor.Finding(
            "gpu0", "counter", 0.1, None, 71.84, f"NVML total energy; NVIDIA H100 80GB HBM3 {uuid}"
        ),
        doctor.Finding("cpu0.package", "counter", 1e-3, reason="permission denied: " + "chmod a+r it " * 12),
    ]
    return {
        "ok": True,
        "measured": ["gpu0"],
        "domains": [doctor.asdict(d) for d in domains],
        "boards": [
            {"domain": "gpu0", "index": 0, "uuid": uuid, "name": "NVIDIA H100 80GB HBM3"}
            | {"driver": "570.01", "power_limit_w": 700.0, "mig": True}
        ],
        "warnings": ["power: gpu0 is shared"],
        "machine": asyncio.run(doctor.machine()),
        "server": None,
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
        made_report(server=server | {"model": "m\x1b[31m[red]", "limits": {"max_total_tokens": 4096}})
    )
    assert "tgi at http://far:1 (loadgen speaks tgi)" in text
    assert "m?[31m[red]" in text and "\x1b" not in text
    assert "max_total_tokens 4096" in text and "on another machine" in text
    assert "connection refused" in printed(made_report(server={"reason": "connection refused"}))


def test_the_machines_facts_are_those_of_this_process() -> None:
    facts = asyncio.run(doctor.machine())
    assert 0 < facts["clock_step_s"] < 1e-3
    assert facts["kernel_timer"] is (sys.platform == "linux")
    assert 1 <= facts["cores_usable"] <= facts["cores"]


def test_a_hypervisor_is_seen_in_the_cpus_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert doctor._in_virtual_machine(cpuinfo) is None
    cpuinfo.write_text("processor : 0\nmodel name : hypervisor\nflags\t\t: fpu vme\n")
    assert doctor._in_virtual_machine(cpuinfo) is False
    cpuinfo.write_text("processor : 0\nflags\t\t: fpu hypervisor vme\n")
    assert doctor._in_virtual_machine(cpuinfo) is True


@pytest.mark.parametrize(
    ("measured", "server", "status"),
    [
        (["gpu0"], None, 0),
        ([], None, 1),
        ([], {"/info": TGI_INFO}, 0),
        (["gpu0"], {}, 1),
    ],
)
def test_exit_status_is_the_answer_to_what_was_asked(
    measured: list[str],
    server: dict[str, Any] | None,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = tuple(doctor.Finding(name, "counter") for name in measured)
    estimate = doctor.Finding("ram", "estimated", power_w=10.0)
    power = doctor.Power((*findings, estimate), (), ())
    monkeypatch.setattr(doctor, "power_here", lambda **_: power)

    words = ["doctor", "--json"]
    if server is not None:
        real = doctor.server_at

        async def behind(url: str, api_key: str | None) -> dict[str, Any]:
            monkeypatch.setattr(doctor, "server_at", real)
            return await at(server, api_key=api_key)

        monkeypatch.setattr(doctor, "server_at", behind)
        words += ["--url", "http://127.0.0.1:9"]
    assert cli.main(words) == status
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (status == 0)
    assert found["measured"] == measured
    assert (found["server"] is None) is (server is None)


def test_an_impossible_address_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--url", "gpu-host"]) == 2
    assert "url: expected http://HOST" in capsys.readouterr().err
