"""An embedded run again and again, each time under another draw of the hardware's constants.

Same scenario, same seed, same plan (common random numbers): only
``server.hardware.draw`` differs, by which the server draws its board and
efficiencies. Draws run in virtual time, spread over processes; which process
runs a draw does not matter to it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import multiprocessing
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from loadgen import clock
from loadgen.errors import ConfigError, LoadgenError
from loadgen.experiment import Order, deaf_to_ctrl_c, execute
from loadgen.progress import RunView
from loadgen.scenario import Scenario

T = TypeVar("T")


def refuse(scenario: Scenario, clock_name: str | None) -> None:
    """Raises ConfigError for a run of which there are no draws: a real server, real time."""
    if scenario.server.url is not None:
        raise ConfigError(
            "--uncertainty: only the embedded server has constants to draw, and there is a url "
            "(a real board's uncertainty is its sensor's and the sampling interval)"
        )
    if clock_name == "real":
        raise ConfigError("--uncertainty: the draws run in virtual time, and --clock is real")
    if scenario.server.hardware.draw is not None:
        raise ConfigError(
            "--uncertainty: draws server.hardware.draw itself, and the scenario sets it to "
            f"{scenario.server.hardware.draw}"
        )


def perturbed(scenario: Scenario, draw: int) -> Scenario:
    """The scenario on hardware whose constants are the draw with this number (>= 0)."""
    hardware = scenario.server.hardware.model_copy(update={"draw": draw})
    server = scenario.server.model_copy(update={"hardware": hardware})
    return scenario.model_copy(update={"server": server})


def repeat(
    order: Order, count: int, measure: Callable[[Path], T], *, workers: int | None = None
) -> Iterator[tuple[int, T]]:
    """Runs draws 0 .. count - 1 of the order and yields each one's number and measurement as it ends.

    ``measure`` gets a sealed run directory that is gone afterwards; with several
    ``workers`` (default: one per CPU) it must be a module's function. Closing the
    iterator, or Ctrl-C in it, ends the processes and leaves nothing behind.
    Raises LoadgenError when a draw cannot be run.
    """
    workers = min(count, workers or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="loadgen-draws-") as scratch:
        order = dataclasses.replace(order, parent=Path(scratch))
        if workers == 1:
            for draw in range(count):
                yield draw, _one(order, draw, measure)
        else:
            yield from _spread(order, count, measure, workers)


def _one(order: Order, draw: int, measure: Callable[[Path], T]) -> T:
    parent = order.parent / str(draw)
    one = dataclasses.replace(order, scenario=perturbed(order.scenario, draw), parent=parent)
    view = RunView(Console(stderr=True), len(order.planned.measured.arrivals), quiet=True)
    with asyncio.Runner(loop_factory=clock.VirtualLoop) as runner:
        path = runner.run(execute(one, view))
    measured = measure(path)
    shutil.rmtree(parent)
    return measured


def _spread(order: Order, count: int, measure: Callable[[Path], T], workers: int) -> Iterator[tuple[int, T]]:
    # Fresh processes: forking one with threads (a live view, BLAS) may deadlock the child.
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        with deaf_to_ctrl_c():  # inherited: an interruption is this process's to handle
            for _ in range(workers):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there,), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                pipes.append(here)
        yield from _collected(pipes, count, pickle.dumps((order, measure)))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _collected(pipes: list[Connection], count: int, work: bytes) -> Iterator[tuple[int, Any]]:
    """Hands every process the work and its share of the draws; yields what comes back."""
    missing = set(range(count))
    for first, pipe in enumerate(pipes):
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: its draws stay missing
            pipe.send_bytes(work)
            pipe.send(range(first, count, len(pipes)))
    left = list(pipes)
    while left:
        for ready in wait(left):
            assert isinstance(ready, Connection)
            try:
                draw, measured = ready.recv()
            except (EOFError, ConnectionResetError):
                left.remove(ready)
                continue
            if isinstance(measured, LoadgenError):
                raise measured
            missing.remove(draw)
            yield draw, measured
    if missing:
        raise LoadgenError(
            f"--uncertainty: {len(missing)} of {count} draws have no result: their process ended"
        )


def _work(pipe: Connection) -> None:
    """One process: runs its share of the draws and sends back what was measured of each."""
    order, measure = pickle.loads(pipe.recv_bytes())
    draws = pipe.recv()
    gc.collect()
    gc.freeze()  # the plan lives as long as the process; no collection should walk it again
    with pipe:
        for draw in draws:
            try:
                pipe.send((draw, _one(order, draw, measure)))
            except LoadgenError as exc:
                pipe.send((draw, exc))
                return
