"""The sidecar's HTTP interface (docs/sidecar.md): answers of limited size, read from the sampler's files."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Protocol

import orjson
import psutil
from aiohttp import hdrs, web

import loadgen
from loadgen import clock, provenance
from loadgen.clients.redaction import redact_url
from loadgen.errors import LoadgenError
from loadgen.power.owner import owner_of_pid, owner_of_port, with_descendants
from loadgen.sidecar.access import Handler, guard
from loadgen.sidecar.directory import DataDirectory
from loadgen.sidecar.encoding import as_json
from loadgen.sidecar.events import read_events
from loadgen.sidecar.exposition import Now, exposition
from loadgen.sidecar.live import Live
from loadgen.sidecar.table import Row, TableReader, boot_id

SCHEMA = 1
MOST_ROWS, ROWS = 10_000, 1000
MOST_ANSWERS = 8
"""Answers with many rows that may be under way at once: each is some megabytes."""
ANSWER_S = 30.0
"""Seconds a client has to take such an answer."""
STALE_S, STALE_INTERVALS = 1.0, 5
_PAGE = files("loadgen.sidecar").joinpath("page.html").read_bytes()
_POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Sampling(Protocol):
    """What the routes ask of the process that samples."""

    interval_s: float
    started_s: float
    restarts: int
    trouble: str | None
    """Why it does not run now."""

    @property
    def pid(self) -> int | None: ...


class Routes:
    """The interface over one data directory.

    ``intervals_s``: of the tables. ``pid``: the process named by --pid; ``scraped``:
    whose metrics go into the table ``metrics``.
    """

    def __init__(
        self,
        directory: DataDirectory,
        sampling: Sampling,
        *,
        intervals_s: Mapping[str, float],
        pid: int | None = None,
        scraped: str | None = None,
    ) -> None:
        self._directory = directory
        self._sampling = sampling
        self._pid = pid
        self._scraped = scraped
        self._intervals_s = dict(intervals_s)
        self._live = Live()
        self._answers = asyncio.Semaphore(MOST_ANSWERS)
        self._boot = boot_id()
        self._clock = b',"boot_id":' + orjson.dumps(self._boot) + b"}"
        self._host = provenance.host()

    def app(self, token: str | None) -> web.Application:
        """The application, behind ``token`` if there is one."""
        app = web.Application(middlewares=[_as_json, guard(token)])
        for path, handler in {
            "/": self._page,
            "/health": self._health,
            "/metrics": self._metrics,
            "/v1/clock": self._time,
            "/v1/info": self._info,
            "/v1/samples/{table}": self._samples,
            "/v1/live/{table}": self._stream,
            "/v1/events": self._events,
            "/v1/server": self._server,
        }.items():
            app.router.add_get(path, handler, allow_head=handler != self._stream)

        async def end(_: web.Application) -> None:
            self._live.end()

        app.on_shutdown.append(end)
        return app

    async def _time(self, request: web.Request) -> web.StreamResponse:
        # The stamp is the last thing before the bytes go out: what follows it lengthens the asker's bound.
        response = web.Response(content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store"})
        response.body = b'{"t_s":%r' % clock.now() + self._clock
        return response

    async def _page(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=headers)

    async def _health(self, request: web.Request) -> web.StreamResponse:
        _query(request)
        age_s, status, reason = self.health()
        told = {"status": status, "age_s": age_s} | ({} if reason is None else {"reason": reason})
        return _json(told, status=200 if reason is None else 503)

    def health(self) -> tuple[float | None, str, str | None]:
        """(age of the newest sample, ``ok``, ``starting`` or ``stale``, the reason unless ok)."""
        sampling = self._sampling
        last = self._directory.tables["power"].last()
        # Of this start only: a row of an earlier boot is on another clock.
        if last is None or not sampling.started_s <= last.t_s <= clock.now():
            folder = self._directory.folder
            if not folder.is_dir():
                return None, "stale", f"the data directory {folder} is gone: make it again, or start anew"
            return None, "starting", sampling.trouble or "no sample since the start yet"
        age_s = clock.now() - last.t_s
        limit_s = max(STALE_S, STALE_INTERVALS * sampling.interval_s)
        if age_s > limit_s:
            why = f"the newest sample is {age_s:.3g} s old, expected at most {limit_s:g} s"
            return age_s, "stale", f"{why}: {sampling.trouble}" if sampling.trouble else why
        return age_s, "ok", None

    async def _info(self, request: web.Request) -> web.StreamResponse:
        _query(request)
        said = self._directory.sampler()
        tables = {
            name: {
                "columns": table.columns,
                "first_seq": table.first_seq,
                "last_seq": table.last_seq,
                "interval_s": self._intervals_s.get(name),
            }
            for name, table in self._directory.tables.items()
        }
        return _json(
            {
                "schema": SCHEMA,
                "version": loadgen.__version__,
                "id": self._directory.id,
                "session": said.get("session"),
                "interval_s": self._sampling.interval_s,
                "domains": said.get("domains", []),
                "boards": said.get("boards", []),
                "reasons": said.get("reasons", {}),
                "warnings": [*said.get("warnings", []), *self._warnings()],
                "overhead": said.get("overhead", {}),
                "processes": said.get("processes", {}),
                "pids": None if self._pid is None else sorted(with_descendants([self._pid])),
                "tables": tables,
                "host": self._host,
            }
        )

    def _warnings(self) -> list[str]:
        found = [] if self._sampling.trouble is None else [self._sampling.trouble]
        if self._scraped is not None and self._fresh(self._directory.tables["metrics"], "metrics") is None:
            found.append(f"metrics: {redact_url(self._scraped)} gives nothing now")
        return found

    async def _samples(self, request: web.Request) -> web.StreamResponse:
        query = _query(request, "after", "since", "until", "limit")
        name, table = self._table(request)
        limit = _whole(query, "limit", 1, MOST_ROWS, ROWS)
        after = _whole(query, "after", 0, 2**63 - 1, None)
        since_s, until_s = _instant(query, "since"), _instant(query, "until")
        assert limit is not None
        if self._answers.locked():
            raise web.HTTPServiceUnavailable(
                text=f"{MOST_ANSWERS} answers are under way already: ask again", headers={"Retry-After": "1"}
            )
        async with self._answers:
            body = await asyncio.to_thread(as_json, table, name, after, since_s, until_s, limit)
            response = web.Response(body=body, content_type="application/json")
            try:
                async with asyncio.timeout(ANSWER_S):
                    await response.prepare(request)
                    await response.write_eof()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        query = _query(request, "after")
        _, table = self._table(request)
        if "Last-Event-ID" in request.headers:  # what came last counts more than where it began
            query = {"after": request.headers["Last-Event-ID"]}
        return await self._live.stream(request, table, _whole(query, "after", 0, 2**63 - 1, None))

    async def _events(self, request: web.Request) -> web.StreamResponse:
        query = _query(request, "after", "limit")
        after = _whole(query, "after", 0, 2**63 - 1, 0)
        limit = _whole(query, "limit", 1, MOST_ROWS, ROWS)
        assert after is not None and limit is not None
        return _json({"events": await asyncio.to_thread(read_events, self._directory.folder, after, limit)})

    async def _server(self, request: web.Request) -> web.StreamResponse:
        query = _query(request, "port")
        processes = self._directory.sampler().get("processes") or {}
        if self._pid is not None:  # named by the user: that counts more than who listens
            _whole(query, "port", 1, 65535, None)
            owner = await asyncio.to_thread(owner_of_pid, self._pid, processes)
        else:
            port = _whole(query, "port", 1, 65535, None)
            if port is None:
                raise web.HTTPBadRequest(
                    text="expected port=P, the server's TCP port, e.g. /v1/server?port=8080"
                )
            owner = await asyncio.to_thread(owner_of_port, port, processes)
        return _json({"pids": owner.pids, "boards": owner.boards, "reason": owner.reason})

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        _query(request)
        said = self._directory.sampler()
        age_s, _, unwell = self.health()
        # An old value is not the value now: a frozen counter would read as an idle board.
        known = {
            name: {} if unwell else self._now(table, name) for name, table in self._directory.tables.items()
        }
        now = Now(
            loadgen.__version__,
            self._directory.id,
            said.get("domains", []),
            said.get("boards", []),
            known["power"],
            known["state"],
            known.get("metrics", {}),
            said.get("overhead", {}),
            self._directory.tables["power"].last_seq or 0,
            self._cpu_s(),
            self._sampling.restarts,
            self._live.readers,
            age_s,
            said.get("reasons", {}),
        )
        body, content_type = exposition(now, request.headers.get(hdrs.ACCEPT, ""))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    def _fresh(self, table: TableReader, name: str) -> Row | None:
        """The newest row, unless it is older than a few of its intervals."""
        last = table.last()
        limit_s = max(STALE_S, STALE_INTERVALS * self._intervals_s.get(name, math.inf))
        return last if last is not None and 0 <= clock.now() - last.t_s <= limit_s else None

    def _now(self, table: TableReader, name: str) -> dict[str, float]:
        """The values of the newest row, if it is fresh."""
        last = self._fresh(table, name)
        if last is None:
            return {}
        return {
            column: value
            for column, value in zip(table.columns, last.values, strict=True)
            if value is not None
        }

    def _cpu_s(self) -> dict[str, float]:
        found = {"service": time.process_time()}
        if self._sampling.pid is not None:
            try:
                used = psutil.Process(self._sampling.pid).cpu_times()
                found["sampler"] = used.user + used.system
            except psutil.Error:
                pass  # it has just ended: not known, hence absent
        return found

    def _table(self, request: web.Request) -> tuple[str, TableReader]:
        name = request.match_info["table"]
        table = self._directory.tables.get(name)
        if table is None:
            raise web.HTTPNotFound(
                text=f"no table {name!r:.80}: expected one of {', '.join(self._directory.tables)}"
            )
        return name, table


@web.middleware
async def _as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as ``{"error": text}``."""
    try:
        return await handler(request)
    except web.HTTPException as exc:
        text = exc.text or exc.reason
        if exc.status == 404 and request.match_info.route.resource is None:
            text = f"nothing is at {request.path!r:.80}: see / for people, /v1/info for programs"
        kept = {k: v for k, v in exc.headers.items() if k not in (hdrs.CONTENT_TYPE, hdrs.CONTENT_LENGTH)}
        return _json({"error": text}, status=exc.status, headers=kept)
    except LoadgenError as exc:
        return _json({"error": str(exc)}, status=503)


def _json(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(value), status=status, headers=headers, content_type="application/json"
    )


def _query(request: web.Request, *names: str) -> dict[str, str]:
    """The query's parameters, each of them known and given once."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in names:
            expected = f"expected one of {', '.join(names)}" if names else "expected none"
            raise web.HTTPBadRequest(text=f"unknown parameter {name!r:.80}: {expected}")
        if name in found:
            raise web.HTTPBadRequest(text=f"{name}: expected once")
        found[name] = value
    return found


def _whole(query: Mapping[str, str], name: str, least: int, most: int, default: int | None) -> int | None:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and least <= int(text) <= most):
        raise web.HTTPBadRequest(
            text=f"{name}: expected a whole number from {least} to {most}, got {text!r:.80}"
        )
    return int(text)


def _instant(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise web.HTTPBadRequest(
            text=f"{name}: expected seconds on the sidecar's clock (/v1/clock), got {text!r:.80}"
        )
    return value
