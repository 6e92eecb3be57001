"""CPU energy from RAPL counters, as Linux's powercap tree shows them (Intel, and AMD since Zen).

A zone is a directory with ``name``, ``energy_uj`` and ``max_energy_range_uj``
(https://docs.kernel.org/power/powercap/powercap.html); its ``name`` says what it
is, its number does not. Packages (``package-N``, ``package-N-die-M``) become
``cpuN.package`` and their ``dram`` ``cpuN.dram``. ``core`` and ``uncore`` are parts
of the package, ``psys`` contains it: neither is read. A counter restarts from 0
above its range, so every sample is unwrapped by its own zone's range:
``E += (raw - last) mod range``.

A counter that cannot be trusted gives no reading, hence a gap that the analysis
sees; it never gives 0 J.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.types import Domain, Reading

POWERCAP = Path("/sys/class/powercap")
MOST_W = 2000.0
"""No package draws more (assumed: four times the 500 W of the largest socketed parts). A step above
it is a reset, not a wrap; a gap in which it could pass the whole range may hide a second wrap."""
UPDATE_S = 1e-3
"""RAPL publishes about every millisecond (Intel SDM vol. 3B, "RAPL Interfaces")."""
STALE_S = 0.3
"""A counter that stands still this long is frozen: RAPL publishes about every millisecond."""
_SETTLE_S, _SETTLE_TRIES = 0.01, 10
_JITTER_S = 0.1  # a sample's stamp against the instant of its publication
_MICRO = 1e-6
_PACKAGE = re.compile(r"^package-(\d+)(?:-die-\d+)?$")
INSTEAD = "or for an estimate set power.cpu_tdp_w (the sidecar's --cpu-tdp)"
"""What every reason ends with."""


class _Untrusted(Exception):
    """This counter's energy since the last sample cannot be known."""


@dataclass(slots=True)
class _Zone:
    """One counter, unwrapped. Microjoules as the kernel gives them, so that sums stay exact."""

    path: Path
    range_uj: int
    last_uj: int
    last_s: float
    changed_s: float
    total_uj: int
    """Equals the counter modulo its range, so that a later opening can go on from it."""

    @classmethod
    def open(cls, path: Path) -> _Zone:
        """Raises OSError, and PowerError for contents that are no counter."""
        range_uj = _number(path / "max_energy_range_uj")
        if range_uj <= 0:
            raise PowerError(f"{path}/max_energy_range_uj is {range_uj}: its wraps cannot be corrected")
        now_s, raw_uj = clock.now(), _number(path / "energy_uj")
        return cls(path, range_uj, raw_uj, now_s, now_s, raw_uj)

    def advance(self) -> None:
        """Takes a sample. Raises OSError, PowerError (unreadable now) and _Untrusted (from now on)."""
        raw_uj = _number(self.path / "energy_uj")
        now_s = clock.now()
        passed_s, step_uj = now_s - self.last_s, (raw_uj - self.last_uj) % self.range_uj
        if passed_s * MOST_W > self.range_uj * _MICRO:
            raise _Untrusted(f"{passed_s:.3g} s without a reading may hide more than one wrap")
        if step_uj * _MICRO > MOST_W * (passed_s + _JITTER_S):
            raise _Untrusted(
                f"the counter moved by {step_uj * _MICRO:.4g} J in {passed_s:.3g} s: a reset, not a wrap"
            )
        self.total_uj += step_uj
        self.last_uj, self.last_s = raw_uj, now_s
        if step_uj:
            self.changed_s = now_s
        elif now_s - self.changed_s >= STALE_S:
            raise PowerError(f"the counter has stood still for {STALE_S:g} s or more: no energy is known")


@dataclass(slots=True)
class _Counter:
    """One domain: a zone, or the dies of one package, whose energies add up."""

    domain: Domain
    zones: tuple[_Zone, ...]
    lost: bool = field(default=False)

    @property
    def total_uj(self) -> int:
        return sum(zone.total_uj for zone in self.zones)

    def resume(self, t_s: float, energy_j: float) -> None:
        """Goes on from what an earlier opening read at ``t_s``, through at most one wrap.

        Where a second wrap could hide, and for the dies of a package, of which only the
        sum is known, the total begins below ``energy_j``: it shows as the reset that it is.
        """
        before_uj, first = round(energy_j / _MICRO), self.zones[0]
        if len(self.zones) == 1:
            resumed = replace(first, total_uj=before_uj, last_uj=before_uj % first.range_uj, last_s=t_s)
            try:
                resumed.advance()
            except (_Untrusted, OSError, PowerError):
                pass
            else:
                self.zones = (resumed,)
                return
        if self.total_uj >= before_uj:
            first.total_uj -= ((self.total_uj - before_uj) // first.range_uj + 1) * first.range_uj


class RaplSource:
    """Domains ``cpu0.package``, ``cpu0.dram``, ``cpu1.package``, ...; make one with `open`.

    Energies count on from the counter's value at the opening. ``warnings``: what was
    left out and what failed, one line each.
    """

    blocking = False

    def __init__(self, counters: Sequence[_Counter], warnings: Sequence[str] = ()) -> None:
        self._counters = tuple(counters)
        self.warnings: list[str] = list(warnings)

    @classmethod
    def open(
        cls,
        root: Path = POWERCAP,
        *,
        sleep: Callable[[float], object] = time.sleep,
        resume: Mapping[str, tuple[float, float]] | None = None,
    ) -> Self:
        """Finds the packages under ``root`` and sees each counter move, for at most 0.1 s.

        ``resume``: ``{domain: (instant, joules)}`` last read by an earlier opening in
        this boot. The energies go on from there when at most one wrap can lie between,
        else they begin lower, as after a reset.
        Raises PowerError with the reason and what to do: no tree, a masked one, no
        package in it, no permission, a counter that stands still. One package that
        cannot be read refuses all, since the sum would be too small without looking
        it; a ``dram`` that cannot be read is left out with a warning.
        """
        counters: list[_Counter] = []
        warnings: list[str] = []
        for name, paths in _domains(root).items():
            try:
                counters.append(_open(name, paths))
            except PowerError as exc:
                if name.endswith(".package"):
                    raise PowerError(f"rapl: {exc}") from exc
                warnings.append(f"power: {name}: {exc}")
        for counter in _standing_still(counters, sleep):
            name, zone = counter.domain.name, counter.zones[0]
            why = (
                f"the counter under {zone.path} stands still at {zone.last_uj} uJ: the processor or its "
                "hypervisor does not fill it"
            )
            if name.endswith(".package"):
                raise PowerError(f"rapl: {name}: {why}; measure on the bare host, {INSTEAD}")
            warnings.append(f"power: {name}: {why}; left out")
            counters.remove(counter)
        for counter in counters:
            if resume and counter.domain.name in resume:
                counter.resume(*resume[counter.domain.name])
        return cls(counters, warnings)

    def domains(self) -> Sequence[Domain]:
        """What is read, package by package."""
        return [counter.domain for counter in self._counters]

    def read(self) -> list[Reading]:
        """Cumulative joules of each domain, stamped ``clock.now()`` as it was read.

        A counter that fails or stands still leaves a gap and one warning; one that
        was reset, or may have wrapped unseen, gives no reading any more. Raises
        PowerError when no domain answered.
        """
        readings: list[Reading] = []
        for counter in self._counters:
            if counter.lost:
                continue
            try:
                for zone in counter.zones:
                    zone.advance()
            except _Untrusted as exc:
                counter.lost = True
                self._warn(f"power: {counter.domain.name}: {exc}; not read any more")
                continue
            except (OSError, PowerError) as exc:
                self._warn(f"power: {counter.domain.name}: {exc}")
                continue
            energy_j = counter.total_uj * _MICRO
            readings.append(Reading(counter.zones[-1].last_s, counter.domain.name, energy_j=energy_j))
        if not readings:
            raise PowerError(f"rapl: no counter answered ({self.warnings[-1].removeprefix('power: ')})")
        return readings

    def close(self) -> None:
        """Nothing is held between reads."""

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _domains(root: Path) -> dict[str, list[Path]]:
    """The zones of each domain, package by package. Raises PowerError when there is no package."""
    try:
        entries = sorted(root.iterdir())
        zones = _zone_paths(entries)
    except FileNotFoundError as exc:
        raise PowerError(
            f"rapl: there is no {root}: not Linux, or a virtual machine or container without powercap; "
            f"measure on the bare host, {INSTEAD}"
        ) from exc
    except OSError as exc:
        raise PowerError(f"rapl: {root} cannot be listed ({exc}): run as root, {INSTEAD}") from exc
    hidden = [path for path in entries if path.is_symlink() and not path.exists()]
    if hidden or not entries:
        what = f"{hidden[0]} points to nothing" if hidden else f"{root} is empty"
        raise PowerError(
            f"rapl: {what}: masked by the container's runtime (docker run --security-opt "
            f"systempaths=unconfined shows it), or no driver (modprobe intel_rapl_msr); {INSTEAD}"
        )
    names = {path.name: (path, _text(path / "name")) for path in zones}
    found: dict[tuple[int, str], dict[str, list[Path]]] = {}
    for key, (path, name) in names.items():
        control, parent = key.partition(":")[0], key.rpartition(":")[0]
        package = _PACKAGE.match(name if name != "dram" else names.get(parent, (path, ""))[1])
        if package is not None:
            kind = "dram" if name == "dram" else "package"
            found.setdefault((int(package[1]), kind), {}).setdefault(control, []).append(path)
    if not any(kind == "package" for _, kind in found):
        there = ", ".join(sorted({name for _, name in names.values() if name})) or "none with a name"
        raise PowerError(f"rapl: no zone under {root} is a CPU package (zones: {there}); {INSTEAD}")
    # intel-rapl-mmio shows the counters of intel-rapl a second time.
    return {
        f"cpu{number}.{kind}": controls[min(controls, key=lambda control: ("mmio" in control, control))]
        for (number, kind), controls in sorted(
            found.items(), key=lambda item: (item[0][0], item[0][1] == "dram")
        )
    }


def _zone_paths(entries: Sequence[Path]) -> list[Path]:
    """Zones (``intel-rapl:0``) and subzones (``intel-rapl:0:1``).

    /sys/class/powercap has links to all of them side by side; the tree that they point
    into, /sys/devices/virtual/powercap, has them in one another.
    """
    found = []
    for path in entries:
        if ":" in path.name and path.is_dir():
            found.append(path)
        if "rapl" in path.name and path.is_dir() and not path.is_symlink():
            found += _zone_paths(sorted(path.iterdir()))
    return found


def _open(name: str, paths: Sequence[Path]) -> _Counter:
    """Raises PowerError, saying what to do."""
    try:
        zones = tuple(_Zone.open(path) for path in paths)
    except PermissionError as exc:
        raise PowerError(
            f"permission denied on {exc.filename}: root only since Linux 5.10; run as root, or "
            "chmod o+r /sys/class/powercap/*/energy_uj (lasts until the reboot; a udev rule keeps it), "
            f"{INSTEAD}"
        ) from exc
    except FileNotFoundError as exc:
        raise PowerError(f"{exc.filename} is missing: not a RAPL counter; {INSTEAD}") from exc
    except OSError as exc:
        raise PowerError(f"{exc}; {INSTEAD}") from exc
    wraps = ", ".join(f"{zone.path.name} wraps at {zone.range_uj * _MICRO:.6g} J" for zone in zones)
    return _Counter(Domain(name, "counter", None, f"RAPL through powercap: {wraps}", UPDATE_S), zones)


def _standing_still(counters: Sequence[_Counter], sleep: Callable[[float], object]) -> list[_Counter]:
    """The counters with a zone whose value has not changed after at most 10 looks in 0.1 s."""
    for _ in range(_SETTLE_TRIES):
        still = [c for c in counters if any(_value(zone) == zone.last_uj for zone in c.zones)]
        if not still:
            return []
        sleep(_SETTLE_S)
    return [c for c in counters if any(_value(zone) == zone.last_uj for zone in c.zones)]


def _value(zone: _Zone) -> int | None:
    try:
        return _number(zone.path / "energy_uj")
    except (OSError, PowerError):
        return None  # the first read will say so


def _number(path: Path) -> int:
    text = path.read_text().strip()
    if not text.isdecimal():
        raise PowerError(f"{path} holds {text[:40]!r}, expected microjoules")
    return int(text)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
