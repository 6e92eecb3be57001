"""Boards through a DCGM-exporter: a page served over loopback, renewed when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Time
from exporters import answering, dcgm_rows, exporting
from made_runs import lattice, run_of

from analysis.energy import measure
from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power import web
from loadgen.power.dcgm import DcgmSource
from loadgen.power.sampler import sample
from loadgen.scenario import Scenario
from loadgen.types import Reading


def opened(text: str, *gpus: str, path: str = "/metrics") -> DcgmSource:
    with exporting({path: lambda: (200, text.encode())}) as exporter:
        source = DcgmSource.open(exporter.url, gpus)
        source.last = source.read()  # type: ignore[attr-defined]
        return source


def names(source: DcgmSource) -> list[str]:
    return [domain.name for domain in source.domains()]


def test_a_board_s_counter_and_average_power_in_si_units(time: Time) -> None:
    source = opened("# HELP x y\n" + dcgm_rows(0, 409.692, 319159.391) + dcgm_rows(1, 72.5, 12.0))
    assert source.last == [  # type: ignore[attr-defined]
        Reading(1000.0, "gpu0", energy_j=pytest.approx(319159.391)),
        Reading(1000.0, "gpu0.average", power_w=409.692),
        Reading(1000.0, "gpu1", energy_j=pytest.approx(12.0)),
        Reading(1000.0, "gpu1.average", power_w=72.5),
    ]
    counter, average = source.domains()[:2]
    assert (counter.method, counter.averaging_s, counter.update_s) == ("counter", None, 30.0)
    assert (average.method, average.averaging_s, average.update_s) == ("average", 1.0, 30.0)
    assert "GPU-0aaa" in counter.note and "n1" in counter.note
    assert source.boards[1] == {
        "domain": "gpu1",
        "index": 1,
        "uuid": "GPU-1aaa",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": None,
        "power_limit_w": None,
        "mig": None,
    }


def test_the_names_and_the_joules_of_version_4_9_are_read_and_the_old_ones_beside_them_once() -> None:
    new, old = dcgm_rows(0, 409.692, 319159, since_4_9=True), dcgm_rows(0, 409.692, 319159.391)
    raw = new.splitlines()[1].replace("POWER_WATTS", "POWER_RAW_WATTS") + "\n"
    for page in (new, new + old):
        source = opened(page + raw)
        assert [(r.domain, r.energy_j or r.power_w) for r in source.last] == [  # type: ignore[attr-defined]
            ("gpu0", pytest.approx(319159, abs=0.5)),
            ("gpu0.instant", 409.692),
            ("gpu0.average", 409.692),
        ]


@pytest.mark.parametrize("model", ["NVIDIA A100-SXM4-80GB", "NVIDIA A30", "Tesla V100-SXM2-32GB", "Tesla T4"])
def test_ga100_and_older_boards_show_instantaneous_power(model: str) -> None:
    """nvml.h: nvmlDeviceGetPowerUsage averages over 1 s on Ampere (except GA100) and newer only."""
    assert names(opened(dcgm_rows(0, 50, 1, model=model))) == ["gpu0", "gpu0.instant"]


@pytest.mark.parametrize(
    "model", ["NVIDIA A10", "NVIDIA A40", "NVIDIA L4", "NVIDIA H200", "NVIDIA RTX A4000", ""]
)
def test_other_boards_show_an_average_and_field_157_is_the_instant(model: str) -> None:
    rows = dcgm_rows(0, 50, 1, model=model)
    assert names(opened(rows)) == ["gpu0", "gpu0.average"]
    instant = (
        rows.splitlines()[1].replace("POWER_USAGE", "POWER_USAGE_INSTANT").replace("50.0", "61.0") + "\n"
    )
    source = opened(rows + instant)
    assert names(source) == ["gpu0", "gpu0.instant", "gpu0.average"]
    assert [r.power_w for r in source.last] == [None, 61.0, 50.0]  # type: ignore[attr-defined]


def test_the_counter_of_a_grace_hopper_counts_its_cpu_too_and_is_in_no_total() -> None:
    assert names(opened(dcgm_rows(0, 50, 1, model="NVIDIA GH200 480GB"))) == [
        "gpu0.module_energy",
        "gpu0.average",
    ]


def test_a_chosen_board_by_index_or_the_beginning_of_its_uuid() -> None:
    rows = dcgm_rows(0, 50, 1) + dcgm_rows(1, 60, 2)
    assert names(opened(rows, "1")) == names(opened(rows, "GPU-1")) == ["gpu1", "gpu1.average"]
    for wanted in ("2", "GPU-", ""):
        with pytest.raises(PowerError, match=r"board.* for .*there are n1 0: GPU-0aaa, n1 1: GPU-1aaa"):
            opened(rows, wanted)


def test_boards_of_several_hosts_are_refused_unless_uuids_choose_one_host_s() -> None:
    rows = dcgm_rows(0, 50, 1, host="n1", uuid="GPU-a") + dcgm_rows(0, 60, 2, host="n2", uuid="GPU-b")
    with pytest.raises(PowerError, match=r"several hosts \(n1, n2\).*power.gpus by UUID"):
        opened(rows)
    with pytest.raises(PowerError, match="2 boards for '0'"):
        opened(rows, "0")
    source = opened(rows, "GPU-b")
    assert [r.power_w for r in source.last] == [None, 60.0]  # type: ignore[attr-defined]


def test_mig_instances_and_pods_repeat_their_board_s_value() -> None:
    rows = "".join(
        dcgm_rows(0, 300, 5000, more=f',GPU_I_PROFILE="2g.20gb",GPU_I_ID="{i}",pod="p{i}"') for i in (3, 5)
    )
    source = opened(rows)
    assert [r.energy_j or r.power_w for r in source.last] == [5000.0, 300.0]  # type: ignore[attr-defined]
    assert any("MIG" in w for w in source.warnings)


@pytest.mark.parametrize("blank", ["9223372036854775794", "140737488355328.0", "NaN", "-1"])
def test_dcgm_s_ways_of_saying_no_value_are_gaps_and_not_readings(blank: str) -> None:
    text = dcgm_rows(0, 50, 1).replace("} 50.000000", f"}} {blank}")
    source = opened(text)
    assert [r.domain for r in source.last] == ["gpu0"]  # type: ignore[attr-defined]
    assert source.warnings == ["power: dcgm: DCGM_FI_DEV_POWER_USAGE of gpu0 was missing on the page"]


@pytest.mark.parametrize(
    ("page", "match"),
    [
        ((200, b""), "is it a DCGM-exporter's"),
        ((200, b"node_load1 3\n"), "is it a DCGM-exporter's"),
        ((200, b'DCGM_FI_DEV_POWER_USAGE{gpu="0} 3\n'), "not Prometheus text"),
        ((401, b""), "HTTP 401: set LOADGEN_POWER_TOKEN"),
        ((500, b""), "HTTP 500$"),
        ((302, b"http://elsewhere/"), "HTTP 302"),
    ],
)
def test_what_is_no_exporter_is_refused_with_the_reason(page: tuple[int, bytes], match: str) -> None:
    with exporting({"/metrics": lambda: page}) as exporter, pytest.raises(PowerError, match=match):
        DcgmSource.open(exporter.url)


def test_an_answer_that_is_cut_or_never_ends_is_an_error_and_no_shorter_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of a counter's digits would be a counter that ran backwards."""
    monkeypatch.setattr(web, "TIMEOUT_S", 0.3)
    page = dcgm_rows(0, 50, 319159).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
    with answering(head % len(page) + page[:-3]) as url, pytest.raises(PowerError, match="cut short"):
        DcgmSource.open(url)
    with (
        answering(head % 10**6 + page, drip=b"# \n") as url,
        pytest.raises(PowerError, match=r"longer than 0\.3 s"),
    ):
        DcgmSource.open(url)


def test_nothing_listening_is_refused_without_the_credentials() -> None:
    with pytest.raises(PowerError, match="refused") as raised:
        DcgmSource.open("http://user:s3cret@127.0.0.1:9")
    assert "s3cret" not in str(raised.value)


def test_credentials_are_sent() -> None:
    rows = dcgm_rows(0, 50, 1).encode()
    with exporting({"/metrics": lambda: (200, rows)}) as exporter:
        DcgmSource.open(exporter.url.replace("//", "//user:p%40ss@"))
        DcgmSource.open(exporter.url, token="t0ken\n")
    basic, bearer = (head["authorization"] for head in exporter.heads)
    assert basic == "Basic dXNlcjpwQHNz"  # user:p@ss
    assert bearer == "Bearer t0ken"


def followed(
    time: Time, update_s: float, for_s: float, *, poll_s: float, watts: float = 400.0
) -> tuple[DcgmSource, list[Reading]]:
    """Readings every ``poll_s`` of a constant load; the page is renewed every ``update_s``."""

    def page() -> tuple[int, bytes]:
        at_s = np.floor((time() - 1000.0) / update_s + 1e-9) * update_s
        return 200, dcgm_rows(0, watts, 7e6 + watts * float(at_s)).encode()

    with exporting({"/metrics": page}) as exporter:
        source = DcgmSource.open(exporter.url)
        readings: list[Reading] = []
        for k in range(round(for_s / poll_s) + 1):
            time.now_s = 1000.0 + k * poll_s
            readings += source.read()
        return source, readings


def test_the_collect_interval_is_found_from_the_changes_and_30_s_until_then(time: Time) -> None:
    source, _ = followed(time, 5.0, 9.0, poll_s=0.5)
    assert {d.update_s for d in source.domains()} == {30.0} and source.settle_s == 30.0  # one change only
    source, _ = followed(time, 5.0, 31.0, poll_s=0.5)
    assert {d.update_s for d in source.domains()} == {5.0} and source.settle_s == 5.0
    source, _ = followed(time, 0.1, 10.0, poll_s=0.5)  # renewed at every look
    assert source.domains()[0].update_s == 0.5


def energies(readings: list[Reading], source: DcgmSource, edges_s: list[float], end_s: float) -> Any:
    """What the analysis makes of the readings in a run of ``end_s`` that begins 60 s after the first one."""
    moved = [Reading(r.t_s - 1060.0, r.domain, r.power_w, r.energy_j) for r in readings]
    run = run_of(lattice(int(end_s), 1.0), moved, domains=source.domains(), end_s=end_s)
    return measure(run, np.array(edges_s))["gpu"]


def test_a_page_renewed_every_30_s_gives_a_long_window_and_is_refused_for_short_ones(time: Time) -> None:
    source, readings = followed(time, 30.0, 420.0, poll_s=1.0)
    long = energies(readings, source, [0.0, 300.0], 300.0)
    assert long.total_j == pytest.approx(400.0 * 300.0, rel=0.01)
    for edges_s in ([0.0, 10.0], [5.0, 25.0]):
        short = energies(readings, source, edges_s, 300.0)
        assert short.total_j is None
        assert "every 30 s" in short.reason


def test_a_board_that_disappears_leaves_a_gap_and_the_last_one_an_error(time: Time) -> None:
    pages = iter([dcgm_rows(0, 50, 1) + dcgm_rows(1, 60, 2), dcgm_rows(1, 60, 2), "node_load1 3\n"])
    with exporting({"/metrics": lambda: (200, next(pages).encode())}) as exporter:
        source = DcgmSource.open(exporter.url)
        assert [r.domain for r in source.read()] == ["gpu1", "gpu1.average"]
        assert len(source.warnings) == 2 and "of gpu0" in source.warnings[0]
        with pytest.raises(PowerError, match="none of the boards"):
            source.read()


def test_the_sampler_survives_an_exporter_that_fails_for_a_while() -> None:
    answers = iter([(200, dcgm_rows(0, 50, 1).encode())] * 3 + [(503, b"")] * 2)
    page: Callable[[], tuple[int, bytes]] = lambda: next(answers, (200, dcgm_rows(0, 50, 2).encode()))  # noqa: E731

    async def main(url: str) -> tuple[Any, list[Reading]]:
        found: list[Reading] = []
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(20.0, stop.set)

        def write(readings: Sequence[Reading]) -> None:
            found.extend(readings)
            if found[-2].energy_j == 2.0:
                stop.set()

        source = DcgmSource.open(url)
        assert source.blocking
        return await sample(source, 0.05, write, stop), found

    with exporting({"/metrics": page}) as exporter:
        done, found = asyncio.run(main(exporter.url))
    assert done.failed == 2 and any("HTTP 503" in w for w in done.warnings)
    assert [r.energy_j for r in found if r.domain == "gpu0"][-1] == 2.0
    assert all(abs(r.t_s - clock.now()) < 5 for r in found)


@pytest.mark.parametrize(
    ("power", "match"),
    [
        ({"source": "dcgm"}, "http://HOST:9400"),
        ({"source": "prometheus"}, "http://HOST:9090"),
        ({"source": "nvml", "url": "http://h:1"}, "none with source nvml"),
        ({"source": "dcgm", "url": "http://h:1", "match": "a=1"}, "only prometheus"),
        ({"source": "dcgm", "url": "h:1"}, "http://HOST"),
    ],
)
def test_a_scenario_that_cannot_be_meant_is_refused(power: dict[str, Any], match: str) -> None:
    load = {"pattern": "all_at_once", "requests": 1}
    with pytest.raises(ValueError, match=match):
        Scenario.model_validate({"name": "x", "load": load, "power": power})


def test_a_run_keeps_the_measured_interval_waits_for_the_exporter_and_hides_credentials(
    tmp_path: Path,
) -> None:
    """A real run over loopback: embedded TGI in real time, an exporter renewed every 0.2 s."""
    from rich.console import Console

    from loadgen import rundir
    from loadgen.experiment import Order, execute
    from loadgen.launch import Launch, Launcher
    from loadgen.plan import build
    from loadgen.progress import RunView
    from loadgen.server.host import serving
    from loadgen.server.service import Service

    began_s = clock.now()

    def page() -> tuple[int, bytes]:
        at_s = int((clock.now() - began_s) / 0.2) * 0.2
        return 200, dcgm_rows(0, 100, 100 * at_s).encode()

    async def main(exporter_url: str) -> Path:
        async with serving(
            Service(Launch(seed=1, launcher=Launcher(warm_up=False))), address=("127.0.0.1", 0)
        ) as host:
            what = Scenario.model_validate(
                {
                    "name": "d",
                    "server": {"url": host.url, "metrics_interval_s": 0.1},
                    "load": {
                        "pattern": "constant",
                        "interval_s": 0.05,
                        "requests": 20,
                        "warmup_requests": 0,
                    },
                    "prompts": {"source": "synthetic", "max_new_tokens": 4},
                    "power": {
                        "source": "dcgm",
                        "url": exporter_url.replace("//", "//user:s3cret@"),
                        "interval_s": 0.05,
                        "baseline_s": 0.1,
                    },
                }
            )
            view = RunView(Console(stderr=True), 1, quiet=True)
            return await execute(Order(what, "name: d\n", build(what), tmp_path), view)

    with exporting({"/metrics": page}) as exporter:
        path = asyncio.run(main(exporter.url))
    manifest, readings = rundir.read_manifest(path), rundir.read_readings(path)
    assert [d["update_s"] for d in manifest["power"]["domains"]] == pytest.approx([0.2, 0.2], abs=0.06)
    assert manifest["power"]["label"] == "measured" and manifest["gpus"][0]["uuid"] == "GPU-0aaa"
    assert readings[-1].t_s >= manifest["window"]["end_s"] + 0.15
    assert manifest["metrics"]["family"] == "tgi"
    assert "s3cret" not in (path / "run.json").read_text()
