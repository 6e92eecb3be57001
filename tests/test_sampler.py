"""The sampler's rows, states and events in virtual time, and what it costs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sampled import HZ, Scripted, events, run, series, status

from loadgen import clock
from loadgen.power.histogram import RESOLUTION, Histogram
from loadgen.sidecar.table import TableReader
from loadgen.types import BoardState, Reading


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
