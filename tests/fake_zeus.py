"""A fake of the part of zeus 0.16 that loadgen calls; `test_zeus` compares it with the real library."""

from __future__ import annotations

import queue
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from loadgen import clock


class ZeusBaseError(Exception):
    pass


@dataclass
class AMDGPU:
    """One board that draws constant power; the values that are None raise, as zeus does."""

    gpu_index: int
    name: str = "AMD Instinct MI300X"
    power_w: float = 500.0
    average: bool = True
    instant: bool = True
    counter: bool = True
    frozen_at_s: float = float("inf")
    lost: bool = False

    def get_name(self) -> str:
        return self.name

    def get_power_management_limit(self) -> int:
        return 750_000

    def supports_get_total_energy_consumption(self) -> bool:
        return self.counter

    def get_total_energy_consumption(self) -> int:
        self._needs(self.counter, "Total energy consumption")
        return int(1e9 + self.power_w * min(clock.now(), self.frozen_at_s) * 1e3)

    def get_average_power_usage(self) -> int:
        self._needs(self.average, "Average power usage")
        return int(self.power_w) * 1000

    def get_instant_power_usage(self) -> int:
        self._needs(self.instant, "Instant power usage")
        return int(self.power_w) * 1000

    def _needs(self, there: bool, what: str) -> None:
        if self.lost:
            raise ZeusBaseError("Device not\nfound")
        if not there:
            raise ZeusBaseError(f"{what} is not supported on this AMD GPU.")


@dataclass
class AMDGPUs:
    gpus: list[AMDGPU] = field(default_factory=list)


@dataclass
class NVIDIAGPUs:
    gpus: list[Any] = field(default_factory=list)


@dataclass
class AppleSiliconMeasurement:
    cpu_total_mj: int | None = None
    dram_mj: int | None = None
    gpu_mj: int | None = None
    gpu_sram_mj: int | None = None
    ane_mj: int | None = None


@dataclass
class JetsonMeasurement:
    cpu_energy_mj: float | None = None
    gpu_energy_mj: float | None = None
    total_energy_mj: float | None = None


@dataclass
class AppleSilicon:
    now: AppleSiliconMeasurement

    def get_total_energy_consumption(self) -> AppleSiliconMeasurement:
        return self.now


@dataclass
class Jetson:
    now: JetsonMeasurement
    result_queue: object = None
    answers: bool = True

    def get_total_energy_consumption(self, timeout: float = 15.0) -> JetsonMeasurement:
        assert timeout < 15.0
        if not self.answers:
            raise queue.Empty
        return self.now


def install(monkeypatch: pytest.MonkeyPatch, *, gpus: object = None, soc: object = None) -> None:
    """Puts the fake library where ``import zeus`` finds it."""

    def get_gpus(ensure_homogeneous: bool = False) -> object:
        if gpus is None:
            raise ZeusBaseError("NVML and AMDSMI unavailable.")
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    def get_soc() -> object:
        if soc is None:
            raise ZeusBaseError("No observable SoC was found.")
        return soc

    contents: dict[str, dict[str, object]] = {
        "zeus": {},
        "zeus.exception": {"ZeusBaseError": ZeusBaseError},
        "zeus.device": {"get_gpus": get_gpus},
        "zeus.device.gpu": {"AMDGPUs": AMDGPUs},
        "zeus.device.soc": {"get_soc": get_soc},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
