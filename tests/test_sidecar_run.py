"""Runs whose power comes from sidecars in other processes: clocks apart, links cut, processes killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nvml import Board, build, environment
from powercap import Powercap
from scripted_sidecar import Scripted

from analysis.load import run_time_s
from loadgen import clock, rundir
from loadgen.power.feed import Sink
from loadgen.power.sidecars import Sidecars, open_sidecars
from loadgen.types import Reading

HERE = Path(__file__).resolve().parent
OUT_S, BACK_S = 3e-3, 0.5e-3
"""One-way delays of the link, unequal."""


@asynccontextmanager
async def delaying(port: int) -> AsyncIterator[int]:
    """A TCP proxy that takes `OUT_S` one way and `BACK_S` the other."""
    loop = asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(65536):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.close)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer, OUT_S), pump(far_reader, writer, BACK_S))

    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[int]:
    """A scripted sidecar in a process of its own, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "scripted_sidecar.py"),
        json.dumps(options),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.communicate()


async def followed(seconds: float, **options: Any) -> tuple[dict[str, Any], list[Reading], float]:
    """(the manifest's row, readings of the counter, when it ended), through the delaying link."""
    kept: list[Reading] = []
    async with scripted(**options) as far, delaying(far) as port:
        await asyncio.sleep(0.3)
        opened: Sidecars
        async with open_sidecars(
            [("", f"http://127.0.0.1:{port}")],
            token=None,
            server_url="http://127.0.0.1:1",
            baseline_s=0.0,
        ) as opened:
            async with opened.following(Sink(kept.append, lambda _: None, lambda _: None)):
                await asyncio.sleep(seconds)
                ended_s = clock.now()
            (row,) = opened.manifest(0.0)
    return row, [r for r in kept if r.domain == "gpu0"], ended_s


CLOCKS = [(1.0, 50.0), (-1.0, 50.0), (1.0, 5e3), (-1.0, -5e3)]


@pytest.fixture(scope="module")
def clocks() -> list[tuple[dict[str, Any], list[Reading], float]]:
    """All of `CLOCKS` followed at once, to take the time of one."""

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(followed(4.2, skew_s=s, drift_ppm=p) for s, p in CLOCKS)))

    return asyncio.run(main())


@pytest.mark.parametrize("case", range(len(CLOCKS)))
def test_offset_and_drift_of_another_processs_clock_are_found_within_the_bound(
    clocks: list[tuple[dict[str, Any], list[Reading], float]], case: int
) -> None:
    (skew_s, ppm), (row, _, _) = CLOCKS[case], clocks[case]
    truth = Scripted(skew_s=skew_s, drift_ppm=ppm, origin_s=0.0)
    found = row["clock"]
    for end in ("start", "end"):
        at_s, offset_s, bound_s = (found[end][key] for key in ("at_s", "offset_s", "bound_s"))
        # While the question is under way the far clock gains a little of it.
        slack_s = 1e-6 * abs(ppm) * 2 * bound_s
        assert abs(offset_s - (truth.remote_s(at_s) - at_s)) <= bound_s + slack_s
        assert bound_s >= (OUT_S + BACK_S) / 2
        assert bound_s < 10e-3 or abs(ppm) > 1e3  # which moves it while 50 questions are asked
        # The ways are unequal: the midpoint is off by half their difference, which the bound allows for.
        assert abs(offset_s - (truth.remote_s(at_s) - at_s)) > 0.25 * abs(OUT_S - BACK_S)
    span_s = found["end"]["at_s"] - found["start"]["at_s"]
    both_s = found["start"]["bound_s"] + found["end"]["bound_s"]
    assert abs(found["drift_ppm"] - ppm) <= 1e6 * both_s / span_s + 1e-6 * abs(ppm)
    assert found["bound_s"] >= max(found["start"]["bound_s"], found["end"]["bound_s"])


@pytest.mark.parametrize("case", range(len(CLOCKS)))
def test_energy_of_each_second_moves_by_less_than_1_percent(
    clocks: list[tuple[dict[str, Any], list[Reading], float]], case: int
) -> None:
    """500 and 100 W in turn; each slice begins in one half and ends in the other, far from the edges."""
    (skew_s, ppm), (row, readings, ended_s) = CLOCKS[case], clocks[case]
    assert row["samples"]["missing"] == 0
    written_s = np.array([r.t_s for r in readings])
    energy_j = np.array([r.energy_j for r in readings])
    truth = Scripted(skew_s=skew_s, drift_ppm=ppm, origin_s=0.0)
    edges_s = np.arange(np.ceil(written_s[0]) + 0.5, ended_s)
    true_j = np.diff([truth.energy_j(t) for t in edges_s])

    def off(t_s: Any) -> float:
        return float(np.max(np.abs(np.diff(np.interp(edges_s, t_s, energy_j)) / true_j - 1)))

    assert len(true_j) >= 2
    assert off(run_time_s(written_s, row["clock"])) < 0.01
    if abs(ppm) > 1e3:  # 20 ms in 4 s: without the correction the last slices are wrong
        assert off(written_s) > 0.01


# The whole of it: server, sidecar and run are the real ones, the boards' driver is a fake.


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
            "name: s\nload: {pattern: constant, interval_s: 0.1, requests: 20, warmup_requests: 1}\n"
            "prompts: {source: synthetic, max_new_tokens: 16}\npower: {baseline_s: 0.6}\n"
        )
        given = ["--url", self.url, "--sidecar", f"http://127.0.0.1:{self.port}", "--quiet"]
        given += ["--output-dir", str(self.folder / name)]
        return subprocess.Popen(
            [sys.executable, "-m", "loadgen", "run", str(scenario), *given, *map(str, words)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def summary(self, path: Path) -> dict[str, Any]:
        words = [sys.executable, "-m", "loadgen", "summary", str(path), "--json"]
        found = subprocess.run(words, capture_output=True, text=True, check=False)
        summary: dict[str, Any] = json.loads(found.stdout)
        return summary


class Moving(Powercap):
    """A processor at 100 W, whose file is never seen half written."""

    def _show(self, key: str) -> None:
        draft = self.root / "draft"
        draft.write_text(f"{round(self.energy_j[key] * 1e6) % self.range_uj[key]}\n")
        draft.replace(self.root / key / "energy_uj")

    def burn(self, stop: threading.Event) -> None:
        """Follows the clock until ``stop``."""
        began_s = last_s = time.monotonic()
        while not stop.wait(0.005):
            now_s = time.monotonic()
            self.add(100.0 * (now_s - last_s))
            last_s = now_s
        assert last_s > began_s


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


def until(true: Any, limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, "the condition never came true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    served = subprocess.Popen(
        [sys.executable, "-m", "loadgen", "serve", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert served.stderr is not None
    said = served.stderr.readline()
    address = re.search(r"http://\S+", said)
    assert address is not None, said
    package = Moving(folder / "powercap")
    package.zone("intel-rapl:0", "package-0")
    stop = threading.Event()
    burning = threading.Thread(target=package.burn, args=(stop,))
    burning.start()
    boards = [
        Board(
            uuid="GPU-a", name="Test Board", low=300, high=500, period=1.0, processes=((served.pid, 1 << 30),)
        ),
        Board(uuid="GPU-b", name="Test Board", low=90),
    ]
    made = Site(
        folder,
        address[0],
        free_port(),
        environment(build(folder), boards, real_time=True),
        None,  # type: ignore[arg-type]
    )
    made.start_sidecar()
    try:
        yield made
    finally:
        stop.set()
        burning.join()
        for process in (made.sidecar, served):
            process.terminate()
        for process in (made.sidecar, served):
            process.wait(10)
        served.stderr.close()


def test_a_run_beside_a_sidecar_is_measured_complete_and_valid(site: Site) -> None:
    until(lambda: "http" in (site.folder / "sidecar.log").read_text())
    running = site.run(name="whole")
    out, err = running.communicate(timeout=40)
    path = Path(out.splitlines()[-1])
    summary, manifest = site.summary(path), rundir.read_manifest(path)
    (row,) = manifest["sidecars"]
    assert running.returncode == 0 and summary["valid"], (summary["reasons"], err)
    assert summary["energy"]["label"] == "measured" and manifest["power"]["label"] == "measured"
    assert summary["requests"]["ok"] == 20
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


def test_a_row_in_the_manifest_has_exactly_the_documented_keys(site: Site) -> None:
    (path,) = (site.folder / "whole").iterdir()
    (row,) = rundir.read_manifest(path)["sidecars"]
    page = (HERE.parent / "docs" / "format.md").read_text()
    section = page.split("\n## sidecars (in run.json)\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([^`]+)`", " ".join(cells))) == set(row)


def test_killing_the_run_leaves_what_was_read_up_to_the_last_poll(site: Site) -> None:
    running = site.run("--request-count", 200, name="killed")
    paths: list[Path] = []

    def written() -> bool:
        paths[:] = (site.folder / "killed").glob("*")
        return bool(paths) and len(rows(paths[0])) > 100

    until(written)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    seen_s = [r["t_s"] for r in rows(paths[0]) if r["domain"] == "gpu0"]
    gaps_s = np.diff(seen_s)
    assert len(seen_s) > 10 and np.max(gaps_s) < 0.15
    summary = site.summary(paths[0])
    assert not summary["valid"] and "incomplete" in summary["reasons"][0]


def test_killing_the_sidecar_loses_no_sample_it_took_and_the_run_counts_the_rest(site: Site) -> None:
    running = site.run("--request-count", 40, name="restarted")
    paths: list[Path] = []

    def loading() -> bool:
        paths[:] = (site.folder / "restarted").glob("*")
        return bool(paths) and len(rows(paths[0], "requests")) > 3

    until(loading)
    site.sidecar.kill()
    site.sidecar.wait()
    site.start_sidecar()
    out, _ = running.communicate(timeout=60)
    path = Path(out.splitlines()[-1])
    (row,) = rundir.read_manifest(path)["sidecars"]
    samples = row["samples"]
    # Numbers without a gap: all that was taken before and after is here.
    assert samples["last_seq"] - samples["first_seq"] + 1 == samples["received"]
    assert samples["received"] == sum(r["domain"] == "ram" for r in rows(path))
    # It takes about a second to start again; that stretch is nobody's samples, and said.
    assert samples["missing"] >= 3 and running.returncode == 1
    summary = site.summary(path)
    assert any(f"{samples['missing']} of" in reason for reason in summary["reasons"]), summary["reasons"]
    # The meters go on where they were: nothing but the hole is wrong.
    assert not any("ran backwards" in reason for reason in summary["reasons"])
