"""The embedded server's boards and host, read as real ones are.

A board publishes what NVML would (an energy counter every 100 ms, an instant
power, an average one), so the code that integrates these readings is the code
that a real board gets. CPU and RAM of the simulated host are constants, hence
``estimated``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.ram import ram_power_w
from loadgen.types import Domain, Reading

CPU_W = 50.0
"""0.024 Wh of CPU over the 1.74 s of a request in the thank-you study (arXiv 2601.22362): 49.7 W."""
RAM_GB = 256.0


class Published(Protocol):
    """What a board shows at some instant, older than the instant by up to its publication period."""

    @property
    def energy_j(self) -> float: ...
    @property
    def instant_w(self) -> float: ...
    @property
    def average_w(self) -> float: ...


class Sensor(Protocol):
    """How a board publishes its power; seconds."""

    @property
    def publish_s(self) -> float: ...
    @property
    def instant_window_s(self) -> float: ...
    @property
    def average_window_s(self) -> float: ...


class SimulatedBoard(Protocol):
    """The part of `loadgen.server.gpu.Board` that a power source may see."""

    @property
    def sensor(self) -> Sensor: ...

    def published(self, t_s: float, /) -> Published: ...


class SimulatedSource:
    """Domains ``gpu0``, ``gpu0.instant``, ``gpu0.average``, ``gpu1``, ..., ``cpu0.package``, ``ram``.

    ``boards``: the service's boards, one per shard, on ``clock.now()``. ``cpu_w``:
    constant power of the host's CPU package; ``ram_gb``: its memory; ``gpu`` and
    ``power_limit_w`` describe each board in ``boards``, the manifest's rows. Host
    energies count from the source's making. Raises PowerError for a host that
    cannot be.
    """

    blocking = False

    def __init__(
        self,
        boards: Sequence[SimulatedBoard],
        *,
        cpu_w: float = CPU_W,
        ram_gb: float = RAM_GB,
        gpu: str = "simulated",
        power_limit_w: float | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        if not boards:
            raise PowerError("the embedded server has no board to read")
        if not cpu_w >= 0:
            raise PowerError(f"power.cpu_w: expected >= 0, got {cpu_w:g}")
        try:
            ram_w = ram_power_w(ram_gb)
        except ValueError as exc:
            raise PowerError(f"power.{exc}") from exc
        self._boards = {f"gpu{index}": board for index, board in enumerate(boards)}
        self._now = now
        self._made_s = now()
        self._host_w = {"cpu0.package": cpu_w, "ram": ram_w}
        self._domains = (
            *(domain for name, board in self._boards.items() for domain in _domains(name, board.sensor)),
            Domain(
                "cpu0.package",
                "estimated",
                None,
                f"simulated host: constant {cpu_w:g} W (the thank-you study's 0.024 Wh over 1.74 s)",
            ),
            Domain(
                "ram",
                "estimated",
                None,
                f"simulated host: constant {ram_w:g} W, CodeCarbon v3's formula for {ram_gb:g} GB",
            ),
        )
        self.boards: tuple[dict[str, object], ...] = tuple(
            {"domain": name, "index": index, "name": gpu, "power_limit_w": power_limit_w}
            for index, name in enumerate(self._boards)
        )
        self.warnings: list[str] = []

    def domains(self) -> Sequence[Domain]:
        """What is read, in the order of `read`."""
        return self._domains

    def read(self) -> list[Reading]:
        """One reading of each domain, stamped ``clock.now()``.

        A board that does not answer (it is off) leaves a gap and one warning.
        """
        now_s = self._now()
        readings: list[Reading] = []
        for name, board in self._boards.items():
            try:
                shown = board.published(now_s)
            except PowerError as exc:
                warning = f"power: {name}: {exc}"
                if warning not in self.warnings:
                    self.warnings.append(warning)
                continue
            readings.append(Reading(now_s, name, energy_j=shown.energy_j))
            readings.append(Reading(now_s, f"{name}.instant", power_w=shown.instant_w))
            readings.append(Reading(now_s, f"{name}.average", power_w=shown.average_w))
        elapsed_s = now_s - self._made_s
        readings += [
            Reading(now_s, name, energy_j=power_w * elapsed_s) for name, power_w in self._host_w.items()
        ]
        return readings

    def close(self) -> None:
        """Nothing is held."""


def _domains(name: str, sensor: Sensor) -> tuple[Domain, ...]:
    model = "the embedded server's power model, published as NVML does"
    every = f"every {1e3 * sensor.publish_s:g} ms"
    instant_s, average_s = sensor.instant_window_s, sensor.average_window_s
    shown = (
        (name, None, f"energy counter {every}"),
        (f"{name}.instant", instant_s, f"{1e3 * instant_s:g} ms window {every}"),
        (f"{name}.average", average_s, f"{1e3 * average_s:g} ms average"),
    )
    return tuple(
        Domain(domain, "simulated", window_s, f"{what}; {model}", sensor.publish_s)
        for domain, window_s, what in shown
    )
