"""Power sources and the sampling loop: a fake board in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.ram import dimm_count, ram_power_w
from loadgen.power.sampler import Sampled, sample
from loadgen.power.simulated import SimulatedSource
from loadgen.types import Domain, Reading


@dataclass(frozen=True)
class _Shown:
    energy_j: float
    instant_w: float
    average_w: float


@dataclass(frozen=True)
class _Sensor:
    publish_s: float = 0.1
    instant_window_s: float = 0.025
    average_window_s: float = 1.0


class _ConstantBoard:
    """``power_w`` for ever, published every 100 ms; off from ``off_s`` on."""

    sensor = _Sensor()

    def __init__(self, power_w: float = 100.0, off_s: float = float("inf")) -> None:
        self.power_w, self.off_s = power_w, off_s

    def published(self, t_s: float, /) -> _Shown:
        if t_s >= self.off_s:
            raise PowerError("the board is off")
        return _Shown(self.power_w * (int(t_s * 10 + 1e-9) / 10), self.power_w, self.power_w)


class _Scripted:
    """A source that obeys the protocol; ``fails_at`` are the indices of reads that raise."""

    def __init__(self, *, fails_at: tuple[int, ...] = (), slow_at: dict[int, float] | None = None) -> None:
        self.fails_at, self.slow_at = fails_at, slow_at or {}
        self.calls = 0

    def domains(self) -> list[Domain]:
        return [Domain("gpu0.instant", "instant")]

    def read(self) -> list[Reading]:
        call, self.calls = self.calls, self.calls + 1
        now_s = clock.now()
        if call in self.slow_at:  # a driver call that blocks the loop
            loop = asyncio.get_running_loop()
            assert isinstance(loop, clock.VirtualLoop)
            loop.virtual_s += self.slow_at[call]
        if call in self.fails_at:
            raise PowerError("the board did not answer")
        return [Reading(now_s, "gpu0.instant", power_w=100.0)]

    def close(self) -> None:
        pass


def _sampled(source: Any, interval_s: float, seconds: float) -> tuple[list[Reading], Sampled]:
    async def main() -> tuple[list[Reading], Sampled]:
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(seconds, stop.set)
        return rows, await sample(source, interval_s, rows.extend, stop)

    return clock.run_virtual(main())


def test_samples_start_at_once_tick_absolutely_and_end_with_the_stop() -> None:
    rows, done = _sampled(_Scripted(), 0.1, 10.05)
    assert rows[0].t_s == 0.0
    assert rows[-1].t_s == pytest.approx(10.05)
    assert [r.t_s for r in rows[:-1]] == pytest.approx([k * 0.1 for k in range(101)], abs=1e-9)
    assert (done.reads, done.skipped, done.failed, done.warnings) == (102, 0, 0, [])


def test_equal_values_are_kept_not_deduplicated() -> None:
    rows, _ = _sampled(_Scripted(), 0.5, 5.0)
    assert len(rows) >= 11
    assert {r.power_w for r in rows} == {100.0}


def test_a_slow_read_skips_ticks_and_says_so_without_drift() -> None:
    rows, done = _sampled(_Scripted(slow_at={3: 0.35}), 0.1, 2.05)
    assert done.skipped == 3
    assert "3 samples skipped" in done.warnings[0]
    assert [round(r.t_s, 6) for r in rows[3:6]] == [0.3, 0.7, 0.8]


def test_a_failed_read_is_a_gap_and_a_warning() -> None:
    rows, done = _sampled(_Scripted(fails_at=(2, 3)), 0.1, 1.05)
    assert done.failed == 2
    assert len(rows) == done.reads == 10
    assert "power: the board did not answer" in done.warnings
    assert "power: 2 of 12 reads failed" in done.warnings


def test_simulated_source_has_the_boards_domains_and_a_labelled_host() -> None:
    async def make() -> SimulatedSource:
        return SimulatedSource([_ConstantBoard()])

    source = clock.run_virtual(make())
    methods = {d.name: d.method for d in source.domains()}
    assert methods == {
        "gpu0": "simulated",
        "gpu0.instant": "simulated",
        "gpu0.average": "simulated",
        "cpu0.package": "estimated",
        "ram": "estimated",
    }
    assert all(d.note for d in source.domains())


def test_simulated_source_adds_up_over_virtual_time() -> None:
    async def main() -> list[Reading]:
        source = SimulatedSource([_ConstantBoard()], cpu_w=50.0, ram_gb=16.0)
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(60.0, stop.set)
        await sample(source, 0.1, rows.extend, stop)
        source.close()
        return rows

    last = {r.domain: r for r in clock.run_virtual(main())}
    assert last["cpu0.package"].energy_j == pytest.approx(50.0 * 60)
    assert last["ram"].energy_j == pytest.approx(10.0 * 60)
    assert last["gpu0"].energy_j == pytest.approx(6000.0)
    assert last["gpu0.instant"].power_w == 100.0


def test_several_simulated_boards_are_a_series_and_a_row_each() -> None:
    async def main() -> tuple[SimulatedSource, list[Reading]]:
        boards = [_ConstantBoard(100.0), _ConstantBoard(300.0)]
        source = SimulatedSource(boards, gpu="Fake H100", power_limit_w=700.0)
        stop = asyncio.Event()
        rows: list[Reading] = []
        asyncio.get_running_loop().call_later(10.0, stop.set)
        await sample(source, 0.1, rows.extend, stop)
        return source, rows

    source, rows = clock.run_virtual(main())
    assert [d.name for d in source.domains()][:6] == [
        *("gpu0", "gpu0.instant", "gpu0.average"),
        *("gpu1", "gpu1.instant", "gpu1.average"),
    ]
    assert [d.averaging_s for d in source.domains()][:3] == [None, 0.025, 1.0]
    assert [(b["domain"], b["index"], b["power_limit_w"]) for b in source.boards] == [
        ("gpu0", 0, 700.0),
        ("gpu1", 1, 700.0),
    ]
    last = {r.domain: r for r in rows}
    assert last["gpu0"].energy_j == pytest.approx(1000.0) and last["gpu1"].energy_j == pytest.approx(3000.0)
    assert last["gpu1.average"].power_w == 300.0


def test_a_simulated_board_that_goes_off_leaves_a_gap_and_one_warning() -> None:
    now_s = [0.0]
    source = SimulatedSource([_ConstantBoard(), _ConstantBoard(off_s=1.0)], now=lambda: now_s[0])
    domains = []
    for t_s in (0.0, 1.0, 2.0):
        now_s[0] = t_s
        domains.append({r.domain for r in source.read()})
    assert "gpu1" in domains[0] and domains[1] == domains[2] == domains[0] - {
        *("gpu1", "gpu1.instant", "gpu1.average")
    }
    assert source.warnings == ["power: gpu1: the board is off"]


def test_impossible_host_is_a_power_error() -> None:
    with pytest.raises(PowerError, match="no board"):
        SimulatedSource([], now=lambda: 0.0)
    with pytest.raises(PowerError, match=r"power\.ram_gb: expected > 0, got 0"):
        SimulatedSource([_ConstantBoard()], ram_gb=0, now=lambda: 0.0)
    with pytest.raises(PowerError, match=r"power\.cpu_w"):
        SimulatedSource([_ConstantBoard()], cpu_w=-1, now=lambda: 0.0)


@pytest.mark.parametrize(
    ("capacity_gb", "dimms", "power_w"),
    [
        (1, 1, 10.0),
        (2, 1, 10.0),
        (16, 2, 10.0),
        (64, 4, 20.0),
        (128, 8, 38.0),
        (256, 8, 38.0),
        (1024, 8, 38.0),
    ],
)
def test_ram_power_of_published_sizes(capacity_gb: float, dimms: int, power_w: float) -> None:
    assert dimm_count(capacity_gb) == dimms
    assert ram_power_w(capacity_gb) == pytest.approx(power_w)


def test_many_dimms_get_the_lower_tiers_and_arm_is_lower() -> None:
    # 4 TB in 128 GB modules: 32 DIMMs = 4 + 4 x 0.9 + 8 x 0.8 + 16 x 0.7 = 25.2 full ones
    assert ram_power_w(4096) == pytest.approx(25.2 * 5)
    assert ram_power_w(4096, arm=True) == pytest.approx(25.2 * 1.5)
