"""Power sources: where power and energy are read from, one file each, and the loop that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

POWER_SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "simulated": "loadgen.power.simulated:SimulatedSource",
        "nvml": "loadgen.power.nvml:NvmlSource",
    }
)
"""Source name -> "module:Class"; the class obeys `loadgen.types.PowerSource`."""
