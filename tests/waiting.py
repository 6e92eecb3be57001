"""Waiting for what other processes do in real time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def until(
    true: Callable[[], Any], process: subprocess.Popen[Any] | None = None, limit_s: float = 60.0
) -> None:
    """Returns as soon as it is true; fails after ``limit_s``, and when the process ends before."""
    end_s = time.monotonic() + limit_s
    while not true():
        assert process is None or process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end_s, "the condition never came true"
        time.sleep(0.01)
