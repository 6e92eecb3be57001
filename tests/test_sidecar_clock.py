"""The clock of a sidecar in another process, over a link whose ways are unequal, and energy by it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_sidecar import Scripted

from analysis.run import run_time_s
from loadgen import clock
from loadgen.power.feed import Sink
from loadgen.power.sidecars import Sidecars, open_sidecars
from loadgen.types import Reading

HERE = Path(__file__).resolve().parent
OUT_S, BACK_S = 3e-3, 0.5e-3
"""One-way delays of the link, unequal."""


@asynccontextmanager
async def delaying(port: int) -> AsyncIterator[int]:
    """A TCP proxy that takes `OUT_S` one way and `BACK_S` the other."""
    loop = asyncio.get_running_loop()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        while data := await reader.read(65536):
            loop.call_later(delay_s, writer.write, data)
        loop.call_later(delay_s, writer.close)

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer, OUT_S), pump(far_reader, writer, BACK_S))

    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@asynccontextmanager
async def scripted(**options: Any) -> AsyncIterator[int]:
    """A scripted sidecar in a process of its own, and its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "scripted_sidecar.py"),
        json.dumps(options),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"},
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.communicate()


async def followed(seconds: float, **options: Any) -> tuple[dict[str, Any], list[Reading], float]:
    """(the manifest's row, readings of the counter, when it ended), through the delaying link."""
    kept: list[Reading] = []
    async with scripted(**options) as far, delaying(far) as port:
        await asyncio.sleep(0.3)
        opened: Sidecars
        async with open_sidecars(
            [("", f"http://127.0.0.1:{port}")],
            token=None,
            server_url="http://127.0.0.1:1",
            baseline_s=0.0,
        ) as opened:
            async with opened.following(Sink(kept.append, lambda _: None, lambda _: None)):
                await asyncio.sleep(seconds)
                ended_s = clock.now()
            (row,) = opened.manifest(0.0)
    return row, [r for r in kept if r.domain == "gpu0"], ended_s


PERIOD_S = 1.0
CLOCKS = [(1.0, 50.0), (-1.0, -50.0), (-1.0, 5e3)]


@pytest.fixture(scope="module")
def clocks() -> list[tuple[dict[str, Any], list[Reading], float]]:
    """All of `CLOCKS` followed at once, to take the time of one."""

    async def main() -> list[Any]:
        return list(
            await asyncio.gather(
                *(followed(2.4, skew_s=s, drift_ppm=p, period_s=PERIOD_S) for s, p in CLOCKS)
            )
        )

    return asyncio.run(main())


@pytest.mark.parametrize("case", range(len(CLOCKS)))
def test_offset_and_drift_of_another_processs_clock_are_found_within_the_bound(
    clocks: list[tuple[dict[str, Any], list[Reading], float]], case: int
) -> None:
    (skew_s, ppm), (row, _, _) = CLOCKS[case], clocks[case]
    truth = Scripted(skew_s=skew_s, drift_ppm=ppm, origin_s=0.0)
    found = row["clock"]
    for end in ("start", "end"):
        at_s, offset_s, bound_s = (found[end][key] for key in ("at_s", "offset_s", "bound_s"))
        # While the question is under way the far clock gains a little of it.
        slack_s = 1e-6 * abs(ppm) * 2 * bound_s
        assert abs(offset_s - (truth.remote_s(at_s) - at_s)) <= bound_s + slack_s
        assert bound_s >= (OUT_S + BACK_S) / 2
        assert bound_s < 10e-3 or abs(ppm) > 1e3  # which moves it while 50 questions are asked
        # The ways are unequal: the midpoint is off by half their difference, which the bound allows for.
        assert abs(offset_s - (truth.remote_s(at_s) - at_s)) > 0.25 * abs(OUT_S - BACK_S)
    span_s = found["end"]["at_s"] - found["start"]["at_s"]
    both_s = found["start"]["bound_s"] + found["end"]["bound_s"]
    assert abs(found["drift_ppm"] - ppm) <= 1e6 * both_s / span_s + 1e-6 * abs(ppm)
    assert found["bound_s"] >= max(found["start"]["bound_s"], found["end"]["bound_s"])


@pytest.mark.parametrize("case", range(len(CLOCKS)))
def test_energy_of_each_half_second_moves_by_less_than_1_percent(
    clocks: list[tuple[dict[str, Any], list[Reading], float]], case: int
) -> None:
    """500 and 100 W in turn; each slice begins in one half and ends in the other, far from the edges."""
    (skew_s, ppm), (row, readings, ended_s) = CLOCKS[case], clocks[case]
    assert row["samples"]["missing"] == 0
    written_s = np.array([r.t_s for r in readings])
    energy_j = np.array([r.energy_j for r in readings])
    truth = Scripted(skew_s=skew_s, drift_ppm=ppm, origin_s=0.0, period_s=PERIOD_S)
    half_s = PERIOD_S / 2
    edges_s = np.arange((np.ceil(written_s[0] / half_s) + 0.5) * half_s, ended_s, half_s)
    true_j = np.diff([truth.energy_j(t) for t in edges_s])

    def off(t_s: Any) -> float:
        return float(np.max(np.abs(np.diff(np.interp(edges_s, t_s, energy_j)) / true_j - 1)))

    assert len(true_j) >= 2
    assert off(run_time_s(written_s, row["clock"])) < 0.01
    if abs(ppm) > 1e3:  # 12 ms in 2.4 s: without the correction the last slices are wrong
        assert off(written_s) > 0.01
