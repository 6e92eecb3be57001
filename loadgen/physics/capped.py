"""A power cap: every step runs at the highest SM clock whose power is within it.

A real board's controller reacts within tens of milliseconds, so single steps
overshoot and the mean over a second holds; here each step holds by itself.
"""

from __future__ import annotations

from typing import Unpack

from loadgen.physics.clocks import at_clock, clocks_of, most_power_w
from loadgen.physics.formats import Dtype
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.models import Transformer
from loadgen.physics.power import busy_power_w
from loadgen.physics.transformer import DecodeLine, StepCost, StepModel, StepRows


class CappedStepModel:
    """Steps of a model on ``shards`` boards whose power is capped at ``cap_w`` each.

    ``gpu`` and ``efficiency`` are the board's at ``sm_clock_mhz`` (None: its
    highest clock), which the clock never exceeds; it falls in steps of 15 MHz.
    Where even the lowest clock draws more than the cap, the step runs at the
    lowest: ``limit_w`` is what no step exceeds, and equals ``cap_w`` on a board
    that can hold it.

    Power rises with the clock for the same work (t(f) and P(f) of
    `loadgen.physics.clocks`), so the clock is found by bisection, beginning at
    the last step's.
    """

    def __init__(
        self,
        model: Transformer,
        gpu: Gpu,
        dtype: Dtype,
        *,
        cap_w: float,
        sm_clock_mhz: float | None = None,
        shards: int = 1,
        efficiency: Efficiency | None = None,
    ) -> None:
        self.model, self.gpu, self.dtype, self.shards, self.cap_w = model, gpu, dtype, shards, cap_w
        self.efficiency = Efficiency() if efficiency is None else efficiency
        self.clocks_mhz = clocks_of(gpu).grid(sm_clock_mhz)
        self._models: list[StepModel | None] = [None] * len(self.clocks_mhz)
        self._last = 0
        self._top = self._at(0)
        lowest = self._at(len(self._models) - 1)
        self.limit_w = max(cap_w, most_power_w(lowest.gpu, lowest.efficiency))

    def step(self, **rows: Unpack[StepRows]) -> StepCost:
        """The cost of one forward pass at the clock the cap leaves; arguments as `StepModel.step`."""

        def at(index: int) -> StepCost:
            return self._at(index).step(**rows)

        found = at(0)
        if found.power_w <= self.cap_w:
            return found
        # Too much at `over`; the clock sought is the first within the cap, `within` at the latest.
        over, within, near = 0, len(self._models) - 1, self._last
        found = at(within)

        def probe(index: int) -> None:
            nonlocal over, within, found
            cost = at(index)
            if cost.power_w <= self.cap_w:
                within, found = index, cost
            else:
                over = index

        for index in (near, near - 1, near + 1):
            if over < index < within:
                probe(index)
        while over + 1 < within:
            probe((over + within) // 2)
        self._last = within
        return found

    def decode_line(self, rows: int) -> DecodeLine | None:
        """The line at the highest clock if it is within the cap at every context that fits, else None."""
        line = self._top.decode_line(rows)
        if line is None:
            return None
        longest = rows * self.model.max_position_embeddings
        uses = [
            (
                (line.traffic_bytes + line.traffic_slope * c)
                / (line.base_s + line.slope_s * c)
                / self.gpu.bandwidth_bytes_per_s,
                (line.flop + line.flop_slope * c)
                / (line.base_s + line.slope_s * c)
                / self._top.peak_flop_per_s,
            )
            for c in (0, longest)
        ]
        # Ratios of lines are monotone: each utilisation is largest at one of the ends.
        most_w = busy_power_w(self.gpu, max(m for m, _ in uses), max(a for _, a in uses))
        return line if most_w <= self.cap_w else None

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        """Mean watts of one board at the highest clock: that of the steps of a `decode_line`."""
        return self._top.power_w(duration_s, flop, traffic_bytes)

    def clock_mhz(self, **rows: Unpack[StepRows]) -> float:
        """The clock a step runs at; arguments as `step`."""
        if self.step(**rows).power_w == self._top.step(**rows).power_w:
            return self.clocks_mhz[0]
        return self.clocks_mhz[self._last]

    def _at(self, index: int) -> StepModel:
        model = self._models[index]
        if model is None:
            gpu, efficiency = at_clock(
                self.gpu, self.efficiency, self.clocks_mhz[index], now_mhz=self.clocks_mhz[0]
            )
            model = self._models[index] = StepModel(
                self.model, gpu, self.dtype, shards=self.shards, efficiency=efficiency
            )
        return model
