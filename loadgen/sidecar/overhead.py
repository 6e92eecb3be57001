"""What sampling costs the host it measures, and how well it keeps time."""

from __future__ import annotations

import time
from typing import Any

import psutil

from loadgen import clock
from loadgen.power.sampler import Sampled


class Overhead:
    """Of this process, since its making."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._cpu_s, self._made_s = time.process_time(), clock.now()

    def report(self, done: Sampled) -> dict[str, Any]:
        """CPU, memory and ``done`` as one JSON object; None for what has not happened yet.

        ``wake_late_*``: how long after its instant a tick began. Quantiles are upper
        edges of bins, at most 9 % above the true ones.
        """
        elapsed_s = clock.now() - self._made_s
        share = (time.process_time() - self._cpu_s) / elapsed_s if elapsed_s >= 1 else None
        return {
            "elapsed_s": elapsed_s,
            "cpu_share": share,
            "cpu_s_per_hour": None if share is None else 3600 * share,
            "wake_late_p50_s": done.late.quantile(0.5),
            "wake_late_p99_s": done.late.quantile(0.99),
            "wake_late_max_s": done.late.max_s,
            "read_p99_s": done.read_time.quantile(0.99),
            "reads": done.reads,
            "skipped": done.skipped,
            "failed": done.failed,
            "rss_bytes": self._process.memory_info().rss,
        }
