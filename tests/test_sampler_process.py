"""The sampler as a process: killed, ended, refused, and on the real NVML binding."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_nvml
import numpy as np
import pytest
from powercap import burning
from sampled import events, series, status
from waiting import until

from loadgen.errors import ConfigError
from loadgen.sidecar.sampler import Sampler, SamplerConfig, command
from loadgen.sidecar.table import TableReader


def spawn(config: SamplerConfig) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(config), stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(10)


def test_a_killed_sampler_loses_nothing_and_the_next_goes_on_and_ends_with_its_service(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    reader = TableReader(folder, "power")
    with burning(tmp_path / "powercap") as powercap:
        config = SamplerConfig(str(folder), interval_s=0.01, powercap=str(powercap))
        process = spawn(config)
        until(lambda: (reader.last_seq or 0) >= 30, process)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        killed = reader.last_seq
        assert killed is not None
        process = spawn(config)
        until(lambda: (reader.last_seq or 0) >= killed + 110, process)
        second = subprocess.run(command(config), input=b"", capture_output=True, check=False)
        assert second.returncode == 2 and b"another process writes the table" in second.stderr
        assert end(process) == 0  # the life line: the service is gone
    rows = reader.rows(limit=10_000)
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    cpu = [value for _, value in series(folder, "cpu0.package")]
    kept = [value for value in cpu if value is not None]
    assert len(kept) > 50 and np.all(np.diff(kept) >= 0)  # the restart is no reset
    kinds = [event["kind"] for event in events(folder)]
    assert kinds.count("start") == 2 and kinds[-1] == "stop"
    overhead = status(folder)["overhead"]
    assert overhead["elapsed_s"] > 1 and 0 < overhead["cpu_share"] <= 1.5
    assert overhead["reads"] == len(rows) - killed and overhead["wake_late_p99_s"] >= 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_last_sample(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "data"
    process = spawn(SamplerConfig(str(folder), interval_s=30.0, powercap=str(tmp_path)))
    reader = TableReader(folder, "power")
    until(lambda: reader.last_seq == 1, process)
    process.send_signal(number)
    assert process.wait(10) == 0 and reader.last_seq == 2
    assert process.stdin is not None
    process.stdin.close()
    assert events(folder)[-1]["kind"] == "stop"
    assert "rapl" in status(folder)["reasons"]["cpu"]


def test_a_configuration_that_cannot_be_used_is_refused_with_status_2(tmp_path: Path) -> None:
    for text, what in [
        ('{"data_dir": "x", "hz": 20}', b"expected a JSON object of data_dir"),
        ("[]", b"expected a JSON object"),
        ('{"data_dir": "x", "interval_s": 0}', b"interval_s: expected 0.001 to 3600"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", "loadgen.sidecar.sampler"],
            input=text.encode() + b"\n",
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2 and what in done.stderr and b"Traceback" not in done.stderr
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        Sampler(SamplerConfig(str(tmp_path / "file" / "x")), {})


def test_a_board_that_falls_off_and_comes_back_under_the_real_library(tmp_path: Path, library: Path) -> None:
    """nvidia-ml-py on the fake driver, in real time: two boards, the second away from 1.5 s to 2.5 s."""
    folder = tmp_path / "data"
    boards = [
        fake_nvml.Board(low=100.0, processes=((os.getpid(), 2**30),)),
        fake_nvml.Board(low=200.0, lost=1.5, back=2.5),
    ]
    environment = fake_nvml.environment(library, boards, real_time=True)
    config = SamplerConfig(str(folder), interval_s=0.02, powercap=str(tmp_path))
    process = subprocess.Popen(command(config), stdin=subprocess.PIPE, env=environment)
    until(lambda: bool(events(folder, "recovered")), process)
    at_s = float(environment["FAKE_ORIGIN_S"])
    assert end(process) == 0
    lost, back = events(folder, "lost", "recovered")
    assert "gpu1" in lost["domains"] and "gpu0" not in lost["domains"]
    assert set(back["domains"]) == set(lost["domains"])
    assert 1.5 <= lost["t_s"] - at_s < 2.5 <= back["t_s"] - at_s
    gaps = [value is None for _, value in series(folder, "gpu1")]
    assert not gaps[0] and any(gaps) and not gaps[-1]
    kept = [(t_s, value) for t_s, value in series(folder, "gpu0") if value is not None]
    assert len(kept) == len(gaps)
    seconds = kept[-1][0] - kept[0][0]
    # The counter publishes every 100 ms.
    assert kept[-1][1] - kept[0][1] == pytest.approx(100.0 * seconds, abs=2 * 100.0 * 0.1)
    assert status(folder)["processes"]["gpu0"][0]["pid"] == os.getpid()
    assert TableReader(folder, "state").last_seq is not None
    assert not any(math.isnan(t_s) for t_s, _ in kept)
