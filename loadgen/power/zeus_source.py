"""AMD boards, Apple silicon and Jetson modules through the optional library ``zeus`` (>= 0.16).

Only zeus's device layer is used (``zeus.device.get_gpus``, ``zeus.device.soc.get_soc``): it
reads and never waits for the accelerator, so it is what ``sync_execution=False`` is to
zeus's monitors. Written against zeus 0.16.0 and tested on a fake of its API;
no AMD, Apple or Jetson hardware has run it.

AMD, board N by its HIP index, which PyTorch uses too (zeus shows only what
``HIP_VISIBLE_DEVICES`` leaves, and knows no UUID): ``gpuN`` is the socket's energy accumulator
where zeus found that it follows the power over 0.5 s, ``gpuN.instant`` amdsmi's
``current_socket_power``, ``gpuN.average`` its ``average_socket_power``, whole watts. On an
MI250 the even board's values include both chiplets; the odd one has none.

What each domain of a system on a chip includes stands in its note (`_SOC`).
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.types import Domain, Method, Reading

STALE_S = 1.0
"""An AMD accumulator that stands still this long is frozen (ROCm/amdsmi issue 38): boards never draw 0 W."""
JETSON_POLL_S = 0.1
"""How often zeus's own process reads a Jetson's INA3221 monitor."""
_ANSWER_S = 1.0
_MILLI = 1e-3
_APPLE = "Apple silicon, IOReport's energy model"
_JETSON = "Jetson, zeus's sum of INA3221 power read every 0.1 s"
_SOC: tuple[tuple[str, tuple[str, ...], float | None, str], ...] = (
    ("gpu0", ("gpu_mj", "gpu_sram_mj"), None, f"{_APPLE}: on-chip GPU with its SRAM"),
    ("cpu0.package", ("cpu_total_mj",), None, f"{_APPLE}: all CPU clusters"),
    ("ram", ("dram_mj",), None, f"{_APPLE}: DRAM"),
    ("ane0", ("ane_mj",), None, f"{_APPLE}: Neural Engine"),
    (
        "gpu0",
        ("gpu_energy_mj",),
        JETSON_POLL_S,
        f"{_JETSON}: the rail named after the GPU (VDD_GPU_SOC holds more)",
    ),
    (
        "cpu0.package",
        ("cpu_energy_mj",),
        JETSON_POLL_S,
        f"{_JETSON}: the rail named after the CPU (VDD_CPU_GPU_CV holds the GPU too)",
    ),
    (
        "soc0",
        ("total_energy_mj",),
        JETSON_POLL_S,
        f"{_JETSON}: the module's input, which contains gpu0 and cpu0.package: never add them",
    ),
)
"""Domain, fields of zeus's measurement (mJ; the first must be there, the others add to it),
update period, what it is."""


@dataclass(slots=True)
class _Probe:
    """One call to zeus and the values it gives, in the domains' order: mJ of counters, mW of power.

    ``stale_s``: a counter of this probe that stands still as long is frozen. ``lost``: why it is
    asked no more.
    """

    domains: tuple[Domain, ...]
    ask: Callable[[], Sequence[float]]
    stale_s: float | None = None
    last: tuple[float, float] | None = None  # (value, instant of its last change)
    lost: str | None = None


class ZeusSource:
    """Energy and power of what ``zeus`` finds. Make one with `open`.

    ``boards``: rows for the manifest (domain, index, uuid, name, driver, power limit in W, mig).
    ``warnings``: what a user should know about them, one line each.
    """

    blocking = True

    def __init__(
        self,
        errors: tuple[type[Exception], ...],
        probes: Sequence[_Probe],
        boards: Sequence[dict[str, object]],
        warnings: Sequence[str] = (),
    ) -> None:
        self._errors = errors
        self._probes = tuple(probes)
        self.boards = tuple(boards)
        self.warnings: list[str] = list(warnings)

    @classmethod
    def open(cls, gpus: Sequence[str | int] | None = None) -> Self:
        """Asks zeus for its devices, which takes 0.5 s on AMD. ``gpus``: HIP indices; None for all.

        Raises PowerError, saying what to do, when zeus is not installed, finds nothing
        or not the boards asked for, or nothing of them can be read.
        """
        try:
            from zeus.device import get_gpus
            from zeus.device.gpu import AMDGPUs
            from zeus.device.soc import get_soc
            from zeus.exception import ZeusBaseError
        except ImportError as exc:
            raise PowerError(f"zeus: {exc}: pip install 'loadgen[zeus]'") from exc
        # zeus lets a malformed HIP_VISIBLE_DEVICES and amdsmi's "N/A" for a number through.
        errors = (ZeusBaseError, ValueError, TypeError, KeyError, OSError, RuntimeError)
        reasons: list[str] = []
        try:
            found = get_gpus()
            if isinstance(found, AMDGPUs):
                return cls(errors, *_amd(_selected(found.gpus, gpus), errors))
            reasons.append("its GPUs are NVIDIA's, which power.source: nvml reads")
        except errors as exc:
            reasons.append(_line(exc))
        try:
            return cls(errors, *_soc(get_soc(), gpus))
        except (*errors, queue.Empty) as exc:
            reasons.append(_line(exc))
        raise PowerError(f"zeus: no device can be read: {'; '.join(reasons)}")

    def domains(self) -> Sequence[Domain]:
        """What is read, device by device."""
        return [domain for probe in self._probes for domain in probe.domains]

    def read(self) -> list[Reading]:
        """A reading of each domain that answered, stamped ``clock.now()`` as it was taken.

        Raises PowerError when none did. A domain that fails, or an AMD counter that
        has frozen, leaves a gap and one warning.
        """
        readings: list[Reading] = []
        for probe in self._probes:
            try:
                readings += self._read(probe)
            except PowerError as exc:
                warning = f"power: {', '.join(d.name for d in probe.domains)}: {exc}"
                if warning not in self.warnings:
                    self.warnings.append(warning)
        if not readings:
            raise PowerError(f"zeus: no device answered ({self.warnings[-1].removeprefix('power: ')})")
        return readings

    def _read(self, probe: _Probe) -> list[Reading]:
        if probe.lost is not None:
            raise PowerError(probe.lost)
        try:
            values = probe.ask()
        except queue.Empty as exc:
            # An answer that comes late would be taken for the next one's, ever after.
            probe.lost = f"zeus's polling process gave no answer in {_ANSWER_S:g} s: start again"
            raise PowerError(probe.lost) from exc
        except self._errors as exc:
            raise PowerError(_line(exc)) from exc
        now_s = clock.now()
        if probe.stale_s is not None:
            if probe.last is None or values[0] != probe.last[0]:
                probe.last = (values[0], now_s)
            elif now_s - probe.last[1] >= probe.stale_s:
                raise PowerError(
                    f"the energy counter has stood still for {probe.stale_s:g} s or more: frozen "
                    "(ROCm/amdsmi issue 38); no energy is known"
                )
        return [
            Reading(now_s, d.name, energy_j=value * _MILLI)
            if d.method == "counter"
            else Reading(now_s, d.name, power_w=value * _MILLI)
            for d, value in zip(probe.domains, values, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held here: zeus keeps its devices, and a Jetson's polling process, until the exit."""


def _selected(found: Sequence[Any], wanted: Sequence[str | int] | None) -> list[Any]:
    """The boards with these HIP indices. Raises PowerError for one that is not there."""
    there = {str(gpu.gpu_index): gpu for gpu in found}
    if missing := [str(index) for index in wanted or () if str(index) not in there]:
        raise PowerError(
            f"zeus: power.gpus: no board {missing[0]!r}; there are the HIP indices {', '.join(there)}"
        )
    return [gpu for index, gpu in there.items() if wanted is None or index in map(str, wanted)]


def _amd(
    gpus: Sequence[Any], errors: tuple[type[Exception], ...]
) -> tuple[list[_Probe], list[dict[str, object]], list[str]]:
    """Probes, rows and warnings. Raises PowerError when no board has anything to read."""
    probes: list[_Probe] = []
    boards: list[dict[str, object]] = []
    warnings: list[str] = []
    for gpu in gpus:
        name, model = f"gpu{gpu.gpu_index}", str(gpu.get_name())
        note = f"{model}, HIP index {gpu.gpu_index}"
        if "MI250" in model:
            note += ", both chiplets of the package"
        metered = bool(gpu.supports_get_total_energy_consumption())
        asked: list[tuple[Method, str, Callable[[], float]]] = [
            ("instant", "current_socket_power", gpu.get_instant_power_usage),
            ("average", "average_socket_power", gpu.get_average_power_usage),
        ]
        if metered:
            asked.insert(0, ("counter", "energy accumulator", gpu.get_total_energy_consumption))
        answering = [
            _alone(name, method, f"amdsmi {what}; {note}", ask)
            for method, what, ask in asked
            if _told(ask, errors) is not None
        ]
        probes += answering
        if not answering:
            warnings.append(
                f"power: {name}: {model} shows no energy and no power "
                "(the second chiplet of an MI250 is in the first one's values)"
            )
        elif not metered:
            warnings.append(
                f"power: {name}: the energy counter of {model} does not follow its power: frozen "
                "(ROCm/amdsmi issue 38); its power is integrated"
            )
        limit_mw = _told(gpu.get_power_management_limit, errors)
        boards.append(_row(name, gpu.gpu_index, model, None if limit_mw is None else limit_mw * _MILLI))
    if not probes:
        raise PowerError(f"zeus: {'; '.join(w.removeprefix('power: ') for w in warnings) or 'no AMD board'}")
    return probes, boards, warnings


def _soc(
    soc: Any, gpus: Sequence[str | int] | None
) -> tuple[list[_Probe], list[dict[str, object]], list[str]]:
    """The probe and row of an Apple or Jetson chip. Raises zeus's errors, queue.Empty and PowerError."""
    if gpus is not None and {str(index) for index in gpus} != {"0"}:
        raise PowerError(f"zeus: power.gpus: this chip has one GPU, 0, got {', '.join(map(str, gpus))}")
    first = _measurement(soc)
    found: dict[str, tuple[Domain, tuple[str, ...]]] = {}
    for name, fields, update_s, note in _SOC:
        if getattr(first, fields[0], None) is not None:
            present = tuple(f for f in fields if getattr(first, f, None) is not None)
            found[name] = (Domain(name, "counter", None, note, update_s), present)
    if not found:
        raise PowerError("zeus: this chip shows no energy: no known rail or channel")

    def ask() -> Sequence[float]:
        shown = _measurement(soc)
        return [sum(getattr(shown, f) for f in fields) for _, fields in found.values()]

    model = "Apple silicon" if getattr(first, "cpu_total_mj", None) is not None else "NVIDIA Jetson"
    boards = [_row("gpu0", 0, model, None)] if "gpu0" in found else []
    return [_Probe(tuple(domain for domain, _ in found.values()), ask)], boards, []


def _measurement(soc: Any) -> Any:
    """What the chip has used by now. A Jetson's answer comes from a process that may have died."""
    if hasattr(soc, "result_queue"):
        return soc.get_total_energy_consumption(timeout=_ANSWER_S)
    return soc.get_total_energy_consumption()


def _alone(board: str, method: Method, note: str, ask: Callable[[], float]) -> _Probe:
    """One value of a board."""
    counter = method == "counter"
    domain = Domain(board if counter else f"{board}.{method}", method, None, note)
    return _Probe((domain,), lambda: [ask()], STALE_S if counter else None)


def _told(ask: Callable[[], float], errors: tuple[type[Exception], ...]) -> float | None:
    try:
        return float(ask())
    except errors:
        return None


def _row(domain: str, index: int, name: str, power_limit_w: float | None) -> dict[str, object]:
    return {
        "domain": domain,
        "index": index,
        "uuid": None,
        "name": name,
        "driver": None,
        "power_limit_w": power_limit_w,
        "mig": False,
    }


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
