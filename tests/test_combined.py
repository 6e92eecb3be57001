"""Several power sources as one."""

from __future__ import annotations

import asyncio

import pytest

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.combined import CombinedSource
from loadgen.power.sampler import sample
from loadgen.types import Domain, Reading


class Source:
    """One domain; the reads with indices in ``fails_at`` raise ``fault``."""

    def __init__(
        self, name: str, fails_at: range = range(0), fault: Exception | None = None, blocking: bool = False
    ) -> None:
        self.name, self.fails_at, self.blocking = name, fails_at, blocking
        self.fault = fault or PowerError(f"{name} fell off")
        self.calls = self.closed = 0
        self.warnings = [f"power: {name} is odd"]
        self.boards = ({"domain": name},) if name.startswith("gpu") else ()

    def domains(self) -> list[Domain]:
        return [Domain(self.name, "counter")]

    def read(self) -> list[Reading]:
        self.calls += 1
        if self.calls - 1 in self.fails_at:
            raise self.fault
        return [Reading(clock.now(), self.name, energy_j=float(self.calls))]

    def close(self) -> None:
        self.closed += 1
        if self.fails_at:
            raise self.fault


def test_domains_boards_warnings_and_readings_in_the_sources_order() -> None:
    source = CombinedSource([Source("gpu0"), Source("cpu0.package"), Source("gpu1")])
    names = ["gpu0", "cpu0.package", "gpu1"]
    assert [d.name for d in source.domains()] == names
    assert [r.domain for r in source.read()] == names
    assert source.boards == ({"domain": "gpu0"}, {"domain": "gpu1"})
    assert source.warnings == [f"power: {name} is odd" for name in names]


def test_one_blocking_source_makes_all_blocking() -> None:
    assert not CombinedSource([Source("a"), Source("b")]).blocking
    assert CombinedSource([Source("a"), Source("b", blocking=True)]).blocking


def test_a_domain_twice_and_no_source_are_refused() -> None:
    with pytest.raises(PowerError, match=r"two power sources have the domain cpu0\.package"):
        CombinedSource([Source("cpu0.package"), Source("gpu0"), Source("cpu0.package")])
    with pytest.raises(PowerError, match="no power source"):
        CombinedSource([])


@pytest.mark.parametrize("fault", [PowerError("it fell off"), OSError("it fell off")])
def test_a_source_that_fails_has_a_gap_and_is_named_while_the_others_go_on(fault: Exception) -> None:
    good, bad = Source("gpu0"), Source("cpu0.package", range(3, 6), fault)

    async def main() -> tuple[list[Reading], CombinedSource, list[str]]:
        source, rows, stop = CombinedSource([good, bad]), list[Reading](), asyncio.Event()
        asyncio.get_running_loop().call_later(0.95, stop.set)
        return rows, source, (await sample(source, 0.1, rows.extend, stop)).warnings

    rows, source, warnings = clock.run_virtual(main())
    times = {name: [r.t_s for r in rows if r.domain == name] for name in ("gpu0", "cpu0.package")}
    assert len(times["gpu0"]) == 11 and len(times["cpu0.package"]) == 8
    gap_s = [b - a for a, b in zip(times["cpu0.package"], times["cpu0.package"][1:], strict=False)]
    assert max(gap_s) == pytest.approx(0.4)
    assert warnings == []  # the loop saw readings every time: only the source knows
    assert source.warnings[2:] == ["power: it fell off", "power: cpu0.package: 3 of 11 reads failed"]


def test_when_all_fail_the_read_fails_with_every_reason() -> None:
    source = CombinedSource([Source("a", range(9)), Source("b", range(9))])
    with pytest.raises(PowerError, match="a fell off; b fell off"):
        source.read()


def test_closing_closes_all_also_when_the_first_fails_to() -> None:
    sources = [Source("a", range(1)), Source("b"), Source("c", range(1))]
    with pytest.raises(PowerError, match="a fell off"):
        CombinedSource(sources).close()
    assert [s.closed for s in sources] == [1, 1, 1]
