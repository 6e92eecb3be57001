"""A sign of life on stderr while something takes longer than a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def working(what: str) -> Iterator[None]:
    """Shows ``what`` with a spinner on a terminal, nothing elsewhere; gone when the block ends."""
    talk = Console(stderr=True)
    if talk.is_terminal:
        with talk.status(what):
            yield
    else:
        yield
