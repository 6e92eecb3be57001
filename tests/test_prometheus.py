"""Boards through a Prometheus: recorded answers of version 2.42, and the real one where it is installed."""

from __future__ import annotations

import json
import re
import time as wall
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from conftest import Time
from exporters import Exporter, exporting
from made_runs import lattice, run_of
from prometheus_server import BEGAN_S, RECORDING, SCRAPE_S, UPDATE_S, WATTS, answers, prometheus

from analysis.energy import measure
from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.exported import NAMES
from loadgen.power.prometheus import PrometheusSource
from loadgen.types import Reading

RECORDED = json.loads(RECORDING.read_text())
RECORDED_AT_S = RECORDED["time"][1]["data"]["result"][0]


@contextmanager
def replaying(samples: Callable[[], Any], *, clock_ahead_s: float = 0.0) -> Iterator[Exporter]:
    """Answers as recorded; ``samples`` gives [status, answer] to a range selector.

    Its clock stands at the recording's when ours shows 1000 s, and moves with ours.
    """
    exporter: Exporter

    def query() -> tuple[int, bytes]:
        asked = parse_qs(urlsplit(exporter.asked[-1]).query)["query"][0]
        if asked == "time()":
            now_s = round(RECORDED_AT_S + clock.now() - 1000.0 + clock_ahead_s, 3)
            told = {"resultType": "scalar", "result": [now_s, str(now_s)]}
            return 200, json.dumps({"status": "success", "data": told}).encode()
        status, answer = samples()
        return status, json.dumps(answer).encode()

    def names() -> tuple[int, bytes]:
        return RECORDED["names"][0], json.dumps(RECORDED["names"][1]).encode()

    with exporting({"/api/v1/query": query, "/api/v1/label/__name__/values": names}) as exporter:
        yield exporter


def matrix(*series: tuple[dict[str, str], list[tuple[float, str]]]) -> list[Any]:
    rows = [{"metric": labels, "values": [list(v) for v in values]} for labels, values in series]
    return [200, {"status": "success", "data": {"resultType": "matrix", "result": rows}}]


def test_recorded_samples_come_on_the_run_s_clock_once_each(time: Time) -> None:
    with replaying(lambda: RECORDED["one"]) as prom:
        source = PrometheusSource.open(prom.url)
        time.now_s += 0.2
        first = source.read()
        time.now_s += 0.2
        assert source.read() == []
    rows = RECORDED["one"][1]["data"]["result"]
    counter = next(r for r in rows if "ENERGY" in r["metric"]["__name__"] and r["metric"]["gpu"] == "1")
    # The opening keeps what is as old as a window's start may need: here all that was recorded.
    since_s = 1000.0 - source.settle_s
    wanted = [(at - RECORDED_AT_S + 1000.0, float(mj) / 1e3) for at, mj in counter["values"]]
    got = [(r.t_s, r.energy_j) for r in first if r.domain == "gpu1"]
    assert got == [(pytest.approx(t, abs=1e-3), pytest.approx(e)) for t, e in wanted if t >= since_s - 1e-3]
    assert 3 <= len(got) <= len(wanted)
    assert {r.domain for r in first} == {"gpu0", "gpu0.average", "gpu1", "gpu1.average"}
    assert [r.t_s for r in first] == sorted(r.t_s for r in first)
    assert {r.power_w for r in first if r.domain == "gpu1.average"} == {60.0}
    assert [b["uuid"] for b in source.boards] == ["GPU-0aaa", "GPU-1aaa"]


def test_the_update_period_is_the_slower_of_scrapes_and_exporter(time: Time) -> None:
    with replaying(lambda: RECORDED["one"]) as prom:
        source = PrometheusSource.open(prom.url)
    assert source.interval_s == pytest.approx(SCRAPE_S, abs=0.01)
    assert {round(d.update_s or 0, 1) for d in source.domains()} == {UPDATE_S}
    labels = {"__name__": NAMES[0], "gpu": "0", "UUID": "GPU-x", "Hostname": "n"}
    every_15_s = [(RECORDED_AT_S - 300 + 15 * k, str(1000 * (k // 2))) for k in range(20)]
    with replaying(lambda: matrix((labels, every_15_s))) as prom:
        source = PrometheusSource.open(prom.url)
    assert (source.interval_s, source.domains()[0].update_s, source.settle_s) == (15.0, 30.0, 45.0)
    once = [(RECORDED_AT_S - 10, "5")]
    with replaying(lambda: matrix((labels, once))) as prom:  # nothing is known: DCGM-exporter's default
        assert PrometheusSource.open(prom.url).domains()[0].update_s == 30.0


def test_it_is_asked_no_more_often_than_it_scrapes(time: Time) -> None:
    labels = {"__name__": NAMES[0], "gpu": "0", "UUID": "GPU-x", "Hostname": "n"}
    values = [(RECORDED_AT_S - 300 + 15 * k, str(1000 * k)) for k in range(21)]
    with replaying(lambda: matrix((labels, values))) as prom:
        source = PrometheusSource.open(prom.url)
        before = len(prom.asked)
        for _ in range(100):
            source.read()
            time.now_s += 0.1
    assert 2 <= len(prom.asked) - before <= 2 * 3  # a time() and a selector each


def test_match_and_names_are_in_the_selector(time: Time) -> None:
    with replaying(lambda: RECORDED["one"]) as prom:
        PrometheusSource.open(prom.url, '{job="one", Hostname=~"n.*"}')
    selectors = [parse_qs(urlsplit(a).query)["query"][0] for a in prom.asked if "time%28" not in a]
    assert selectors == [f'{{__name__=~"{"|".join(NAMES)}",job="one", Hostname=~"n.*"}}[300s]']


@pytest.mark.parametrize("ahead_s", [0.0, -1.0, 1.0, 86_400.0])
def test_a_wall_clock_that_is_wrong_moves_no_reading(time: Time, ahead_s: float) -> None:
    labels = {"__name__": NAMES[0], "gpu": "0", "UUID": "GPU-x", "Hostname": "n"}
    values = [(RECORDED_AT_S + ahead_s - 5 + k, str(1000 * k)) for k in range(6)]
    with replaying(lambda: matrix((labels, values)), clock_ahead_s=ahead_s) as prom:
        source = PrometheusSource.open(prom.url)
        assert [r.t_s for r in source.read()][-2:] == pytest.approx([999, 1000], abs=1e-3)
        assert source.offset.bound_s <= 0.01 and source.warnings == []


def test_a_clock_that_is_set_during_the_run_is_named(time: Time) -> None:
    with replaying(lambda: RECORDED["one"]) as prom:
        source = PrometheusSource.open(prom.url)
    with replaying(lambda: RECORDED["one"], clock_ahead_s=0.5) as prom:
        source._api._web._base = prom.url
        source.read()
    assert any("drifted apart" in w for w in source.warnings)


def test_boards_of_several_hosts_are_refused_and_uuids_or_match_choose(time: Time) -> None:
    with replaying(lambda: RECORDED["hosts"]) as prom:
        with pytest.raises(PowerError, match=r"several hosts \(n1, n2\).*power.match"):
            PrometheusSource.open(prom.url)
        source = PrometheusSource.open(prom.url, gpus=["GPU-o"])
    assert [d.name for d in source.domains()] == ["gpu0", "gpu0.average"]
    assert source.boards[0]["uuid"] == "GPU-o"


def test_what_is_no_usable_prometheus_is_refused_with_the_reason(time: Time) -> None:
    there = r"no sample of .*with job=\"x\".*series there: DCGM_FI_DEV_POWER"
    with replaying(lambda: RECORDED["nothing"]) as prom, pytest.raises(PowerError, match=there):
        PrometheusSource.open(prom.url, 'job="x"')
    with replaying(lambda: RECORDED["one"]) as prom, pytest.raises(PowerError, match="no board for '7'"):
        PrometheusSource.open(prom.url, gpus=["7"])
    with (
        replaying(lambda: RECORDED["malformed"]) as prom,
        pytest.raises(PowerError, match=r"parse error.*match"),
    ):
        PrometheusSource.open(prom.url, "job=")
    for status, body, words in (
        (401, b"", "HTTP 401: set LOADGEN_POWER_TOKEN"),
        (200, b"<html>", "not a Prometheus"),
        (404, b"", "is the address right"),
        (200, b'{"status":"success","data":{"result":"?"}}', "not an answer of Prometheus"),
        (200, b"[]", "match"),
    ):
        page = (status, body)
        with (
            exporting({"/api/v1/query": lambda page=page: page}) as exporter,  # type: ignore[misc]
            pytest.raises(PowerError, match=re.escape(words)),
        ):
            PrometheusSource.open(exporter.url)
    with pytest.raises(PowerError, match="refused"):
        PrometheusSource.open("http://127.0.0.1:9")


def test_a_failed_fetch_is_an_error_and_loses_no_sample(time: Time) -> None:
    told = iter([RECORDED["one"], [503, {}], RECORDED["one"]])
    with replaying(lambda: next(told)) as prom:
        source = PrometheusSource.open(prom.url)
        time.now_s += 1
        with pytest.raises(PowerError, match="HTTP 503"):
            source.read()
        assert len(source.read()) >= 3 * 4


def constant(update_s: float, scrape_s: float, watts: float, span_s: float) -> list[tuple[float, str]]:
    """A board's counter in mJ, renewed and scraped every so often, up to the recording's time."""
    at_s = RECORDED_AT_S - span_s + scrape_s * np.arange(int(span_s / scrape_s) + 1)
    age_s = at_s - at_s[0] + 1000.0
    shown_j = watts * (age_s // update_s * update_s)
    return [(float(t), f"{1e3 * e:.0f}") for t, e in zip(at_s, shown_j, strict=True)]


def test_a_30_s_counter_gives_a_long_window_and_is_refused_for_short_ones(time: Time) -> None:
    labels = {"__name__": NAMES[0], "gpu": "0", "UUID": "GPU-x", "Hostname": "n", "modelName": "NVIDIA H100"}
    values = constant(30.0, 15.0, 400.0, 420.0)
    with replaying(lambda: matrix((labels, [v for v in values if v[0] < RECORDED_AT_S - 360]))) as prom:
        time.now_s = 1000.0 - 360.0
        source = PrometheusSource.open(prom.url)
    with replaying(lambda: matrix((labels, values))) as prom:
        source._api._web._base = prom.url
        time.now_s = 1000.0
        readings = source.read()
    moved = [Reading(r.t_s - 1000.0 + 360.0, r.domain, r.power_w, r.energy_j) for r in readings]
    run = run_of(lattice(300, 1.0), moved, domains=source.domains(), end_s=300.0)
    run.manifest["power"]["interval_s"] = source.interval_s  # type: ignore[index]
    whole = measure(run, np.array([0.0, 300.0]))["gpu"]
    assert whole.reason is None
    assert whole.total_j == pytest.approx(400.0 * 300.0, rel=0.01)
    short = measure(run, np.array([0.0, 20.0]))["gpu"]
    assert short.total_j is None and "every 30 s" in str(short.reason)


@pytest.fixture(scope="module")
def real() -> Iterator[str]:
    with prometheus() as url:
        yield url


def test_a_real_prometheus_tells_what_the_exporter_had_shown(real: str) -> None:
    source = PrometheusSource.open(real, 'job="one"', ["0"])
    # Its clock is this host's, so the truth is known.
    truth_s = wall.time() - wall.monotonic()
    assert abs(source.offset.offset_s - truth_s) <= source.offset.bound_s + 1e-3
    readings: list[Reading] = []
    until_s = wall.monotonic() + 4 * SCRAPE_S
    while wall.monotonic() < until_s:
        readings += source.read()
    counter = [r for r in readings if r.domain == "gpu0"]
    assert len(counter) == len({r.t_s for r in counter}) >= 5
    assert [r.t_s for r in counter] == sorted(r.t_s for r in counter)
    for reading in counter:
        # It shows the energy of at most one renewal and one scrape before.
        now_j = WATTS * (reading.t_s + truth_s - BEGAN_S)
        assert now_j - WATTS * (UPDATE_S + 0.1) <= (reading.energy_j or 0) <= now_j + WATTS * (SCRAPE_S + 0.1)
    assert {r.power_w for r in readings if r.domain == "gpu0.average"} == {WATTS}
    assert source.interval_s == pytest.approx(SCRAPE_S, abs=0.05)
    assert source.domains()[0].update_s == pytest.approx(UPDATE_S, abs=0.2)


def test_a_real_prometheus_s_targets_must_be_told_apart(real: str) -> None:
    with pytest.raises(PowerError, match=r"several hosts \(n1, n2\)"):
        PrometheusSource.open(real, 'job=~"one|other"')
    with pytest.raises(PowerError, match=r'scraped more than once.*job="twice_a".*job="twice_b"'):
        PrometheusSource.open(real, 'job=~"twice.*"')
    with pytest.raises(PowerError, match=r"series there: .*loadgen_gpu_energy_joules_total"):
        PrometheusSource.open(real, 'job="none"')
    with pytest.raises(PowerError, match="parse error"):
        PrometheusSource.open(real, "job=")


def test_our_own_sidecar_s_names_are_read_and_an_estimate_stays_one(real: str) -> None:
    source = PrometheusSource.open(real, 'job="sidecar"')
    assert [(d.name, d.method) for d in source.domains()] == [
        ("gpu0", "counter"),
        ("cpu0.package", "estimated"),
    ]
    readings = source.read()
    gpu, cpu = ([r.energy_j or 0.0 for r in readings if r.domain == n] for n in ("gpu0", "cpu0.package"))
    assert gpu[-1] == pytest.approx(2 * cpu[-1])
    assert source.boards[0]["uuid"] == "GPU-s"


def test_the_recording_has_the_real_one_s_shape(real: str) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(item) for item in value[:1]] if isinstance(value, list) else type(value).__name__

    for name, (status, answer) in answers(real).items():
        assert (status, shape(answer)) == (RECORDED[name][0], shape(RECORDED[name][1])), name
