"""A run's sidecars in virtual time: what is fetched, at which instants, and what is written down of them."""

from __future__ import annotations

import asyncio
import io
import itertools
from typing import Any

import pytest
from linked_sidecars import URL, Kept, connected, started, virtually
from rich.console import Console
from scripted_sidecar import BOARD, DOMAINS, Memory, Scripted

from loadgen import clock
from loadgen.power.sidecars import open_sidecars
from loadgen.progress import RunView
from loadgen.types import Domain, Reading


@pytest.mark.parametrize(("skew_s", "ppm"), [(1.0, 50.0), (-1.0, -50.0), (1000.0, 2e4)])
def test_every_sample_of_the_run_is_kept_once_at_its_own_instant_on_the_runs_clock(
    skew_s: float, ppm: float
) -> None:
    async def main() -> tuple[Kept, dict[str, Any], float, float]:
        kept = Kept()
        made = await started(skew_s=skew_s, drift_ppm=ppm)
        async with connected(made) as (opened, _):
            began_s = clock.now()
            async with opened.following(kept.sink):
                await asyncio.sleep(30.0)
                ended_s = clock.now()
            row = opened.manifest(0.0)[0]
        return kept, row, began_s, ended_s

    kept, row, began_s, ended_s = virtually(main)
    assert row["samples"]["missing"] == 0 and row["reason"] is None and row["reconnects"] == 0
    assert row["samples"]["received"] == row["samples"]["expected"] == len(kept.of("gpu0"))
    assert row["clock"]["drift_ppm"] == pytest.approx(ppm, abs=0.01)
    assert row["clock"]["start"]["round_trips"] == 50
    drift, start = 1e-6 * row["clock"]["drift_ppm"], row["clock"]["start"]
    taken_s = [r.t_s - drift * (r.t_s - start["at_s"]) / (1 + drift) for r in kept.of("gpu0")]
    assert taken_s[0] <= began_s + 0.06 and taken_s[-1] >= ended_s
    gaps_s = [b - a for a, b in itertools.pairwise(taken_s)]
    assert gaps_s == pytest.approx([0.05 / (1 + 1e-6 * ppm)] * len(gaps_s), abs=1e-6)
    # The counter's truth at the instant the reading claims: 500 W for 1 s, 100 W for 1 s, from 0.
    truth = Scripted(origin_s=0.0)
    for t_s, reading in zip(taken_s, kept.of("gpu0"), strict=True):
        assert reading.energy_j == pytest.approx(truth.energy_j(t_s), abs=500 * 1e-5)
    assert {r.domain for r in kept.readings} == {"gpu0", "gpu0.instant"}
    assert all((r.power_w is None) == (r.domain == "gpu0") for r in kept.readings)
    assert 29 <= len(kept.boards) <= 32 and kept.boards[0].event_reasons == 4
    assert kept.boards[0].temperature_c is not None and kept.boards[0].sm_clock_mhz is None
    assert kept.samples == []


def test_the_servers_metrics_come_from_a_sidecar_that_scrapes() -> None:
    async def main() -> None:
        kept = Kept()
        async with connected(await started(scrapes=True)) as (opened, _):
            assert opened.scrapes and opened.manifest(0.0)[0]["metrics"]
            async with opened.following(kept.sink):
                await asyncio.sleep(5.0)
        tokens = [s.output_tokens for s in kept.samples]
        assert 4 <= len(tokens) <= 7 and tokens == sorted(tokens, key=lambda t: t or 0)
        assert kept.samples[0].running == 1.0 and kept.samples[0].waiting is None

    virtually(main)


def test_the_last_row_was_read_after_the_runs_end_however_slow_the_sidecar_and_however_many() -> None:
    async def main() -> None:
        kept, slow = Kept(), await started(interval_s=1.0)
        fast = Scripted(id="b", boards=({**BOARD, "uuid": "GPU-2"},), interval_s=0.05, skew_s=-3.0)
        fast.origin_s = slow.origin_s
        async with connected(slow, fast, names=("slow", "fast"), baseline_s=0.0) as (opened, _):
            assert opened.interval_s == 1.0
            async with opened.following(kept.sink):
                await asyncio.sleep(10.4)
                ended_s = clock.now()
            assert clock.now() - ended_s < 3.5
            for name in ("slow/gpu0", "fast/gpu0"):
                assert kept.of(name)[-1].t_s > ended_s
            assert [row["samples"]["missing"] for row in opened.manifest(0.0)] == [0, 0]

    virtually(main)


def test_a_slow_network_leaves_the_clock_unknown_within_half_its_round_trip() -> None:
    async def main() -> None:
        made = await started(answers_in_s=0.08)
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(10.0)
            clock_row = opened.manifest(0.0)[0]["clock"]
        assert clock_row["bound_s"] == pytest.approx(0.04, abs=2e-3)
        assert clock_row["start"]["bound_s"] == pytest.approx(0.04, abs=1e-3)

    virtually(main)


def test_what_a_sidecar_warns_of_during_the_run_is_kept_once() -> None:
    """Only what it had said before the run was."""

    async def main() -> None:
        made = await started(warnings=["old"])
        async with connected(made, names=("a",)) as (opened, _):
            async with opened.following(Kept().sink):
                made.warnings.append("gpu0: it fell off")
                await asyncio.sleep(25.0)
            assert opened.warnings == ["sidecar a: old", "sidecar a: gpu0: it fell off"]

    virtually(main)


def test_several_sidecars_are_each_a_host_of_its_own() -> None:
    async def main() -> None:
        kept, one = Kept(), await started()
        two = Scripted(
            id="b", skew_s=5.0, boards=({**BOARD, "uuid": "GPU-2"},), origin_s=one.origin_s, low_w=50.0
        )
        two.reasons = {"gpu": None, "cpu": None, "ram": "none"}
        two.domains = (*DOMAINS, Domain("cpu0.package", "counter"))
        async with connected(one, two, names=("node0", "node1")) as (opened, _):
            async with opened.following(kept.sink):
                await asyncio.sleep(3.0)
            names = [d.name for d in opened.domains()]
            rows = opened.manifest(0.0)
            assert names == [
                *("node0/gpu0", "node0/gpu0.instant", "node1/gpu0", "node1/gpu0.instant"),
                "node1/cpu0.package",
            ]
            assert [row["domain"] for row in opened.boards] == ["node0/gpu0", "node1/gpu0"]
            assert {r.domain for r in kept.readings} == set(names[:4])
            assert rows[1]["server"]["start"]["boards"] == ["node1/gpu0"]
            assert opened.reasons == {"gpu": None, "cpu": "node0: no RAPL", "ram": "node0: none; node1: none"}

    virtually(main)


def test_the_servers_processes_and_everybody_elses_are_written_down() -> None:
    async def main() -> None:
        made = await started()
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(5.0)
                made.processes = {"gpu0": [{"pid": 7, "name": "tgi"}, {"pid": 9, "name": "train.py"}]}
                await asyncio.sleep(10.0)
                made.processes = {"gpu0": [{"pid": 7, "name": "tgi"}]}
                await asyncio.sleep(5.0)
            server = opened.manifest(0.0)[0]["server"]
        assert server["start"] == server["end"] == {"pids": (7,), "boards": ["gpu0"], "reason": None}
        assert server["others"] == [{"board": "gpu0", "pid": 9, "name": "train.py"}]

    virtually(main)


@pytest.mark.parametrize(
    ("url", "options", "asked", "words"),
    [
        ("http://127.0.0.1:8080", {}, True, None),
        ("http://localhost:8080", {}, True, None),
        ("http://10.255.0.1:8080", {}, False, "names another host"),
        ("http://10.255.0.1:8080", {"pids": [7]}, True, None),
        (
            "http://127.0.0.1:8080",
            {"server": {"pids": [], "boards": [], "reason": "nobody listens"}},
            True,
            "nobody listens",
        ),
    ],
)
def test_the_sidecar_is_asked_for_the_port_only_if_the_server_is_on_its_host(
    url: str, options: dict[str, Any], asked: bool, words: str | None
) -> None:
    async def main() -> None:
        made = await started(**options)
        runner = await made.runner()
        async with open_sidecars(
            [("", URL)], token=None, server_url=url, baseline_s=0, connector=lambda _: Memory(runner)
        ) as opened:
            start = opened.manifest(0.0)[0]["server"]["start"]
            assert ("/v1/server" in made.asked) is asked
            assert (start["reason"] is None) if words is None else words in start["reason"]
            assert start["boards"] == (["gpu0"] if words is None else None)
        await runner.cleanup()

    virtually(main)


def test_dials_are_one_per_link_so_that_no_round_trip_opens_a_connection() -> None:
    async def main() -> None:
        async with connected(await started()) as (opened, [link]):
            async with opened.following(Kept().sink):
                await asyncio.sleep(10.0)
            assert link.dials == 1

    virtually(main)


def test_the_live_view_adds_up_the_boards_of_all_hosts() -> None:
    view = RunView(Console(file=io.StringIO()), 1, quiet=True)
    for k in range(200):
        view.reading(Reading(0.05 * k, "node0/gpu0", energy_j=15.0 * k))
        view.reading(Reading(0.05 * k, "node1/gpu0", energy_j=5.0 * k))
        view.reading(Reading(0.05 * k, "node1/cpu0.package", energy_j=7.0 * k))
    assert "GPU 400 W" in view._facts()
