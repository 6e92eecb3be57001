"""Which processes serve a TCP port of this host, and on which of the measured boards they run.

A server is more than the process that listens: TGI's launcher starts a router, which
listens, and beside it one process a shard, which holds the board; vLLM's engine is a
child of the process that listens. So its processes are the listener, the ancestors
that belong to it, and all of their descendants (`server_of`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_SHELLS = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "fish", "csh", "tcsh", "busybox", "login"))
_SPREADING = ("text-generation-launcher",)
"""Start each child in a process group of its own, so that the group does not hold the server together."""
_FORWARDERS = frozenset(
    {
        *("docker-proxy", "rootlessport", "slirp4netns", "pasta", "conmon", "ssh", "sshd", "socat"),
        *("nginx", "haproxy", "envoy", "traefik", "caddy", "systemd"),
    }
)
"""Listen in the place of a server that is somewhere else."""
_NAME_IT = "start the sidecar with --pid and the server's process"
_HOST_PIDS = 4026531836
"""The inode of the host's own PID namespace (PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h)."""

Processes = Mapping[str, Sequence[Mapping[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class Owner:
    """A server's processes, the boards they run on, and why that is not known (None: it is)."""

    pids: tuple[int, ...]
    boards: tuple[str, ...]
    reason: str | None


def owner_of_port(port: int, processes: Processes) -> Owner:
    """Who listens on ``port`` of this network namespace. ``processes``: of each measured board, by domain.

    Blocks for some milliseconds per thousand processes of the host.
    """
    try:
        listening = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
        }
    except (psutil.Error, OSError) as exc:
        return Owner((), (), f"the sockets of this host cannot be listed ({exc}): {_NAME_IT}")
    if not listening:
        return Owner(
            (),
            (),
            f"nobody listens on TCP port {port} here: the server is on another host, or in a container with "
            f"a network of its own; {_NAME_IT}",
        )
    found = [pid for pid in listening if pid is not None]
    if not found:
        return Owner(
            (),
            (),
            f"the process that listens on TCP port {port} belongs to another user or container: "
            f"run the sidecar as root, or {_NAME_IT}",
        )
    return on_boards(server_of(found), processes, listeners=found)


def owner_of_pid(pid: int, processes: Processes) -> Owner:
    """The named process and its descendants."""
    pids = with_descendants([pid])
    if not pids:
        return Owner((), (), f"process {pid} (--pid) has ended")
    return on_boards(pids, processes)


def on_boards(pids: Iterable[int], processes: Processes, listeners: Sequence[int] = ()) -> Owner:
    """The boards that list one of ``pids``; none, and no reason, means that they run on none of them."""
    owned = tuple(sorted(set(pids)))
    boards = tuple(
        board
        for board, rows in processes.items()
        if rows is not None and any(row["pid"] in owned for row in rows)
    )
    return Owner(owned, boards, None if boards else _why_unknown(listeners, processes))


def server_of(listeners: Iterable[int]) -> set[int]:
    """The listeners, the ancestors that belong to the same server, and all descendants of these.

    An ancestor belongs to it while it is of the same session and either of the same
    process group or TGI's launcher, and is neither a shell nor this very process or an
    ancestor of it: a shell or a supervisor that also started something else would
    bring foreign processes in.
    """
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return with_descendants(_top(pid, ours) for pid in listeners)


def _top(pid: int, ours: set[int]) -> int:
    try:
        process = psutil.Process(pid)
        while (parent := process.parent()) is not None and parent.pid > 1 and parent.pid not in ours:
            if os.getsid(parent.pid) != os.getsid(process.pid) or parent.name() in _SHELLS:
                break
            together = os.getpgid(parent.pid) == os.getpgid(process.pid)
            # The kernel cuts a process's name to 15 characters, psutil mends it where it may.
            if not together and not any(name.startswith(parent.name()[:15]) for name in _SPREADING):
                break
            process = parent
    except (psutil.Error, OSError):
        return pid  # it ended, or may not be looked at
    return process.pid


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Those of ``pids`` that live, with all their descendants."""
    found: set[int] = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found.add(pid)
            found |= {child.pid for child in process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def _why_unknown(listeners: Iterable[int], processes: Processes) -> str | None:
    """Why no board was found for a server that may well run on one; None: it runs on none."""
    if not processes:
        return "no board is measured here"
    silent = [board for board, rows in processes.items() if rows is None]
    if silent:
        return f"the driver does not list the processes of {', '.join(silent)}"
    named = [row["pid"] for rows in processes.values() if rows is not None for row in rows]
    if any(not psutil.pid_exists(pid) for pid in named) or not _sees_host_pids():
        return (
            "the sidecar does not see the host's processes, whose numbers the driver uses: "
            "start its container with the host's PID namespace (docker run --pid=host)"
        )
    for pid in listeners:
        try:
            name = psutil.Process(pid).name()
        except psutil.Error:
            return f"the process that listened, {pid}, has ended"
        if name in _FORWARDERS:
            return f"the port is forwarded by {name}: {_NAME_IT}"
    return None


def _sees_host_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Whether process numbers here are the host's; taken as true where there are no namespaces."""
    try:
        return namespace.stat().st_ino == _HOST_PIDS
    except OSError:
        return True
