"""The client side of a sidecar in virtual time: what is refused, fetched, resumed, counted."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console
from scripted_sidecar import BOARD, DOMAINS, Memory, Scripted

from loadgen import clock
from loadgen.cli import main
from loadgen.errors import ConfigError, LoadgenError, PowerError
from loadgen.power import sidecars as sidecars_module
from loadgen.power.feed import Sink
from loadgen.power.sidecars import Sidecars, open_sidecars
from loadgen.progress import RunView
from loadgen.scenario import Scenario
from loadgen.scenario_power import Power
from loadgen.target import sidecar_token
from loadgen.types import BoardState, Domain, Reading, ServerSample

URL = "http://127.0.0.1:9400"
SERVER = "http://127.0.0.1:8080"


@dataclass
class Kept:
    """What reached the run."""

    readings: list[Reading] = field(default_factory=list)
    boards: list[BoardState] = field(default_factory=list)
    samples: list[ServerSample] = field(default_factory=list)

    @property
    def sink(self) -> Sink:
        return Sink(self.readings.append, self.boards.append, self.samples.append)

    def of(self, domain: str) -> list[Reading]:
        return [r for r in self.readings if r.domain == domain]


@asynccontextmanager
async def connected(
    *made: Scripted, names: tuple[str, ...] = ("",), token: str | None = None, baseline_s: float = 2.0
) -> AsyncIterator[tuple[Sidecars, list[Memory]]]:
    runners = [await scripted.runner() for scripted in made]
    links = [Memory(runner) for runner in runners]
    urls = [f"http://127.0.0.1:{9400 + i}" for i in range(len(made))]
    by_url = dict(zip(urls, links, strict=True))
    try:
        async with open_sidecars(
            list(zip(names, urls, strict=True)),
            token=token,
            server_url=SERVER,
            baseline_s=baseline_s,
            connector=by_url.__getitem__,
        ) as opened:
            yield opened, links
    finally:
        for runner in runners:
            await runner.cleanup()


def virtually(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return clock.run_virtual(main())


async def started(**options: Any) -> Scripted:
    """A sidecar that has sampled for 10 s."""
    made = Scripted(**options)
    await asyncio.sleep(10.0)
    return made


def refused(**options: Any) -> str:
    options = dict(options)
    given = {key: options.pop(key) for key in ("token_given", "baseline_s") if key in options}

    async def main() -> None:
        async with connected(
            await started(**options),
            token=given.get("token_given"),
            baseline_s=given.get("baseline_s", 2.0),
        ):
            raise AssertionError("it was accepted")

    with pytest.raises(PowerError) as refusal:
        virtually(main)
    assert "\n" not in str(refusal.value) and "127.0.0.1:9400" in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"token": "t"}, "asks for a token: give the one"),
        ({"token": "t", "token_given": "wrong"}, "refuses this token"),
        ({"schema": 2}, "speaks schema 2, this loadgen 1: use the same version"),
        ({"health": (503, {"status": "stale", "reason": "7 s old"})}, "takes no samples (stale: 7 s old)"),
        ({"health": (503, {"status": "starting"})}, "takes no samples (starting"),
        (
            {"health": (404, {"error": "gone"})},
            "not the answer of a loadgen sidecar (HTTP 404 /health: gone)",
        ),
        ({"skipped": lambda tick: True}, "no sample yet"),
        ({"domains": ()}, "can read nothing there: cpu: no RAPL; ram: none"),
        (
            {"interval_s": 0.5},
            "samples every 0.5 s, too seldom for power.baseline_s 2: raise that to 5 (or 0: none), "
            "or start it with --interval 0.2",
        ),
        ({"baseline_s": 0.2}, "raise that to 0.5 (or 0: none), or start it with --interval 0.02"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_run_with_what_to_do(
    options: dict[str, Any], words: str
) -> None:
    assert words in refused(**options)


def test_a_token_is_sent_and_never_shown() -> None:
    async def main() -> None:
        async with connected(await started(token="hunter2"), token="hunter2") as (opened, _):
            assert "hunter2" not in repr(opened.manifest(0.0))

    virtually(main)
    assert "hunter2" not in refused(token="other", token_given="hunter2")


def test_nothing_behind_the_address_is_refused_with_what_to_start() -> None:
    async def main() -> None:
        runner = await Scripted().runner()
        link = Memory(runner)
        link.cut()
        with pytest.raises(PowerError, match=r"nothing answers.*loadgen sidecar. beside the server"):
            async with open_sidecars(
                [("", URL)], token=None, server_url=SERVER, baseline_s=0, connector=lambda url: link
            ):
                pass
        await runner.cleanup()

    virtually(main)


def test_a_sidecar_that_is_just_starting_is_waited_for() -> None:
    async def main() -> None:
        made = Scripted(health=(503, {"status": "starting"}))

        async def ready() -> None:
            await asyncio.sleep(1.0)
            made.health = (200, {"status": "ok"})

        task = asyncio.create_task(ready())
        async with connected(made):
            assert clock.now() >= 1.0
        await task

    virtually(main)


def test_the_same_board_given_twice_is_refused() -> None:
    async def main() -> None:
        one, two = await started(), Scripted(id="b")
        two.origin_s = one.origin_s
        async with connected(one, two, names=("node0", "node1")):
            pass

    with pytest.raises(LoadgenError, match="they would be counted twice"):
        virtually(main)


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


def test_a_broken_link_loses_nothing_and_is_counted() -> None:
    async def main() -> None:
        kept = Kept()
        async with connected(await started()) as (opened, [link]):
            async with opened.following(kept.sink):
                await asyncio.sleep(5.3)
                link.cut()
                await asyncio.sleep(40.0)
                so_far = len(kept.of("gpu0"))
                link.down = False
                await asyncio.sleep(10.0)
            row = opened.manifest(0.0)[0]
            assert so_far < 120 and row["samples"]["missing"] == 0 and row["reconnects"] == 1
            gaps_s = {round(b.t_s - a.t_s, 6) for a, b in itertools.pairwise(kept.of("gpu0"))}
            assert gaps_s == {0.05}
            assert any("was resumed 1 times" in w for w in opened.warnings)

    virtually(main)


def test_a_link_that_stays_broken_ends_in_30_s_with_what_is_missing() -> None:
    async def main() -> None:
        kept = Kept()
        async with connected(await started()) as (opened, [link]):
            async with opened.following(kept.sink):
                await asyncio.sleep(20.0)
                link.cut()
                await asyncio.sleep(10.0)
                ended_s = clock.now()
            assert clock.now() - ended_s == pytest.approx(sidecars_module.FINISH_S, abs=0.1)
            row = opened.manifest(0.0)[0]
            # The last poll was at most 1 s before the cut, 10 s before the end.
            assert 200 <= row["samples"]["missing"] <= 221
            assert row["samples"]["received"] == len(kept.of("gpu0")) >= 380
            assert row["clock"]["end"] is None and row["clock"]["bound_s"] is None
            assert "nothing answers" in row["reason"]

    virtually(main)


def test_an_interrupted_run_waits_2_s_at_most() -> None:
    async def main() -> None:
        kept = Kept()
        async with connected(await started()) as (opened, [link]):
            with pytest.raises(asyncio.CancelledError):
                async with opened.following(kept.sink):
                    await asyncio.sleep(5.0)
                    link.cut()
                    ended_s = clock.now()
                    raise asyncio.CancelledError
            assert clock.now() - ended_s <= sidecars_module.INTERRUPTED_S + 0.1
            assert len(kept.of("gpu0")) >= 80

    virtually(main)


def test_a_sampler_that_died_and_one_that_skips_single_ticks_are_told_apart() -> None:
    async def main(**options: Any) -> dict[str, Any]:
        made = await started(**options)
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(20.0)
            return opened.manifest(0.0)[0]["samples"]

    died = clock.run_virtual(main(dead_from_s=20.0))
    assert 195 <= died["missing"] <= 205
    skips = clock.run_virtual(main(skipped=lambda tick: tick % 10 == 0))
    assert skips["missing"] == 0
    assert skips["expected"] - skips["received"] == pytest.approx(skips["expected"] / 10, abs=2)
    late = clock.run_virtual(main(late_s=lambda tick: 0.04 * (tick % 7 == 0)))
    assert late["missing"] == 0 and 0 <= late["expected"] - late["received"] <= 1
    hole = clock.run_virtual(main(skipped=lambda tick: 300 <= tick < 310))
    assert hole["missing"] == 10 and hole["expected"] - hole["received"] == 10


def test_samples_that_the_sidecar_no_longer_keeps_are_missing() -> None:
    class Forgetful(Scripted):
        def power_rows(self) -> list[list[Any]]:
            return [row for row in super().power_rows() if not 300 < row[0] <= 320]

    async def main() -> None:
        made = Forgetful()
        await asyncio.sleep(10.0)
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(20.0)
            assert opened.manifest(0.0)[0]["samples"]["missing"] == 20

    virtually(main)


@pytest.mark.parametrize("other", [False, True])
def test_a_restarted_sidecar_goes_on_where_it_was_and_another_one_is_said_to_be(other: bool) -> None:
    async def main() -> None:
        made, kept = await started(), Kept()
        async with connected(made) as (opened, [link]):
            async with opened.following(kept.sink):
                await asyncio.sleep(5.0)
                link.cut()
                if other:  # a fresh directory: numbers begin again
                    made.id, made.origin_s = "b", clock.now()
                await asyncio.sleep(2.0)
                link.down = False
                await asyncio.sleep(10.0)
            row = opened.manifest(0.0)[0]
            instants_s = [r.t_s for r in kept.of("gpu0")]
            assert instants_s == sorted(set(instants_s)) and instants_s[-1] > 26.9
            assert row["samples"]["missing"] <= 20
            assert any("another data directory" in w for w in opened.warnings) is other

    virtually(main)


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ({"boards": ({**BOARD, "uuid": "GPU-9"},)}, "gpu0 is board GPU-9 by now, was GPU-1"),
        ({"domains": (Domain("gpu0", "estimated"), DOMAINS[1])}, "gpu0 is now estimated, was counter"),
        ({"boards": ()}, None),  # lost: its readings stop, which has a rule of its own
    ],
)
def test_a_name_that_means_another_board_or_method_after_a_restart_is_written_down(
    paths: dict[str, Any], words: str | None
) -> None:
    async def main() -> None:
        made = await started()
        async with connected(made, names=("a",)) as (opened, [link]):
            async with opened.following(Kept().sink):
                await asyncio.sleep(5.0)
                link.cut()
                for name, value in paths.items():
                    setattr(made, name, value)
                link.down = False
                await asyncio.sleep(25.0)
            assert opened.manifest(0.0)[0]["changed"] == ([] if words is None else [f"a/{words}"])

    virtually(main)


HANGS = ("/health", "/v1/clock", "/v1/info", "/v1/server")


@pytest.mark.parametrize("path", HANGS)
def test_a_sidecar_that_never_answers_is_refused_in_5_s(path: str) -> None:
    async def main() -> None:
        runner = await (await started(hangs=path)).runner()
        began_s = clock.now()
        with pytest.raises(PowerError, match="no answer in 5 s"):
            async with open_sidecars(
                [("", URL)], token=None, server_url=SERVER, baseline_s=0, connector=lambda _: Memory(runner)
            ):
                raise AssertionError("it was accepted")
        assert clock.now() - began_s < 6.0
        await runner.cleanup()

    virtually(main)


@pytest.mark.parametrize("path", [*HANGS[1:], "/v1/samples/power"])
def test_a_sidecar_that_hangs_in_mid_run_ends_the_run_in_bounded_time_with_the_reason(path: str) -> None:
    async def main() -> None:
        made = await started()
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(20.0)
                made.hangs = path
                await asyncio.sleep(20.0)
                ended_s = clock.now()
            assert clock.now() - ended_s < sidecars_module.FINISH_S + 6.0
            row = opened.manifest(0.0)[0]
            assert row["clock"]["bound_s"] is None or path == "/v1/server"
            assert row["server"]["end"] is None and "no answer in 5 s" in row["reason"]

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


def test_a_token_that_is_changed_in_mid_run_is_said() -> None:
    async def main() -> None:
        made = await started(token="one")
        async with connected(made, token="one") as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(5.0)
                made.token = "two"
                await asyncio.sleep(5.0)
            row = opened.manifest(0.0)[0]
        assert "refuses this token" in row["reason"] and row["samples"]["missing"] > 80

    virtually(main)


def test_a_clock_that_is_moved_in_mid_run_widens_the_bound_and_is_said() -> None:
    async def main() -> None:
        made = await started(step_at_s=20.0, step_s=0.5)
        async with connected(made) as (opened, _):
            async with opened.following(Kept().sink):
                await asyncio.sleep(30.0)
            assert opened.manifest(0.0)[0]["clock"]["bound_s"] > 0.1
            assert any("off a steady drift in mid-run" in w for w in opened.warnings)

    virtually(main)


def test_a_host_that_was_restarted_has_no_readings_at_impossible_instants() -> None:
    async def main() -> None:
        made, kept = await started(), Kept()
        async with connected(made) as (opened, _):
            async with opened.following(kept.sink):
                await asyncio.sleep(10.0)
                made.skew_s -= 1000.0
                await asyncio.sleep(10.0)
            assert min(r.t_s for r in kept.readings) >= 9.9
            assert opened.manifest(0.0)[0]["samples"]["missing"] > 100
            assert any("its clock went back" in w for w in opened.warnings)

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


def test_a_backlog_is_written_in_slices_between_which_the_loop_turns() -> None:
    """Two minutes of rows at once: no other task may be held up by more than a slice of them."""

    async def main() -> None:
        made, counts = await started(), [0]
        loop = asyncio.get_running_loop()

        def reading(_: Reading) -> None:
            if counts[-1] == 0:
                loop.call_soon(counts.append, 0)  # the next turn of the loop begins a new count
            counts[-1] += 1

        async with connected(made) as (opened, [link]):
            async with opened.following(Sink(reading, lambda _: None, lambda _: None)):
                link.cut()
                await asyncio.sleep(120.0)
                link.down = False
                await asyncio.sleep(10.0)
            assert opened.manifest(0.0)[0]["samples"]["missing"] == 0
        assert sum(counts) >= 2 * 20 * 120 and max(counts) <= 64 + len(DOMAINS)

    virtually(main)


def test_dials_are_one_per_link_so_that_no_round_trip_opens_a_connection() -> None:
    async def main() -> None:
        async with connected(await started()) as (opened, [link]):
            async with opened.following(Kept().sink):
                await asyncio.sleep(10.0)
            assert link.dials == 1

    virtually(main)


@pytest.mark.parametrize(
    ("server", "power", "words"),
    [
        ({}, {"sidecars": [URL]}, "a sidecar measures a real host"),
        ({"url": SERVER}, {"sidecars": [URL], "source": "none"}, "none with power.source none"),
        ({"url": SERVER}, {"sidecars": [URL], "source": "nvml"}, "none with power.source nvml"),
        ({"url": SERVER}, {"sidecars": ["gpu-host:9400"]}, r"\[NAME=\]http://HOST:PORT"),
        ({"url": SERVER}, {"sidecars": ["http://me:hunter2@h:9400"]}, "no credentials"),
        ({"url": SERVER}, {"sidecars": [f"a={URL}", f"a={URL}"]}, "each sidecar a name of its own"),
    ],
)
def test_a_scenario_whose_sidecars_cannot_be_used_is_refused(
    server: dict[str, Any], power: dict[str, Any], words: str
) -> None:
    load = {"pattern": "constant", "interval_s": 1.0, "requests": 1}
    with pytest.raises(ValidationError, match=words) as refusal:
        Scenario.model_validate({"name": "t", "load": load, "server": server, "power": power})
    assert "hunter2" not in "".join(str(e["ctx"]) for e in refusal.value.errors())


def test_names_of_sidecars() -> None:
    assert Power(sidecars=[URL]).addresses == [("", URL)]
    assert Power(sidecars=[f"a={URL}"]).addresses == [("a", URL)]
    assert Power(sidecars=[URL, f"b={URL}"]).addresses == [("node0", URL), ("b", URL)]


def test_virtual_time_and_an_empty_token_file_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["run", "fixed_50ms", "--url", SERVER, "--sidecar", URL, "--output-dir", str(tmp_path), "--quiet"]
    assert main([*run, "--clock", "virtual"]) == 2
    assert "only the embedded server can be run in virtual time" in capsys.readouterr().err
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="expected a token, got nothing"):
        sidecar_token(tmp_path / "token")
    (tmp_path / "token").write_text("t\n")
    assert sidecar_token(tmp_path / "token") == "t"


def test_the_live_view_adds_up_the_boards_of_all_hosts() -> None:
    view = RunView(Console(file=io.StringIO()), 1, quiet=True)
    for k in range(200):
        view.reading(Reading(0.05 * k, "node0/gpu0", energy_j=15.0 * k))
        view.reading(Reading(0.05 * k, "node1/gpu0", energy_j=5.0 * k))
        view.reading(Reading(0.05 * k, "node1/cpu0.package", energy_j=7.0 * k))
    assert "GPU 400 W" in view._facts()
