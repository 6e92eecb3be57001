"""What this machine can measure and what answers at an address, found out before a run depends on it.

The result is one plain object (`report`), which `loadgen.doctor.view.render` prints; docs/doctor.md
describes its keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadgen.doctor.answers import server_at, sidecar_at
from loadgen.doctor.host import machine
from loadgen.doctor.power import MEASURED, power_here
from loadgen.doctor.view import render
from loadgen.power.rapl import POWERCAP

__all__ = ["render", "report"]


async def report(
    url: str | None = None,
    api_key: str | None = None,
    *,
    sidecar: str | None = None,
    token: str | None = None,
    powercap: Path = POWERCAP,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """The whole examination. ``ok`` is the exit status: whether the server at ``url`` and the sidecar
    are fit for a run, as far as they are given, else whether at least one domain is measured here.

    ``token``: the sidecar's. Raises ConfigError when an address is none.
    """
    server = None if url is None else await server_at(url, api_key)
    beside = None if sidecar is None else await sidecar_at(sidecar, token)
    power = await asyncio.to_thread(power_here, powercap=powercap, pause=pause)
    measured = [f.domain for f in power.findings if f.reason is None and f.method in MEASURED]
    asked = [found["reason"] is None for found in (server, beside) if found is not None]
    return {
        "ok": all(asked) if asked else bool(measured),
        "measured": measured,
        "domains": [asdict(finding) for finding in power.findings],
        "boards": [dict(board) for board in power.boards],
        "processes": {board: rows and [asdict(p) for p in rows] for board, rows in power.processes.items()},
        "warnings": list(power.warnings),
        "machine": await machine(),
        "server": server,
        "sidecar": beside,
    }
