"""A report of the doctor, printed for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def render(found: Mapping[str, Any], console: Console) -> None:
    """Prints a `loadgen.doctor.report`; 80 columns are enough."""
    console.print(_table(found["domains"]))
    if any(row["update_from"] == "documented" for row in found["domains"] if row["reason"] is None):
        console.print(_plain("every: in brackets as documented, the others as seen here just now"))
    for board in found["boards"]:
        console.print()
        console.print(_plain(f"{board['domain']}  {board['name']}  {board['uuid'] or ''}"), soft_wrap=True)
        for line in _board_lines(board, found["processes"].get(board["domain"], ())):
            console.print(_plain(f"      {line}"), soft_wrap=True)
    console.print()
    for warning in found["warnings"]:
        console.print(_plain(f"note: {warning}"), soft_wrap=True)
    for label, text in _lines(found):
        console.print(Text.assemble((f"{label:<9}", "bold"), _plain(text)), soft_wrap=True)


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title, options in (
        ("domain", {"no_wrap": True}),
        ("method", {"no_wrap": True}),
        ("every", {"no_wrap": True, "justify": "right"}),
        ("now", {"no_wrap": True, "justify": "right"}),
        ("source, or why not", {"overflow": "fold"}),
    ):
        table.add_column(title, **options)
    for row in rows:
        usable = row["reason"] is None
        every = _duration(row["update_s"]) if usable else ""
        table.add_row(
            row["domain"],
            Text(row["method"] or "none") if usable else Text("unavailable", style="red"),
            f"({every})" if every and row["update_from"] == "documented" else every,
            "" if row["power_w"] is None or not usable else f"{row['power_w']:.1f} W",
            _plain(row["note"].partition(";")[0] if usable else row["reason"]),
        )
    return table


def _board_lines(board: Mapping[str, Any], processes: Sequence[Mapping[str, Any]] | None) -> list[str]:
    limit_w = board.get("power_limit_w")
    limit = "unknown" if limit_w is None else f"{limit_w:g} W"
    mig = "on: its power is shared by tenants" if board.get("mig") else "off"
    return [
        f"power limit {limit}, driver {board.get('driver') or 'unknown'}, MIG {mig}",
        f"compute processes: {_processes(processes)}",
    ]


def _processes(processes: Sequence[Mapping[str, Any]] | None) -> str:
    if processes is None:
        return "not told: see the notes"
    return ", ".join(map(_process, processes)) or "none"


def _process(process: Mapping[str, Any]) -> str:
    size = process["memory_bytes"]
    held = "" if size is None else f", {size / 2**30:.1f} GiB"
    return f"{process['name'] or 'unnamed'} ({process['pid']}{held})"


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    host = found["machine"]
    where = [
        *(["virtual machine"] if host["virtual_machine"] else []),
        *(["container"] if host["container"] else []),
    ]
    timer = "timerfd" if host["kernel_timer"] else "none: requests leave up to 1 ms late"
    soft, hard = (
        "unlimited" if host[key] is None else str(host[key]) for key in ("open_files_soft", "open_files_hard")
    )
    lines = [
        ("machine", ", ".join([host["system"], *where])),
        ("cores", f"{host['cores_usable']} of {host['cores']} usable"),
        (
            "clock",
            f"monotonic, resolution {_duration(host['clock_resolution_s'])}, "
            f"step {_duration(host['clock_step_s'])}; kernel timer: {timer}",
        ),
        ("files", f"{soft} open files, at most {hard} (a run raises it as far as it goes)"),
    ]
    if found["server"] is not None:
        lines += _server_lines(found["server"], found["sidecar"] is not None)
    if found["sidecar"] is not None:
        lines += _sidecar_lines(found["sidecar"])
    lines.append(("energy", ", ".join(found["measured"]) or "nothing here can be measured"))
    if found["sidecar"] is not None and found["sidecar"]["measured"]:
        lines.append(("", f"by the sidecar: {', '.join(found['sidecar']['measured'])}"))
    return lines


def _server_lines(server: Mapping[str, Any], beside: bool) -> list[tuple[str, str]]:
    if server["reason"] is not None:
        return [("server", server["reason"])]
    limits = ", ".join(f"{name} {value}" for name, value in server["limits"].items())
    lines = [
        ("server", f"{server['kind']} at {server['url']} (loadgen speaks {server['protocol']})"),
        ("model", server["model"] or "unnamed"),
        ("limits", limits or "none declared"),
        ("metrics", f"{server['metrics']}'s" if server["metrics"] else f"none: {server['metrics_reason']}"),
    ]
    if not server["local"] and not beside:
        lines.append(
            (
                "",
                "on another machine: its energy cannot be read from here; start `loadgen sidecar` there "
                "and give --sidecar",
            )
        )
    return lines


def _sidecar_lines(sidecar: Mapping[str, Any]) -> list[tuple[str, str]]:
    if sidecar["clock"] is None:
        return [("sidecar", sidecar["reason"].removeprefix("sidecar "))]
    lines = [("sidecar", f"{sidecar['url']}, a sample every {_duration(sidecar['interval_s'])}")]
    for domain in sidecar["domains"]:
        every = f" (every {_duration(domain['update_s'])})" if domain["update_s"] is not None else ""
        lines.append(("", f"{domain['name']}: {domain['method']}{every}; {domain['note'].partition(';')[0]}"))
    lines += [("", f"{part}: {why}") for part, why in sidecar["reasons"].items() if why]
    lines += [("", f"note: {warning}") for warning in sidecar["warnings"]]
    for board in sidecar["boards"]:
        name = board.get("domain")
        lines.append(("", f"{name}: {board.get('name')} {board.get('uuid') or ''}".rstrip()))
        said = _board_lines(board, sidecar["processes"].get(name))
        lines += [("", f"      {line}") for line in said]
    at, overhead = sidecar["clock"], sidecar["overhead"]
    lines.append(
        (
            "",
            f"clock known to {_duration(at['bound_s'])} (fastest of {at['round_trips']} round trips)",
        )
    )
    if overhead.get("cpu_share") is not None:
        late = overhead.get("wake_late_p99_s")
        jitter = "" if late is None else f", p99 of its lateness {_duration(late)}"
        lines.append(("", f"it takes {100 * overhead['cpu_share']:.2g} % of a core{jitter}"))
    if sidecar["reason"] is not None:
        lines.append(("", f"not fit for a run: {sidecar['reason']}"))
    return lines


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _plain(text: str) -> Text:
    """Text as it is: no markup, no control characters of whoever sent it."""
    return Text("".join(c if c.isprintable() else "?" for c in text))
