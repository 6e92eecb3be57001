"""The embedded server's board and host, read as real ones are.

The board publishes what NVML would (an energy counter every 100 ms, an instant
power from a 25 ms window, a 1 s average), so the code that integrates these
readings is the code that a real board gets. CPU and RAM of the simulated host
are constants, hence ``estimated``.
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
INSTANT_WINDOW_S = 0.025
AVERAGE_WINDOW_S = 1.0


class Published(Protocol):
    """What a board shows at some instant, older than the instant by up to its publication period."""

    @property
    def energy_j(self) -> float: ...
    @property
    def instant_w(self) -> float: ...
    @property
    def average_w(self) -> float: ...


class SimulatedBoard(Protocol):
    """The part of `loadgen.server.gpu.Board` that a power source may see."""

    def published(self, t_s: float, /) -> Published: ...


class SimulatedSource:
    """Domains ``gpu0``, ``gpu0.instant``, ``gpu0.average``, ``cpu0.package``, ``ram``.

    ``board``: the service's board, on ``clock.now()``. ``cpu_w``: constant power
    of the host's CPU package; ``ram_gb``: its memory; ``gpu`` and ``power_limit_w``
    describe the board in ``boards``, the manifest's rows. Energies count from the
    source's making. Raises PowerError for a host that cannot be.
    """

    blocking = False

    def __init__(
        self,
        board: SimulatedBoard,
        *,
        cpu_w: float = CPU_W,
        ram_gb: float = RAM_GB,
        gpu: str = "simulated",
        power_limit_w: float | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        if not cpu_w >= 0:
            raise PowerError(f"power.cpu_w: expected >= 0, got {cpu_w:g}")
        try:
            ram_w = ram_power_w(ram_gb)
        except ValueError as exc:
            raise PowerError(f"power.{exc}") from exc
        self._board = board
        self._now = now
        self._made_s = now()
        self._host_w = {"cpu0.package": cpu_w, "ram": ram_w}
        sensor = "the embedded server's power model, published as NVML does"
        self._domains = (
            Domain("gpu0", "simulated", None, f"energy counter; {sensor}"),
            Domain("gpu0.instant", "simulated", INSTANT_WINDOW_S, f"25 ms window every 100 ms; {sensor}"),
            Domain("gpu0.average", "simulated", AVERAGE_WINDOW_S, f"1 s average; {sensor}"),
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
        self.boards: tuple[dict[str, object], ...] = (
            {"domain": "gpu0", "name": gpu, "power_limit_w": power_limit_w},
        )

    def domains(self) -> Sequence[Domain]:
        """What is read, in the order of `read`."""
        return self._domains

    def read(self) -> list[Reading]:
        """One reading of each domain, stamped ``clock.now()``."""
        now_s = self._now()
        shown = self._board.published(now_s)
        elapsed_s = now_s - self._made_s
        readings = [
            Reading(now_s, "gpu0", energy_j=shown.energy_j),
            Reading(now_s, "gpu0.instant", power_w=shown.instant_w),
            Reading(now_s, "gpu0.average", power_w=shown.average_w),
        ]
        readings += [
            Reading(now_s, name, energy_j=power_w * elapsed_s) for name, power_w in self._host_w.items()
        ]
        return readings

    def close(self) -> None:
        """Nothing is held."""
