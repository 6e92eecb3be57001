"""What one NVML board tells of its energy and power, and when it was so.

| domain | asked | in the GPU's total |
|---|---|---|
| ``gpuN`` | ``nvmlDeviceGetTotalEnergyConsumption``: mJ since the driver was loaded, Volta and newer | yes |
| ``gpuN.instant`` | field 186, scope GPU | where there is no counter, and as its check |
| ``gpuN.average`` | field 185, scope GPU, or ``nvmlDeviceGetPowerUsage`` | likewise |
| ``gpuN.memory`` | field 186 or 185, scope memory: a part of the board | never |
| ``gpuN.module`` | field 186 or 185, scope module: the board, its CPU and their memory | never |
| ``gpuN.module_energy`` | the counter of a board that shares a module with a Grace CPU | never |

On GH200 the energy counter is the whole module's (ml-energy/zeus, pull request
172), hence its other name there. All fields of a board are asked for in one call;
each has a return code and a time stamp of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from loadgen import clock
from loadgen.power.nvml_boards import Board
from loadgen.types import Domain, Method, Reading

AVERAGE_WINDOW_S = 1.0
INSTANT_WINDOW_S = 0.025
UPDATE_S = 0.1
OLDEST_S, NEWEST_S = 2.0, 0.005
"""A field's time stamp is believed when it lies in [call - OLDEST_S, end of call + NEWEST_S]."""
_MILLI, _MICRO = 1e-3, 1e-6
_DOCUMENTED = "update period documented for A100 and H100 (arXiv 2312.02741), not measured"
_MEMBERS = dict(enumerate(("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal")))
"""Where a field's value is, by its type (NVML_VALUE_TYPE_*)."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One domain and how it is asked for: the energy ``counter``, the power ``usage``, or a field
    ``(id, scope)``."""

    domain: Domain
    ask: str
    field: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One channel's reading, or why there is none (an NVMLError). ``mistimed``: the field's own stamp
    was not believed."""

    channel: Channel
    reading: Reading | None
    failure: Exception | None = None
    mistimed: bool = False


def ask(
    nvml: ModuleType, handle: Any, channels: Sequence[Channel], wall: Callable[[], float]
) -> list[Answer]:
    """An answer for each channel, in their order, on ``clock.now()``.

    Counter and usage are stamped with the middle of their call. A field carries the
    driver's own stamp, us on the wall clock: it is moved by wall - now as of this
    very call, so that a step of the wall clock moves nothing else. ``wall``: s since
    1970, the clock of ``time.time``.
    """
    fields = [channel for channel in channels if channel.ask == "field"]
    answers = {c.domain.name: _asked(nvml, handle, c) for c in channels if c.ask != "field"}
    answers |= {answer.channel.domain.name: answer for answer in _fields(nvml, handle, fields, wall)}
    return [answers[channel.domain.name] for channel in channels]


def channels_of(nvml: ModuleType, handle: Any, board: Board, *, module: bool) -> list[Channel]:
    """What the board answers now, the better of two ways of asking where it answers both.

    ``module``: it shares one with a CPU, so its counter is not the board's alone. A
    memory or module of 0 W is a board that has no such sensor.
    """
    name = board.domain
    instant, average = nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE
    note = f"{_DOCUMENTED}; {board.name} {board.uuid}"

    def power(part: str, field: int, scope: int, what: str) -> Channel:
        method: Method = "instant" if field == instant else "average"
        window_s = INSTANT_WINDOW_S if field == instant else AVERAGE_WINDOW_S
        return Channel(
            Domain(f"{name}.{part}", method, window_s, f"NVML field {field}{what}; {note}", UPDATE_S),
            "field",
            (field, scope),
        )

    usage = f"nvmlDeviceGetPowerUsage; {note}"
    counter = Domain(name, "counter", None, f"NVML total energy; {note}", UPDATE_S)
    if module:
        whole = f"NVML total energy, which counts the whole module, CPU and memory included; {note}"
        counter = Domain(f"{name}.module_energy", "counter", None, whole, UPDATE_S)
    candidates = [
        Channel(counter, "counter"),
        power("instant", instant, nvml.NVML_POWER_SCOPE_GPU, ""),
        power("average", average, nvml.NVML_POWER_SCOPE_GPU, ""),
        Channel(Domain(f"{name}.average", "average", AVERAGE_WINDOW_S, usage, UPDATE_S), "usage")
        if board.averages_usage
        else Channel(Domain(f"{name}.instant", "instant", INSTANT_WINDOW_S, usage, UPDATE_S), "usage"),
        *(
            power(part, field, scope, f", scope {part}, in no total")
            for part, scope in (
                ("memory", nvml.NVML_POWER_SCOPE_MEMORY),
                ("module", nvml.NVML_POWER_SCOPE_MODULE),
            )
            for field in (instant, average)
        ),
    ]
    answering: dict[str, Channel] = {}
    for channel in candidates:
        # One by one: a driver may refuse a whole call for one field that it does not know.
        reading = ask(nvml, handle, [channel], lambda: 0.0)[0].reading
        extra = channel.domain.name.endswith((".memory", ".module"))
        if reading is not None and not (extra and not reading.power_w):
            answering.setdefault(channel.domain.name, channel)
    return list(answering.values())


def _asked(nvml: ModuleType, handle: Any, channel: Channel) -> Answer:
    name = channel.domain.name
    before_s = clock.now()
    try:
        if channel.ask == "counter":
            value = float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLI
        else:
            value = float(nvml.nvmlDeviceGetPowerUsage(handle)) * _MILLI
    except nvml.NVMLError as exc:
        return Answer(channel, None, exc)
    t_s = (before_s + clock.now()) / 2
    if channel.ask == "counter":
        return Answer(channel, Reading(t_s, name, energy_j=value))
    return Answer(channel, Reading(t_s, name, power_w=value))


def _fields(
    nvml: ModuleType, handle: Any, channels: Sequence[Channel], wall: Callable[[], float]
) -> list[Answer]:
    if not channels:
        return []
    before_s = clock.now()
    ahead_s = wall() - before_s
    try:
        # The scope must be given: the module scope counts a Grace CPU in.
        values = nvml.nvmlDeviceGetFieldValues(handle, [channel.field for channel in channels])
    except nvml.NVMLError as exc:
        return [Answer(channel, None, exc) for channel in channels]
    after_s = clock.now()
    answers: list[Answer] = []
    for channel, value in zip(channels, values, strict=True):
        if value.nvmlReturn != nvml.NVML_SUCCESS:
            answers.append(Answer(channel, None, nvml.NVMLError(value.nvmlReturn)))
            continue
        power_w = float(getattr(value.value, _MEMBERS.get(value.valueType, "uiVal"))) * _MILLI
        t_s = value.timestamp * _MICRO - ahead_s
        mistimed = not before_s - OLDEST_S <= t_s <= after_s + NEWEST_S
        if mistimed:
            t_s = (before_s + after_s) / 2
        answers.append(Answer(channel, Reading(t_s, channel.domain.name, power_w=power_w), None, mistimed))
    return answers
