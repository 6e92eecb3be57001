"""A day of the sidecar's samples in minutes: file size, memory and query times.

    python benchmarks/sidecar_day.py [--hours 24] [--interval 0.05] [--boards 8] [--data-dir D] [--json]

The real sampler and the real tables run in virtual time over a source of 8 boards
(energy counter, instant and average power of each), a CPU package and the memory; a
day at 20 Hz takes some minutes. Query times are medians of 20, on the finished
table, with the files in the page cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from loadgen import clock
from loadgen.sidecar.sampler import Sampler, SamplerConfig
from loadgen.sidecar.table import TableReader
from loadgen.types import BoardState, Domain, Reading

BOARD_W, CPU_W, RAM_W = 400.0, 120.0, 38.0
MIB = 2**20


class Boards:
    """Boards at a constant power, told as NVML tells it, and their host."""

    blocking = False

    def __init__(self, boards: int) -> None:
        names = [f"gpu{k}" for k in range(boards)]
        self.boards = tuple({"domain": name, "uuid": f"GPU-{name}"} for name in names)
        self._domains = [
            domain
            for name in names
            for domain in (
                Domain(name, "counter"),
                Domain(f"{name}.instant", "instant", 0.025),
                Domain(f"{name}.average", "average", 1.0),
            )
        ] + [Domain("cpu0.package", "counter"), Domain("ram", "estimated")]

    def domains(self) -> list[Domain]:
        return self._domains

    def read(self) -> list[Reading]:
        now_s = clock.now()
        watts = {"cpu0.package": CPU_W, "ram": RAM_W}
        return [
            Reading(now_s, d.name, power_w=BOARD_W)
            if d.averaging_s is not None
            else Reading(now_s, d.name, energy_j=watts.get(d.name, BOARD_W) * now_s)
            for d in self._domains
        ]

    def states(self) -> list[BoardState]:
        return [
            BoardState(clock.now(), str(board["domain"]), 60.0, 1980.0, 2619.0, 700.0, 0, 0, 0)
            for board in self.boards
        ]

    def close(self) -> None:
        """Nothing is held."""


def sampled(folder: Path, hours: float, interval_s: float, boards: int) -> list[tuple[float, int]]:
    """Fills the tables; returns (hour, resident bytes) at the start, every 6 h, and at the end."""
    process, seen = psutil.Process(), list[tuple[float, int]]()

    async def look() -> None:
        await asyncio.sleep(60.0)  # everything has been imported and opened
        while True:
            seen.append((clock.now() / 3600, process.memory_info().rss))
            step_s = min(6.0, hours / 4) * 3600
            await asyncio.sleep((len(seen)) * step_s - clock.now())

    async def main() -> None:
        looking, stop = asyncio.create_task(look()), asyncio.Event()
        asyncio.get_running_loop().call_later(hours * 3600, stop.set)
        config = SamplerConfig(str(folder), interval_s=interval_s)
        await Sampler(config, {"gpu": lambda _: Boards(boards)}).run(stop)
        looking.cancel()
        seen.append((clock.now() / 3600, process.memory_info().rss))

    clock.run_virtual(main())
    return seen


def median_ms(ask: Callable[[], object]) -> float:
    def once() -> float:
        begin_s = time.perf_counter()
        ask()
        return 1e3 * (time.perf_counter() - begin_s)

    return statistics.median(once() for _ in range(20))


def queries(folder: Path, hours: float) -> dict[str, Any]:
    """Milliseconds of each query, and how many rows it gave."""
    reader = TableReader(folder, "power")
    last = reader.last_seq
    assert last is not None
    middle_s, hour_s = hours * 1800, min(3600.0, hours * 1800)
    asked: dict[str, Callable[[], int]] = {
        "the last row": lambda: int(reader.last() is not None),
        "one row by seq, in the middle": lambda: len(reader.rows(after=last // 2, limit=1)),
        "1000 rows by seq, in the middle": lambda: len(reader.rows(after=last // 2, limit=1000)),
        "1000 rows by time, in the middle": lambda: len(reader.rows(since_s=middle_s, limit=1000)),
        f"{hour_s / 3600:g} h by time, as arrays": lambda: len(
            reader.arrays(since_s=middle_s, until_s=middle_s + hour_s).seq
        ),
    }
    return {what: {"rows": ask(), "ms": median_ms(ask)} for what, ask in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--interval", type=float, default=0.05)
    parser.add_argument("--boards", type=int, default=8)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.data_dir or Path(scratch)
        begin_s, cpu_s = time.perf_counter(), time.process_time()
        memory = sampled(folder, given.hours, given.interval, given.boards)
        took_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
        rows, answers = TableReader(folder, "power").last_seq, queries(folder, given.hours)
        sizes = {
            name: sum(path.stat().st_size for path in folder.glob(f"{name}.*"))
            for name in ("power", "state", "events")
        }
        found = {
            "hours": given.hours,
            "interval_s": given.interval,
            "boards": given.boards,
            "columns": len(TableReader(folder, "power").columns),
            "rows": rows,
            "bytes": sizes,
            "bytes_per_day": {name: round(24 / given.hours * size) for name, size in sizes.items()},
            "rss": [{"hour": hour, "bytes": held} for hour, held in memory],
            "rss_growth_bytes": memory[-1][1] - memory[0][1],
            "wall_s": took_s,
            "cpu_s_per_sampled_hour": cpu_s / given.hours,
            "queries": answers,
            "cpus": os.cpu_count(),
        }
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{given.hours:g} h at {1 / given.interval:g} Hz, {given.boards} boards, {found['columns']} columns"
    )
    print(f"  took {took_s:.0f} s; {found['cpu_s_per_sampled_hour']:.1f} CPU-s per sampled hour")
    print(f"  rows {rows}")
    for name, size in sizes.items():
        print(f"  {name:<8} {size / MIB:9.1f} MiB   a day {24 / given.hours * size / MIB:9.1f} MiB")
    for hour, held in memory:
        print(f"  resident after {hour:6.2f} h  {held / MIB:7.1f} MiB")
    for what, answer in answers.items():
        print(f"  {what:<34} {answer['ms']:8.2f} ms  {answer['rows']} rows")


if __name__ == "__main__":
    main()
