"""System, cores, clock and limits of the process that would send the load."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.pacer import Alarm


async def machine() -> dict[str, Any]:
    """System, cores, clock and limits of this process. The clock's step is the least one seen."""
    steps_s = []
    for _ in range(1000):
        a_s = b_s = time.monotonic()
        while b_s == a_s:
            b_s = time.monotonic()
        steps_s.append(b_s - a_s)
    alarm = Alarm()
    kernel_timer = alarm.by_kernel_timer
    alarm.close()
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cores_usable": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "virtual_machine": _in_virtual_machine(),
        "container": any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        "clock_resolution_s": time.get_clock_info("monotonic").resolution,
        "clock_step_s": min(steps_s),
        "kernel_timer": kernel_timer,
        "open_files_soft": soft,
        "open_files_hard": hard,
    }


def _in_virtual_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether a hypervisor shows itself in the CPU's flags (x86); None where there are no flags."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else "hypervisor" in flags.split()
