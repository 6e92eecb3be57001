"""Whether the server's processes compute on the boards that are measured, and who else does."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from yarl import URL

from loadgen.power.owner import owner_of_port
from loadgen.power.remote import Info, Sidecar
from loadgen.types import BoardProcess, PowerSource


@dataclass(frozen=True, slots=True)
class Serving:
    """The server on a sidecar's host at one instant.

    ``pids`` of the server and ``boards`` (gpu0, ...) with one of them; None with a
    ``reason`` when that cannot be known. ``others``: compute processes on the
    boards that are not the server's (board, pid, name); none while its own are unknown.
    """

    pids: tuple[int, ...] | None
    boards: tuple[str, ...] | None
    reason: str | None
    others: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def judged(
        cls,
        pids: Iterable[int],
        boards: Iterable[str],
        reason: str | None,
        processes: Mapping[str, Sequence[Mapping[str, Any]] | None],
    ) -> Self:
        """From what `loadgen.power.owner` found, with ``processes`` on each board."""
        if reason is not None:
            return cls(None, None, reason)
        own = tuple(pids)
        others = tuple(
            {"board": board, "pid": process["pid"], "name": process.get("name")}
            for board, found in processes.items()
            for process in found or ()
            if process["pid"] not in own
        )
        return cls(own, tuple(boards), None, others)


async def serving(sidecar: Sidecar, info: Info, port: int | None) -> Serving:
    """By the processes that the sidecar watches (``--pid``), else by who listens on ``port`` there.

    Raises PowerError when the sidecar does not answer.
    """
    if info.pids is None and port is None:
        return Serving(
            None,
            None,
            "the server's address names another host than the sidecar's: give the sidecar "
            "--pid of the server, or both the same host name",
        )
    return Serving.judged(*await sidecar.server(port), info.processes)


async def serving_here(source: PowerSource, boards: Sequence[str], server_url: URL) -> Serving:
    """The same of this machine, whose ``boards`` the ``source`` reads; not while it reads them."""
    host = "localhost" if _loopback(server_url.host or "") else socket.gethostname()
    port = await port_there(server_url, host)
    if port is None:
        return Serving(None, None, "the server's address names another host than this machine")
    told: Mapping[str, Sequence[BoardProcess] | None]
    told = await asyncio.to_thread(getattr(source, "processes", dict))
    rows = {board: None if (of := told.get(board)) is None else [asdict(p) for p in of] for board in boards}
    owner = await asyncio.to_thread(owner_of_port, port, rows)
    return Serving.judged(owner.pids, owner.boards, owner.reason, rows)


def seen(
    start: Serving, end: Serving | None, others: Iterable[Mapping[str, Any]], prefix: str = ""
) -> dict[str, Any]:
    """The ``server`` entry of run.json; ``others``: of all looks. ``prefix`` stands before boards' names."""
    return {
        "start": _named(start, prefix),
        "end": None if end is None else _named(end, prefix),
        "others": [{**process, "board": prefix + process["board"]} for process in others],
    }


def _named(found: Serving, prefix: str) -> dict[str, Any]:
    boards = None if found.boards is None else [prefix + board for board in found.boards]
    return {"pids": found.pids, "boards": boards, "reason": found.reason}


async def port_there(server_url: URL, sidecar_host: str) -> int | None:
    """The server's port, if its address is the sidecar's host; None when that is not known."""
    host = server_url.host or ""
    if host == sidecar_host or (_loopback(host) and _loopback(sidecar_host)):
        return server_url.port
    if _loopback(host) or _loopback(sidecar_host):  # behind a forwarded port, or really elsewhere
        return None
    loop = asyncio.get_running_loop()
    try:
        here, there = [
            {info[4][0] for info in await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
            for name in (host, sidecar_host)
        ]
    except OSError:
        return None
    return server_url.port if here & there else None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
