"""The rules for power read beside the server: its boards, nobody else's; for sidecars clock and samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from analysis.lint.rule import Check, Rule
from analysis.run import Run

CLOCK_BOUND_S = 10e-3
"""A power step of 400 W is then placed within 4 J, about a fifth of a request."""
SKIPPED_SHARE = 0.01
_CLOCK = "docs/lint.md, What goes wrong, 9"
_WRONG_BOARD = "docs/lint.md, What goes wrong, 1"

CLOCK = Check("clock-bound", "the sidecars' clocks are known", "s", _CLOCK)
SAMPLES = Check(
    "samples-complete",
    "no power sample of a sidecar is missing",
    "samples",
    "docs/method.md, When a run says that it is invalid",
)
SKIPPED = Check(
    "samples-skipped", "the sidecars' samplers kept their interval", "1", "docs/method.md, Energy"
)
SAME_NAMES = Check("same-meaning", "a domain meant the same board and method throughout", "", _WRONG_BOARD)
SAME_BOARD = Check("same-board", "the server ran on the boards that were measured", "", _WRONG_BOARD)
EXCLUSIVE = Check("board-exclusive", "nobody else computed on them", "", "docs/lint.md, What goes wrong, 11")
ALLOCATION = Check(
    "boards-used",
    "every board that is counted had a process of the server",
    "",
    "docs/lint.md, What goes wrong, 12",
)
CHECKS = (CLOCK, SAMPLES, SKIPPED, SAME_NAMES, SAME_BOARD, EXCLUSIVE, ALLOCATION)

Row = Mapping[str, Any]
"""A sidecar's entry of the manifest."""
Server = tuple[str, Mapping[str, Any]]
"""Who measured, and what it saw of the server and of others."""


def rules(run: Run) -> Iterator[Rule]:
    """In the order of CHECKS, sidecar by sidecar where one trips."""
    rows: Sequence[Row] = run.manifest.get("sidecars") or ()
    every: tuple[tuple[Check, Callable[[Row], Iterator[Rule]], str], ...] = (
        (CLOCK, _clock, "no clock was off by more than 10 ms"),
        (SAMPLES, _samples, "every sample that was taken was received"),
        (SKIPPED, _skipped, "no sampler skipped 1 % of its ticks"),
        (SAME_NAMES, _changed, "no board or method changed under its name"),
    )
    for check, tripping, well in every:
        tripped = [rule for row in rows for rule in tripping(row)]
        figure, bound = _worst(check, rows)
        yield from tripped or [
            check.holds(well, figure, bound) if rows else check.not_judged("no sidecar measured this run")
        ]
    servers = _servers(run, rows)
    yield from _same_board(servers)
    yield from _exclusive(run, servers)
    yield from _allocation(run, servers)


def _worst(check: Check, rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """Figure and bound of a rule that holds for all sidecars."""
    if check is CLOCK:
        return max((row["clock"]["bound_s"] or 0.0 for row in rows), default=None), CLOCK_BOUND_S
    if check is SAMPLES:
        return 0.0, 0.0
    if check is SKIPPED:
        shares = [_skips(row) / max(1, row["samples"]["expected"]) for row in rows]
        return max(shares, default=None), SKIPPED_SHARE
    return None, None


def _servers(run: Run, rows: Sequence[Row]) -> list[Server]:
    """Of the sidecars, or of this machine where it read the boards itself."""
    here = run.power.get("server")
    return [(_name(row), row["server"]) for row in rows] if here is None else [("this machine", here)]


def _name(row: Row) -> str:
    return f"sidecar {row.get('name') or row.get('url')}"


def _why(row: Row) -> str:
    """What the run wrote down of a broken link, without its own naming of the sidecar."""
    reason = row.get("reason")
    if not reason:
        return ""
    for who in (row.get("name"), row.get("url")):
        reason = reason.removeprefix(f"sidecar {who}: ")
    return f": {reason}"


def _clock(row: Row) -> Iterator[Rule]:
    bound_s = row["clock"]["bound_s"]
    if bound_s is None:
        yield CLOCK.invalid(
            f"{_name(row)}: its clock was not asked at the end, so its drift is not known{_why(row)}",
            None,
            CLOCK_BOUND_S,
        )
    elif bound_s > CLOCK_BOUND_S:
        slow = max(row["clock"][end]["bound_s"] for end in ("start", "end")) > CLOCK_BOUND_S
        yield CLOCK.invalid(
            f"{_name(row)}: its clock is known within {1e3 * bound_s:.3g} ms only, "
            f"expected {1e3 * CLOCK_BOUND_S:g} ms: "
            + (
                "send the load from nearer, or over a faster link"
                if slow
                else "it was set or slewed in mid-run, or the link was broken or slow for too long to tell"
            ),
            bound_s,
            CLOCK_BOUND_S,
        )


def _samples(row: Row) -> Iterator[Rule]:
    samples = row["samples"]
    if samples["missing"]:
        why = _why(row) if row["clock"]["bound_s"] is not None else ""  # else `_clock` has said it
        yield SAMPLES.invalid(
            f"{_name(row)}: {samples['missing']} of {samples['expected']} power samples are missing "
            f"(one every {row['interval_s']:g} s){why}",
            samples["missing"],
            0,
        )


def _skips(row: Row) -> int:
    samples = row["samples"]
    return int(samples["expected"] - samples["received"] - samples["missing"])


def _skipped(row: Row) -> Iterator[Rule]:
    skipped, expected = _skips(row), row["samples"]["expected"]
    if skipped > SKIPPED_SHARE * expected:
        yield SKIPPED.warns(
            f"{_name(row)}: its sampler skipped {skipped} of {expected} ticks of "
            f"{row['interval_s']:g} s: its host or a driver was too slow",
            skipped / max(1, expected),
            SKIPPED_SHARE,
        )


def _changed(row: Row) -> Iterator[Rule]:
    yield from (SAME_NAMES.invalid(f"{_name(row)}: {line}") for line in row.get("changed") or ())


def _looks(servers: Sequence[Server], when: str) -> list[tuple[str, Mapping[str, Any]]]:
    """(who measured, where the server was) at the run's start or end, of those that were asked."""
    return [(name, server[when]) for name, server in servers if server[when] is not None]


def _on(servers: Sequence[Server], when: str) -> set[str]:
    """The boards on which the server was seen."""
    return {board for _, look in _looks(servers, when) for board in look["boards"] or ()}


def _same_board(servers: Sequence[Server]) -> Iterator[Rule]:
    if not servers:
        yield SAME_BOARD.not_judged("no real board was read beside a server")
        return
    tripped = [*_wrong_boards(servers), *_unknown(servers)]
    boards = ", ".join(sorted(_on(servers, "start") | _on(servers, "end")))
    yield from tripped or [SAME_BOARD.holds(f"the server was seen on {boards} at the start and the end")]


def _wrong_boards(servers: Sequence[Server]) -> Iterator[Rule]:
    nowhere: dict[str, list[str]] = {}
    for when in ("start", "end"):
        looks = [look for _, look in _looks(servers, when)]
        if looks and all(look["boards"] == [] for look in looks):
            pids = ", ".join(str(pid) for look in looks for pid in look["pids"][:5])
            nowhere.setdefault(pids, []).append(when)
    for pids, times in nowhere.items():
        yield SAME_BOARD.invalid(
            f"the server's processes ({pids}) were on no measured board at the run's {' and '.join(times)}: "
            "another board's energy was read; check the sidecar's --gpu, or power.gpus"
        )


def _unknown(servers: Sequence[Server]) -> Iterator[Rule]:
    for name, server in servers:
        if server["end"] is None:
            yield SAME_BOARD.warns(f"{name}: was not asked at the end whether it measured the server")
    for when in ("start", "end"):
        if _on(servers, when):
            continue
        for name, look in _looks(servers, when):
            if look["boards"] is None:
                why = look["reason"]
                yield SAME_BOARD.warns(
                    f"{name}: not known whether it measured the server at the {when}: {why}"
                )


def _exclusive(run: Run, servers: Sequence[Server]) -> Iterator[Rule]:
    if not servers:
        yield EXCLUSIVE.not_judged("no real board was read beside a server")
        return
    tripped = [EXCLUSIVE.invalid(line) for line in _shared(run, servers)]
    yield from tripped or [EXCLUSIVE.holds("no other process was seen on the server's boards, and no MIG")]


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


def _allocation(run: Run, servers: Sequence[Server]) -> Iterator[Rule]:
    used = _on(servers, "start") | _on(servers, "end")
    measured = [str(row.get("domain")) for row in run.manifest.get("gpus") or ()]
    if not used:
        yield ALLOCATION.not_judged("on which boards the server ran is not known")
    elif idle := [board for board in measured if board not in used]:
        yield ALLOCATION.warns(
            f"{', '.join(idle)}: measured and counted, but the server has no process there "
            "(an idle board of the allocation costs energy too; else name the boards: --gpu, power.gpus)"
        )
    else:
        yield ALLOCATION.holds(f"a process on each of {', '.join(measured) or ', '.join(sorted(used))}")
