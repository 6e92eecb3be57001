"""The sampler: every sample kept through failing sources, full disks, restarts, kills; and what it costs."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time as wall
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import numpy as np
import pytest
from conftest import Time
from powercap import EPYC_RANGE_UJ, Powercap

from loadgen import clock
from loadgen.errors import ConfigError, PowerError
from loadgen.power import local
from loadgen.power import sampler as loop
from loadgen.power.histogram import RESOLUTION, Histogram
from loadgen.power.host import CpuEstimate, RamEstimate
from loadgen.power.local import Last, Opening, openings
from loadgen.power.rapl import RaplSource
from loadgen.sidecar import events as event_log
from loadgen.sidecar import table as tables
from loadgen.sidecar.events import EventLog, read_events
from loadgen.sidecar.sampler import Sampler, SamplerConfig, command, last_energies
from loadgen.sidecar.table import TableReader
from loadgen.types import BoardProcess, BoardState, Domain, Method, Reading

HZ = 20


class Scripted:
    """Counters of 100 W each; ``down(t_s, domain)`` says when one gives nothing. ``boards`` have states."""

    blocking = True  # as NVML's; here it is read inline all the same

    def __init__(
        self,
        names: Sequence[str],
        down: Callable[[float, str], bool] = lambda t_s, name: False,
        method: Method = "counter",
    ) -> None:
        self.names, self.down, self.method = names, down, method
        self.boards = tuple({"domain": name} for name in names if name.startswith("gpu"))
        self.warnings = ["power: gpu0: it fell off"]
        self.closed = False
        self.pids: Callable[[], list[int]] = list

    def domains(self) -> list[Domain]:
        return [Domain(name, self.method) for name in self.names]

    def read(self) -> list[Reading]:
        t_s = clock.now()
        there = [name for name in self.names if not self.down(t_s, name)]
        if not there:
            raise PowerError("nothing answers")
        return [Reading(t_s + 0.001 * i, name, energy_j=100.0 * t_s) for i, name in enumerate(there)]

    def states(self) -> list[BoardState]:
        return [BoardState(clock.now(), str(b["domain"]), 40.0, pstate=0) for b in self.boards]

    def processes(self) -> dict[str, list[BoardProcess] | None]:
        return {
            str(b["domain"]): [BoardProcess(pid, "python", 2**30) for pid in self.pids()] for b in self.boards
        }

    def close(self) -> None:
        self.closed = True


def run(folder: Path, parts: Mapping[str, Opening], seconds: float, begin_s: float = 0.0) -> Sampler:
    """Samples for so long in virtual time, which begins at ``begin_s``."""
    made: list[Sampler] = []

    async def main() -> None:
        await asyncio.sleep(begin_s)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, stop.set)
        made.append(Sampler(SamplerConfig(str(folder), interval_s=1 / HZ), parts))
        await made[0].run(stop)

    clock.run_virtual(main())
    return made[0]


def series(folder: Path, domain: str) -> list[tuple[float, float | None]]:
    """(instant it was taken, value) in every row; None where it is missing."""
    reader = TableReader(folder, "power")
    i = reader.columns.index(domain)
    return [(row.t_s + row.lag_s[i], row.values[i]) for row in reader.rows(limit=100_000)]


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if not kinds or event["kind"] in kinds]


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sampler.json").read_text())
    return found


def test_every_tick_is_a_row_with_every_domain_and_its_own_instant(tmp_path: Path) -> None:
    sampler = run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"])}, 10.0)
    rows = TableReader(tmp_path, "power").rows()
    assert [row.seq for row in rows] == list(range(1, 10 * HZ + 2))
    assert [row.t_s for row in rows] == pytest.approx(np.arange(10 * HZ + 1) / HZ)
    assert [value for _, value in series(tmp_path, "gpu1")] == pytest.approx(100 * np.arange(201) / HZ)
    assert all(row.lag_s == pytest.approx((0.0, 0.001), abs=1e-8) for row in rows)
    assert sampler.done.reads == 201 and sampler.done.skipped == sampler.done.failed == 0


def test_a_sensor_whose_stamp_stands_still_holds_up_no_row(tmp_path: Path) -> None:
    """The row's instant is the tick's; how old a value is stands in its lag."""

    class Frozen(Scripted):
        def read(self) -> list[Reading]:
            first, second = super().read()
            return [Reading(min(first.t_s, 2.0), first.domain, energy_j=first.energy_j), second]

    run(tmp_path, {"gpu": lambda _: Frozen(["gpu0", "gpu1"])}, 10.0)
    reader = TableReader(tmp_path, "power")
    rows = reader.rows(since_s=8.0, until_s=9.0)
    assert [row.t_s for row in rows] == pytest.approx(np.arange(160, 181) / HZ)
    assert [row.t_s + row.lag_s[0] for row in rows] == pytest.approx([2.0] * 21, abs=1e-6)
    assert all(row.lag_s[1] == pytest.approx(0.001, abs=1e-8) for row in rows)


def test_states_come_once_a_second_and_missing_fields_are_none(tmp_path: Path) -> None:
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"])}, 10.0)
    reader = TableReader(tmp_path, "state")
    rows = reader.rows()
    assert np.diff([row.t_s for row in rows]) == pytest.approx(1.0) and len(rows) >= 9
    last = dict(zip(reader.columns, rows[-1].values, strict=True))
    assert last["gpu1.temperature_c"] == 40.0 and last["gpu0.pstate"] == 0.0
    assert last["gpu0.ecc_errors"] is None


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


def test_processes_are_told_when_they_change_only(tmp_path: Path) -> None:
    source = Scripted(["gpu0"])
    source.pids = lambda: [7] if clock.now() < 12 else [7, 8]
    run(tmp_path, {"gpu": lambda _: source}, 30.0)
    told = events(tmp_path, "processes")
    assert [[p["pid"] for p in event["boards"]["gpu0"]] for event in told] == [[7], [7, 8]]
    assert 12 < told[1]["t_s"] < 18
    assert status(tmp_path)["processes"]["gpu0"][1] == {
        "pid": 8,
        "name": "python",
        "memory_bytes": 2**30,
    }


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


def test_estimates_go_on_after_a_restart_and_never_backwards(tmp_path: Path) -> None:
    """10 W of memory also in the pause between, which is 20 s."""
    parts = {
        "ram": lambda resume: RamEstimate(16, arm=False, resume=tuple(resume.get("ram", ()))[:2] or None)
    }
    run(tmp_path, parts, 10.0)
    run(tmp_path, parts, 10.0, begin_s=30.0)
    values = [value for _, value in series(tmp_path, "ram")]
    assert values == pytest.approx([10 * k / HZ for k in [*range(201), *range(600, 801)]])


def test_a_cpu_estimate_goes_on_from_its_joules_and_adds_nothing_for_the_pause(
    tmp_path: Path, time: Time
) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu 100 0 0 100 0 0 0 0 0 0\n")
    source = CpuEstimate(100.0, tmp_path, resume=(900.0, 5000.0))
    assert source.read()[0].energy_j == 5000.0
    time.now_s += 10
    stat.write_text("cpu 150 0 0 150 0 0 0 0 0 0\n")
    assert source.read()[0].energy_j == pytest.approx(5000 + 100 * 10 / 2)


@pytest.mark.parametrize(
    ("start_j", "pause_s", "sound"),
    [
        (10.0, 20.0, True),
        (EPYC_RANGE_UJ * 1e-6 - 1500.0, 20.0, True),  # wraps in the pause
        (EPYC_RANGE_UJ * 1e-6 - 200.0, 20.0, True),  # wrapped before it
        (10.0, 40.0, False),  # 40 s x 2 kW is more than the range: a second wrap could hide
        (60_000.0, 600.0, False),  # one wrap, to a value above the last: cannot be told from none
    ],
)
def test_rapl_goes_on_after_a_restart_or_shows_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_j: float, pause_s: float, sound: bool
) -> None:
    tree = Powercap(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", start_j=start_j, range_uj=EPYC_RANGE_UJ)
    truth: dict[float, float] = {}

    class Moving(RaplSource):
        """The counter moves by 100 W x the time since the last read, just before each."""

        def read(self) -> list[Reading]:
            now_s = clock.now()
            tree.add(100.0 * (now_s - moved[-1]))
            moved.append(now_s)
            truth[now_s] = tree.energy_j["intel-rapl:0"]
            return super().read()

    opening = SimpleNamespace(open=partial(Moving.open, sleep=tree.settle))
    monkeypatch.setattr(local, "RaplSource", opening)
    parts = {"cpu": openings(None, powercap=tree.root)["cpu"]}
    moved = [0.0]
    run(tmp_path, parts, 10.0)
    tree.add(100.0 * (pause_s - 1.0))
    moved.append(10.0 + pause_s - 1.0)
    run(tmp_path, parts, 10.0, begin_s=10.0 + pause_s)
    found = [(t_s, value) for t_s, value in series(tmp_path, "cpu0.package") if value is not None]
    steps = np.diff([value for _, value in found])
    assert len(found) == 402 and np.count_nonzero(steps < 0) == (0 if sound else 1)
    if sound:
        true_j = truth[found[-1][0]] - truth[found[0][0]]
        assert found[-1][1] - found[0][1] == pytest.approx(true_j, abs=1e-3)
    else:
        assert steps[200] < 0  # exactly at the restart


def test_the_dies_of_a_package_show_a_reset_after_a_restart(tmp_path: Path, time: Time) -> None:
    """Only their sum is known, so a wrap of one could not be told."""
    tree = Powercap(tmp_path)
    for die in (0, 1):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", start_j=50.0)
    source = RaplSource.open(tree.root, sleep=tree.settle)
    [before] = source.read()
    time.now_s += 1
    tree.add(10.0)
    [after] = RaplSource.open(
        tree.root, sleep=tree.settle, resume={"cpu0.package": (before.t_s, before.energy_j or 0.0)}
    ).read()
    assert after.energy_j is not None and before.energy_j is not None and after.energy_j < before.energy_j


def test_the_last_energies_are_each_columns_newest_number(tmp_path: Path) -> None:
    run(tmp_path, {"gpu": lambda _: Scripted(["gpu0", "gpu1"], lambda t, n: n == "gpu1" and t > 3)}, 5.0)
    found = last_energies(tmp_path, status(tmp_path))
    assert found["gpu0"] == (pytest.approx(5.0), pytest.approx(500.0), "counter")
    assert found["gpu1"] == (pytest.approx(3.001, abs=0.051), pytest.approx(300.0, abs=5.1), "counter")
    assert last_energies(tmp_path, {})["gpu0"].method is None
    assert last_energies(tmp_path / "other", {}) == {}


def test_a_counter_in_place_of_an_estimate_shows_as_a_reset_and_so_the_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between restarts permissions change; joules of another method are not gone on from."""
    tree = Powercap(tmp_path / "powercap")
    tree.zone("intel-rapl:0", "package-0", start_j=30_000.0, range_uj=EPYC_RANGE_UJ)
    monkeypatch.setattr(
        local, "RaplSource", SimpleNamespace(open=partial(RaplSource.open, sleep=tree.settle))
    )
    (tmp_path / "stat").write_text("cpu 1 0 0 1 0 0 0 0 0 0\n")
    monkeypatch.setattr(local, "CpuEstimate", lambda tdp_w, **how: CpuEstimate(tdp_w, tmp_path, **how))
    cpu = openings(None, 100.0, powercap=tree.root)["cpu"]
    now_s = clock.now()
    [counter] = cpu({"cpu0.package": Last(now_s, 29_990.0, "estimated")}).read()
    assert counter.energy_j is not None and counter.energy_j < 29_990.0
    [counter] = cpu({"cpu0.package": Last(now_s, 29_990.0, "counter")}).read()
    assert counter.energy_j is not None and counter.energy_j >= 30_000.0
    (tree.root / "intel-rapl:0" / "energy_uj").unlink()
    [estimate] = cpu({"cpu0.package": Last(now_s, 29_990.0, "counter")}).read()
    assert estimate.energy_j == 0.0
    [estimate] = cpu({"cpu0.package": Last(now_s, 29_990.0, "estimated")}).read()
    assert estimate.energy_j == 29_990.0


def test_another_board_under_the_same_name_after_a_restart_is_told(tmp_path: Path) -> None:
    for begin_s, uuid in ((0.0, "GPU-a"), (10.0, "GPU-a"), (20.0, "GPU-b")):
        source = Scripted(["gpu0"])
        source.boards = ({"domain": "gpu0", "uuid": uuid},)
        run(tmp_path, {"gpu": lambda _, source=source: source}, 2.0, begin_s)  # type: ignore[misc]
    [told] = events(tmp_path, "boards_changed")
    assert told["domains"] == ["gpu0"] and told["t_s"] == pytest.approx(20.0)


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


def test_the_overhead_is_known_after_a_second_kept_up_to_date_and_an_event_at_the_end(
    tmp_path: Path,
) -> None:
    seen: dict[float, dict[str, Any]] = {}

    class Looking(Scripted):
        def states(self) -> list[BoardState]:
            seen[clock.now()] = status(tmp_path)["overhead"]
            return super().states()

    sampler = run(tmp_path, {"gpu": lambda _: Looking(["gpu0"])}, 625.0)
    elapsed = {round(t_s): said["elapsed_s"] for t_s, said in seen.items()}
    for known in seen.values():
        assert (known["cpu_s_per_hour"] is None) == (known["elapsed_s"] < 1)
    assert elapsed[1] < 1 <= elapsed[2] < 1.1 and elapsed[11] == pytest.approx(10.0, abs=0.1)
    assert elapsed[600] == pytest.approx(590, abs=0.1)
    told = events(tmp_path, "overhead")
    assert [round(e["t_s"]) for e in told] == [600, 625]
    assert told[-1]["reads"] == sampler.done.reads == 12_501
    for key in ("cpu_s_per_hour", "cpu_share", "wake_late_p50_s", "wake_late_p99_s", "read_p99_s"):
        assert told[-1][key] is not None and told[-1][key] >= 0
    assert told[-1]["rss_bytes"] > 2**20
    assert status(tmp_path)["overhead"] == {k: told[-1][k] for k in status(tmp_path)["overhead"]}


def test_nothing_grows_while_it_samples(tmp_path: Path) -> None:
    """Objects alive after 2 and after 10 minutes of 20 Hz; the files take what is read."""
    counts: list[int] = []

    class Counted(Scripted):
        def read(self) -> list[Reading]:
            if round(clock.now() * HZ) in (120 * HZ, 600 * HZ):
                gc.collect()
                counts.append(len(gc.get_objects()))
            return super().read()

    run(tmp_path, {"gpu": lambda _: Counted([f"gpu{k}" for k in range(8)])}, 601.0)
    assert len(counts) == 2 and abs(counts[1] - counts[0]) < 200
    assert TableReader(tmp_path, "power").last_seq == 601 * HZ + 1


# The loop and its figures.


def test_quantiles_of_a_histogram_are_the_true_ones_within_its_resolution() -> None:
    durations_s = np.random.default_rng(3).lognormal(-7, 1.5, 5000)
    histogram = Histogram()
    assert histogram.quantile(0.5) is None and histogram.max_s is None
    for duration_s in durations_s:
        histogram.add(float(duration_s))
    for share in (0.01, 0.5, 0.99, 1.0):
        true_s = np.quantile(durations_s, share, method="inverted_cdf")
        found_s = histogram.quantile(share)
        assert found_s is not None and true_s <= found_s * (1 + 1e-9) and found_s <= true_s * RESOLUTION
    assert histogram.max_s == durations_s.max() and histogram.count == 5000
    histogram.add(0.0)
    histogram.add(1e9)
    assert histogram.quantile(1.0) is not None


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


# Events.


def test_events_of_two_writers_are_numbered_together_and_found_by_number(tmp_path: Path) -> None:
    logs = EventLog(tmp_path), EventLog(tmp_path)
    for k in range(300):
        logs[k % 2].add("kind", f"event {k}", k=k)
    assert [e["seq"] for e in read_events(tmp_path)] == list(range(1, 301))
    for after in (0, 1, 149, 299, 300):
        assert [e["k"] for e in read_events(tmp_path, after, 3)] == list(range(300))[after : after + 3]


def test_an_event_cut_short_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    log, path = EventLog(tmp_path), tmp_path / "events.jsonl"
    log.add("a", "one")
    log.add("a", "two")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e["text"] for e in read_events(tmp_path)] == ["one"]
    path.write_bytes(whole[:-5])
    log.add("a", "three")
    assert [(e["seq"], e["text"]) for e in read_events(tmp_path)] == [(1, "one"), (2, "three")]
    path.write_bytes(whole[:-1])  # whole but for the end of its line: it keeps its number
    log.add("a", "four")
    assert [e["seq"] for e in read_events(tmp_path)] == [1, 2, 3]


def test_the_event_file_is_bounded_and_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LARGEST_BYTES", 5000)
    log = EventLog(tmp_path)
    for k in range(500):
        log.add("kind", "text", k=k)
    assert sum(path.stat().st_size for path in tmp_path.glob("events*.jsonl")) < 12_000
    kept = read_events(tmp_path)
    assert kept[-1]["seq"] == 500 and [e["seq"] for e in kept] == list(range(501 - len(kept), 501))


def test_events_wait_while_the_folder_cannot_be_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "later")
    log.add("a", "one")
    assert read_events(tmp_path / "later") == []
    (tmp_path / "later").mkdir()
    log.add("a", "two")
    assert [e["text"] for e in read_events(tmp_path / "later")] == ["one", "two"]


# The process.


class Ticking:
    """A powercap tree whose counter goes on, as the processor's does, while a test runs."""

    def __init__(self, root: Path) -> None:
        self.tree = Powercap(root)
        self.tree.zone("intel-rapl:0", "package-0")
        self._path, self._stop = root / "intel-rapl:0" / "energy_uj", threading.Event()
        self._thread = threading.Thread(target=self._go)

    def _go(self) -> None:
        uj = 10_000_000
        while not self._stop.wait(0.005):
            uj += 500_000
            draft = self._path.with_name("draft")
            draft.write_text(f"{uj}\n")
            draft.replace(self._path)  # a reader must not find it empty

    def __enter__(self) -> Path:
        self._thread.start()
        return self.tree.root

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def spawn(config: SamplerConfig) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(config), stdin=subprocess.PIPE)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    late_s = wall.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the sampler ended with {process.returncode}"
        assert wall.monotonic() < late_s
        wall.sleep(0.01)


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(10)


def test_a_killed_sampler_loses_nothing_and_the_next_goes_on_and_ends_with_its_service(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    reader = TableReader(folder, "power")
    with Ticking(tmp_path / "powercap") as powercap:
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


def test_a_board_that_falls_off_and_comes_back_under_the_real_library(tmp_path: Path) -> None:
    """nvidia-ml-py on the fake driver, in real time: two boards, the second away from 1.5 s to 2.5 s."""
    library = fake_nvml.build(tmp_path)
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
