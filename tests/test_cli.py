"""The command line as its user sees it: text, streams, exit status, signals."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadgen import cli, rundir

COMMAND = [sys.executable, "-m", "loadgen"]


def loadgen(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as exc:  # argparse
        status = int(exc.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(true: Callable[[], bool], limit_s: float = 60) -> None:
    """Polls a condition that another process brings about."""
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, "the condition never came true"
        time.sleep(0.02)


def test_run_prints_the_summary_and_ends_with_the_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = loadgen(
        capsys, "run", "fixed_50ms", "--request-count", 40, "--output-dir", tmp_path, "--quiet"
    )
    lines = out.splitlines()
    assert status == 0 and err == ""
    path = Path(lines[-1])
    assert path.parent == tmp_path and rundir.read_manifest(path)["status"] == "complete"
    for said in ("simulated", "estimated", "virtual", "per success", "per output token", "ttft", "valid"):
        assert said in out
    again, printed, _ = loadgen(capsys, "summary", path)
    assert again == 0 and printed.strip() == "\n".join(lines[:-1]).strip()
    status, out, _ = loadgen(capsys, "summary", path, "--json")
    assert status == 0 and json.loads(out)["requests"]["ok"] == 40


def test_fail_if_decides_the_exit_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = ("run", "fixed_50ms", "--request-count", 20, "--output-dir", tmp_path, "--quiet", "--fail-if")
    status, _, err = loadgen(capsys, *run, "p99_ttft>0.00001")
    assert status == 1 and "--fail-if met: p99_ttft>0.00001" in err
    assert loadgen(capsys, *run, "p99_ttft>100")[0] == 0
    status, out, err = loadgen(capsys, *run, "p99_tftt>1")
    assert status == 2 and "did you mean 'p99_ttft'" in err and out == ""


def test_check_prints_the_plan_and_sends_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = loadgen(capsys, "check", "fixed_50ms")
    assert status == 0 and "10,000 + 5 warm-up, constant" in out and "20 requests/s" in out
    status, out, _ = loadgen(capsys, "check", "poisson_20rps", "--json")
    shape = json.loads(out)["arrivals"]
    assert shape["count"] == 5000 and shape["gap_cv"] == pytest.approx(1, abs=0.07)
    assert shape["dispersion"] == pytest.approx(1, abs=0.35) and abs(shape["lag1"]) < 0.07
    status, out, _ = loadgen(capsys, "check", "closed_loop_32", "--json")
    assert json.loads(out)["arrivals"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "no_such"], "no such file, and no shipped scenario"),
        (["check", "fixed_50ms", "--set", "load.intervall_s=1"], "did you mean 'interval_s'?"),
        (["check", "azure_conversation"], "azure_conversation.yaml:15 load.path: expected an existing file"),
        (["run", "fixed_50ms", "--set", "server.gpu=h100"], "did you mean"),
        (["run", "fixed_50ms", "--clock", "virtual", "--url", "http://127.0.0.1:9"], "--clock virtual"),
        (["run", "fixed_50ms", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: no known LLM server"),
        (["summary", "/nowhere"], "expected a run directory"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    status, out, err = loadgen(capsys, *words)
    assert status == 2 and out == "" and said in err
    assert len(err.splitlines()) == 1 and err.startswith("loadgen: ")


def test_more_connections_than_the_system_allows_are_refused_with_the_number(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard > 300_000:
        pytest.skip("this machine has no limit on open files that a test could reach")
    burst = ("run", "burst", "--clock", "real", "--request-count", hard)
    status, _, err = loadgen(capsys, *burst)
    assert status == 2 and f"{hard} requests at once need {2 * hard + 64} open files" in err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = loadgen(capsys, "--help")
    assert status == 0 and "examples:" in out and "loadgen run scenarios/fixed_50ms.yaml" in out
    status, out, _ = loadgen(capsys, "run", "--help")
    assert status == 0 and "fixed_50ms" in out and "--request-rate" in out and "LOADGEN_API_KEY" in out


def test_ctrl_c_keeps_the_data_and_exits_130(tmp_path: Path) -> None:
    words = ("run", "fixed_50ms", "--clock", "real", "--set", "power.baseline_s=0", "--set")
    process = start(*words, "load.warmup_requests=1", "--output-dir", tmp_path)
    wait_until(lambda: any(f.read_bytes().count(b"\n") > 20 for f in tmp_path.glob("*/requests.jsonl")))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    path = Path(out.splitlines()[-1])
    records = rundir.read_records(path)
    assert len(records) == 10_001 and rundir.read_manifest(path)["status"] == "interrupted"
    assert "INVALID" in out and "Traceback" not in err


def test_after_kill_9_the_files_are_readable_and_the_summary_counts_the_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    process = start("run", "fixed_50ms", "--output-dir", tmp_path, "--quiet")
    wait_until(lambda: any(f.stat().st_size > 500_000 for f in tmp_path.glob("*/requests.jsonl")))
    process.kill()
    process.communicate()
    (path,) = tmp_path.iterdir()
    kept = len([r for r in rundir.read_records(path) if r.phase == "measure"])
    assert 100 < kept < 10_000
    status, out, _ = loadgen(capsys, "summary", path)
    assert status == 1 and f"{10_000 - kept} missing" in out and "incomplete" in out


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start("serve", "--port", 0)
    assert process.stderr is not None
    line = process.stderr.readline()
    url = next(word for word in line.split() if word.startswith("http://"))
    yield process, url
    process.kill()
    process.communicate()


def test_serve_answers_a_run_in_another_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, server: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = server
    status, out, _ = loadgen(
        capsys, "run", "fixed_50ms", "--url", url, "--request-count", 20, "--output-dir", tmp_path, "--quiet"
    )
    assert "20 planned: 20 ok" in out and "unavailable" in out and "tgi protocol" in out
    path = Path(out.splitlines()[-1])
    assert rundir.read_manifest(path)["power"]["label"] == "unavailable"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert status in (0, 1)  # a busy test machine may send late, which the run then says


def test_a_server_that_dies_leaves_one_record_each(
    tmp_path: Path, server: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = server
    words = ("run", "fixed_50ms", "--url", url, "--request-count", 60, "--output-dir", tmp_path, "--quiet")
    run = start(*words)
    wait_until(lambda: any(f.stat().st_size > 0 for f in tmp_path.glob("*/requests.jsonl")))
    process.kill()
    out, err = run.communicate(timeout=60)
    path = Path(out.splitlines()[-1])
    records = rundir.read_records(path)
    assert sorted(r.id for r in records) == list(range(-5, 60)), err
    failed = [r for r in records if r.status == "error"]
    assert failed and all(r.error for r in failed)
    assert any("refused" in str(r.error) for r in failed)


class _Garbage(threading.Thread):
    """A TCP server that answers every connection with bytes that are no HTTP."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x00\xff not http \r\n\r\n")


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat"])
def test_a_server_of_garbage_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, protocol: str
) -> None:
    garbage = _Garbage()
    garbage.start()
    status, out, err = loadgen(
        capsys, "run", "fixed_50ms", "--url", garbage.url, "--protocol", protocol, "--output-dir", tmp_path
    )
    garbage.socket.close()
    assert status == 2 and out == "" and garbage.url in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
