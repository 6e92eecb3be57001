"""`loadgen sidecar` as its user runs it: real processes over a made powercap tree and a fake NVML driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_nvml import Board, environment
from powercap import burning
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from loadgen import cli
from loadgen.sidecar.table import TableReader

REPO = Path(__file__).resolve().parent.parent
VLLM_PAGE = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{model_name="m"} 4711.0
"""


@pytest.fixture
def powercap(tmp_path: Path) -> Iterator[Path]:
    with burning(tmp_path / "powercap") as root:
        yield root


class Running:
    """A sidecar process; ``talk`` is what it has said on stderr."""

    def __init__(self, *words: object, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "loadgen", "sidecar", "--listen", "127.0.0.1:0", *map(str, words)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=REPO)
        self.talk: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()
        until(lambda: any("sidecar at http" in line for line in self.talk) or self.process.poll() is not None)
        assert self.process.poll() is None, self.talk
        self.url = next(word for word in self.talk[0].split() if word.startswith("http"))

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.talk.extend(lines)

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                body = answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                body = exc.read()
        return json.loads(body) if path.startswith(("/v1", "/health")) else body.decode()

    def rows(self) -> list[Any]:
        found = self.get("/v1/samples/power?limit=10000")["rows"]
        assert isinstance(found, list)
        return found

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(10)
        self._reading.join()
        return status


@contextmanager
def sidecar(*words: object, env: dict[str, str] | None = None) -> Iterator[Running]:
    running = Running(*words, env=env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGKILL)
        running._reading.join()


def sampler_pid(folder: Path) -> int:
    return int(json.loads((folder / "sampler.json").read_text())["pid"])


@contextmanager
def vllm() -> Iterator[int]:
    """A server that shows metrics; its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(VLLM_PAGE)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_samples_of_boards_and_packages_outlive_a_killed_sampler(
    tmp_path: Path,
    powercap: Path,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The service starts it again, no row that was taken is lost, and the numbers go on.

    One that hangs does not hold up a second Ctrl-C.
    """
    boards = [
        Board(uuid="GPU-a", low=300.0, processes=((os.getpid(), 1 << 20),)),
        Board(uuid="GPU-b", low=70.0),
    ]
    env = environment(library, boards, real_time=True)
    data = tmp_path / "data"
    words = ("--data-dir", data, "--powercap", powercap, "--interval", 0.02)
    with (
        vllm() as port,
        sidecar(*words, "--scrape", f"http://127.0.0.1:{port}", "--scrape-interval", 0.1, env=env) as it,
    ):
        until(lambda: it.get("/health")["status"] == "ok")
        said = "".join(it.talk)
        assert "gpu0.instant" in said and "cpu0.package   counter" in said and str(data) in said
        # The server that is scraped runs in this very process, which is on one of the boards.
        owner = it.get(f"/v1/server?port={port}")
        assert os.getpid() in owner["pids"] and owner["boards"] == ["gpu0"] and owner["reason"] is None
        until(lambda: it.get("/v1/samples/metrics")["rows"])
        until(lambda: it.get("/v1/samples/state")["rows"])
        assert it.get("/v1/info")["warnings"] == []

        killed = sampler_pid(data)
        until(lambda: len(it.rows()) > 20)
        before = it.rows()
        os.kill(killed, signal.SIGKILL)
        until(lambda: sampler_pid(data) != killed)
        again = len(before) + 20
        until(lambda: len(it.rows()) > again)
        rows, columns = it.rows(), it.get("/v1/samples/power?limit=1")["columns"]
        assert rows[: len(before)] == before
        assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        assert all(a[1] <= b[1] for a, b in pairwise(rows))
        gap_s = max(b[1] - a[1] for a, b in pairwise(rows))
        assert 0.1 < gap_s < 5  # it is in the data, not filled
        died = [event for event in it.get("/v1/events")["events"] if event["kind"] == "sampler_died"]
        assert [event["pid"] for event in died] == [killed] and "SIGKILL" in died[0]["text"]
        assert "warning: the sampler" in "".join(it.talk)
        until(lambda: it.get("/health")["status"] == "ok")
        assert it.get("/v1/info")["warnings"] == []

        # Energies go on over the death: 300 W, 70 W and 100 W from end to end.
        for domain, power_w in (("gpu0", 300.0), ("gpu1", 70.0), ("cpu0.package", 100.0)):
            i = columns.index(domain)
            known = [(t_s + lags[i], values[i]) for _, t_s, values, lags in rows if values[i] is not None]
            (first_s, first_j), (last_s, last_j) = known[0], known[-1]
            # The counter shows at most 100 ms of the board's past, the tree 5 ms, either end.
            assert last_j - first_j == pytest.approx(power_w * (last_s - first_s), abs=0.21 * power_w), domain

        metrics = {
            (sample.name, sample.labels.get("uuid", "")): sample.value
            for family in text_string_to_metric_families(it.get("/metrics"))
            for sample in family.samples
        }
        assert metrics["loadgen_gpu_power_watts", "GPU-b"] == pytest.approx(70.0)
        assert metrics["loadgen_gpu_energy_joules_total", "GPU-a"] > 0
        assert metrics["loadgen_server_requests_running", ""] == 3.0
        assert metrics["loadgen_server_output_tokens_total", ""] == 4711.0
        assert metrics["loadgen_sidecar_sampler_restarts_total", ""] == 1.0
        assert metrics["loadgen_sidecar_cpu_seconds_total", ""] > 0

        # Beside the first one nothing else writes there.
        monkeypatch.setattr("loadgen.sidecar.directory._OUTLIVES_S", 0.0)
        assert "another sidecar uses it" in refused(capsys, "--listen", "127.0.0.1:0", "--data-dir", data)

        hung = sampler_pid(data)
        os.kill(hung, signal.SIGSTOP)
        try:
            it.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            assert it.process.poll() is None
            it.process.send_signal(signal.SIGINT)
            assert it.process.wait(10) == 130
        finally:
            os.kill(hung, signal.SIGCONT)
    until(lambda: not psutil.pid_exists(hung))


def test_a_killed_service_takes_its_sampler_along_and_the_next_one_goes_on(
    tmp_path: Path, powercap: Path
) -> None:
    data = tmp_path / "data"
    words = ("--data-dir", data, "--powercap", powercap, "--interval", 0.02)
    with sidecar(*words) as it:
        until(lambda: len(it.rows()) > 10)
        info, rows = it.get("/v1/info"), it.rows()
        orphan = psutil.Process(sampler_pid(data))
        assert it.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    with sidecar(*words) as it:
        until(lambda: len(it.rows()) > len(rows) + 10)
        after, again = it.rows(), it.get("/v1/info")
        assert again["id"] == info["id"] and again["session"] != info["session"]
        assert after[: len(rows)] == rows and [row[0] for row in after] == list(range(1, len(after) + 1))
        kinds = [event["kind"] for event in it.get("/v1/events")["events"]]
        assert kinds.count("start") == 2 and kinds.count("stop") == 1  # the orphan wrote its last samples
        pid, asked_s = sampler_pid(data), time.monotonic()
        assert it.end() == 0  # SIGTERM
    assert not psutil.pid_exists(pid)
    # A last sample was taken when the end was asked for.
    [last] = TableReader(data, "power").rows(since_s=asked_s)[:1]
    assert last.t_s - asked_s < 1.0


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What the sidecar says that cannot start."""
    try:
        status = cli.main(["sidecar", *map(str, words)])
    except SystemExit as exc:  # argparse
        status = int(exc.code or 0)
    out, err = capsys.readouterr()
    assert status == 2 and out == ""
    return err


def test_what_cannot_start_says_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = ("--data-dir", tmp_path / "data")
    assert "give --token-file F" in refused(capsys, *data, "--listen", "0.0.0.0:9400")
    assert "expected HOST:PORT" in refused(capsys, *data, "--listen", "9400")
    assert "this name has no address" in refused(capsys, *data, "--listen", "no-such-host.invalid:1")
    (tmp_path / "empty").write_text("\n")
    assert "is empty" in refused(capsys, *data, "--listen", "127.0.0.1:0", "--token-file", tmp_path / "empty")
    assert "there is no such process" in refused(capsys, *data, "--pid", 2**22 - 1)
    assert "expected the number of a process" in refused(capsys, *data, "--pid", "-1")
    assert "expected a number from 0.001 to 60, got '0'" in refused(capsys, *data, "--interval", 0)
    assert "ftp://x" in refused(capsys, *data, "--scrape", "ftp://x")
    assert "did you mean '--interval'" in refused(capsys, *data, "--intervall", 1)
    assert not (tmp_path / "data").exists()  # nothing was begun
    (tmp_path / "file").write_text("")
    assert "--data-dir" in refused(capsys, "--data-dir", tmp_path / "file" / "below")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(capsys, *data, "--listen", f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port}: cannot listen there" in said and "another sidecar" in said


def test_a_board_that_was_asked_for_and_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(capsys, "--listen", "127.0.0.1:0", "--data-dir", tmp_path, "--gpu", "GPU-nowhere")
    assert "loadgen: --gpu: nvml:" in said


def test_it_listens_on_ipv6(tmp_path: Path, powercap: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this host has no IPv6")
    with sidecar("--listen", "[::1]:0", "--data-dir", tmp_path / "data", "--powercap", powercap) as it:
        assert it.url.startswith("http://[::1]:") and it.get("/v1/clock")["t_s"] > 0
        assert it.end(signal.SIGINT) == 0


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sidecar", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for word in (
        "--listen",
        "--token-file",
        "--gpu",
        "--pid",
        "--scrape",
        "ssh -L",
        "exit status",
        "docs/sidecar.md",
    ):
        assert word in said
