"""Whether the server's processes compute on the boards that a sidecar measures, and who else does."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yarl import URL

from loadgen.power.remote import Info, Sidecar


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
    said = await sidecar.server(port)
    if (reason := said.get("reason")) is not None:
        return Serving(None, None, str(reason))
    pids, boards = tuple(map(int, said["pids"])), tuple(map(str, said["boards"]))
    others = tuple(
        {"board": board, "pid": process["pid"], "name": process.get("name")}
        for board, found in info.processes.items()
        for process in found or ()
        if process["pid"] not in pids
    )
    return Serving(pids, boards, None, others)


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
