"""What answers at an address: an LLM server with limits and metrics, or a power sidecar with its clock."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from loadgen.clients.http import parse_url
from loadgen.clients.probe import probe
from loadgen.clients.redaction import redact_url
from loadgen.doctor.power import MEASURED
from loadgen.errors import ConfigError, PowerError
from loadgen.metrics.scrape import metrics_url, scrape
from loadgen.power.offset import fastest
from loadgen.power.remote import Sidecar
from loadgen.scenario import Server
from loadgen.target import headers_for

PROBE_TIMEOUT_S = 2.0
ROUND_TRIPS = 16
_UNANSWERED = "start the server, or open or forward its port"
MOST_BOUND_S = 0.010
"""A run whose clocks agree less well is invalid (docs/method.md)."""


async def server_at(url: str, api_key: str | None) -> dict[str, Any]:
    """What serves ``url``; ``reason`` says in one line why nothing usable does.

    ``metrics``: whose names its ``/metrics`` page has, None with a ``metrics_reason``. Raises
    ConfigError when ``url`` is no address.
    """
    parse_url(url, "--url")
    host = urlsplit(url).hostname or ""
    facts: dict[str, Any] = {
        "url": redact_url(url),
        "local": host in ("localhost", "::1") or host.startswith("127."),
        **dict.fromkeys(("kind", "model", "protocol", "limits", "metrics", "metrics_reason", "reason")),
    }
    headers = headers_for(Server(), api_key)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            found = await probe(url, headers)
    except TimeoutError:
        return facts | {"reason": f"{redact_url(url)}: no answer in {PROBE_TIMEOUT_S:g} s: {_UNANSWERED}"}
    except ConfigError as exc:
        more = f": {_UNANSWERED}" if "nothing answers" in str(exc) else ""
        return facts | {"reason": f"{exc}{more}"}
    once = asyncio.Event()
    once.set()
    scraped = await scrape(metrics_url(url), PROBE_TIMEOUT_S, lambda _: None, once, headers=headers)
    why = scraped.reason or "; ".join(scraped.warnings) or None
    return facts | {
        "kind": found.kind,
        "model": found.model,
        "protocol": found.protocol,
        "limits": dict(found.limits),
        "metrics": scraped.family,
        "metrics_reason": why if scraped.family is None else None,
    }


async def sidecar_at(url: str, token: str | None) -> dict[str, Any]:
    """What the sidecar at ``url`` reads and how well its clock is known.

    ``reason``: why it is unfit for a run. Raises ConfigError when ``url`` is no address.
    """
    parse_url(url, "--sidecar")
    keys = ("interval_s", "domains", "boards", "processes", "reasons", "warnings", "overhead", "measured")
    facts: dict[str, Any] = {"url": redact_url(url), **dict.fromkeys((*keys, "clock", "reason"))}
    try:
        async with Sidecar(url, token) as sidecar:
            status, ailing = await sidecar.health()
            info = await sidecar.info()
            offset = fastest([await sidecar.exchange() for _ in range(ROUND_TRIPS)])
    except PowerError as exc:
        return facts | {"reason": str(exc)}
    measured = [domain.name for domain in info.domains if domain.method in MEASURED]
    reason = None
    if status != "ok":
        reason = f"sidecar {redact_url(url)} is {status}: {ailing}"
    elif not measured:
        told = "; ".join(why for why in info.reasons.values() if why)
        reason = f"sidecar {redact_url(url)} measures nothing: {told or 'it has estimates only'}"
    elif offset.bound_s > MOST_BOUND_S:
        reason = (
            f"its clock is known to {1e3 * offset.bound_s:.3g} ms only, a run needs "
            f"{1e3 * MOST_BOUND_S:g} ms: the link is slow or busy"
        )
    return facts | {
        "interval_s": info.interval_s,
        "domains": [asdict(domain) for domain in info.domains],
        "boards": [dict(board) for board in info.boards],
        "processes": {board: rows and list(rows) for board, rows in info.processes.items()},
        "reasons": dict(info.reasons),
        "warnings": list(info.warnings),
        "overhead": dict(info.overhead),
        "measured": measured,
        "clock": {"offset_s": offset.offset_s, "bound_s": offset.bound_s, "round_trips": offset.round_trips},
        "reason": reason,
    }
