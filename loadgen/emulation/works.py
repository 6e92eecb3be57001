"""What every step of a simulation did, so that its energy can be taken again under other power constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np

from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.power import busy_powers_w
from loadgen.physics.transformer import DecodeLine, StepCost, StepModel, StepRows
from loadgen.physics.uncertainty import draw
from loadgen.types import Floats

if TYPE_CHECKING:
    from loadgen.emulation.served import Served


@dataclass(frozen=True, slots=True)
class Works:
    """Steps of one board, (k,) each: seconds, HBM traffic over peak bandwidth, FLOP rate over peak."""

    duration_s: Floats
    memory_utilisation: Floats
    compute_utilisation: Floats

    def busy_j(self, gpu: Gpu) -> float:
        """Joules of one board of these constants that does these steps in the same times."""
        watts = busy_powers_w(gpu, self.memory_utilisation, self.compute_utilisation)
        return float(watts @ self.duration_s)


class Recorder:
    """A step model that also keeps what it was asked for.

    A leap of k steps is asked for at two nodes of equal weight in steps; their shares of the leap's time
    are as their step times, which is how the engine weighs their powers.
    """

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._nodes: list[tuple[float, float, float]] = []
        self._kept: list[tuple[float, float, float]] = []

    def step(self, **rows: Unpack[StepRows]) -> StepCost:
        """As the model; kept."""
        cost = self._model.step(**rows)
        self._nodes.append((cost.duration_s, cost.flop, cost.traffic_bytes))
        return cost

    def decode_line(self, rows: int) -> DecodeLine | None:
        """As the model."""
        return self._model.decode_line(rows)

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        """As the model; kept."""
        self._nodes.append((duration_s, flop, traffic_bytes))
        return self._model.power_w(duration_s, flop, traffic_bytes)

    def took(self, duration_s: float) -> None:
        """The work that was asked for since the last call takes so long in all."""
        total_s = sum(node[0] for node in self._nodes)
        for seconds, flop, traffic in self._nodes:
            self._kept.append((duration_s * seconds / total_s, flop / seconds, traffic / seconds))
        self._nodes.clear()

    def works(self) -> Works:
        """All of it."""
        table = np.array(self._kept, dtype=np.float64).reshape(-1, 3)
        model = self._model
        return Works(
            table[:, 0],
            table[:, 2] / model.gpu.bandwidth_bytes_per_s,
            table[:, 1] / model.peak_flop_per_s,
        )


def power_draws(gpu: Gpu, count: int, seed: int) -> list[Gpu]:
    """The board ``count`` times, its uncertain constants drawn anew (`loadgen.physics.uncertainty`)."""
    return [draw(gpu, Efficiency(), np.random.default_rng([seed, number]))[0] for number in range(count)]


def redrawn_j(served: Served, gpu: Gpu, shards: int, drawn: Sequence[Gpu]) -> Floats:
    """Joules of all ``shards`` boards, idle included, under other power constants; times stay, (draws,).

    ``served``: with its works, on boards of ``gpu``. The tail after work lasts as long on every draw.
    """
    works = served.works
    assert works is not None
    idle_s = served.end_s - served.busy_s
    above_w = gpu.tail_w - gpu.context_idle_w
    tail_s = (served.idle_j / shards - idle_s * gpu.context_idle_w) / above_w if above_w > 0 else 0.0
    joules = [
        works.busy_j(one) + tail_s * one.tail_w + (idle_s - tail_s) * one.context_idle_w for one in drawn
    ]
    return shards * np.array(joules)
