"""What a verb in the foreground of a terminal needs: its reader may leave, signals end it, noise is low."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

INTERRUPTED = 130


class _Heard:
    """A text stream that falls silent when its reader has gone (``| head``), instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._silence()

    def _silence(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """A reader of stdout or stderr that leaves early changes neither what is done nor the exit status."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Heard(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Ignores Ctrl-C in the block: in what must not be cut, and in processes started there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_while_starting() -> None:
    """SIGTERM ends the process from here on, also as process 1 of a container.

    The kernel drops signals that process 1 has no handler for: one that came before
    `asked_to_end` would be lost, and the container killed 10 s later.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))


def asked_to_end() -> asyncio.Event:
    """Set by the first SIGTERM or Ctrl-C; a second ends the process at once with status 130."""
    asked = asyncio.Event()

    def end() -> None:
        if asked.is_set():
            os._exit(INTERRUPTED)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    return asked


def silence_bad_http() -> None:
    """What is no HTTP is answered with 400; aiohttp's traceback for each would drown the rest."""
    logging.getLogger("aiohttp.server").addFilter(lambda record: not _is_bad_http(record))


def _is_bad_http(record: logging.LogRecord) -> bool:
    from aiohttp.http_exceptions import HttpProcessingError

    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)
