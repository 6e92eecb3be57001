"""The sidecar's address, token, and its finding of a server's processes, each by itself."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.errors import ConfigError
from loadgen.power import owner
from loadgen.sidecar.access import Address, demand_token, parse_listen, read_token
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.exposition import Now, exposition
from loadgen.sidecar.watch import SamplerProcess


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9400", "127.0.0.1", 9400),
        ("[::1]:0", "::1", 0),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("gpu-host.example:65535", "gpu-host.example", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_listen(text) == Address(host, port)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9400", "expected HOST:PORT"),
        ("127.0.0.1", "expected HOST:PORT"),
        (":9400", "0.0.0.0 is every IPv4 address"),
        ("[]:9400", "0.0.0.0 is every IPv4 address"),
        ("::1:9400", "an IPv6 address stands in brackets"),
        ("[127.0.0.1.1]:9400", "is no IPv6 address"),
        ("127.0.0.1:", "the port is a whole number from 0 to 65535, got ''"),
        ("127.0.0.1:65536", "got '65536'"),
        ("127.0.0.1:-1", "got '-1'"),
        ("127.0.0.1:८०", "got '८०'"),
    ],
)
def test_what_is_no_address_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_listen(text)
    assert said in str(refused.value) and text in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    demand_token(Address(host, 0), None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_any_other_address_does(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token-file F .*ssh -L 9400:localhost:9400"):
        demand_token(Address(host, 9400), None)
    demand_token(Address(host, 9400), tmp_path)


def test_a_token_is_one_word_and_others_should_not_read_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="No such file"):
        read_token(path)
    for text, said in (("", "is empty"), (" \n", "is empty"), ("a b", "without spaces"), ("ä", "ASCII")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_token(path)
    path.write_text("s3cret\n")
    path.chmod(0o600)
    assert read_token(path) == ("s3cret", None)
    path.chmod(0o644)
    token, warning = read_token(path)
    assert token == "s3cret" and warning is not None and f"chmod 600 {path}" in warning


def test_a_directory_has_one_owner_and_keeps_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.sidecar.directory._OUTLIVES_S", 0.0)
    first, second = DataDirectory(tmp_path / "a"), DataDirectory(tmp_path / "a")
    assert first.id == second.id != DataDirectory(tmp_path / "b").id
    with first.owned(), pytest.raises(ConfigError, match="another sidecar uses it"), second.owned():
        pass
    with second.owned():
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data-dir"):
        DataDirectory(tmp_path / "file")


def test_a_directory_whose_id_a_power_cut_emptied_gets_another(tmp_path: Path) -> None:
    DataDirectory(tmp_path)
    (tmp_path / "id").write_text("")
    assert len(DataDirectory(tmp_path).id) == 36


# -- the sampler's process ----------------------------------------------------


def test_a_sampler_with_the_number_of_the_one_before_is_not_taken_for_it(tmp_path: Path) -> None:
    """In a container process numbers repeat: what the last one left behind says nothing of this one."""
    path = tmp_path / "sampler.json"
    code = f"""if True:
        import json, os, sys, time
        with open({str(path)!r}, "w") as file:
            json.dump({{"session": "old", "pid": os.getpid()}}, file)
        time.sleep(0.2)
        sys.exit(2)"""
    path.write_text('{"session": "old"}')

    async def main() -> None:
        directory = DataDirectory(tmp_path)
        with directory.owned() as lock:
            sampling = SamplerProcess(directory, [sys.executable, "-c", code], 0.05, lock, pytest.fail)
            with pytest.raises(ConfigError, match="cannot do what it was asked for"):
                await sampling.run(asyncio.Event())
            assert not sampling.ready.is_set()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_signal_ends_a_process_that_is_still_starting() -> None:
    """With a handler: what process 1 of a container has none for is dropped."""
    code = (
        "import time, loadgen.foreground as f; f.end_while_starting(); print('up', flush=True); time.sleep(9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(5) == 0


# -- who listens -------------------------------------------------------------

_LISTEN = """
import socket, sys, time
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
print(s.getsockname()[1], flush=True); time.sleep(60)
"""
_LAUNCH = """
import subprocess, sys, time
group = {"process_group": 0} if sys.argv[1] == "spread" else {}
for code in sys.argv[2:]:
    subprocess.Popen([sys.executable, "-c", code], **group)
time.sleep(60)
"""
_SHARD = "import time; time.sleep(60)"


@contextmanager
def session(command: Sequence[str], descendants: int) -> Iterator[tuple[int, int, set[int]]]:
    """Runs a session of processes, one of which prints its port: (port, leader, all pids)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        leader = psutil.Process(process.pid)
        end_s = time.monotonic() + 20
        while len(leader.children(recursive=True)) < descendants:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        yield port, leader.pid, {leader.pid, *(child.pid for child in leader.children(recursive=True))}
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            member.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def of(*pids: int) -> dict[str, Any]:
    """gpu0 with these processes, gpu1 with none."""
    return {"gpu0": [{"pid": pid, "name": "python", "memory_bytes": 1} for pid in pids], "gpu1": []}


@pytest.mark.parametrize("style", ["together", "spread"])
def test_a_launchers_shards_are_the_servers(style: str, tmp_path: Path) -> None:
    launcher = tmp_path / "text-generation-launcher" if style == "spread" else tmp_path / "python-launcher"
    launcher.symlink_to(os.path.realpath(sys.executable))
    with session([str(launcher), "-c", _LAUNCH, style, _LISTEN, _SHARD], 2) as (port, leader, everyone):
        shard = max(pid for pid in everyone if pid != leader)
        found = owner.owner_of_port(port, of(shard))
        assert set(found.pids) == everyone
        assert found.boards == ("gpu0",) and found.reason is None


def test_a_shell_brings_no_foreign_processes_in() -> None:
    words = f"\"{sys.executable}\" -c '{_LISTEN}' & \"{sys.executable}\" -c '{_SHARD}' & wait"
    with session(["bash", "-c", words], 2) as (port, leader, everyone):
        found = owner.owner_of_port(port, {})
        assert len(found.pids) == 1 and leader not in found.pids and len(everyone) == 3
        assert found.reason == "no board is measured here"


def test_an_ancestor_of_the_sidecar_is_not_the_servers() -> None:
    """Else whatever started both, this very test, would bring all of its children in."""
    command = [sys.executable, "-c", _LISTEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        found = owner.owner_of_port(port, {})
        process.kill()
    assert found.pids == (process.pid,)


def test_a_named_process_stands_for_its_descendants() -> None:
    with session([sys.executable, "-c", _LAUNCH, "together", _LISTEN, _SHARD], 2) as (_, leader, everyone):
        found = owner.owner_of_pid(leader, of(max(everyone)))
        assert set(found.pids) == everyone and found.boards == ("gpu0",)
    assert "has ended" in str(owner.owner_of_pid(leader, of()).reason)


def test_a_server_off_the_boards_is_told_from_one_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, other = os.getpid(), os.getppid()
    monkeypatch.setattr(owner, "_sees_host_pids", lambda: True)
    on_none = owner.on_boards([here], of(other))
    assert on_none.boards == () and on_none.reason is None  # known: it runs on none of them
    gone = next(pid for pid in range(2**22 - 1, 0, -1) if not psutil.pid_exists(pid))
    assert "docker run --pid=host" in str(owner.on_boards([here], of(gone)).reason)
    hidden = {"gpu0": None, "gpu1": []}
    assert "does not list the processes of gpu0" in str(owner.on_boards([here], hidden).reason)
    monkeypatch.setattr(owner, "_FORWARDERS", {psutil.Process(here).name()})
    assert "is forwarded by" in str(owner.on_boards([here], of(other), [here]).reason)
    monkeypatch.setattr(owner, "_sees_host_pids", lambda: False)
    assert "docker run --pid=host" in str(owner.on_boards([here], of()).reason)
    assert owner.on_boards([here], of(here)).reason is None


def test_a_port_nobody_listens_on_is_a_reason() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # taken, but not listening
        found = owner.owner_of_port(bound.getsockname()[1], of())
    assert found.pids == () and "nobody listens" in str(found.reason) and "--pid" in str(found.reason)


def test_a_listener_of_another_user_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = SimpleNamespace(pid=None, status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=80))
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [hidden])
    assert "another user" in str(owner.owner_of_port(80, of()).reason)

    def denied(kind: str) -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert "cannot be listed" in str(owner.owner_of_port(80, of()).reason)


# -- Prometheus --------------------------------------------------------------


def domain(name: str, method: str) -> dict[str, Any]:
    return {"name": name, "method": method, "averaging_s": None, "note": "", "update_s": None}


def now(**known: Any) -> Now:
    domains = [
        *(domain("gpu0", "counter"), domain("gpu0.instant", "instant"), domain("gpu12", "counter")),
        *(domain("cpu0.package", "counter"), domain("cpu1.package", "estimated"), domain("ram", "estimated")),
        *(domain("soc", "counter"), domain("module.average", "average")),
    ]
    given: dict[str, Any] = {"power": {}, "state": {}, "server": {}, "age_s": None, "overhead": {}} | known
    boards = [{"domain": "gpu0", "uuid": "GPU-a"}, {"domain": "gpu12", "uuid": "GPU-b"}]
    return Now(
        version="1",
        id="x",
        domains=domains,
        boards=boards,
        samples=7,
        cpu_s={},
        restarts=0,
        readers=0,
        **given,
    )


def parsed(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.value is not None
    }


def test_the_exposition_reads_back() -> None:
    power = {"gpu0": 1.5, "gpu0.instant": 300.25, "gpu12": 2.0, "cpu0.package": 3.0, "cpu1.package": 4.0}
    page, content_type = exposition(
        now(
            power=power | {"ram": 5.0, "soc": 6.0, "module.average": 7.0},
            state={"gpu0.sm_clock_mhz": 1980.0, "gpu0.ecc_errors": 0.0},
            server={"running": 0.0, "output_tokens": 9.0},
            overhead={"skipped": 2, "wake_late_p99_s": 0.001, "wake_late_p50_s": None},
            age_s=0.01,
            reasons={"gpu": None, "cpu": "why"},
        ),
        "",
    )
    assert content_type.startswith("text/plain")
    found = parsed(page)

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, frozenset(labels.items())))

    assert value("loadgen_gpu_energy_joules_total", uuid="GPU-a", index="0") == 1.5
    assert value("loadgen_gpu_energy_joules_total", uuid="GPU-b", index="12") == 2.0
    assert value("loadgen_gpu_power_watts", uuid="GPU-a", index="0", domain="gpu0.instant") == 300.25
    assert value("loadgen_cpu_energy_joules_total", zone="cpu0.package", method="counter") == 3.0
    assert value("loadgen_cpu_energy_joules_total", zone="cpu1.package", method="estimated") == 4.0
    assert value("loadgen_ram_energy_joules_total", method="estimated") == 5.0
    assert value("loadgen_other_energy_joules_total", domain="soc", method="counter") == 6.0
    assert value("loadgen_other_power_watts", domain="module.average", method="average") == 7.0
    assert value("loadgen_gpu_sm_clock_hertz", uuid="GPU-a", index="0") == 1.98e9
    assert value("loadgen_server_requests_running") == 0.0  # known to be 0, which is not missing
    assert value("loadgen_server_output_tokens_total") == 9.0
    assert value("loadgen_sidecar_samples_total") == 7.0
    assert value("loadgen_sidecar_samples_skipped_total") == 2.0
    assert value("loadgen_sidecar_lag_seconds", share="0.99") == 0.001
    assert value("loadgen_sidecar_lag_seconds", share="0.5") is None
    assert value("loadgen_sidecar_unread", part="cpu") == 1.0
    assert value("loadgen_sidecar_unread", part="gpu") is None
    kinds = {family.name: family.type for family in text_string_to_metric_families(page.decode())}
    assert kinds["loadgen_gpu_energy_joules"] == "counter" and kinds["loadgen_gpu_power_watts"] == "gauge"
    for line in page.decode().splitlines():
        assert not line.startswith("# HELP") or len(line.split(" ", 3)[3]) > 5


def test_what_is_not_known_is_absent_and_never_zero() -> None:
    names = {name for name, _ in parsed(exposition(now(), "")[0])}
    assert names == {
        *("loadgen_sidecar_info", "loadgen_sidecar_samples_total", "loadgen_sidecar_live_readers"),
        "loadgen_sidecar_sampler_restarts_total",
    }


def test_openmetrics_for_whom_accepts_it() -> None:
    page, content_type = exposition(now(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text") and page.endswith(b"# EOF\n")
