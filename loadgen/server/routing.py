"""What a dialect of the server is: its routes, its refusals, its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes(Protocol):
    """One dialect. ``open_posts`` need no API key; no GET does.

    ``headers`` are sent with every response of it.
    """

    headers: Mapping[str, str]
    posts: dict[str, Handler]
    gets: dict[str, Handler]
    open_posts: frozenset[str]

    def unauthorized(self) -> web.Response:
        """The answer to a request without the right key."""
        ...

    def refusal(self, error: Exception) -> web.Response | None:
        """The answer for what a handler raised; None: it is nobody's answer, a 500."""
        ...

    def elsewhere(self, method: str, allowed: Sequence[str]) -> web.Response:
        """The answer where no handler is; ``allowed`` methods, none for an unknown path."""
        ...
