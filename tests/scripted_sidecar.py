"""A sidecar made by hand, over HTTP: its clock, its samples and its faults are the test's.

It keeps the contract of `loadgen.sidecar` with rows computed when they are asked for,
so that it runs in virtual time over memory (`Memory`), and as a process of its own with
``python tests/scripted_sidecar.py '{"skew_s": 1.0, ...}'`` (prints its port).
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

from loadgen import clock
from loadgen.types import Domain

COLUMNS = ("gpu0", "gpu0.instant")
DOMAINS = (Domain("gpu0", "counter", update_s=0.05), Domain("gpu0.instant", "instant", 0.025, update_s=0.05))
BOARD = {
    "domain": "gpu0",
    "index": 0,
    "uuid": "GPU-1",
    "name": "some board",
    "power_limit_w": 700.0,
    "mig": False,
}


@dataclass
class Scripted:
    """``remote = (1 + 1e-6 drift_ppm) local + skew_s``. The board draws ``high_w`` in the first half of each
    ``period_s`` of the *local* clock, ``low_w`` in the second; row k is taken at ``k interval_s`` there."""

    skew_s: float = 0.0
    drift_ppm: float = 0.0
    interval_s: float = 0.05
    low_w: float = 100.0
    high_w: float = 500.0
    period_s: float = 2.0
    id: str = "a"
    token: str | None = None
    schema: int = 1
    health: tuple[int, dict[str, Any]] = (200, {"status": "ok", "age_s": 0.01})
    lag_s: float = 0.004
    skipped: Callable[[int], bool] = lambda tick: False
    late_s: Callable[[int], float] = lambda tick: 0.0
    dead_from_s: float = math.inf
    """From then on (local) no samples are taken."""
    step_at_s: float = math.inf
    step_s: float = 0.0
    """The clock there is moved by so much."""
    scrapes: bool = False
    boards: Sequence[dict[str, Any]] = (BOARD,)
    domains: Sequence[Domain] = DOMAINS
    reasons: dict[str, str | None] = field(
        default_factory=lambda: {"gpu": None, "cpu": "no RAPL", "ram": "none"}
    )
    processes: dict[str, Any] = field(default_factory=lambda: {"gpu0": [{"pid": 7, "name": "tgi"}]})
    server: dict[str, Any] = field(default_factory=lambda: {"pids": [7], "boards": ["gpu0"], "reason": None})
    warnings: list[str] = field(default_factory=list)
    pids: list[int] | None = None
    asked: list[str] = field(default_factory=list)
    hangs: str = ""
    """It never answers there."""
    answers_in_s: float = 0.0
    origin_s: float = field(default_factory=clock.now)

    def remote_s(self, local_s: float) -> float:
        moved_s = self.step_s if local_s >= self.step_at_s else 0.0
        return (1 + 1e-6 * self.drift_ppm) * local_s + self.skew_s + moved_s

    def power_w(self, local_s: float) -> float:
        return self.high_w if local_s % self.period_s < self.period_s / 2 else self.low_w

    def energy_j(self, local_s: float) -> float:
        """The integral of `power_w` from 0."""
        whole, part_s = divmod(local_s, self.period_s)
        half_s = self.period_s / 2
        return (
            whole * half_s * (self.high_w + self.low_w)
            + self.high_w * min(part_s, half_s)
            + self.low_w * max(0.0, part_s - half_s)
        )

    @property
    def tick_s(self) -> float:
        """Its interval, on the local clock."""
        return self.interval_s / (1 + 1e-6 * self.drift_ppm)

    def ticks(self) -> int:
        """Ticks so far, on the local clock."""
        return math.floor((min(clock.now(), self.dead_from_s) - self.origin_s) / self.tick_s)

    def row(self, seq: int, tick: int) -> list[Any]:
        local_s = self.origin_s + tick * self.tick_s + self.late_s(tick)
        taken_s = local_s + self.lag_s
        values = [self.energy_j(taken_s), self.power_w(taken_s)]
        lag_s = self.remote_s(taken_s) - self.remote_s(local_s)
        return [seq, self.remote_s(local_s), values, [lag_s, lag_s]]

    def power_rows(self, after: int) -> list[list[Any]]:
        taken = [tick for tick in range(self.ticks() + 1) if not self.skipped(tick)]
        return [self.row(seq, tick) for seq, tick in enumerate(taken[after:], after + 1)]

    def table(self, name: str, after: int = 0) -> tuple[Sequence[str], list[list[Any]]]:
        """Its columns and its rows behind number ``after``; of a small one all."""
        if name == "power":
            return COLUMNS, self.power_rows(after)
        every = [self.row(1 + k, 20 * k) for k in range(self.ticks() // 20 + 1)]
        if name == "state":
            columns = ("gpu0.temperature_c", "gpu0.event_reasons")
            return columns, [[seq, t_s, [40.0 + seq, 4.0], [0.0, 0.0]] for seq, t_s, *_ in every]
        rows = [[seq, t_s, [1.0, 10.0 * seq], [0.0, 0.0]] for seq, t_s, *_ in every]
        return ("running", "output_tokens"), rows if self.scrapes else []

    def info(self) -> dict[str, Any]:
        tables = {}
        for name in ("power", "state", "metrics"):
            columns, rows = self.table(name)
            ends = {"first_seq": 1, "last_seq": len(rows)} if rows else {"first_seq": None, "last_seq": None}
            period_s = 1.0 if name == "state" or self.scrapes else None
            tables[name] = {"columns": columns, "interval_s": period_s, **ends}
        return {
            "schema": self.schema,
            "version": "0",
            "id": self.id,
            "session": 1,
            "interval_s": self.interval_s,
            "domains": [asdict(d) for d in self.domains],
            "boards": list(self.boards),
            "reasons": self.reasons,
            "warnings": self.warnings,
            "overhead": {"cpu_share": 0.01},
            "processes": self.processes,
            "pids": self.pids,
            "tables": tables,
            "host": {},
        }

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        path, query = request.path, request.query
        if path == self.hangs:
            await asyncio.sleep(1e6)
        await asyncio.sleep(self.answers_in_s)
        if path == "/health":
            return web.json_response(self.health[1], status=self.health[0])
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "a token is needed"}, status=401)
        if path == "/v1/clock":
            return web.json_response({"t_s": self.remote_s(clock.now()), "boot_id": None})
        if path == "/v1/info":
            return web.json_response(self.info())
        if path == "/v1/server":
            return web.json_response(self.server)
        if path.startswith("/v1/samples/"):
            after, since_s = int(query.get("after", "0")), float(query.get("since", "-inf"))
            columns, rows = self.table(path.rpartition("/")[2], after)
            found = [row for row in rows if row[0] > after and row[1] >= since_s]
            rows_limited = found[: int(query.get("limit", "1000"))]
            return web.json_response({"table": "", "columns": columns, "rows": rows_limited})
        return web.json_response({"error": "not here"}, status=404)

    async def runner(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("GET", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        return runner


class Memory(aiohttp.BaseConnector):
    """Connections to a scripted sidecar on the running (virtual) loop; none while ``down``."""

    def __init__(self, runner: web.AppRunner) -> None:
        super().__init__(limit=1, keepalive_timeout=None)
        self._runner = runner
        self.down = False
        self.dials = 0
        self._open: list[asyncio.Transport] = []

    def cut(self) -> None:
        """Breaks the link: what is under way is lost, nothing connects."""
        self.down = True
        for transport in self._open:
            transport.abort()
        self._open.clear()

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        if self.down:
            raise aiohttp.ClientConnectionError("the link is down")
        assert self._runner.server is not None
        near = ResponseHandler(asyncio.get_running_loop())
        self.dials += 1
        self._open.append(clock.connect_memory(near, self._runner.server())[0])
        return near


def main() -> None:
    """Serves until killed. Options are those of `Scripted`, as JSON; the origin is the start."""

    async def serve() -> None:
        made = Scripted(**json.loads(sys.argv[1]), origin_s=time.monotonic())
        runner = await made.runner()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
