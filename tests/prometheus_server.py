"""A real Prometheus over pages of the tests, and a recording of its answers.

``python tests/prometheus_server.py`` writes ``recordings/prometheus.json`` anew.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from exporters import dcgm_rows, exporting

RECORDING = Path(__file__).parent / "recordings" / "prometheus.json"
SCRAPE_S, UPDATE_S, WATTS = 0.15, 0.3, 100.0
BEGAN_S = 1_700_000_000.0
"""Wall time at which every counter of the pages stood at 0 J."""
START_S = 20.0


def energy_j() -> float:
    """What the pages' counters show now: 100 W since `BEGAN_S`, renewed every 0.3 s."""
    return WATTS * ((time.time() - BEGAN_S) // UPDATE_S * UPDATE_S)


def _page(job: str) -> bytes:
    e = energy_j()
    if job == "sidecar":
        return (
            f'loadgen_gpu_energy_joules_total{{uuid="GPU-s",index="0"}} {e!r}\n'
            f'loadgen_cpu_energy_joules_total{{zone="cpu0.package",method="estimated"}} {e / 2!r}\n'
        ).encode()
    if job == "one":
        return (dcgm_rows(0, WATTS, e) + dcgm_rows(1, 60, e / 2)).encode()
    return dcgm_rows(0, WATTS, e, host="n2" if job == "other" else "n3", uuid=f"GPU-{job[0]}").encode()


JOBS = ("one", "other", "twice_a", "twice_b", "sidecar")


@contextmanager
def prometheus() -> Iterator[str]:
    """The address of a Prometheus that has scraped `JOBS` for a while. Skips where there is none."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian: apt-get install prometheus)")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    pages = {f"/{job}": (lambda job=job: (200, _page(job))) for job in JOBS}
    with exporting(pages) as exporter, tempfile.TemporaryDirectory() as folder:
        jobs = "".join(
            f"- {{job_name: {job}, metrics_path: /{job}, honor_labels: true, "
            f"static_configs: [{{targets: ['127.0.0.1:{exporter.port}']}}]}}\n"
            for job in JOBS
        )
        config = Path(folder, "prometheus.yml")
        config.write_text(
            f"global: {{scrape_interval: {SCRAPE_S * 1e3:.0f}ms, scrape_timeout: {SCRAPE_S * 1e3:.0f}ms}}\n"
            f"scrape_configs:\n{jobs}"
        )
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _until_scraped(url, server)
            yield url
        finally:
            server.terminate()
            server.wait(10)


def _until_scraped(url: str, server: subprocess.Popen[bytes]) -> None:
    """Its first scrapes come 5 s after its start; two renewals of the pages must have been seen."""
    give_up_s = time.monotonic() + START_S
    enough = 3 * UPDATE_S / SCRAPE_S + 1
    while True:
        try:
            query = urllib.parse.urlencode(
                {"query": "min(count_over_time({__name__=~'.+energy.+|.+ENERGY.+'}[60s]))"}
            )
            with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=5) as response:
                found = json.load(response)["data"]["result"]
            if found and float(found[0]["value"][1]) >= enough:
                return
        except OSError:
            pass
        if server.poll() is not None or time.monotonic() > give_up_s:
            raise AssertionError("prometheus did not start and scrape")
        time.sleep(0.05)


def ask(url: str, path: str, **parameters: str) -> tuple[int, dict]:
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}{query}", timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def answers(url: str) -> dict[str, list]:
    """What the source asks, by a name for each: [status, answer]."""
    power = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION|DCGM_FI_DEV_POWER_USAGE"
    found = {
        "one": ask(url, "query", query=f'{{__name__=~"{power}",job="one"}}[30s]'),
        "hosts": ask(url, "query", query=f'{{__name__=~"{power}",job=~"one|other"}}[1s]'),
        "time": ask(url, "query", query="time()"),
        "nothing": ask(url, "query", query='{__name__="x"}[1s]'),
        "names": ask(url, "label/__name__/values"),
        "malformed": ask(url, "query", query='{__name__="x",job=}[1s]'),
    }
    return {name: list(answer) for name, answer in found.items()}


if __name__ == "__main__":
    with prometheus() as address:
        json.dump(answers(address), RECORDING.open("w"), separators=(",", ":"))
    sys.stdout.write(f"{RECORDING} {RECORDING.stat().st_size} bytes\n")
