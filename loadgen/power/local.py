"""What the machine this process runs on can measure, part by part: boards, processors, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loadgen.errors import PowerError
from loadgen.power.combined import CombinedSource
from loadgen.power.host import CpuEstimate, RamEstimate, RamVersion, installed_gb
from loadgen.power.nvml import NvmlSource
from loadgen.power.rapl import INSTEAD, POWERCAP, RaplSource
from loadgen.power.zeus_source import ZeusSource
from loadgen.types import Method, PowerSource


class Last(NamedTuple):
    """The last of an earlier opening of a domain in this boot; ``method`` None when it is not known."""

    t_s: float
    energy_j: float
    method: Method | None


Resume = Mapping[str, Last]
"""By domain; empty at first."""
Opening = Callable[[Resume], PowerSource]
"""Opens one part, going on from where it was; raises PowerError, saying what to do."""


def openings(
    gpus: Sequence[str | int] | None,
    cpu_tdp_w: float | None = None,
    ram_version: RamVersion = 3,
    powercap: Path = POWERCAP,
) -> dict[str, Opening]:
    """How each part is opened: ``gpu`` (`open_boards`, the boards ``gpus``; None: all), ``cpu`` (RAPL under
    ``powercap``, or else, when ``cpu_tdp_w`` is given, an estimate), ``ram`` (an estimate)."""

    def cpu(resume: Resume) -> PowerSource:
        # What was an estimate has nothing to do with the counter's value: as if long ago, a reset.
        counters = {
            name: (last.t_s if last.method == "counter" else -math.inf, last.energy_j)
            for name, last in resume.items()
        }
        try:
            return RaplSource.open(powercap, resume=counters)
        except PowerError as exc:
            if cpu_tdp_w is None:
                raise
            estimate = CpuEstimate(cpu_tdp_w, resume=_estimate(resume, "cpu0.package"))
            why = str(exc).removesuffix(INSTEAD).rstrip(" ,;")
            estimate.warnings.append(f"power: cpu0.package is an estimate: {why}")
            return estimate

    return {
        "gpu": lambda resume: open_boards(gpus),
        "cpu": cpu,
        "ram": lambda resume: RamEstimate(installed_gb(), ram_version, resume=_estimate(resume, "ram")),
    }


def _estimate(resume: Resume, domain: str) -> tuple[float, float] | None:
    last = resume.get(domain)
    return (last.t_s, last.energy_j) if last is not None and last.method == "estimated" else None


def open_boards(gpus: Sequence[str | int] | None) -> PowerSource:
    """NVIDIA boards through NVML; where it shows none, what zeus finds, if it is installed.

    Raises PowerError with the reason of each that was asked.
    """
    try:
        return NvmlSource.open(gpus)
    except PowerError as nvml:
        try:
            return ZeusSource.open(gpus)
        except PowerError as zeus:
            if isinstance(zeus.__cause__, ImportError):
                raise nvml from None
            raise PowerError(f"{nvml}; {zeus}") from nvml


def open_local(parts: Mapping[str, Opening]) -> tuple[CombinedSource | None, dict[str, str | None]]:
    """Every part that can be read, as one source (None without any), and why the others cannot.

    A part that an earlier one has read already is not opened: the counters of an Apple or
    Jetson chip, which come with its GPU, are better than an estimate under the same name.
    """
    sources: list[PowerSource] = []
    reasons: dict[str, str | None] = {}
    for part, opening in parts.items():
        if covered(part, sources):
            reasons[part] = None
            continue
        try:
            sources.append(opening({}))
            reasons[part] = None
        except PowerError as exc:
            reasons[part] = str(exc)
    return (CombinedSource(sources) if sources else None), reasons


def covered(part: str, sources: Iterable[PowerSource]) -> bool:
    """Whether one of ``sources`` reads something of ``part`` (``cpu``: ``cpu0.package``)."""
    return any(domain.name.startswith(part) for source in sources for domain in source.domains())
