"""A host's memory and CPU by estimate, for what nothing meters. Both are labelled ``estimated``.

Memory is a constant for its size (`loadgen.power.ram`). The CPU, only when asked
for, is its thermal design power times the share of time in which it was not idle
(``/proc/stat``, https://man7.org/linux/man-pages/man5/proc_stat.5.html):
``E = TDP sum(busy ticks / ticks x elapsed)``. It knows neither idle power nor
frequency.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.ram import ram_power_w
from loadgen.types import Domain, Reading

RamVersion = Literal[2, 3]
PROC = Path("/proc")
_KIB_PER_GB = 2**20
_IDLE, _IOWAIT, _STEAL = 3, 4, 7  # columns of the line "cpu" in /proc/stat
_COLUMNS = 8  # user nice system idle iowait irq softirq steal; guest time is in user already


def installed_gb(root: Path = PROC) -> float:
    """Memory of this host, in GB of 2^30 bytes as DIMMs are sold: MemTotal of ``root/meminfo``, rounded up.

    The kernel keeps 1-3 % to itself (251 GB of 256), which would change the guessed
    number of DIMMs: the next step of an eighth of the power of two below is taken.
    Raises PowerError when there is no such line.
    """
    path = root / "meminfo"
    try:
        rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        total_gb = int(rows["MemTotal"].split()[0]) / _KIB_PER_GB
    except (OSError, KeyError, ValueError, IndexError) as exc:
        raise PowerError(f"ram: {path} does not tell the memory of this host: not Linux?") from exc
    if total_gb <= 0:
        raise PowerError(f"ram: {path}: MemTotal is 0")
    step_gb = 2.0 ** (math.floor(math.log2(total_gb)) - 3)
    return math.ceil(total_gb / step_gb) * step_gb


class RamEstimate:
    """Domain ``ram``: constant power for ``ram_gb``, joules since its making or ``resume``.

    ``version`` of CodeCarbon's formula: 3 by DIMMs, 2 at 0.375 W/GB. ``arm``:
    this host's processor is one, whose DIMMs version 3 counts at 1.5 W. ``resume``:
    the (instant, joules) that an earlier estimate had in this boot, to go on from; the
    memory drew its power in between. Raises PowerError unless ``ram_gb`` > 0.
    """

    blocking = False

    def __init__(
        self,
        ram_gb: float,
        version: RamVersion = 3,
        *,
        arm: bool | None = None,
        resume: tuple[float, float] | None = None,
    ) -> None:
        if arm is None:
            arm = platform.machine().lower() in ("aarch64", "arm64")
        try:
            self._power_w = ram_power_w(ram_gb, arm=arm, version=version)
        except ValueError as exc:
            raise PowerError(f"ram: {exc}") from exc
        note = f"constant {self._power_w:g} W, CodeCarbon v{version}'s formula for {ram_gb:g} GB"
        self._domain = Domain("ram", "estimated", None, note)
        self._from_s, self._from_j = resume or (clock.now(), 0.0)
        self.warnings: list[str] = []

    def domains(self) -> Sequence[Domain]:
        """The one domain."""
        return [self._domain]

    def read(self) -> list[Reading]:
        """Power times the time since the making, stamped ``clock.now()``."""
        now_s = clock.now()
        return [Reading(now_s, "ram", energy_j=self._from_j + self._power_w * (now_s - self._from_s))]

    def close(self) -> None:
        """Nothing is held."""


class CpuEstimate:
    """Domain ``cpu0.package``: all processors together, ``tdp_w`` times the busy share.

    ``tdp_w``: watts of all sockets. ``root`` holds ``stat``. Waiting for disks and
    time that a hypervisor gave to others count as idle. ``resume``: the (instant,
    joules) of an earlier estimate, to go on from; the time between adds nothing, since
    its busy share is not known. Raises PowerError when the file does not tell or
    ``tdp_w`` is not > 0.
    """

    blocking = False

    def __init__(self, tdp_w: float, root: Path = PROC, *, resume: tuple[float, float] | None = None) -> None:
        if not (tdp_w > 0 and math.isfinite(tdp_w)):
            raise PowerError(f"power.cpu_tdp_w: expected > 0, got {tdp_w:g}")
        self._tdp_w, self._path = tdp_w, root / "stat"
        note = f"{tdp_w:g} W (thermal design power, as given) x the busy share of {self._path}"
        self._domain = Domain("cpu0.package", "estimated", None, note)
        self._energy_j = 0.0 if resume is None else resume[1]
        self._busy, self._all = _ticks(self._path)
        self._last_s = clock.now()
        self.warnings: list[str] = []

    def domains(self) -> Sequence[Domain]:
        """The one domain."""
        return [self._domain]

    def read(self) -> list[Reading]:
        """Joules since the making, stamped ``clock.now()``. Raises PowerError when the file does not tell.

        Between two ticks (10 ms) nothing is known yet; the next read has it.
        """
        busy, total = _ticks(self._path)
        now_s = clock.now()
        if total > self._all:
            share = min(1.0, max(0.0, (busy - self._busy) / (total - self._all)))
            self._energy_j += self._tdp_w * share * (now_s - self._last_s)
            self._busy, self._all, self._last_s = busy, total, now_s
        return [Reading(now_s, "cpu0.package", energy_j=self._energy_j)]

    def close(self) -> None:
        """Nothing is held."""


def _ticks(path: Path) -> tuple[int, int]:
    """(busy, all) ticks of all processors since boot. Raises PowerError."""
    try:
        name, *words = path.read_text().partition("\n")[0].split()
        ticks = [int(word) for word in words[:_COLUMNS]]
    except (OSError, ValueError) as exc:
        raise PowerError(f"cpu: {path} cannot be read ({exc}): leave power.cpu_tdp_w out here") from exc
    if name != "cpu" or len(ticks) < _COLUMNS:
        raise PowerError(f"cpu: {path} does not begin with the processors' ticks")
    idle = ticks[_IDLE] + ticks[_IOWAIT] + ticks[_STEAL]
    return sum(ticks) - idle, sum(ticks)
