"""NVIDIA boards as NVML shows them: which there are, what each is, its state and its processes.

A board is its UUID. NVML's index ignores ``CUDA_VISIBLE_DEVICES`` and may change
when the driver is loaded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.types import BoardProcess, BoardState

RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""How soon a board that fell off is looked for, and how rarely at last; doubling between.
Connecting anew takes the other boards a tick or more, which a lost board does not justify each second."""
_MILLI = 1e-3
_NOT_AVAILABLE_BYTES = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE_ulonglong
_GA100 = ("A100", "A800", "A30")


@dataclass(frozen=True, slots=True)
class Board:
    """One physical board, as it was when opened.

    ``mig``: partitioned, so its power is shared by tenants. ``ecc``,
    ``persistence``: modes; None, like the limit, where the board does not tell.
    """

    domain: str
    index: int
    uuid: str
    name: str
    driver: str
    power_limit_w: float | None
    mig: bool
    ecc: bool | None
    persistence: bool | None
    architecture: str | None

    @property
    def averages_usage(self) -> bool:
        """Whether ``nvmlDeviceGetPowerUsage`` is a mean over 1 s: "on Ampere (except GA100) or newer";
        instantaneous before (NVML reference)."""
        before_ampere = self.architecture in ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")
        model = self.name.replace("-", " ").split()
        return not before_ampere and not any(word in _GA100 for word in model)


def found_boards(nvml: ModuleType) -> tuple[list[tuple[Board, Any]], list[str]]:
    """Each board with its handle, and a warning for each that is there and does not answer.

    Raises NVMLError when the driver does not, PowerError when no board does.
    """
    driver = str(nvml.nvmlSystemGetDriverVersion())
    found: list[tuple[Board, Any]] = []
    refused: list[str] = []
    for index in range(int(nvml.nvmlDeviceGetCount())):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append((_identified(nvml, handle, index, driver), handle))
        except nvml.NVMLError as exc:
            refused.append(f"power: the board with index {index} is not read: {advice(nvml, exc)}")
    if not found and refused:
        raise PowerError(f"nvml: {'; '.join(line.removeprefix('power: ') for line in refused)}")
    if not found:
        raise PowerError(
            "nvml: the driver is loaded but shows no board: it is masked; start the container with --gpus, "
            "or the job with a board in its allocation"
        )
    return found, refused


def selected(found: Sequence[tuple[Board, Any]], gpus: Sequence[str | int] | None) -> list[tuple[Board, Any]]:
    """Those of ``gpus`` (UUIDs, their beginnings, or indices), by index; None is all. Raises PowerError."""
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
            if text.startswith("MIG-"):
                what = "a MIG instance has no power of its own: give its board's UUID; no board"
            raise PowerError(f"nvml: power.gpus: {what} for {text!r}; there are {there}")
        chosen[matches[0][0].index] = matches[0]
    return [chosen[index] for index in sorted(chosen)]


def joined_to_cpu(nvml: ModuleType, handle: Any) -> bool:
    """Whether the board shares a module with a Grace CPU (a C2C link: GH200, GB200)."""
    info = _told(nvml, "nvmlDeviceGetC2cModeInfoV", handle)
    return info is not None and bool(info.isC2cEnabled)


def state_of(nvml: ModuleType, handle: Any, domain: str) -> BoardState:
    """The board now, stamped ``clock.now()``; None for each value that it does not tell.

    Two functions have newer names that older drivers lack.
    """

    def number(function: str, *arguments: int) -> int | None:
        value = _told(nvml, function, handle, *arguments)
        return None if value is None else int(value)

    temperature_c = number("nvmlDeviceGetTemperatureV", nvml.NVML_TEMPERATURE_GPU)
    if temperature_c is None:
        temperature_c = number("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
    reasons = number("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = number("nvmlDeviceGetCurrentClocksThrottleReasons")
    return BoardState(
        clock.now(),
        domain,
        temperature_c=temperature_c,
        sm_clock_mhz=number("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        memory_clock_mhz=number("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        power_limit_w=_limit_w(nvml, handle),
        pstate=number("nvmlDeviceGetPerformanceState"),
        event_reasons=reasons,
        ecc_errors=number(
            "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    )


def processes_on(nvml: ModuleType, handle: Any) -> list[BoardProcess]:
    """Compute processes with a context on the board, by pid. Raises NVMLError.

    Pids are those of the driver's view, which inside a container may be the host's.
    """
    found = [
        BoardProcess(
            int(one.pid),
            _told(nvml, "nvmlSystemGetProcessName", int(one.pid)),
            None if one.usedGpuMemory in (None, _NOT_AVAILABLE_BYTES) else int(one.usedGpuMemory),
        )
        for one in _compute_processes(nvml, handle)
    ]
    return sorted(found, key=lambda process: process.pid)


def _compute_processes(nvml: ModuleType, handle: Any) -> Sequence[Any]:
    """Of old drivers too, which lack version 3; the rows are the same. The unversioned function
    says that in an exception that is no NVMLError."""
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle))
    except nvml.NVMLError as exc:
        if exc.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return list(nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))


def advice(nvml: ModuleType, exc: Exception) -> str:
    """One line: what NVML said and what a user can do about it."""
    todo = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver, or start the container with --gpus",
        nvml.NVML_ERROR_UNINITIALIZED: "the driver was reset or unloaded; its boards are looked for again",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (nvidia-smi must work)",
        nvml.NVML_ERROR_NO_PERMISSION: "run as a user who may read /dev/nvidia*, and give the container its "
        "device",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ in version: reboot",
        nvml.NVML_ERROR_GPU_IS_LOST: "the board has fallen off the bus: it is looked for again; if it stays "
        "away, reboot",
        nvml.NVML_ERROR_RESET_REQUIRED: "reset it (nvidia-smi --gpu-reset), then it is found again",
        nvml.NVML_ERROR_TIMEOUT: "the board hangs: if nvidia-smi hangs too, reset it",
        nvml.NVML_ERROR_UNKNOWN: "the kernel's log (dmesg: NVRM) may say why; try again, else reset it",
        nvml.NVML_ERROR_NOT_SUPPORTED: "this board has no such sensor",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the driver is too old for it",
    }.get(getattr(exc, "value", None))
    return f"{exc}: {todo}" if todo else str(exc)


def _identified(nvml: ModuleType, handle: Any, index: int, driver: str) -> Board:
    ecc = _told(nvml, "nvmlDeviceGetEccMode", handle)
    mig = _told(nvml, "nvmlDeviceGetMigMode", handle)
    persistence = _told(nvml, "nvmlDeviceGetPersistenceMode", handle)
    return Board(
        domain=f"gpu{index}",
        index=index,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        driver=driver,
        power_limit_w=_limit_w(nvml, handle),
        mig=mig is not None and bool(mig[0]),
        ecc=None if ecc is None else bool(ecc[0]),
        persistence=None if persistence is None else bool(persistence),
        architecture=_architecture(nvml, handle),
    )


def _limit_w(nvml: ModuleType, handle: Any) -> float | None:
    limit_mw = _told(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return None if limit_mw is None else float(limit_mw) * _MILLI


def _architecture(nvml: ModuleType, handle: Any) -> str | None:
    number = _told(nvml, "nvmlDeviceGetArchitecture", handle)
    prefix = "NVML_DEVICE_ARCH_"
    names = {getattr(nvml, name): name.removeprefix(prefix) for name in dir(nvml) if name.startswith(prefix)}
    return None if number is None or number not in names else names[number].title()


def _told(nvml: ModuleType, function: str, *arguments: Any) -> Any:
    """What NVML answers; None where the board, the driver or nvidia-ml-py does not have it, and for a
    text that is not UTF-8 (a process is named as its user likes)."""
    try:
        return getattr(nvml, function)(*arguments)
    except (nvml.NVMLError, AttributeError, UnicodeDecodeError):
        return None
