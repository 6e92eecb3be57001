"""The sampler process as its service sees it: started, watched, started again when it dies, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

from loadgen import clock
from loadgen.errors import ConfigError
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.events import EventLog

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 30.0
SETTLED_S = 60.0
"""A sampler that lived so long is started again without waiting."""
END_S = 5.0
"""Seconds a sampler has to write its last samples."""
READY_S = 30.0
"""Opening a driver that nobody else has open takes some seconds; what takes longer hangs."""
_USAGE = 2


class SamplerProcess:
    """Runs ``command`` for as long as the service wants samples. Make one, then `run` it in a task.

    ``started_s``: when the service first started it; ``restarts`` since then;
    ``trouble``: why it does not run now; ``ready``: set when it has told, in
    sampler.json, what it reads.
    """

    def __init__(
        self,
        directory: DataDirectory,
        command: Sequence[str],
        interval_s: float,
        lock: int,
        warn: Callable[[str], None],
    ) -> None:
        self.interval_s = interval_s
        self.started_s = clock.now()
        self.restarts = 0
        self.trouble: str | None = "the sampler is starting"
        self.ready = asyncio.Event()
        self._directory = directory
        self._command = tuple(command)
        self._lock = lock
        self._warn = warn
        self._events = EventLog(directory.folder)
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    async def run(self, ending: asyncio.Event) -> None:
        """Until ``ending`` is set and the sampler has written its last samples.

        Raises ConfigError when it cannot be started at all with what it was asked for.
        """
        backoff_s = 0.0
        while not ending.is_set():
            begun_s, before = clock.now(), self._session()
            process = await self._start()
            died = await self._until(ending, process, before)
            self._process = None
            if not died:
                return
            status = process.returncode or 0
            if status == _USAGE and not self.ready.is_set():
                raise ConfigError("the sampler cannot do what it was asked for (see above)")
            lived_s = clock.now() - begun_s
            backoff_s = (
                0.0 if lived_s >= SETTLED_S else min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * backoff_s))
            )
            self._died(process.pid, status, lived_s, backoff_s)
            await clock.wait(ending, backoff_s)
            self.restarts += 1

    def _died(self, pid: int, status: int, lived_s: float, backoff_s: float) -> None:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self.trouble = f"the sampler (process {pid}) {how} after {lived_s:.3g} s; started again"
        self._warn(f"{self.trouble} in {backoff_s:g} s")
        self._events.add("sampler_died", self.trouble, pid=pid, status=status)

    async def _start(self) -> Process:
        # A session of its own: a terminal's Ctrl-C is for the service, which then ends the sampler.
        # The lock stays taken for as long as either lives. The pipe closes when the service
        # dies, by whatever cause: that is how the sampler knows.
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, start_new_session=True, pass_fds=(self._lock,)
            )
        except OSError as exc:
            raise ConfigError(f"the sampler cannot be started: {exc}") from exc
        return self._process

    async def _until(self, ending: asyncio.Event, process: Process, before: str | None) -> bool:
        """Whether the process died; else it was asked to end, and did. ``before``: the session before it."""
        dead = asyncio.create_task(process.wait())
        telling = asyncio.create_task(self._wait_ready(before))
        end = asyncio.create_task(ending.wait())
        try:
            await asyncio.wait((dead, end), return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                return True
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(END_S):
                    await asyncio.shield(dead)
            except TimeoutError:
                self._warn(f"the sampler (process {process.pid}) did not end in {END_S:g} s: killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await dead
            return False
        finally:
            telling.cancel()
            end.cancel()
            if process.returncode is None:  # cancelled: nothing is left behind
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait((dead,))
            if process.stdin is not None:
                process.stdin.close()

    def _session(self) -> str | None:
        # Not the process number: in a container it is the same at every start.
        return self._directory.sampler().get("session")

    async def _wait_ready(self, before: str | None) -> None:
        late_s = clock.now() + READY_S
        while self._session() == before:
            if clock.now() > late_s:
                self.trouble = (
                    f"the sampler has not told what it reads for more than {READY_S:g} s: "
                    "a driver hangs, or the disk is full"
                )
            await asyncio.sleep(0.05)
        self.trouble = None
        self.ready.set()
