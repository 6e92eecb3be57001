"""The simulated board: its states, power history, exact energy, and what NVML would show.

Pure: every instant is passed in, on one clock chosen by the caller. A board is
off, bare idle (driver loaded, no context), context idle (model loaded, nothing
running), busy, or in the tail in which some boards stay at raised clocks after
work (``gpu.tail_s`` at ``gpu.tail_w``; 0 s where none is known).

Two factors make one board differ from its type. ``power_gain`` is manufacturing
spread: it scales the power really drawn, in every state. ``sensor_gain`` scales
only what is published, so that a run can be checked against the true energy.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import floor
from typing import Literal

import numpy as np

from loadgen.errors import PowerError
from loadgen.physics.hardware import Gpu

Rest = Literal["off", "bare idle", "context idle"]
State = Literal["off", "bare idle", "context idle", "tail", "busy"]
RESTS: tuple[Rest, ...] = ("off", "bare idle", "context idle")


@dataclass(frozen=True, slots=True)
class Sensor:
    """How the driver publishes a board's power.

    Counter and power appear every ``publish_s``; the instant power is the mean
    of the last ``instant_window_s`` before that, the average one of the last
    ``average_window_s``. Seconds.
    """

    publish_s: float
    instant_window_s: float
    average_window_s: float
    source: str


_PART_TIME = "25 of every 100 ms are sampled (SC24, arXiv 2312.02741); 1 s average (nvml.h)"
_FULL_TIME = Sensor(0.1, 0.1, 1.0, "assumed: 100 ms without a gap (no public window); 1 s average (nvml.h)")
SENSORS: dict[str, Sensor] = {
    "h100-sxm": Sensor(0.1, 0.025, 1.0, _PART_TIME),
    "h200-sxm": Sensor(0.1, 0.025, 1.0, f"assumed as the H100: {_PART_TIME}"),
    "a100-sxm": Sensor(0.1, 0.025, 0.025, "25 of every 100 ms (SC24); GA100 has no 1 s average (nvml.h)"),
}
"""By board id. Others: every 100 ms, over all of them, and a 1 s average."""


def sensor_of(gpu: Gpu) -> Sensor:
    """The sensor of a board type."""
    return SENSORS.get(gpu.id, _FULL_TIME)


@dataclass(frozen=True, slots=True)
class Published:
    """What the driver reports now: values of the latest publication instant.

    ``energy_j`` is the counter since the driver was loaded, truncated to whole
    millijoules; ``instant_w`` and ``average_w`` are the means over the sensor's
    windows before the publication at ``at_s``.
    """

    at_s: float
    energy_j: float
    instant_w: float
    average_w: float


class Board:
    """A piecewise-constant power history from ``start_s`` on, where the board is in ``state``.

    ``busy``, ``advance`` and ``enter`` extend it; what they return sums, over
    the whole run, to ``energy_j`` at its end. Only the ``history_s`` seconds
    before the last extension are kept, so memory does not grow. Past the recorded
    end the board is taken to rest (tail included) until something else is
    recorded; before ``start_s`` it was in ``state`` too, with the counter at 0.

    Real power is ``power_gain`` times the type's, but at most the TDP, where the
    board holds itself; a real one clocks down to do so, here its steps take no
    longer, and ``capped_s`` says for how long that was. Publications happen at
    ``start_s + publish_phase_s + k x 100 ms``. Raises ValueError for a gain that
    is not positive or a phase outside one period.
    """

    def __init__(
        self,
        gpu: Gpu,
        start_s: float,
        *,
        state: Rest = "context idle",
        power_gain: float = 1.0,
        sensor_gain: float = 1.0,
        publish_phase_s: float = 0.0,
        history_s: float = 5.0,
    ) -> None:
        self.sensor = sensor_of(gpu)
        if not (power_gain > 0 and sensor_gain > 0):
            raise ValueError(f"board: expected gains > 0, got power {power_gain}, sensor {sensor_gain}")
        if not 0 <= publish_phase_s < self.sensor.publish_s:
            raise ValueError(
                f"board: expected a publication phase within {self.sensor.publish_s} s, got {publish_phase_s}"
            )
        self.gpu = gpu
        self.start_s = start_s
        self.history_s = history_s
        self.power_gain = power_gain
        self.sensor_gain = sensor_gain
        self.publish_phase_s = publish_phase_s
        self.capped_s = 0.0
        self._rest: Rest = state
        self._tail_end_s = start_s
        self._tail_w = self._drawn_w(gpu.tail_w)
        self._rest_w = self._before_start_w = self._resting_w(state)
        # The driver's counter: loaded at this instant, when the true energy was this.
        self._loaded_s, self._loaded_j = start_s, 0.0
        # Segment i draws powers[i] from starts[i] to the next start (the last: to end_s);
        # before[i] is the cumulative energy at starts[i].
        self._starts: list[float] = [start_s]
        self._powers: list[float] = [self._before_start_w]
        self._before: list[float] = [0.0]
        self._end_s = start_s
        self._end_j = 0.0
        self._busy_from_s = self._busy_end_s = start_s

    @classmethod
    def drawn(cls, gpu: Gpu, start_s: float, rng: np.random.Generator, *, sensor_gain: float = 1.0) -> Board:
        """One board of the type, taken at random from those made.

        Power gain: lognormal with median 1 and deviation ``gpu.power_spread``;
        its sensor's: uniform within ``gpu.sensor_gain_error``, times the
        ``sensor_gain`` given; publications begin at any phase, since the driver
        was not loaded in step with this clock.
        """
        return cls(
            gpu,
            start_s,
            power_gain=float(np.exp(gpu.power_spread * rng.standard_normal())),
            sensor_gain=sensor_gain * (1.0 + gpu.sensor_gain_error * float(rng.uniform(-1, 1))),
            publish_phase_s=sensor_of(gpu).publish_s * float(rng.random()),
        )

    @property
    def end_s(self) -> float:
        """The instant up to which the history is recorded."""
        return self._end_s

    def state(self, t_s: float) -> State:
        """The state at an instant not before the last step or change of state."""
        if self._busy_from_s <= t_s < self._busy_end_s:
            return "busy"
        return "tail" if self._busy_end_s <= t_s < self._tail_end_s else self._rest

    def enter(self, state: Rest, t_s: float) -> float:
        """Rests until ``t_s``, then changes state; the energy of the rest, in joules.

        Ends a tail. A board that was off comes back with a counter at 0, as after
        any load of the driver. Raises ValueError for an instant before the
        recorded end, or a state that cannot be entered: ``busy`` records steps.
        """
        if state not in RESTS:
            raise ValueError(f"enter: expected one of {', '.join(RESTS)}, got {state}")
        self._not_before_end("enter", t_s)
        energy_j = self.advance(t_s)
        if self._rest == "off" and state != "off":
            self._loaded_s, self._loaded_j = self._end_s, self._end_j
        self._rest, self._rest_w = state, self._resting_w(state)
        self._busy_from_s = self._busy_end_s = self._tail_end_s = self._end_s
        return energy_j

    def advance(self, until_s: float) -> float:
        """Records rest up to ``until_s`` (nothing if that is past); its energy in joules."""
        energy_j = 0.0
        if until_s <= self._end_s:
            return energy_j
        if self._end_s < self._tail_end_s:
            energy_j = self._extend(min(until_s, self._tail_end_s), self._tail_w)
        if until_s > self._end_s:
            energy_j += self._extend(until_s, self._rest_w)
        return energy_j

    def busy(self, start_s: float, duration_s: float, power_w: float) -> float:
        """Records a step, rest before it if there is a gap; the step's energy in joules.

        ``power_w`` is the type's, before ``power_gain``. Raises ValueError when
        the step begins before the recorded end, when its power is not between the
        type's bare idle power and its TDP, or when the board holds no context.
        """
        self._not_before_end("busy", start_s)
        if self._rest != "context idle":
            raise ValueError(f"busy: {self.gpu.id} is {self._rest}, a step needs a context")
        if not self.gpu.bare_idle_w <= power_w <= self.gpu.tdp_w * (1 + 1e-12):
            raise ValueError(
                f"busy: {power_w} W is outside {self.gpu.bare_idle_w}..{self.gpu.tdp_w} W of {self.gpu.id}"
            )
        self.advance(start_s)
        self._busy_from_s = self._end_s
        if power_w * self.power_gain > self.gpu.tdp_w * (1 + 1e-9):
            self.capped_s += duration_s
        energy_j = self._extend(self._end_s + duration_s, self._drawn_w(power_w))
        self._busy_end_s = self._end_s
        self._tail_end_s = self._busy_end_s + self.gpu.tail_s
        return energy_j

    def energy_j(self, t_s: float) -> float:
        """Exact energy from ``start_s`` to ``t_s``; 0 before the start.

        Raises ValueError for an instant older than the kept history.
        """
        if t_s >= self._end_s:
            tail_s = max(0.0, min(t_s, self._tail_end_s) - self._end_s)
            rest_s = t_s - self._end_s - tail_s
            return self._end_j + tail_s * self._tail_w + rest_s * self._rest_w
        if t_s <= self.start_s:
            return 0.0
        i = bisect_right(self._starts, t_s) - 1
        if i < 0:
            raise ValueError(f"energy_j: {t_s} s is older than the history kept ({self.history_s} s)")
        return self._before[i] + (t_s - self._starts[i]) * self._powers[i]

    def mean_power_w(self, from_s: float, to_s: float) -> float:
        """Mean power over ``from_s < to_s``, the first state before the start. Raises as ``energy_j``."""
        early_j = max(0.0, min(to_s, self.start_s) - from_s) * self._before_start_w
        return (self.energy_j(to_s) - self.energy_j(from_s) + early_j) / (to_s - from_s)

    def published(self, t_s: float) -> Published:
        """What reading the driver at ``t_s`` returns, ``sensor_gain`` included.

        Raises PowerError while the board is off.
        """
        if self._rest == "off" and t_s >= self._end_s:
            raise PowerError(f"{self.gpu.name} is off")
        sensor, gain = self.sensor, self.sensor_gain
        first_s = self._loaded_s + self.publish_phase_s
        # The small bias keeps a read exactly at a publication from seeing the one before it.
        at_s = first_s + floor((t_s - first_s) / sensor.publish_s + 1e-6) * sensor.publish_s
        counted_j = gain * max(0.0, self.energy_j(at_s) - self._loaded_j)
        return Published(
            at_s=at_s,
            energy_j=floor(counted_j * 1e3 + 1e-6) / 1e3,
            instant_w=gain * self.mean_power_w(at_s - sensor.instant_window_s, at_s),
            average_w=gain * self.mean_power_w(at_s - sensor.average_window_s, at_s),
        )

    def _drawn_w(self, power_w: float) -> float:
        return min(power_w * self.power_gain, self.gpu.tdp_w)

    def _resting_w(self, rest: Rest) -> float:
        if rest == "off":
            return 0.0
        return self._drawn_w(self.gpu.bare_idle_w if rest == "bare idle" else self.gpu.context_idle_w)

    def _not_before_end(self, what: str, t_s: float) -> None:
        if t_s < self._end_s - 1e-9:
            raise ValueError(f"{what}: starts at {t_s} s, the history already reaches {self._end_s} s")

    def _extend(self, until_s: float, power_w: float) -> float:
        joules = (until_s - self._end_s) * power_w
        if power_w != self._powers[-1]:
            self._starts.append(self._end_s)
            self._powers.append(power_w)
            self._before.append(self._end_j)
        # Readers are inside this stretch, however long it is: what came before it is kept from its beginning.
        kept_s = self._end_s - self.history_s
        self._end_s = until_s
        self._end_j += joules
        # Forgetting in batches keeps the cost of a step constant.
        if len(self._starts) > 4096 and self._starts[2048] < kept_s:
            keep = bisect_right(self._starts, kept_s) - 1
            del self._starts[:keep], self._powers[:keep], self._before[:keep]
        return joules
