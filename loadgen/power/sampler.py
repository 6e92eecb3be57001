"""The loop that reads a power source at fixed instants and hands every reading on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadgen import clock
from loadgen.errors import PowerError
from loadgen.power.histogram import Histogram
from loadgen.types import PowerSource, Reading


@dataclass(slots=True)
class Sampled:
    """What one sampling loop did: ``reads`` made, ticks ``skipped`` for being late, reads ``failed``.

    ``late``: how long after its instant a tick began; ``read_time``: how long each read
    took. ``warnings``: one line for each kind of trouble, fit for the manifest.
    """

    reads: int = 0
    skipped: int = 0
    failed: int = 0
    warnings: list[str] = field(default_factory=list)
    late: Histogram = field(default_factory=Histogram)
    read_time: Histogram = field(default_factory=Histogram)


_MOST_WARNINGS = 20  # a failure that words itself anew each time must not fill the memory


async def sample(
    source: PowerSource,
    interval_s: float,
    write: Callable[[Sequence[Reading]], None],
    stop: asyncio.Event,
    done: Sampled | None = None,
) -> Sampled:
    """Reads ``source`` now, then at start + k interval, and once more when ``stop`` is set.

    Ticks are absolute on ``clock.now()``: a slow read delays no later tick. A tick
    whose time has passed is skipped and counted, never made up for. All readings of
    a tick go to ``write`` together, also those that equal the last. A read that fails is counted
    and warned about; the gap it leaves is for the analysis to judge. A source whose
    ``blocking`` attribute is true is read in a thread, since a driver call of a few
    milliseconds would make requests late. ``done`` is kept up to date meanwhile.
    """
    done = done or Sampled()
    blocking = bool(getattr(source, "blocking", False))
    start_s = clock.now()
    tick = 0
    while True:
        await _read_once(source, write, done, blocking)
        if stop.is_set():
            break
        following = max(tick + 1, math.floor((clock.now() - start_s) / interval_s + 1e-9) + 1)
        done.skipped += following - tick - 1
        tick = following
        due_s = start_s + tick * interval_s
        await clock.wait(stop, due_s - clock.now())
        if not stop.is_set():
            done.late.add(max(0.0, clock.now() - due_s))
    if done.failed:
        done.warnings.append(f"power: {done.failed} of {done.reads + done.failed} reads failed")
    if done.skipped:
        done.warnings.append(
            f"power: {done.skipped} samples skipped, the source or the host was slower than {interval_s:g} s"
        )
    return done


async def _read_once(
    source: PowerSource, write: Callable[[Sequence[Reading]], None], done: Sampled, blocking: bool
) -> None:
    begun_s = clock.now()
    try:
        readings = await asyncio.to_thread(source.read) if blocking else source.read()
    except (PowerError, OSError) as exc:
        done.failed += 1
        warning = f"power: {exc}"
        if warning not in done.warnings and len(done.warnings) < _MOST_WARNINGS:
            done.warnings.append(warning)
        return
    done.reads += 1
    done.read_time.add(clock.now() - begun_s)
    write(readings)
