"""Runs beside a sidecar, whole, interrupted and killed: all processes are real, only the driver is a fake."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nvml import Board, environment
from powercap import burning
from waiting import until

from analysis.run import load_run
from analysis.server_metrics import token_deltas
from analysis.summary import summarize
from loadgen import rundir

HERE = Path(__file__).resolve().parent


@dataclass
class Site:
    """A served model and the sidecar beside it, each a process."""

    folder: Path
    url: str
    port: int
    environment: dict[str, str]
    sidecar: subprocess.Popen[str]

    def start_sidecar(self) -> None:
        words = ["sidecar", "--listen", f"127.0.0.1:{self.port}", "--data-dir", str(self.folder / "data")]
        words += ["--powercap", str(self.folder / "powercap"), "--scrape", self.url]
        with (self.folder / "sidecar.log").open("a") as log:
            self.sidecar = subprocess.Popen(
                [sys.executable, "-m", "loadgen", *words], env=self.environment, stderr=log, text=True
            )

    def run(self, *words: object, name: str) -> subprocess.Popen[str]:
        scenario = self.folder / "s.yaml"
        scenario.write_text(
            "name: s\nload: {pattern: constant, interval_s: 0.1, requests: 14, warmup_requests: 1}\n"
            "prompts: {source: synthetic, max_new_tokens: 16}\npower: {baseline_s: 0.5}\n"
        )
        given = ["--url", self.url, "--quiet", "--output-dir", str(self.folder / name)]
        return subprocess.Popen(
            [sys.executable, "-m", "loadgen", "run", str(scenario), *given, *map(str, words)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def path(self, name: str) -> Path:
        """The directory of a run by this name, which may not be there yet."""
        return next((self.folder / name).glob("*"), self.folder / "none")


@dataclass
class Ended:
    """What is left of a run."""

    path: Path
    status: int
    err: str


def but_late(reasons: list[str]) -> list[str]:
    """Without what only says that these cores are busy."""
    return [reason for reason in reasons if "the client was late" not in reason]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def rows(path: Path, name: str = "power") -> list[dict[str, Any]]:
    """Whole lines of a file that may still be written."""
    file = path / f"{name}.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    url = f"http://127.0.0.1:{free_port()}"
    served = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "serve", "--port", url.rpartition(":")[2]],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stderr is not None
    # Any half second is 400 W: a baseline that fell on a board's high half would be above the run's mean.
    boards = [
        Board(
            uuid="GPU-a", name="Test Board", low=300, high=500, period=0.1, processes=((served.pid, 1 << 30),)
        ),
        Board(uuid="GPU-b", name="Test Board", low=90),
    ]
    made = Site(
        folder,
        url,
        free_port(),
        environment(library, boards, real_time=True),
        None,  # type: ignore[arg-type]
    )
    try:
        with burning(folder / "powercap"):
            made.start_sidecar()
            assert url in served.stderr.readline()
            until(lambda: "http" in (folder / "sidecar.log").read_text())
            yield made
    finally:
        for process in (made.sidecar, served):
            process.terminate()
        for process in (made.sidecar, served):
            process.wait(10)
        served.stderr.close()


@pytest.fixture(scope="module")
def ended(site: Site) -> dict[str, Ended]:
    """Four runs at once, by name: to their ends with a sidecar and without, interrupted, killed."""
    near = ("--sidecar", f"http://127.0.0.1:{site.port}")
    running = {
        "whole": site.run(*near, name="whole"),
        "here": site.run(name="here"),
        "interrupted": site.run(*near, "--request-count", 300, name="interrupted"),
        "killed": site.run(*near, "--request-count", 300, name="killed"),
    }
    until(lambda: len(rows(site.path("interrupted"), "requests")) > 2)
    running["interrupted"].send_signal(signal.SIGINT)
    until(lambda: len(rows(site.path("killed"))) > 100)
    running["killed"].send_signal(signal.SIGKILL)
    found = {}
    for name, process in running.items():
        _, err = process.communicate(timeout=40)
        found[name] = Ended(site.path(name), process.returncode, err)
    return found


def test_a_run_beside_a_sidecar_is_measured_complete_and_valid(ended: dict[str, Ended]) -> None:
    path = ended["whole"].path
    summary, manifest = summarize(load_run(path)), rundir.read_manifest(path)
    (row,) = manifest["sidecars"]
    assert not but_late(summary["reasons"]), ended["whole"].err
    assert summary["energy"]["label"] == "measured" and manifest["power"]["label"] == "measured"
    assert summary["requests"]["ok"] == 14
    # 300 and 500 W in turn, and an idle board at 90 W that belongs to the allocation.
    assert summary["energy"]["gpu"]["mean_power_w"]["value"] == pytest.approx(490, rel=0.1)
    assert summary["energy"]["cpu"]["mean_power_w"]["value"] == pytest.approx(100, rel=0.05)
    assert [b["uuid"] for b in manifest["gpus"]] == ["GPU-a", "GPU-b"]
    assert manifest["power"]["reasons"]["gpu"] is None and manifest["power"]["interval_s"] == 0.05
    assert row["samples"]["missing"] == 0 and row["clock"]["bound_s"] < 10e-3
    assert abs(row["clock"]["start"]["offset_s"]) <= row["clock"]["start"]["bound_s"]  # one host, one clock
    assert row["server"]["start"]["boards"] == ["gpu0"] == row["server"]["end"]["boards"]
    assert any("gpu1: measured and counted, but" in w for w in summary["warnings"])
    domains = {r["domain"] for r in rows(path)}
    assert {"gpu0", "gpu0.instant", "gpu1", "cpu0.package", "ram"} <= domains
    assert {r["domain"] for r in rows(path, "boards")} == {"gpu0", "gpu1"}
    assert row["metrics"] and len(rows(path, "metrics")) >= 3
    assert [delta.reason for delta in token_deltas(load_run(path))] == [None, None]  # they enclose the run


def test_a_row_in_the_manifest_has_exactly_the_documented_keys(ended: dict[str, Ended]) -> None:
    (row,) = rundir.read_manifest(ended["whole"].path)["sidecars"]
    page = (HERE.parent / "docs" / "format.md").read_text()
    section = page.split("\n## sidecars (in run.json)\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([^`]+)`", " ".join(cells))) == set(row)


def test_boards_that_the_run_reads_itself_are_judged_alike(ended: dict[str, Ended]) -> None:
    """It had neither their states nor who computed on them."""
    path = ended["here"].path
    summary, manifest = summarize(load_run(path)), rundir.read_manifest(path)
    assert not but_late(summary["reasons"]), ended["here"].err
    server = manifest["power"]["server"]
    assert manifest["sidecars"] is None and server["others"] == []
    assert server["start"]["boards"] == ["gpu0"] == server["end"]["boards"] and server["start"]["pids"]
    assert any("gpu1: measured and counted, but" in w for w in summary["warnings"])
    states = rows(path, "boards")
    assert {r["domain"] for r in states} == {"gpu0", "gpu1"} and 4 <= len(states) <= 20
    assert states[-1]["t_s"] > manifest["window"]["end_s"] - 1.5


def test_an_interrupted_run_has_the_sidecars_rows_up_to_the_interruption(ended: dict[str, Ended]) -> None:
    found = ended["interrupted"]
    manifest = rundir.read_manifest(found.path)
    assert found.status == 130 and manifest["status"] == "interrupted"
    (row,) = manifest["sidecars"]
    assert row["samples"]["missing"] == 0 and row["clock"]["end"] is not None
    assert len(rows(found.path, "requests")) == 301  # each arrival has its record, sent or not
    last_s = max(r["done_s"] or r["sent_s"] or 0.0 for r in rows(found.path, "requests"))
    for domain in ("gpu0", "cpu0.package", "ram"):
        assert max(r["t_s"] for r in rows(found.path) if r["domain"] == domain) > last_s > 0.2


def test_killing_the_run_leaves_what_was_read_up_to_the_last_poll(ended: dict[str, Ended]) -> None:
    path = ended["killed"].path
    seen_s = [r["t_s"] for r in rows(path) if r["domain"] == "gpu0"]
    assert len(seen_s) > 10 and np.max(np.diff(seen_s)) < 0.2
    reasons = summarize(load_run(path))["reasons"]
    assert "incomplete" in reasons[0]


def test_killing_the_sidecar_loses_no_sample_it_took_and_the_run_counts_the_rest(
    site: Site, ended: dict[str, Ended]
) -> None:
    near = ("--sidecar", f"http://127.0.0.1:{site.port}")
    running = site.run(*near, "--request-count", 14, name="restarted")
    until(lambda: len(rows(site.path("restarted"), "requests")) > 2)
    site.sidecar.kill()
    site.sidecar.wait()
    site.start_sidecar()
    running.communicate(timeout=60)
    path = site.path("restarted")
    (row,) = rundir.read_manifest(path)["sidecars"]
    samples = row["samples"]
    # Numbers without a gap: all that was taken before and after is here.
    assert samples["last_seq"] - samples["first_seq"] + 1 == samples["received"]
    assert samples["received"] == sum(r["domain"] == "ram" for r in rows(path))
    # It takes about a second to start again; that stretch is nobody's samples, and said.
    assert samples["missing"] >= 3 and running.returncode == 1 and row["changed"] == []
    reasons = summarize(load_run(path))["reasons"]
    assert any(f"{samples['missing']} of" in reason for reason in reasons), reasons
    # The meters go on where they were: nothing but the hole is wrong.
    assert not any("ran backwards" in reason for reason in reasons)
