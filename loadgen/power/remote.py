"""One power sidecar over HTTP: what it is, what it read, what time it has there.

The routes are those of `loadgen.sidecar.service`. Every failure is a PowerError that
says what to do; the address is shown without credentials, the token never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from loadgen import clock
from loadgen.clients.http import connect_cause, endpoint, parse_url
from loadgen.clients.redaction import redact_url
from loadgen.errors import PowerError
from loadgen.power.offset import Exchange
from loadgen.types import Domain

SCHEMA = 1
TOKEN_VARIABLE = "LOADGEN_SIDECAR_TOKEN"
TIMEOUT_S = 5.0
PAGE_ROWS = 1000  # of 26 columns: 5 ms to decode, which a backlog may cost at a time
_HOW = (
    "start `loadgen sidecar` beside the server, and open or forward its port "
    "(ssh -L 9400:localhost:9400 HOST)"
)
_DOMAIN_FIELDS = tuple(f.name for f in fields(Domain))


class Unanswered(PowerError):
    """The link or the sidecar is away, and may come back."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a sidecar says of itself (GET /v1/info).

    ``id``: of its data directory, the same after a restart there. ``reasons``: why
    a part (gpu, cpu, ram) is not read, None where it is. ``processes``: the compute
    processes on each board, None where the driver does not list them. ``pids``: those
    it was told to watch, or None. ``scrapes``: it collects the server's metrics too.
    """

    id: str
    interval_s: float
    domains: tuple[Domain, ...]
    boards: tuple[Mapping[str, Any], ...]
    reasons: Mapping[str, str | None]
    warnings: tuple[str, ...]
    overhead: Mapping[str, Any]
    processes: Mapping[str, Sequence[Mapping[str, Any]] | None]
    pids: tuple[int, ...] | None
    last_seq: Mapping[str, int]
    scrapes: bool

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Info:
        """Raises KeyError, TypeError or ValueError when it is not of this schema."""
        pids, tables = said.get("pids"), said["tables"]
        return cls(
            id=str(said["id"]),
            interval_s=float(said["interval_s"]),
            domains=tuple(
                Domain(**{k: row[k] for k in _DOMAIN_FIELDS if k in row}) for row in said["domains"]
            ),
            boards=tuple(said["boards"]),
            reasons={part: said["reasons"].get(part) for part in ("gpu", "cpu", "ram")},
            warnings=tuple(map(str, said.get("warnings") or ())),
            overhead=said.get("overhead") or {},
            processes=said.get("processes") or {},
            pids=None if pids is None else tuple(map(int, pids)),
            last_seq={name: int(table["last_seq"] or 0) for name, table in tables.items()},
            scrapes=tables.get("metrics", {}).get("interval_s") is not None,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """A table's row, written at ``t_s`` there; value ``i`` is ``columns[i]`` at ``t_s + lag_s[i]``."""

    seq: int
    t_s: float
    columns: Sequence[str]
    values: Sequence[float | None]
    lag_s: Sequence[float | None]

    def taken(self) -> list[tuple[str, float, float]]:
        """(column, instant, value) of every value that is there."""
        return [
            (column, self.t_s + (lag_s or 0.0), value)
            for column, value, lag_s in zip(self.columns, self.values, self.lag_s, strict=True)
            if value is not None
        ]


class Sidecar:
    """The connection to one sidecar, kept warm. An async context manager.

    ``token`` goes along as a bearer token. ``connector``: how to connect, if not by
    TCP. Instants are the sidecar's own unless said otherwise.
    """

    def __init__(
        self, url: str, token: str | None = None, *, connector: aiohttp.BaseConnector | None = None
    ) -> None:
        self.host = parse_url(url).host or ""
        self.shown = redact_url(url)
        self._url, self._token, self._connector = url, token, connector
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # One connection: a round trip that opens one would be no measure of the clock.
            connector=self._connector or aiohttp.TCPConnector(limit=1, keepalive_timeout=60.0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def info(self) -> Info:
        """Raises PowerError for another schema, and as `health` does."""
        status, said = await self._get("/v1/info")
        if said.get("schema") != SCHEMA:
            raise PowerError(
                f"sidecar {self.shown}: speaks schema {said.get('schema')!r}, this loadgen {SCHEMA}: "
                "use the same version on both machines"
            )
        try:
            return Info.read(said)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise self._stranger(f"HTTP {status} /v1/info: {exc!r}") from exc

    async def health(self) -> tuple[str, str]:
        """(``ok``, ``starting`` or ``stale``, the reason). Raises PowerError; Unanswered if away."""
        _, said = await self._get("/health", good=(200, 503))
        return str(said.get("status")), str(said.get("reason") or "")

    async def exchange(self) -> Exchange:
        """Asks for the time there; the stamps of asking and of the answer are ``clock.now()``."""
        # Stamped outside aiohttp: what it takes lengthens the round trip, and so the bound, on
        # both sides of the question; it can move the estimate only within the bound.
        sent_s = clock.now()
        _, said = await self._get("/v1/clock")
        back_s = clock.now()
        remote_s = said.get("t_s")
        if not isinstance(remote_s, int | float):
            raise self._stranger(f"/v1/clock says {said!r:.80}")
        return Exchange(sent_s, float(remote_s), back_s)

    async def rows(self, table: str, *, after: int, since_s: float | None, limit: int) -> list[Row]:
        """At most ``limit`` rows behind number ``after`` and not before ``since_s``, in order."""
        query = {"after": str(after), "limit": str(limit)}
        if since_s is not None:
            query["since"] = repr(since_s)
        _, said = await self._get(f"/v1/samples/{table}", query)
        try:
            columns = tuple(map(str, said["columns"]))
            return [
                Row(int(seq), float(t_s), columns, values, lag_s) for seq, t_s, values, lag_s in said["rows"]
            ]
        except (KeyError, TypeError, ValueError) as exc:
            raise self._stranger(f"/v1/samples/{table}: {exc!r}") from exc

    async def server(self, port: int | None) -> tuple[list[int], list[str], str | None]:
        """(pids, boards, why these are not known) of who listens on a port there; None: of its ``--pid``."""
        _, said = await self._get("/v1/server", {} if port is None else {"port": str(port)})
        try:
            if said["reason"] is not None:
                return [], [], str(said["reason"])
            return list(map(int, said["pids"])), list(map(str, said["boards"])), None
        except (KeyError, TypeError, ValueError) as exc:
            raise self._stranger(f"/v1/server: {exc!r}") from exc

    async def _get(
        self, path: str, query: Mapping[str, str] | None = None, *, good: tuple[int, ...] = (200,)
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with self._session.get(
                endpoint(self._url, path), params=query, allow_redirects=False
            ) as answer:
                status, body = answer.status, await answer.read()
        except TimeoutError as exc:
            raise Unanswered(f"sidecar {self.shown}: no answer in {TIMEOUT_S:g} s: {_HOW}") from exc
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as exc:
            raise Unanswered(f"sidecar {self.shown}: nothing answers: {connect_cause(exc)}: {_HOW}") from exc
        except ValueError as exc:  # a token that cannot stand in a header
            raise PowerError(f"sidecar {self.shown}: the request cannot be sent: check the token") from exc
        if status == 401:
            what = "refuses this token" if self._token else "asks for a token"
            raise PowerError(
                f"sidecar {self.shown}: {what}: give the one that it was started with, by "
                f"{TOKEN_VARIABLE} or --sidecar-token-file"
            )
        try:
            said = orjson.loads(body)
        except orjson.JSONDecodeError:
            said = None
        if status >= 500 and status not in good:
            raise Unanswered(f"sidecar {self.shown}: HTTP {status} {path}: {_error(said)}")
        if not isinstance(said, dict) or status not in good:
            raise self._stranger(f"HTTP {status} {path}: {_error(said)}")
        return status, said

    def _stranger(self, what: str) -> PowerError:
        return PowerError(f"sidecar {self.shown}: not the answer of a loadgen sidecar ({what}): {_HOW}")


def _error(said: Any) -> str:
    return str(said.get("error"))[:120] if isinstance(said, dict) else "no JSON object"
