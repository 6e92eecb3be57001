"""A powercap tree as the kernel shows it: zones and subzones side by side, counters that wrap."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTEL_RANGE_UJ = 262_143_328_850
EPYC_RANGE_UJ = 65_532_610_987


class Powercap:
    """Zones by directory name; ``energy_j[zone]`` is the truth since boot, the file shows it wrapped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "intel-rapl").mkdir(exist_ok=True)
        self.energy_j: dict[str, float] = {}
        self.range_uj: dict[str, int] = {}
        self.frozen: set[str] = set()

    def zone(self, key: str, name: str, *, start_j: float = 1.0, range_uj: int = INTEL_RANGE_UJ) -> None:
        path = self.root / key
        path.mkdir()
        (path / "name").write_text(f"{name}\n")
        (path / "enabled").write_text("1\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.energy_j[key], self.range_uj[key] = start_j, range_uj
        self._show(key)

    def add(self, joules: float, *keys: str) -> None:
        """Every zone (or those given) uses so much more."""
        for key in keys or self.energy_j:
            if key not in self.frozen:
                self.energy_j[key] += joules
                self._show(key)

    def settle(self, seconds: float) -> None:
        """In place of sleeping: 100 W go on."""
        self.add(100.0 * seconds)

    def _show(self, key: str) -> None:
        shown_uj = round(self.energy_j[key] * 1e6) % self.range_uj[key]
        (self.root / key / "energy_uj").write_text(f"{shown_uj}\n")


class Burning(Powercap):
    """One package at 100 W, whose file is never seen half written."""

    ZONE = "intel-rapl:0"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.zone(self.ZONE, "package-0")

    def _show(self, key: str) -> None:
        draft = self.root / "draft"
        draft.write_text(f"{round(self.energy_j[key] * 1e6) % self.range_uj[key]}\n")
        draft.replace(self.root / key / "energy_uj")

    def follow(self, stop: threading.Event) -> None:
        """Keeps up with the clock until ``stop``."""
        last_s = time.monotonic()
        while not stop.wait(0.005):
            now_s = time.monotonic()
            self.add(100.0 * (now_s - last_s))
            last_s = now_s


@contextmanager
def burning(root: Path) -> Iterator[Path]:
    """A tree of its own whose package draws 100 W in real time."""
    stop = threading.Event()
    thread = threading.Thread(target=Burning(root).follow, args=(stop,))
    thread.start()
    try:
        yield root
    finally:
        stop.set()
        thread.join()


def two_socket_intel(root: Path) -> Powercap:
    tree = Powercap(root)
    for socket in (0, 1):
        # Numbered in the other order than the packages: only the name counts.
        zone = f"intel-rapl:{1 - socket}"
        tree.zone(zone, f"package-{socket}", start_j=10.0 + socket)
        tree.zone(f"{zone}:0", "core")
        tree.zone(f"{zone}:1", "uncore")
        tree.zone(f"{zone}:2", "dram", range_uj=EPYC_RANGE_UJ)
    tree.zone("intel-rapl:2", "psys")
    return tree
