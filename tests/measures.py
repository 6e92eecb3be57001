"""What tests measure of a draw: here, apart, since every process of the draws imports its module."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from loadgen import rundir
from loadgen.errors import LoadgenError


def fingerprint(path: Path) -> dict[str, Any]:
    """What a draw must share with the others (the plan) and what must be its own (the times)."""
    done_s = [record.done_s for record in rundir.read_records(path)]
    hardware = rundir.read_manifest(path)["scenario"]["server"]["hardware"]
    return {"plan": rundir.read_plan(path), "draw": hardware["draw"], "done_s": done_s, "path": str(path)}


def refused(path: Path) -> None:
    raise LoadgenError("does not fit")


def killed(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
