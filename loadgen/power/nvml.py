"""NVIDIA boards through NVML (``nvidia-ml-py``; the PyPI package ``pynvml`` is deprecated).

Which domains there are and how each is read: `loadgen.power.nvml_channels`. Only
what a board answers becomes a domain. Samples are not deduplicated. A board that
falls off, or a driver that is loaded again, leaves a gap; the boards are found
again by UUID and keep their domains, while their counters may restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Self

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.nvml_boards import (
    LONGEST_RETRY_S,
    RETRY_S,
    Board,
    advice,
    found_boards,
    joined_to_cpu,
    processes_on,
    selected,
    state_of,
)
from loadgen.power.nvml_channels import OLDEST_S, Answer, Channel, ask, channels_of
from loadgen.types import BoardProcess, BoardState, Domain, Reading

STANDSTILL_S = 1.0
"""A counter that has not moved for so long while power flows is not counting: ten of its updates."""


@dataclass(slots=True)
class _Watched:
    """A board being read. ``handle`` is None while it is gone; its counter last moved at ``moved_s``."""

    board: Board
    channels: tuple[Channel, ...]
    handle: Any
    counter_j: float | None = None
    moved_s: float = 0.0

    def stands_still(self, readings: Sequence[Reading]) -> bool:
        """Takes note of a tick's readings: has the counter stood too long while power flows?"""
        counter = next((r for r in readings if r.energy_j is not None), None)
        if counter is None:
            return False
        if counter.energy_j != self.counter_j:
            self.counter_j, self.moved_s = counter.energy_j, counter.t_s
        return counter.t_s - self.moved_s >= STANDSTILL_S and any(r.power_w for r in readings)


class NvmlSource:
    """Energy and power of the chosen NVIDIA boards. Make one with `open`.

    ``boards``: rows for the manifest, the fields of `Board`. ``warnings``: what a
    user should know about them, one line each, each said once. One thread at a time.
    """

    blocking = True

    def __init__(
        self,
        nvml: ModuleType,
        watched: Sequence[_Watched],
        warnings: Sequence[str] = (),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._nvml, self._watched, self._wall = nvml, tuple(watched), wall
        self._open, self._why = True, ""
        self._retry_s, self._wait_s = 0.0, RETRY_S
        self.boards: tuple[dict[str, object], ...] = tuple(asdict(w.board) for w in watched)
        self.warnings: list[str] = list(warnings)
        for one in watched:
            self._describe(one)

    @classmethod
    def open(cls, gpus: Sequence[str | int] | None = None, *, wall: Callable[[], float] = time.time) -> Self:
        """Connects to the driver. ``gpus``: UUIDs, their beginnings, or NVML indices; None for all.

        ``wall`` is the clock of the driver's time stamps. Raises PowerError, saying
        what to do, when there is no library, driver, permission, such board, or
        anything to read.
        """
        try:
            import pynvml
        except ImportError as exc:
            raise PowerError("nvml: the module pynvml is missing: pip install nvidia-ml-py") from exc
        nvml: ModuleType = pynvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            raise PowerError(f"nvml: {advice(nvml, exc)}") from exc
        refused: list[str] = []
        try:
            found, refused = found_boards(nvml)
            watched = [_watched(nvml, board, handle) for board, handle in selected(found, gpus)]
        except nvml.NVMLError as exc:
            _shutdown(nvml)
            raise PowerError(f"nvml: {advice(nvml, exc)}") from exc
        except PowerError as exc:
            _shutdown(nvml)
            raise PowerError(
                "; ".join([str(exc), *(line.removeprefix("power: ") for line in refused)])
            ) from exc
        if not any(one.channels for one in watched):
            _shutdown(nvml)
            names = ", ".join(one.board.name for one in watched)
            raise PowerError(
                f"nvml: no energy counter and no power sensor on {names}: measure at the wall, "
                "or on a board of the Volta generation or newer"
            )
        return cls(nvml, watched, refused, wall)

    def domains(self) -> Sequence[Domain]:
        """What is read, board by board."""
        return [channel.domain for one in self._watched for channel in one.channels]

    def read(self) -> list[Reading]:
        """A reading of each domain that answered, each stamped on ``clock.now()``.

        A domain or board that fails leaves a gap and one warning. Gone boards are
        looked for again after 1 s, 2 s, 4 s, ... at most every minute. Raises
        PowerError when nothing answered.
        """
        if any(one.handle is None for one in self._watched) and clock.now() >= self._retry_s:
            self._retry_s, self._wait_s = clock.now() + self._wait_s, min(2 * self._wait_s, LONGEST_RETRY_S)
            self.reopen()
        readings = [reading for one in self._watched for reading in self._read(one)]
        if not readings:
            raise PowerError(f"nvml: no board answered ({self._why})")
        return readings

    def reopen(self) -> None:
        """Connects to the driver anew and finds each board again by UUID.

        A board that does not answer stays gone and a warning says why. `read` calls
        this by itself when one has gone.
        """
        nvml = self._nvml
        _shutdown(nvml)
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            for one in self._watched:
                one.handle = None
            self._why = advice(nvml, exc)
            self._note(f"power: nvml: {self._why}")
            return
        for one in self._watched:
            gone = one.handle is None
            try:
                one.handle = nvml.nvmlDeviceGetHandleByUUID(one.board.uuid)
                nvml.nvmlDeviceGetUUID(one.handle)
            except nvml.NVMLError as exc:
                self._lose(one, exc)
                continue
            if gone:
                self._warn(one, "it answers again after a gap; its energy counter may have restarted")
        if all(one.handle is not None for one in self._watched):
            self._retry_s, self._wait_s = 0.0, RETRY_S

    def states(self) -> list[BoardState]:
        """Clocks, temperature and limits of each board that is there."""
        return [
            state_of(self._nvml, one.handle, one.board.domain)
            for one in self._watched
            if one.handle is not None
        ]

    def processes(self) -> dict[str, list[BoardProcess] | None]:
        """The compute processes of each board, by domain; None, with a warning, where it is not known."""
        found: dict[str, list[BoardProcess] | None] = {}
        for one in self._watched:
            found[one.board.domain] = None
            if one.handle is None:
                continue
            try:
                found[one.board.domain] = processes_on(self._nvml, one.handle)
            except self._nvml.NVMLError as exc:
                mig = "; in MIG mode only root sees all tenants" if one.board.mig else ""
                self._warn(one, f"who computes on it is not known: {advice(self._nvml, exc)}{mig}")
        return found

    def close(self) -> None:
        """Releases the driver; safe to call twice."""
        if self._open:
            self._open = False
            _shutdown(self._nvml)

    def _read(self, one: _Watched) -> list[Reading]:
        if one.handle is None or not one.channels:
            return []
        answers = ask(self._nvml, one.handle, one.channels, self._wall)
        failed = [answer for answer in answers if answer.failure is not None]
        if gone := self._gone(answers, failed):
            self._lose(one, gone)
        else:
            for answer in failed:
                self._note(f"power: {answer.channel.domain.name}: {advice(self._nvml, _failure(answer))}")
        if any(answer.mistimed for answer in answers):
            self._note(
                f"power: {one.board.domain} ({one.board.uuid}): the driver's time stamps are not believed "
                f"(over {OLDEST_S:g} s old, or in the future): power readings carry the middle of their call"
            )
        readings = [answer.reading for answer in answers if answer.reading is not None]
        if one.stands_still(readings):
            self._warn(
                one,
                f"the energy counter has stood still for {STANDSTILL_S:g} s or more while the board draws "
                "power: its power is integrated instead; loading the driver again may help",
            )
        return readings

    def _gone(self, answers: Sequence[Answer], failed: Sequence[Answer]) -> Exception | None:
        """Why the board is to be looked for again: it said so, or it answered nothing at all."""
        nvml = self._nvml
        away = (
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
        )
        named = [_failure(answer) for answer in failed if getattr(answer.failure, "value", None) in away]
        if named:
            return named[0]
        return _failure(failed[0]) if len(failed) == len(answers) else None

    def _lose(self, one: _Watched, exc: Exception) -> None:
        if one.handle is not None:
            self._retry_s = max(self._retry_s, clock.now() + RETRY_S)
        one.handle = None
        self._why = f"{one.board.domain}: {advice(self._nvml, exc)}"
        self._note(f"power: {self._why}")

    def _describe(self, one: _Watched) -> None:
        """What is to be known of a board before anything is read."""
        board, names = one.board, {channel.domain.name for channel in one.channels}
        if board.mig:
            self._note(
                f"power: {board.domain} ({board.uuid}) is in MIG mode: its power is the whole board's; "
                "turn MIG off, or see to it that all tenants are yours"
            )
        if not names:
            self._note(f"power: {board.domain} ({board.name}) has no energy counter and no power sensor")
        elif f"{board.domain}.module_energy" in names:
            self._warn(
                one,
                f"{board.name} shares a module with a Grace CPU, where (on GH200) the energy counter counts "
                f"the whole module, CPU and memory included: it is {board.domain}.module_energy and in no "
                "total. The GPU's energy is integrated from its power; add no CPU energy to the module's",
            )
        elif board.domain not in names:
            self._note(f"power: {board.domain} ({board.name}) has no energy counter; its power is integrated")

    def _warn(self, one: _Watched, text: str) -> None:
        self._note(f"power: {one.board.domain}: {text}")

    def _note(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _watched(nvml: ModuleType, board: Board, handle: Any) -> _Watched:
    module = joined_to_cpu(nvml, handle)
    return _Watched(board, tuple(channels_of(nvml, handle, board, module=module)), handle)


def _failure(answer: Answer) -> Exception:
    assert answer.failure is not None
    return answer.failure


def _shutdown(nvml: ModuleType) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError:
        return  # the driver is gone already; there is nothing left to release
