"""Which domains can be read here, how, how often each is renewed, and why the others cannot be read.

Every source is opened as a run opens it and read for `WATCH_S`: a counter that exists and
does not advance is unavailable, never 0 J, and one that does shows its update period.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.host import RamEstimate, installed_gb
from loadgen.power.local import covered, open_boards
from loadgen.power.rapl import POWERCAP, RaplSource
from loadgen.types import BoardProcess, Domain, Method, PowerSource, Reading

WATCH_S = 1.5
"""Fifteen of NVML's updates: a counter that moves has moved, and its period is known to a few per cent."""
POLL_S = 0.005
FEWEST_CHANGES = 5
RAPL_UPDATE_S = 1e-3
"""The energy counters are updated about every millisecond (Intel SDM, volume 3, "RAPL Interfaces")."""
MEASURED: tuple[Method, ...] = ("counter", "instant", "average")
_OF_A_DOMAIN = re.compile(r"power: ((?:gpu|cpu|ram|ane|soc)\d*(?:\.\w+)?): (.+)")
_OTHER_BOARDS = "AMD, Apple silicon and Jetson are read with pip install 'loadgen[zeus]'"

Readings = Mapping[str, Reading] | str
"""One read of a source, by domain, or the text of its failure."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One domain. ``reason`` is None where it can be read, else says why not and what to do.

    ``update_s``: how often the sensor publishes; ``update_from``: whether that was seen here or is
    documented; ``averaging_s``: its window, as documented; ``power_w``: the mean while it was watched
    of a counter, or the last power.
    """

    domain: str
    method: Method | None
    update_s: float | None = None
    averaging_s: float | None = None
    power_w: float | None = None
    note: str = ""
    reason: str | None = None
    update_from: Literal["measured", "documented"] | None = None


@dataclass(frozen=True, slots=True)
class Power:
    """What can be read of power here. ``boards``: rows as in run.json; ``warnings``: one line each;
    ``processes``: who computes on each board, None where that is not told."""

    findings: tuple[Finding, ...]
    boards: tuple[Mapping[str, object], ...]
    warnings: tuple[str, ...]
    processes: Mapping[str, Sequence[BoardProcess] | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Watched:
    """A source while it is read. ``moved_s``: by counter, the instants at which its value was new;
    ``known``: how many warnings it had before the first read."""

    source: PowerSource
    first: Readings = ""
    last: Readings = ""
    polled_s: list[float] = field(default_factory=list)
    moved_s: dict[str, list[float]] = field(default_factory=dict)
    known: int = 0

    def __post_init__(self) -> None:
        self.known = len(self.warnings)

    @property
    def warnings(self) -> Sequence[str]:
        return getattr(self.source, "warnings", ())

    @property
    def boards(self) -> Sequence[Mapping[str, object]]:
        return getattr(self.source, "boards", ())

    def read(self) -> None:
        before = self.last
        try:
            self.last = {reading.domain: reading for reading in self.source.read()}
        except (PowerError, OSError) as exc:
            self.last = str(exc)
        if not self.polled_s:
            self.first = self.last
        self.polled_s.append(clock.now())
        if isinstance(before, str) or isinstance(self.last, str):
            return
        for name, reading in self.last.items():
            earlier = before.get(name)
            if earlier is not None and earlier.energy_j is not None and earlier.energy_j != reading.energy_j:
                self.moved_s.setdefault(name, []).append(reading.t_s)

    def update_s(self, domain: Domain) -> float | None:
        """A counter's period as seen; None if it was seldom new, or at more than half of the polls."""
        at_s = self.moved_s.get(domain.name, [])
        if domain.method != "counter" or len(at_s) < FEWEST_CHANGES:
            return None
        period_s = (at_s[-1] - at_s[0]) / (len(at_s) - 1)
        poll_s = statistics.median(b - a for a, b in zip(self.polled_s, self.polled_s[1:], strict=False))
        return period_s if period_s >= 2 * poll_s else None


def power_here(*, powercap: Path = POWERCAP, pause: Callable[[float], object] = time.sleep) -> Power:
    """Opens boards, processors and the memory's estimate and reads them for `WATCH_S`, ``pause``
    between two polls."""
    findings: list[Finding] = []
    opened: list[_Watched] = []
    sources: dict[str, Callable[[], PowerSource]] = {
        "gpu": lambda: open_boards(None),
        "cpu": lambda: RaplSource.open(powercap, sleep=pause),
        "ram": lambda: RamEstimate(installed_gb()),
    }
    try:
        for name, open_source in sources.items():
            if covered(name, (watched.source for watched in opened)):
                continue
            try:
                opened.append(_Watched(open_source()))
            except PowerError as exc:
                more = "" if name != "gpu" or "zeus: " in str(exc) else f"; {_OTHER_BOARDS}"
                findings.append(Finding(name, None, reason=f"{exc}{more}"))
        _watch(opened, pause)
        boards: list[Mapping[str, object]] = []
        processes: dict[str, Sequence[BoardProcess] | None] = {}
        warnings: list[str] = []
        for watched in opened:
            boards += watched.boards
            of_source = _found_of(watched)
            findings += of_source
            # Afterwards: that these are not told is no reason why a domain is not read.
            processes |= getattr(watched.source, "processes", dict)()
            warnings += _not_in(watched.warnings, of_source)
    finally:
        for watched in opened:
            watched.source.close()
    return Power(tuple(sorted(findings, key=_place)), tuple(boards), tuple(warnings), processes)


def _watch(opened: Sequence[_Watched], pause: Callable[[float], object]) -> None:
    end_s = clock.now() + WATCH_S
    for poll in range(round(WATCH_S / POLL_S) + 1):
        if poll and clock.now() >= end_s:
            break
        if poll:
            pause(POLL_S)
        for watched in opened:
            watched.read()


def _found_of(watched: _Watched) -> list[Finding]:
    """A finding for each domain that a source has or says why it lacks."""
    domains = watched.source.domains()
    there = {domain.name for domain in domains}
    before, since = (
        _by_domain(part) for part in (watched.warnings[: watched.known], watched.warnings[watched.known :])
    )
    missing = {name: texts[0] for name, texts in before.items() if name not in there}
    findings = [Finding(name, None, reason=text) for name, text in missing.items()]
    findings += _without_counter(watched.boards, there | set(missing))
    for domain in domains:
        documented_s = domain.update_s
        if documented_s is None and isinstance(watched.source, RaplSource):
            documented_s = RAPL_UPDATE_S
        seen_s = watched.update_s(domain)
        # What is said of a board goes for all its sensors.
        said = since.get(domain.name) or since.get(domain.name.partition(".")[0]) or []
        failure = "; then ".join(said) or None
        findings.append(judge(domain, watched.first, watched.last, documented_s, failure, seen_s=seen_s))
    return findings


def _by_domain(warnings: Sequence[str]) -> dict[str, list[str]]:
    """What was said of each domain, in order."""
    said: dict[str, list[str]] = {}
    for match in filter(None, map(_OF_A_DOMAIN.match, warnings)):
        said.setdefault(match[1], []).append(match[2])
    return said


def _not_in(warnings: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """Those that no finding's reason says already."""
    reasons = [finding.reason for finding in findings if finding.reason is not None]
    told = [m is not None and any(m[2] in r for r in reasons) for m in map(_OF_A_DOMAIN.match, warnings)]
    return [warning for warning, known in zip(warnings, told, strict=True) if not known]


def judge(
    domain: Domain,
    before: Readings,
    after: Readings,
    documented_s: float | None,
    failure: str | None = None,
    *,
    seen_s: float | None = None,
) -> Finding:
    """A domain from the first and the last read of its source.

    ``failure``: what the source said of this domain alone, if it did. ``seen_s``: its update
    period as it was seen, which is preferred to the documented one.
    """
    power_w: float | None = None
    reason: str | None = None
    if isinstance(before, str) or isinstance(after, str):
        reason = before if isinstance(before, str) else str(after)
    elif (a := before.get(domain.name)) is None or (b := after.get(domain.name)) is None:
        reason = failure or "it did not answer; try again"
    elif a.energy_j is not None and b.energy_j is not None:
        delta_j, elapsed_s = b.energy_j - a.energy_j, b.t_s - a.t_s
        if delta_j == 0:
            reason = (
                f"the counter did not advance in {elapsed_s:.2g} s: frozen, or not kept here (a VM): "
                "load the driver again, or measure on the bare host"
            )
        elif delta_j < 0:
            reason = "the counter went backwards: the driver was reset between two readings; try again"
        else:
            power_w = delta_j / elapsed_s if elapsed_s > 0 else None
    else:
        power_w = b.power_w or None
        if power_w is None:
            reason = "the sensor reads 0 W, which no board draws: load the driver again"
    update_s = documented_s if seen_s is None else seen_s
    return Finding(
        domain.name,
        domain.method,
        update_s,
        domain.averaging_s,
        power_w,
        domain.note,
        reason,
        None if update_s is None else "documented" if seen_s is None else "measured",
    )


def _without_counter(boards: Sequence[Mapping[str, object]], names: Set[str]) -> list[Finding]:
    """A row for each board whose energy can only be integrated from its power."""
    reason = "no energy counter (Volta and newer have one): its power is integrated"
    return [Finding(str(b["domain"]), None, reason=reason) for b in boards if b["domain"] not in names]


def _place(finding: Finding) -> tuple[int, int]:
    """GPUs, CPUs, the rest, each by number."""
    name = finding.domain.partition(".")[0]
    kind = name.rstrip("0123456789")
    order = ("gpu", "cpu").index(kind) if kind in ("gpu", "cpu") else 2
    return order, int(name[len(kind) :] or 0)
