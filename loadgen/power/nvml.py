"""NVIDIA boards through NVML (``nvidia-ml-py``; the PyPI package ``pynvml`` is deprecated).

Per board N (NVML's index; ``CUDA_VISIBLE_DEVICES`` does not renumber it, so the
UUID is what identifies it): ``gpuN`` is the energy counter
(``nvmlDeviceGetTotalEnergyConsumption``, millijoules since the driver was loaded,
Volta and newer), ``gpuN.instant`` field 186, ``gpuN.average`` field 185 or else
``nvmlDeviceGetPowerUsage``, which on Ampere and newer is the same 1 s average.
Only what a board answers becomes a domain. Samples are not deduplicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Self

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.types import Domain, Reading

AVERAGE_WINDOW_S = 1.0
INSTANT_WINDOW_S = 0.025
_MILLI = 1e-3


@dataclass(frozen=True, slots=True)
class Board:
    """One physical board. ``mig``: partitioned, so its power is shared by tenants."""

    domain: str
    index: int
    uuid: str
    name: str
    driver: str
    power_limit_w: float | None
    mig: bool


@dataclass(frozen=True, slots=True)
class _Channel:
    domain: Domain
    handle: Any
    kind: str  # "counter", "usage", or the name of a field constant


class NvmlSource:
    """Energy and power of the chosen NVIDIA boards. Make one with `open`.

    ``boards``: rows for the manifest (domain, index, uuid, name, driver, power
    limit in W, mig). ``warnings``: what a user should know about them, one line each.
    """

    blocking = True

    def __init__(self, nvml: ModuleType, boards: Sequence[Board], channels: Sequence[_Channel]) -> None:
        self._nvml = nvml
        self._channels = tuple(channels)
        self._open = True
        self.boards: tuple[dict[str, object], ...] = tuple(asdict(b) for b in boards)
        self.warnings: list[str] = []
        for board in boards:
            if board.mig:
                self.warnings.append(
                    f"power: {board.domain} ({board.uuid}) is in MIG mode: its power is the whole board's"
                )
            if not any(c.kind == "counter" and c.domain.name == board.domain for c in channels):
                self.warnings.append(
                    f"power: {board.domain} ({board.name}) has no energy counter; its power is integrated"
                )

    @classmethod
    def open(cls, gpus: Sequence[str | int] | None = None) -> Self:
        """Connects to the driver. ``gpus``: UUIDs, their beginnings, or NVML indices; None for all.

        Raises PowerError, saying what to do, when there is no library, driver,
        permission, such board, or anything to read.
        """
        try:
            import pynvml
        except ImportError as exc:
            raise PowerError("nvml: the module pynvml is missing: pip install nvidia-ml-py") from exc
        nvml: ModuleType = pynvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            raise PowerError(f"nvml: {_advice(nvml, exc)}") from exc
        try:
            boards, channels = _discover(nvml, gpus)
        except nvml.NVMLError as exc:
            _shutdown(nvml)
            raise PowerError(f"nvml: {_advice(nvml, exc)}") from exc
        except PowerError:
            _shutdown(nvml)
            raise
        return cls(nvml, boards, channels)

    def domains(self) -> Sequence[Domain]:
        """What is read, board by board."""
        return [channel.domain for channel in self._channels]

    def read(self) -> list[Reading]:
        """A reading of each domain that answered, each stamped on ``clock.now()`` as it was taken.

        Raises PowerError when none did. A domain that fails leaves a gap and one warning.
        """
        readings: list[Reading] = []
        for channel in self._channels:
            try:
                value = _query(self._nvml, channel)
            except self._nvml.NVMLError as exc:
                warning = f"power: {channel.domain.name}: {_advice(self._nvml, exc)}"
                if warning not in self.warnings:
                    self.warnings.append(warning)
                continue
            now_s = clock.now()
            if channel.kind == "counter":
                readings.append(Reading(now_s, channel.domain.name, energy_j=value))
            else:
                readings.append(Reading(now_s, channel.domain.name, power_w=value))
        if not readings:
            last = self.warnings[-1] if self.warnings else "no domain"
            raise PowerError(f"nvml: no board answered ({last.removeprefix('power: ')})")
        return readings

    def close(self) -> None:
        """Releases the driver; safe to call twice."""
        if self._open:
            self._open = False
            _shutdown(self._nvml)


def _discover(nvml: ModuleType, gpus: Sequence[str | int] | None) -> tuple[list[Board], list[_Channel]]:
    driver = str(nvml.nvmlSystemGetDriverVersion())
    found: list[tuple[Board, Any]] = []
    for index in range(int(nvml.nvmlDeviceGetCount())):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        found.append((_identify(nvml, handle, index, driver), handle))
    if not found:
        raise PowerError("nvml: the driver is loaded but shows no board; check the container's --gpus")
    chosen = _select(found, gpus)
    channels = [c for board, handle in chosen for c in _channels(nvml, board, handle)]
    if not channels:
        names = ", ".join(board.name for board, _ in chosen)
        raise PowerError(f"nvml: no energy counter and no power sensor on {names}")
    return [board for board, _ in chosen], channels


def _identify(nvml: ModuleType, handle: Any, index: int, driver: str) -> Board:
    try:
        limit_w: float | None = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * _MILLI
    except nvml.NVMLError:
        limit_w = None
    try:
        mig = bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        mig = False
    uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    return Board(f"gpu{index}", index, uuid, name, driver, limit_w, mig)


def _select(found: Sequence[tuple[Board, Any]], gpus: Sequence[str | int] | None) -> list[tuple[Board, Any]]:
    if gpus is None:
        return list(found)
    chosen: dict[int, tuple[Board, Any]] = {}
    for wanted in gpus:
        text = str(wanted)
        matches = [
            pair for pair in found if str(pair[0].index) == text or (text and pair[0].uuid.startswith(text))
        ]
        if len(matches) != 1:
            there = ", ".join(f"{board.index}: {board.uuid}" for board, _ in found)
            what = "no board" if not matches else f"{len(matches)} boards"
            raise PowerError(f"nvml: power.gpus: {what} for {text!r}; there are {there}")
        chosen[matches[0][0].index] = matches[0]
    return [chosen[index] for index in sorted(chosen)]


def _channels(nvml: ModuleType, board: Board, handle: Any) -> list[_Channel]:
    """What the board answers now; of the two spellings of average power the first that works."""
    name = board.domain
    note = f"{board.name} {board.uuid}"
    instant = Domain(f"{name}.instant", "instant", INSTANT_WINDOW_S, f"NVML field 186; {note}")
    average = Domain(f"{name}.average", "average", AVERAGE_WINDOW_S, f"NVML field 185; {note}")
    usage = Domain(f"{name}.average", "average", AVERAGE_WINDOW_S, f"nvmlDeviceGetPowerUsage; {note}")
    candidates = [
        _Channel(Domain(name, "counter", None, f"NVML total energy; {note}"), handle, "counter"),
        _Channel(instant, handle, "NVML_FI_DEV_POWER_INSTANT"),
        _Channel(average, handle, "NVML_FI_DEV_POWER_AVERAGE"),
        _Channel(usage, handle, "usage"),
    ]
    answering: dict[str, _Channel] = {}
    for channel in candidates:
        if channel.domain.name in answering:
            continue
        try:
            _query(nvml, channel)
        except nvml.NVMLError:
            continue
        answering[channel.domain.name] = channel
    return list(answering.values())


def _query(nvml: ModuleType, channel: _Channel) -> float:
    """Joules of a counter, watts of anything else. Raises NVMLError."""
    if channel.kind == "counter":
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(channel.handle)) * _MILLI
    if channel.kind == "usage":
        return float(nvml.nvmlDeviceGetPowerUsage(channel.handle)) * _MILLI
    # The scope must be given: 0 is the GPU; the module scope counts a Grace CPU in.
    field = (getattr(nvml, channel.kind), nvml.NVML_POWER_SCOPE_GPU)
    answer = nvml.nvmlDeviceGetFieldValues(channel.handle, [field])[0]
    if answer.nvmlReturn != nvml.NVML_SUCCESS:  # each field has a return code of its own
        raise nvml.NVMLError(answer.nvmlReturn)
    return float(answer.value.uiVal) * _MILLI


def _shutdown(nvml: ModuleType) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return  # the driver is gone already; there is nothing left to release


def _advice(nvml: ModuleType, exc: Exception) -> str:
    """One line: what NVML said and what a user can do about it."""
    todo = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver, or start the container with --gpus",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (nvidia-smi must work)",
        nvml.NVML_ERROR_NO_PERMISSION: "run as a user who may read /dev/nvidia*",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ in version: reboot",
        nvml.NVML_ERROR_GPU_IS_LOST: "the board has fallen off the bus: reboot",
        nvml.NVML_ERROR_NOT_SUPPORTED: "this board has no such sensor",
    }.get(getattr(exc, "value", None))
    return f"{exc}: {todo}" if todo else str(exc)
