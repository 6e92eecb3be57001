"""Sources that fail, boards that are lost, a disk that is full: no other sample is lost, and it is told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest
from sampled import HZ, Scripted, events, run, series, status

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power import sampler as loop
from loadgen.power.host import RamEstimate
from loadgen.sidecar import table as tables
from loadgen.sidecar.table import TableReader
from loadgen.types import BoardProcess, BoardState, Method, Reading


def test_a_domain_that_is_lost_is_told_once_has_a_gap_and_hinders_no_other(tmp_path: Path) -> None:
    down = lambda t_s, name: name == "gpu1" and 2.0 < t_s < 2.9  # noqa: E731
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"], down)}, 5.0)
    lost, back = events(tmp_path, "lost", "recovered")
    assert (lost["kind"], lost["domains"], back["kind"], back["domains"]) == (
        "lost",
        ["gpu1"],
        "recovered",
        ["gpu1"],
    )
    assert 2.0 < lost["t_s"] < 2.3 and 2.85 < back["t_s"] < 3.0
    assert all(value is not None for _, value in series(tmp_path, "gpu0"))
    missing = [k / HZ for k, (_, value) in enumerate(series(tmp_path, "gpu1")) if value is None]
    assert missing == pytest.approx(np.arange(2.05, 2.89, 0.05))


def test_the_reason_of_a_loss_is_the_sources_own(tmp_path: Path) -> None:
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"], lambda t_s, n: n == "gpu0" and t_s > 1)}, 3.0)
    assert "no reading of gpu0: gpu0: it fell off" in events(tmp_path, "lost")[0]["text"]


def test_a_dead_part_is_opened_again_with_doubling_pauses_and_keeps_its_columns(tmp_path: Path) -> None:
    """Down from 5 s to 40 s: a driver's reset. Every opening in between is refused."""
    tries: list[float] = []
    made: list[Scripted] = []

    def opening(_: object) -> Scripted:
        tries.append(clock.now())
        if 5.0 < clock.now() < 40.0:
            raise PowerError("nvml: no driver")
        made.append(Scripted(["gpu0"], lambda t_s, _: 5.0 < t_s < 40.0))
        return made[-1]

    run(tmp_path, {"gpu": opening, "ram": lambda _: RamEstimate(16, arm=False)}, 80.0)
    # The old source answered again at 40 s, by itself, before the pause of 32 s was over.
    pauses = np.diff([t_s for t_s in tries if t_s > 5.0])
    assert pauses == pytest.approx([1, 2, 4, 8, 16], abs=1.01) and 6.0 < tries[1] < 8.1
    assert len(list(tmp_path.glob("power.*.table"))) == 1 and len(made) == 1
    for k, (_, value) in enumerate(series(tmp_path, "gpu0")):
        assert (value is None) == (100 < k < 800)
    assert all(value is not None for _, value in series(tmp_path, "ram"))
    assert [event["kind"] for event in events(tmp_path, "lost", "recovered")] == ["lost", "recovered"]


def test_a_source_that_stays_dead_is_replaced_by_a_new_one_and_closed(tmp_path: Path) -> None:
    made: list[Scripted] = []

    def opening(_: object) -> Scripted:
        if made and clock.now() < 10.0:
            raise PowerError("nvml: no driver")
        first = not made
        made.append(Scripted(["gpu0"], lambda t_s, _: first and t_s > 5.0))
        return made[-1]

    run(tmp_path, {"gpu": opening, "ram": lambda _: RamEstimate(16, arm=False)}, 30.0)
    assert len(made) == 2 and made[0].closed and made[1].closed
    [again] = events(tmp_path, "reopened")
    assert again["domains"] == ["gpu0"] and 10.0 <= again["t_s"] < 18.0
    values = [value for _, value in series(tmp_path, "gpu0")]
    assert values[-1] is not None and values[150] is None and status(tmp_path)["reasons"]["gpu"] is None


def test_an_estimate_does_not_take_over_the_name_of_a_counter(tmp_path: Path) -> None:
    made: list[Scripted] = []

    def opening(_: object) -> Scripted:
        method: Method = "estimated" if made else "counter"
        made.append(Scripted(["cpu0.package"], lambda t_s, _: method == "counter" and t_s > 5, method))
        return made[-1]

    run(tmp_path, {"cpu": opening, "ram": lambda _: RamEstimate(16, arm=False)}, 20.0)
    assert all(value is None for _, value in series(tmp_path, "cpu0.package")[101:])
    assert len(made) > 1 and all(source.closed for source in made)
    assert [d["method"] for d in status(tmp_path)["domains"]] == ["counter", "estimated"]


def test_a_part_that_can_be_opened_later_gets_columns_from_then_on(tmp_path: Path) -> None:
    def opening(_: object) -> Scripted:
        if clock.now() < 5.0:
            raise PowerError("nvml: load the driver")
        return Scripted(["gpu0"])

    run(tmp_path, {"gpu": opening, "ram": lambda _: RamEstimate(16, arm=False)}, 20.0)
    assert "load the driver" in events(tmp_path, "unavailable")[0]["text"]
    rows = TableReader(tmp_path, "power").rows(limit=1000)
    assert [row.seq for row in rows] == list(range(1, 402))
    values = [value for _, value in series(tmp_path, "gpu0")]
    assert values[0] is None and values[-1] is not None
    assert status(tmp_path)["boards"] == [{"domain": "gpu0"}]
    assert TableReader(tmp_path, "state").last_seq is not None


def test_a_host_where_only_memory_is_known_runs_and_says_why(tmp_path: Path) -> None:
    def refuse(_: object) -> Scripted:
        raise PowerError("nvml: install the NVIDIA driver")

    run(tmp_path, {"gpu": refuse, "ram": lambda _: RamEstimate(16, arm=False)}, 3.0)
    said = status(tmp_path)
    assert said["reasons"] == {"gpu": "nvml: install the NVIDIA driver", "ram": None}
    assert [d["name"] for d in said["domains"]] == ["ram"] and said["boards"] == []
    assert TableReader(tmp_path, "power").last_seq == 61


def test_a_host_where_nothing_at_all_is_known_runs_too(tmp_path: Path) -> None:
    def refuse(_: object) -> Scripted:
        raise PowerError("not Linux")

    sampler = run(tmp_path, {"ram": refuse}, 3.0)
    assert sampler.done.failed == 61 and status(tmp_path)["reasons"] == {"ram": "not Linux"}
    assert TableReader(tmp_path, "power").last_seq is None  # no row of nothing


def test_a_board_that_refuses_its_state_costs_no_sample(tmp_path: Path) -> None:
    class Silent(Scripted):
        def states(self) -> list[BoardState]:
            raise PowerError("not now")

        def processes(self) -> dict[str, list[BoardProcess] | None]:
            raise OSError("not now")

    sampler = run(tmp_path, {"gpu": lambda _: Silent(["gpu0"])}, 10.0)
    assert sampler.done.reads == 201 and TableReader(tmp_path, "state").rows() == []
    assert status(tmp_path)["processes"] == {}


def test_an_error_of_the_program_ends_the_sampler_loudly(tmp_path: Path) -> None:
    """The service starts another; one that samples on without its chores would look healthy."""

    class Broken(Scripted):
        def states(self) -> list[BoardState]:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path, {"gpu": lambda _: Broken(["gpu0"])}, 10.0)
    assert (TableReader(tmp_path, "power").last_seq or 0) >= 20


def test_a_full_disk_is_told_and_loses_nothing_that_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if 5.0 < clock.now() < 15.0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(tables.os, "pwrite", pwrite)
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0"])}, 20.0)
    # Aloud as well: events need a disk too.
    assert f"{tmp_path}: table power: No space left on device; rows wait" in capsys.readouterr().err
    told = events(tmp_path, "disk_full", "disk_recovered")
    assert [(e["kind"], e["table"]) for e in told if e["table"] == "power"] == [
        ("disk_full", "power"),
        ("disk_recovered", "power"),
    ]
    assert all(e.get("lost_rows", 0) == 0 for e in told)
    rows = TableReader(tmp_path, "power").rows()
    assert [row.seq for row in rows] == list(range(1, 402))


def test_a_failure_that_words_itself_anew_each_time_does_not_fill_the_memory() -> None:
    class Wordy(Scripted):
        def read(self) -> list[Reading]:
            raise PowerError(f"at {clock.now()}")

    async def main() -> loop.Sampled:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(50.0, stop.set)
        source = Wordy(["gpu0"])
        source.blocking = False
        return await loop.sample(source, 0.05, lambda rows: None, stop)

    done = clock.run_virtual(main())
    assert done.failed == 1001 and len(done.warnings) < 30
