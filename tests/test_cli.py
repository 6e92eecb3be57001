"""The command line as its user sees it: text, streams, exit status, signals."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fakes import ScriptedClient, plan
from rich.console import Console
from waiting import until

from loadgen import cli, clock, rundir
from loadgen.progress import RunView
from loadgen.runner import run_plan
from loadgen.types import Reading, Record

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


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_changes_no_exit_status(form: list[str]) -> None:
    claim = ["lint", "--claim", "gpu=h100-sxm", "interval_s=0.05", "energy_wh=1.1e-3", *form]
    process = start(*claim)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 1  # impossible
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "no_such"], "no such file, and no shipped scenario"),
        (["check", "fixed_50ms", "--set", "load.intervall_s=1"], "did you mean 'interval_s'?"),
        (["check", "azure_conversation"], "azure_conversation.yaml:15 load.path: expected an existing file"),
        (["run", "fixed_50ms", "--set", "server.gpu=h100"], "did you mean"),
        (["run", "fixed_50ms", "--clock", "virtual", "--url", "http://127.0.0.1:9"], "--clock virtual"),
        (["run", "fixed_50ms", "--url", "http://127.0.0.1:9"], "nothing answers: connection refused"),
        (["summary", "/nowhere"], "expected a run directory"),
        (["summary", __file__], "expected a run directory, got a file"),
        (["analyze", __file__], "expected a run directory, got a file"),
        (["compare", __file__, __file__, "--metric", "wrong"], "--metric names the headline of --figure"),
        (["fit", __file__, "--figure", "f.txt"], "expected a file that ends in .svg, .png, .pdf"),
        (["analyze", __file__, "--format", "csv"], "--format is of the tables of --export"),
        ([], "VERB (see loadgen --help)"),
        (["run"], "SCENARIO (see loadgen run --help)"),
        (["run", "fixed_50ms", "--request-cont", "5"], "--request-cont; did you mean '--request-count'?"),
        (["run", "fixed_50ms", "--reqest-rate=5"], "did you mean '--request-rate'?"),
        (["run", "fixed_50ms", "--request-rate", "fast"], "--request-rate: invalid float value: 'fast'"),
        (["check", "fixed_50ms", "--duration", "1e12"], "load: more than 10,000,000 requests"),
        (["check", "fixed_50ms", "--set", "prompts.max_new_tokens=0"], "got 0"),
        (["check", "fixed_50ms", "--gpu", "h100-smx"], "server.gpu: expected one of h100-sxm"),
        (["check", "fixed_50ms", "--model", "llama-3.1-70b"], "weights 141.1 GB"),
        (["capacity", "chat_day", "--figure", "f.txt"], "--figure: expected a file that ends in .svg"),
        (["serve", "--port", "65536"], "expected a whole number from 0 to 65535"),
        (["serve", "--max-concurrent-requests", "0"], "expected a whole number >= 1"),
        (["check", "fixed_50ms", "--set", "load=fixed"], "expected"),
        (["check", "fixed_50ms", "--set", "name=2024-13-45"], "expected a YAML value"),
        (["run", "fixed_50ms", "--url", "http://a..b:80"], "http://a..b:80"),
        (
            ["run", "fixed_50ms", "--extra-body", '{"seed": 99999999999999999999}'],
            "values that JSON can hold",
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    status, out, err = loadgen(capsys, *words)
    assert status == 2 and out == "" and said in err
    assert len(err.splitlines()) == 1 and err.startswith("loadgen: ")


def test_check_shows_no_credentials_of_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://me:hunter2@host:80"
    for words in (("--url", url), ("--url", url, "--json"), ("--url", url.removeprefix("h"))):
        _, out, err = loadgen(capsys, "check", "fixed_50ms", *words)
        assert "***@host" in out + err and "hunter2" not in out + err


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


THEORIES = ("llm", "step", "video", "thresholds", "errata")


@pytest.mark.parametrize(
    "words", [*((verb,) for verb in cli.GO if " " not in verb), *zip(("theory",) * 5, THEORIES, strict=True)]
)
def test_every_verb_has_help(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    """Found: a bare % in the text of a flag ended in a traceback of argparse."""
    status, out, _ = loadgen(capsys, *words, "--help")
    assert status == 0 and out.startswith(f"usage: loadgen {' '.join(words)}") and "%(" not in out


def test_ctrl_c_keeps_the_data_and_exits_130(tmp_path: Path) -> None:
    words = ("run", "fixed_50ms", "--clock", "real", "--set", "power.baseline_s=0", "--set")
    process = start(*words, "load.warmup_requests=1", "--output-dir", tmp_path)
    until(lambda: any(f.read_bytes().count(b"\n") > 20 for f in tmp_path.glob("*/requests.jsonl")))
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
    until(lambda: any(f.stat().st_size > 500_000 for f in tmp_path.glob("*/requests.jsonl")))
    process.kill()
    process.communicate()
    (path,) = tmp_path.iterdir()
    kept = len([r for r in rundir.read_records(path) if r.phase == "measure"])
    assert 100 < kept < 10_000
    status, out, _ = loadgen(capsys, "summary", path)
    assert status == 1 and f"{10_000 - kept} missing" in out and "incomplete" in out


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start("serve", "--port", 0, "--power-cap-w", 200)
    assert process.stderr is not None
    note, line = process.stderr.readline(), process.stderr.readline()
    assert "note: " in note and "200 W cannot always be held" in note
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
    until(lambda: any(f.stat().st_size > 0 for f in tmp_path.glob("*/requests.jsonl")))
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


class _OnlyCompletions(BaseHTTPRequestHandler):
    """Answers ``POST /v1/completions`` and nothing else, as gateways do."""

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        body = json.dumps({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_a_server_that_names_no_model_can_be_told_its_protocol_and_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Found: the probe's refusal told the user to pass what had been passed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _OnlyCompletions) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{gateway.server_port}"
        words = [
            "run",
            "fixed_50ms",
            "--url",
            url,
            "--request-count",
            "3",
            "--output-dir",
            tmp_path,
            "--quiet",
        ]
        assert loadgen(capsys, *words)[0] == 2
        told = ["--protocol", "openai-completions", "--model", "m", "--no-streaming"]
        _, out, err = loadgen(capsys, *words, *told)
        gateway.shutdown()
    path = Path(out.splitlines()[-1])
    assert [r.status for r in rundir.read_records(path) if r.phase == "measure"] == ["ok"] * 3, err
    assert rundir.read_manifest(path)["server"]["kind"] == "unknown"


class _Echo(_OnlyCompletions):
    """Repeats the credentials in an error, from the second request on."""

    asked = 0

    def do_POST(self) -> None:
        _Echo.asked += 1
        if _Echo.asked == 1:
            super().do_POST()
            return
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"error": {"message": f"wrong key: {self.headers['authorization']}"}}).encode()
        self.send_response(401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_key_that_the_server_repeats_is_shown_nowhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Found: the error of the record, and of a failed probe, held the API key."""
    words = ["run", "fixed_50ms", "--request-count", "2", "--output-dir", tmp_path, "--quiet"]
    words += ["--protocol", "openai-completions", "--model", "m", "--no-streaming", "--api-key", "hunter2"]
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words += ["--url", f"http://127.0.0.1:{server.server_port}"]
        _, out, _ = loadgen(capsys, *words)
        status, _, err = loadgen(capsys, *words)
        server.shutdown()
    assert status == 2 and "wrong key: Bearer ***" in err and "hunter2" not in out + err
    path = Path(out.splitlines()[-1])
    assert all("wrong key: Bearer ***" in str(r.error) for r in rundir.read_records(path))
    assert all(b"hunter2" not in file.read_bytes() for file in path.iterdir())


def test_a_dropped_request_is_not_subtracted_from_those_in_flight() -> None:
    """Found: warm-ups counted as sent and drops as landed, so the live view was off by both."""
    view = RunView(Console(stderr=True), 2, quiet=True)
    view.stage("load")
    view.sent()
    client, records = ScriptedClient(), list[Record]()
    what = plan([0.0, 0.0], cap=1, overflow="drop")
    clock.run_virtual(run_plan(what, client, zero_s=0.0, timeout_s=9.0, on_record=records.append))
    view.record(next(r for r in records if r.status == "dropped"))
    assert view._facts().startswith("1 in flight")


def test_the_live_power_is_the_sum_of_the_boards_and_says_what_it_is() -> None:
    view = RunView(Console(stderr=True), 2, quiet=True)
    view.power_label = "(measured)"
    for k in range(30):
        for board, watts in (("gpu0", 300.0), ("gpu1", 100.0)):
            view.reading(Reading(0.1 * k, board, energy_j=watts * 0.1 * k))
        view.reading(Reading(0.1 * k, "cpu0.package", energy_j=50.0 * k))
    assert "GPU 400 W (measured)" in view._facts()
