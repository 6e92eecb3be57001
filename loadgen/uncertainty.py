"""An embedded run again and again, each time under another draw of the hardware's constants.

Same scenario, same seed, same plan (common random numbers): only
``server.hardware.draw`` differs, by which the server draws its board and
efficiencies. Draws run in virtual time, spread over processes; which process
runs a draw does not matter to it.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from loadgen import pool
from loadgen.errors import ConfigError
from loadgen.experiment import Order, execute_unseen
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
    with tempfile.TemporaryDirectory(prefix="loadgen-draws-") as scratch:
        order = dataclasses.replace(order, parent=Path(scratch))
        task = partial(_one, order, measure)
        yield from pool.each(task, range(count), what="--uncertainty: {} of {} draws", workers=workers)


def _one(order: Order, measure: Callable[[Path], T], draw: int) -> T:
    parent = order.parent / str(draw)
    one = dataclasses.replace(order, scenario=perturbed(order.scenario, draw), parent=parent)
    measured = measure(execute_unseen(one))
    shutil.rmtree(parent)
    return measured
