"""What this machine can measure and what answers at an address, found out before a run depends on it.

Every source is opened as a run opens it and read twice, `SPACING_S` apart: a counter
that exists and does not advance is unavailable, never 0 J. The result is one plain
object (`report`), which `render` prints; docs/doctor.md describes its keys.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadgen.clients.http import parse_url
from loadgen.clients.probe import probe
from loadgen.clients.redaction import redact_url
from loadgen.errors import ConfigError, PowerError
from loadgen.pacer import Alarm
from loadgen.power.host import RamEstimate, installed_gb
from loadgen.power.nvml import NvmlSource
from loadgen.power.rapl import POWERCAP, RaplSource
from loadgen.scenario import Server
from loadgen.target import headers_for
from loadgen.types import Domain, Method, PowerSource, Reading

SPACING_S = 0.3
"""Between the two readings: three of NVML's updates, so that a counter that moves has moved."""
PROBE_TIMEOUT_S = 2.0
NVML_UPDATE_S = 0.1
"""A100 and H100 publish power and energy every 100 ms (arXiv 2312.02741); other boards every 20-100 ms."""
RAPL_UPDATE_S = 1e-3
"""The energy counters are updated about every millisecond (Intel SDM, volume 3, "RAPL Interfaces")."""
_OF_A_DOMAIN = re.compile(r"power: (\w+(?:\.\w+)?): (.+)")
_MEASURED: tuple[Method, ...] = ("counter", "instant", "average")


@dataclass(frozen=True, slots=True)
class Finding:
    """One domain. ``reason`` is None where it can be read, else says why not and what to do.

    ``update_s``: how often the sensor publishes, as documented; ``averaging_s``: its
    window; ``power_w``: the mean between the two readings of a counter, or the last power.
    """

    domain: str
    method: Method | None
    update_s: float | None = None
    averaging_s: float | None = None
    power_w: float | None = None
    note: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Power:
    """What can be read of power here. ``boards``: rows as in run.json; ``warnings``: one line each."""

    findings: tuple[Finding, ...]
    boards: tuple[Mapping[str, object], ...]
    warnings: tuple[str, ...]


def power_here(*, powercap: Path = POWERCAP, pause: Callable[[float], object] = time.sleep) -> Power:
    """Opens NVML, RAPL and the memory estimate, reads twice with ``pause(SPACING_S)`` between."""
    findings: list[Finding] = []
    opened: list[tuple[PowerSource, float | None]] = []
    sources: tuple[tuple[str, float | None, Callable[[], PowerSource]], ...] = (
        ("gpu", NVML_UPDATE_S, NvmlSource.open),
        ("cpu", RAPL_UPDATE_S, lambda: RaplSource.open(powercap, sleep=pause)),
        ("ram", None, lambda: RamEstimate(installed_gb())),
    )
    for name, update_s, open_source in sources:
        try:
            opened.append((open_source(), update_s))
        except PowerError as exc:
            findings.append(Finding(name, None, reason=str(exc)))
    boards: list[Mapping[str, object]] = []
    warnings: list[str] = []
    try:
        first = [_read(source) for source, _ in opened]
        pause(SPACING_S)
        second = [_read(source) for source, _ in opened]
        for (source, update_s), before, after in zip(opened, first, second, strict=True):
            rows: Sequence[Mapping[str, object]] = getattr(source, "boards", ())
            boards += rows
            said: Sequence[str] = getattr(source, "warnings", ())
            why = {m[1]: m[2] for w in said if (m := _OF_A_DOMAIN.match(w))}
            warnings += [w for w in said if not _OF_A_DOMAIN.match(w)]
            there = {domain.name for domain in source.domains()}
            findings += [Finding(n, None, reason=text) for n, text in why.items() if n not in there]
            findings += _without_counter(rows, there | set(why))
            findings += [judge(d, before, after, update_s, why.get(d.name)) for d in source.domains()]
    finally:
        for source, _ in opened:
            source.close()
    return Power(tuple(sorted(findings, key=_place)), tuple(boards), tuple(warnings))


def judge(
    domain: Domain,
    before: Mapping[str, Reading] | str,
    after: Mapping[str, Reading] | str,
    update_s: float | None,
    failure: str | None = None,
) -> Finding:
    """A domain from two readings of its source (by domain, or the text of the failure).

    ``failure``: what the source said of this domain alone, if it did.
    """
    power_w: float | None = None
    reason: str | None = None
    if isinstance(before, str) or isinstance(after, str):
        reason = before if isinstance(before, str) else str(after)
    elif (a := before.get(domain.name)) is None or (b := after.get(domain.name)) is None:
        reason = failure or "it did not answer; try again"
    elif a.energy_j is not None and b.energy_j is not None:
        delta_j, elapsed_s = b.energy_j - a.energy_j, b.t_s - a.t_s
        if delta_j == 0:
            reason = f"the counter did not advance in {SPACING_S:g} s: frozen, or not kept here (a VM)"
        elif delta_j < 0:
            reason = "the counter went backwards: the driver was reset between two readings; try again"
        else:
            power_w = delta_j / elapsed_s if elapsed_s > 0 else None
    else:
        power_w = b.power_w or None
        if power_w is None:
            reason = "the sensor reads 0 W, which no board draws"
    return Finding(domain.name, domain.method, update_s, domain.averaging_s, power_w, domain.note, reason)


def _read(source: PowerSource) -> dict[str, Reading] | str:
    try:
        return {reading.domain: reading for reading in source.read()}
    except (PowerError, OSError) as exc:
        return str(exc)


def _without_counter(boards: Sequence[Mapping[str, object]], names: Set[str]) -> list[Finding]:
    """A row for each board whose energy can only be integrated from its power."""
    reason = "no energy counter (Volta and newer have one): its power is integrated"
    return [Finding(str(b["domain"]), None, reason=reason) for b in boards if b["domain"] not in names]


def _place(finding: Finding) -> tuple[int, int]:
    """GPUs, CPUs, the rest, each by number."""
    name = finding.domain.partition(".")[0]
    kind = name.rstrip("0123456789")
    order = ("gpu", "cpu").index(kind) if kind in ("gpu", "cpu") else 2
    return order, int(name[len(kind) :] or 0)


async def machine() -> dict[str, Any]:
    """System, cores, clock and limits of this process. The clock's step is the least one seen."""
    steps_s = []
    for _ in range(1000):
        a_s = b_s = time.monotonic()
        while b_s == a_s:
            b_s = time.monotonic()
        steps_s.append(b_s - a_s)
    alarm = Alarm()
    kernel_timer = alarm.by_kernel_timer
    alarm.close()
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "cores_usable": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "virtual_machine": _in_virtual_machine(),
        "container": any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        "clock_resolution_s": time.get_clock_info("monotonic").resolution,
        "clock_step_s": min(steps_s),
        "kernel_timer": kernel_timer,
        "open_files_soft": soft,
        "open_files_hard": hard,
    }


def _in_virtual_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether a hypervisor shows itself in the CPU's flags (x86); None where there are no flags."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), None)
    return None if flags is None else "hypervisor" in flags.split()


async def server_at(url: str, api_key: str | None) -> dict[str, Any]:
    """What serves ``url``; ``reason`` says in one line why nothing usable does.

    Raises ConfigError when ``url`` is no address.
    """
    parse_url(url)
    host = urlsplit(url).hostname or ""
    facts: dict[str, Any] = {
        "url": redact_url(url),
        "local": host in ("localhost", "::1") or host.startswith("127."),
        **dict.fromkeys(("kind", "model", "protocol", "limits", "reason")),
    }
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            found = await probe(url, headers_for(Server(), api_key))
    except TimeoutError:
        return facts | {"reason": f"{redact_url(url)}: no answer in {PROBE_TIMEOUT_S:g} s"}
    except ConfigError as exc:
        return facts | {"reason": str(exc)}
    return facts | {
        "kind": found.kind,
        "model": found.model,
        "protocol": found.protocol,
        "limits": dict(found.limits),
    }


async def report(
    url: str | None = None,
    api_key: str | None = None,
    *,
    powercap: Path = POWERCAP,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """The whole examination. ``ok`` is the exit status: the server's answer if ``url`` is given,
    else whether at least one domain is measured.

    Raises ConfigError when ``url`` is no address.
    """
    server = None if url is None else await server_at(url, api_key)
    power = await asyncio.to_thread(power_here, powercap=powercap, pause=pause)
    measured = [f.domain for f in power.findings if f.reason is None and f.method in _MEASURED]
    return {
        "ok": bool(measured) if server is None else server["reason"] is None,
        "measured": measured,
        "domains": [asdict(finding) for finding in power.findings],
        "boards": [dict(board) for board in power.boards],
        "warnings": list(power.warnings),
        "machine": await machine(),
        "server": server,
    }


def render(found: Mapping[str, Any], console: Console) -> None:
    """Prints a `report` for people; 80 columns are enough."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title, options in (
        ("domain", {"no_wrap": True}),
        ("method", {"no_wrap": True}),
        ("every", {"no_wrap": True, "justify": "right"}),
        ("now", {"no_wrap": True, "justify": "right"}),
        ("source, or why not", {"overflow": "fold"}),
    ):
        table.add_column(title, **options)
    for row in found["domains"]:
        usable = row["reason"] is None
        table.add_row(
            row["domain"],
            Text(row["method"] or "none") if usable else Text("unavailable", style="red"),
            _duration(row["update_s"]) if usable else "",
            "" if row["power_w"] is None or not usable else f"{row['power_w']:.1f} W",
            _plain(row["note"].partition(";")[0] if usable else row["reason"]),
        )
    console.print(table)
    for board in found["boards"]:
        console.print()
        console.print(_plain(f"{board['domain']}  {board['name']}  {board['uuid']}"), soft_wrap=True)
        limit_w = board["power_limit_w"]
        limit = "unknown" if limit_w is None else f"{limit_w:g} W"
        mig = "on: its power is shared by tenants" if board["mig"] else "off"
        console.print(_plain(f"      power limit {limit}, driver {board['driver']}, MIG {mig}"))
    console.print()
    for warning in found["warnings"]:
        console.print(_plain(f"note: {warning}"), soft_wrap=True)
    for label, text in _lines(found):
        console.print(Text.assemble((f"{label:<9}", "bold"), _plain(text)), soft_wrap=True)


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    host, server = found["machine"], found["server"]
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
    if server is not None:
        lines += _server_lines(server)
    lines.append(("energy", ", ".join(found["measured"]) or "nothing here can be measured"))
    return lines


def _server_lines(server: Mapping[str, Any]) -> list[tuple[str, str]]:
    if server["reason"] is not None:
        return [("server", server["reason"])]
    limits = ", ".join(f"{name} {value}" for name, value in server["limits"].items())
    lines = [
        ("server", f"{server['kind']} at {server['url']} (loadgen speaks {server['protocol']})"),
        ("model", server["model"] or "unnamed"),
        ("limits", limits or "none declared"),
    ]
    if not server["local"]:
        lines.append(("", "on another machine: its energy cannot be read from here"))
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
