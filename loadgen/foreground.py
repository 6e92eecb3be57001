"""What a server in the foreground of a terminal needs: it ends on a signal, and keeps its noise down."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

INTERRUPTED = 130


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
