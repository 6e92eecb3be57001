"""Links, sidecars, samplers and clocks that fail in mid-run: what is resumed, counted, said."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from linked_sidecars import ASKED_FIRST, Kept, connected, started, virtually
from scripted_sidecar import BOARD, DOMAINS, Scripted

from loadgen import clock
from loadgen.power import sidecars as sidecars_module
from loadgen.power.feed import Sink
from loadgen.types import Domain, Reading


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
        def power_rows(self, after: int) -> list[list[Any]]:
            return [row for row in super().power_rows(after) if not 300 < row[0] <= 320]

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


@pytest.mark.parametrize("path", [*ASKED_FIRST[1:], "/v1/samples/power"])
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
