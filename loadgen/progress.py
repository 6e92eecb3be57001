"""What a run looks like while it runs: a live bar on a terminal, plain lines elsewhere.

Redrawn by wall time even when the run's own clock is virtual.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from loadgen.types import Reading, Record

_LIVE_EVERY_S = 0.1
_FIRST_LINE_S, _LINE_EVERY_S = 2.0, 5.0
_RECENT = 200


class RunView:
    """Counts what happens and shows it on ``console`` (stderr). A context manager.

    Nothing is shown for what takes under two seconds without a terminal.
    """

    def __init__(self, console: Console, planned: int, *, quiet: bool = False) -> None:
        self._console = console
        self._planned = planned
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._stage = "starting"
        self._sent = self._landed = self._done = self._ok = 0
        self._ttft_s: deque[float] = deque(maxlen=_RECENT)
        self._counter: dict[str, tuple[float, float]] = {}
        self._board_w: dict[str, float] = {}
        self.power_label = ""
        self._began_s = time.monotonic()
        self._shown_s = self._began_s
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[times]}"),
            console=console,
            auto_refresh=False,
        )
        # Two lines, each short enough for 80 columns: how far, and what is going on.
        self._line = Text(no_wrap=True, overflow="ellipsis")
        self._screen = Live(Group(self._bar, self._line), console=console, auto_refresh=False)
        self.path: Path | None = None
        self._task = self._bar.add_task("starting", total=planned, times="")

    def __enter__(self) -> Self:
        if self._live:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._done == self._planned:
            self._stage = "done"
        self._show(force=self._live)
        if self._live:
            self._screen.stop()

    def stage(self, name: str) -> None:
        """Names what is going on: warm-up, baseline, load, drain."""
        self._stage = name
        self._show()

    def sent(self) -> None:
        """Counts a request that was sent in the measured load."""
        self._sent += 1

    def record(self, record: Record) -> None:
        """Counts a finished request."""
        self._done += 1
        self._landed += record.sent_s is not None  # a dropped request was never in flight
        if record.status == "ok":
            self._ok += 1
            if record.first_s is not None and record.sent_s is not None:
                self._ttft_s.append(record.first_s - record.sent_s)
        self._show()

    def reading(self, reading: Reading) -> None:
        """Follows each board's energy counter for its power, smoothed over about ten readings."""
        name = reading.domain
        if reading.energy_j is not None and name.rpartition("/")[2].startswith("gpu"):
            t_s, energy_j = self._counter.get(name, (reading.t_s, reading.energy_j))
            self._counter[name] = (reading.t_s, reading.energy_j)
            if reading.t_s > t_s:
                power_w = (reading.energy_j - energy_j) / (reading.t_s - t_s)
                self._board_w[name] = 0.9 * self._board_w.get(name, power_w) + 0.1 * power_w
        self._show()

    def _facts(self) -> str:
        parts = [f"{self._sent - self._landed} in flight"] if self._stage == "load" else []
        if self._done != self._ok:
            parts.append(f"{self._done - self._ok} failed")
        if self._ttft_s:
            middle_s = sorted(self._ttft_s)[len(self._ttft_s) // 2]
            parts.append(f"TTFT p50 {middle_s * 1e3:.0f} ms")
        if self._board_w:
            parts.append(f"GPU {sum(self._board_w.values()):.0f} W {self.power_label}")
        return " · ".join(parts)

    def _show(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        first = self._shown_s == self._began_s
        due_s = _LIVE_EVERY_S if self._live else _FIRST_LINE_S if first else _LINE_EVERY_S
        if self._quiet or (now_s - self._shown_s < due_s and not force):
            return
        self._shown_s = now_s
        elapsed_s = now_s - self._began_s
        if self._live:
            self._bar.update(self._task, description=self._stage, completed=self._done)
            left_s = self._bar.tasks[0].time_remaining if self._stage == "load" else None
            times = _minutes(elapsed_s) + ("" if left_s is None else f", {_minutes(left_s)} left")
            self._bar.update(self._task, times=times)
            self._line.plain = f"  {self._facts()}"
            self._screen.refresh()
        else:
            line = f"{elapsed_s:5.0f} s  {self._stage}: {self._done}/{self._planned} done"
            text = " · ".join(filter(None, (line, self._facts())))
            self._console.print(text, highlight=False, soft_wrap=True)


class CountView:
    """How many of ``total`` are done: a bar on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, what: str, total: int, *, quiet: bool = False) -> None:
        self._console, self._what, self._total, self._quiet = console, what, total, quiet
        self._done = 0
        self._began_s = self._said_s = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """Counts one more."""
        self._done += 1
        self._bar.advance(self._task)
        now_s = time.monotonic()
        if not self._quiet and not self._console.is_terminal and now_s - self._said_s >= _LINE_EVERY_S:
            self._said_s = now_s
            line = f"{now_s - self._began_s:5.0f} s  {self._what}: {self._done}/{self._total} done"
            self._console.print(line, highlight=False, soft_wrap=True)


def _minutes(duration_s: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour."""
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
