"""The rules for power read beside the server: its boards, nobody else's; for sidecars clock and samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.run import Run

CLOCK_BOUND_S = 10e-3
"""A power step of 400 W is then placed within 4 J, about a fifth of a request."""
SKIPPED_SHARE = 0.01


Server = tuple[str, Mapping[str, Any]]
"""Who measured, and what it saw of the server and of others."""


def reasons(run: Run) -> Iterator[str]:
    """Why energy read beside the server cannot be trusted."""
    for row in _sidecars(run):
        yield from _clock(row)
        yield from _samples(row)
        yield from (f"{_name(row)}: {line}" for line in row.get("changed") or ())
    if servers := _servers(run):
        yield from _wrong_boards(servers)
        yield from _shared(run, servers)


def warnings(run: Run) -> Iterator[str]:
    """What to keep in mind of it."""
    for row in _sidecars(run):
        yield from _skipped(row)
    if servers := _servers(run):
        yield from _unknown(servers)
        yield from _idle_boards(run, servers)


def _sidecars(run: Run) -> Sequence[Mapping[str, Any]]:
    return run.manifest.get("sidecars") or ()


def _servers(run: Run) -> list[Server]:
    """Of the sidecars, or of this machine where it read the boards itself."""
    found = [(_name(row), row["server"]) for row in _sidecars(run)]
    here = run.power.get("server")
    return found if here is None else [("this machine", here)]


def _name(row: Mapping[str, Any]) -> str:
    return f"sidecar {row.get('name') or row.get('url')}"


def _why(row: Mapping[str, Any]) -> str:
    """What the run wrote down of a broken link, without its own naming of the sidecar."""
    reason = row.get("reason")
    if not reason:
        return ""
    for who in (row.get("name"), row.get("url")):
        reason = reason.removeprefix(f"sidecar {who}: ")
    return f": {reason}"


def _clock(row: Mapping[str, Any]) -> Iterator[str]:
    bound_s = row["clock"]["bound_s"]
    if bound_s is None:
        why = _why(row)
        yield f"{_name(row)}: its clock was not asked at the end, so its drift is not known{why}"
    elif bound_s > CLOCK_BOUND_S:
        slow = max(row["clock"][end]["bound_s"] for end in ("start", "end")) > CLOCK_BOUND_S
        yield (
            f"{_name(row)}: its clock is known within {1e3 * bound_s:.3g} ms only, "
            f"expected {1e3 * CLOCK_BOUND_S:g} ms: "
            + (
                "send the load from nearer, or over a faster link"
                if slow
                else "it was set or slewed in mid-run, or the link was broken or slow for too long to tell"
            )
        )


def _samples(row: Mapping[str, Any]) -> Iterator[str]:
    samples = row["samples"]
    if samples["missing"]:
        why = _why(row) if row["clock"]["bound_s"] is not None else ""  # else `_clock` has said it
        yield (
            f"{_name(row)}: {samples['missing']} of {samples['expected']} power samples are missing "
            f"(one every {row['interval_s']:g} s){why}"
        )


def _skipped(row: Mapping[str, Any]) -> Iterator[str]:
    samples = row["samples"]
    skipped = samples["expected"] - samples["received"] - samples["missing"]
    if skipped > SKIPPED_SHARE * samples["expected"]:
        yield (
            f"{_name(row)}: its sampler skipped {skipped} of {samples['expected']} ticks of "
            f"{row['interval_s']:g} s: its host or a driver was too slow"
        )


def _looks(servers: Sequence[Server], when: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(who measured, where the server was) at the run's start or end, of those that were asked."""
    return [(name, server[when]) for name, server in servers if server[when] is not None]


def _on(servers: Sequence[Server], when: str) -> set[str]:
    """The boards on which the server was seen."""
    return {board for _, look in _looks(servers, when) for board in look["boards"] or ()}


def _wrong_boards(servers: Sequence[Server]) -> Iterator[str]:
    nowhere: dict[str, list[str]] = {}
    for when in ("start", "end"):
        looks = [look for _, look in _looks(servers, when)]
        if looks and all(look["boards"] == [] for look in looks):
            pids = ", ".join(str(pid) for look in looks for pid in look["pids"][:5])
            nowhere.setdefault(pids, []).append(when)
    for pids, times in nowhere.items():
        yield (
            f"the server's processes ({pids}) were on no measured board at the run's {' and '.join(times)}: "
            "another board's energy was read; check the sidecar's --gpu, or power.gpus"
        )


def _unknown(servers: Sequence[Server]) -> Iterator[str]:
    for name, server in servers:
        if server["end"] is None:
            yield f"{name}: was not asked at the end whether it measured the server"
    for when in ("start", "end"):
        if _on(servers, when):
            continue
        for name, look in _looks(servers, when):
            if look["boards"] is None:
                yield f"{name}: not known whether it measured the server at the {when}: {look['reason']}"


def _idle_boards(run: Run, servers: Sequence[Server]) -> Iterator[str]:
    used = _on(servers, "start") | _on(servers, "end")
    measured = [str(row.get("domain")) for row in run.manifest.get("gpus") or ()]
    idle = [board for board in measured if board not in used]
    if used and idle:
        yield (
            f"{', '.join(idle)}: measured and counted, but the server has no process there "
            "(an idle board of the allocation costs energy too; else name the boards: --gpu, power.gpus)"
        )


def _shared(run: Run, servers: Sequence[Server]) -> Iterator[str]:
    for row in run.manifest.get("gpus") or ():
        if row.get("mig"):
            yield (
                f"{row.get('domain')} is partitioned (MIG): its power is that of all its tenants; "
                "energy per request needs a board of its own"
            )
    foreign: dict[str, list[str]] = {}
    for _, server in servers:
        for process in server["others"]:
            foreign.setdefault(process["board"], []).append(f"{process['name']} ({process['pid']})")
    for board, found in foreign.items():
        shown = ", ".join([*found[:3], *(["..."] if len(found) > 3 else [])])
        yield f"{board} was shared: {shown} computed there too, and its energy is that of both"
