"""One run from start to seal: target, warm-up, idle baseline, load, drain, baseline, files."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from loadgen import clock, provenance
from loadgen.clients.redaction import MASK, redact, redact_url
from loadgen.errors import ConfigError
from loadgen.foreground import deaf_to_ctrl_c
from loadgen.plan import Planned
from loadgen.power.feed import Sink
from loadgen.power.sampler import sample
from loadgen.power.serving import seen
from loadgen.power.sidecars import FINISH_S, Sidecars
from loadgen.power.states import WithStates
from loadgen.progress import RunView
from loadgen.rundir import RunWriter, new_path
from loadgen.runner import record_unsent, run_plan
from loadgen.scenario import Scenario
from loadgen.target import Target, allow_connections, headers_for, open_target
from loadgen.types import Arrival, Plan, Reading, Record, Step

_LEAST_SECRET = 6  # characters; shorter words would be masked wherever they happen to stand
_LEAD_S = 0.2  # after set-up and before the first due time, so that set-up cannot make it late


@dataclass(frozen=True)
class Order:
    """Everything a run needs to know."""

    scenario: Scenario
    scenario_text: str
    planned: Planned
    parent: Path
    api_key: str | None = None


class _Steps:
    """The engine's steps on their way to server.jsonl, which is opened after the engine."""

    def __init__(self) -> None:
        self._early: list[Step] = []
        self._sink: Callable[[Step], None] = self._early.append
        self.end_s = 0.0

    def __call__(self, step: Step) -> None:
        self.end_s = step.start_s + step.duration_s
        self._sink(step)

    def connect(self, sink: Callable[[Step], None]) -> None:
        self._sink = sink
        for step in self._early:
            sink(step)
        self._early.clear()


async def execute(order: Order, view: RunView) -> Path:
    """Runs the order and returns its sealed run directory.

    When cancelled, every arrival still gets its record, the directory is sealed
    as ``interrupted`` and the cancellation goes on. Raises LoadgenError when the
    target cannot be used; no directory is made then.
    """
    steps, planned = _Steps(), order.planned
    if not clock.is_virtual():
        allow_connections(_at_once(planned.measured))
    run: _Run | None = None
    status = "failed"
    try:
        async with open_target(
            order.scenario, api_key=order.api_key, exact_lengths=planned.exact_lengths, on_step=steps
        ) as target:
            if target.url is not None and target.kind not in ("embedded", "null"):
                view.stage("probing")
                await _probe_once(target, order)
            run = _Run(order, target, view)
            view.path = run.writer.path
            view.power_label = f"({target.power_label})"
            if target.embedded is not None:
                steps.connect(run.writer.server.append)
            await run.go()
        status = "complete"
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        # Sealed only now: the engine writes its last stretch when the target closes.
        if run is not None:
            with deaf_to_ctrl_c():
                run.seal(status, steps.end_s)
    return run.writer.path


def execute_unseen(order: Order) -> Path:
    """Runs the order in virtual time, nothing shown, in a loop of its own. Raises as `execute`."""
    view = RunView(Console(stderr=True), len(order.planned.measured.arrivals), quiet=True)
    with asyncio.Runner(loop_factory=clock.VirtualLoop) as runner:
        return runner.run(execute(order, view))


def _at_once(plan: Plan) -> int:
    """How many requests the plan itself sends at one instant; a slow server may pile up more."""
    most = max(Counter(arrival.due_s for arrival in plan.arrivals).values())
    return most if plan.max_in_flight is None else min(most, plan.max_in_flight)


async def _probe_once(target: Target, order: Order) -> None:
    """One single-token request before the load. Raises ConfigError with the server's own words."""
    planned, timeout_s = order.planned, order.scenario.load.timeout_s
    first = (planned.warmup.arrivals or planned.measured.arrivals)[0].request
    body = {k: v for k, v in first.body.items() if k != "output_tokens"} | {"max_new_tokens": 1}
    request = dataclasses.replace(first, id=-(2**31), body=body, phase="warmup")
    plan = Plan((Arrival(0.0, 0.0, request),), 1, "queue", 0, closed=True)
    records: list[Record] = []
    await run_plan(plan, target.client, zero_s=clock.now(), timeout_s=timeout_s, on_record=records.append)
    if records[0].status != "ok":
        why = _hidden(str(records[0].error), _secrets(order))
        raise ConfigError(f"{target.url}: the probe request failed ({records[0].status}): {why}")


def _hidden(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def _without_secrets(order: Order) -> str:
    """The scenario's text, verbatim but for credentials somebody wrote into it."""
    text, headers = redact_url(order.scenario_text), order.scenario.server.headers
    for name, shown in redact(headers).items():
        words = headers[name].split()
        if shown != headers[name] and words:
            # YAML may have folded the value over several lines.
            text = re.sub(r"\s+".join(map(re.escape, words)), lambda _, shown=shown: shown, text)  # type: ignore[misc]
    return text


def _secrets(order: Order) -> tuple[str, ...]:
    """Credentials that go out with each request, so that a server may repeat them in an error."""
    headers = headers_for(order.scenario.server, order.api_key)
    words = (headers[name].split()[-1:] for name, shown in redact(headers).items() if shown != headers[name])
    return tuple(word for last in words for word in last if len(word) >= _LEAST_SECRET)


class _Run:
    """One run's files and the state that sealing them needs."""

    def __init__(self, order: Order, target: Target, view: RunView) -> None:
        self.order, self.target, self.view = order, target, view
        self.secrets = _secrets(order)
        domains = () if target.power is None else target.power.domains()
        # An estimate is the same at rest: only what is metered needs a baseline.
        metered = any(domain.method != "estimated" for domain in domains)
        self.baseline_s = order.scenario.power.baseline_s if metered else 0.0
        self.measured_done = 0
        self.last_done_s: float | None = None
        now = datetime.now(UTC)
        scenario = order.scenario.model_dump(mode="json")
        scenario["server"]["headers"] = redact(order.scenario.server.headers)
        scenario["server"]["url"] = target.manifest()["url"]
        if order.scenario.power.url is not None:
            scenario["power"]["url"] = redact_url(order.scenario.power.url)
        digest = provenance.digest(scenario)
        path = new_path(order.parent, order.scenario.name, now.strftime("%Y%m%dT%H%M%SZ"), digest)
        self.writer = RunWriter(path, self._manifest(scenario, digest, now), _without_secrets(order))
        self.writer.write_plan(order.planned.warmup, order.planned.measured)

    async def go(self) -> None:
        """Warm-up, baseline, load until the last reply, baseline."""
        view = self.view
        async with self._reading_power(), self._scraping():
            try:
                view.stage("warm-up")
                await self._send(self.order.planned.warmup, clock.now())
                if self.baseline_s:
                    view.stage("idle baseline")
                    await asyncio.sleep(self.baseline_s)
                zero_s = clock.now() + _LEAD_S
                self.writer.set_zero(zero_s)
                self._sidecars(zero_s)
                self.writer.save()
                view.stage("load")
                await self._send(self.order.planned.measured, zero_s, view.sent)
                if self.baseline_s:
                    view.stage("idle baseline")
                    await asyncio.sleep(self.baseline_s)
                # An exporter shows only a while later what had been used by then.
                if (settle_s := getattr(self.target.power, "settle_s", 0.0)) > self.baseline_s:
                    view.stage("waiting for the exporter")
                    await asyncio.sleep(settle_s - self.baseline_s)
            except BaseException:
                self._abandon()
                raise
            waits = isinstance(self.target.power, Sidecars)
            view.stage(f"last samples, at most {FINISH_S:g} s" if waits else "last samples")

    async def _send(self, plan: Plan, zero_s: float, on_sent: Callable[[], None] = lambda: None) -> None:
        await run_plan(
            plan,
            self.target.client,
            zero_s=zero_s,
            timeout_s=self.order.scenario.load.timeout_s,
            on_record=self._record,
            on_sent=on_sent,
        )

    def _abandon(self) -> None:
        """An interruption before the load began: its arrivals get their records all the same."""
        if self.writer.zero_s is None:
            zero_s = clock.now()
            record_unsent(self.order.planned.measured, zero_s, self._record)
            self.writer.set_zero(zero_s)

    def _record(self, record: Record) -> None:
        if record.error is not None and any(secret in record.error for secret in self.secrets):
            record = dataclasses.replace(record, error=_hidden(record.error, self.secrets))
        self.writer.requests.append(record)
        if record.phase == "warmup":
            return
        self.measured_done += 1
        if record.done_s is not None:
            self.last_done_s = max(record.done_s, self.last_done_s or record.done_s)
        self.view.record(record)

    @asynccontextmanager
    async def _reading_power(self) -> AsyncIterator[None]:
        """Reads power in the block: samples it here, or fetches what sidecars sample."""
        power, stop = self.target.power, asyncio.Event()
        if power is None:
            yield
        elif isinstance(power, Sidecars):
            async with power.following(
                Sink(self._reading, self.writer.boards.append, self.writer.metrics.append)
            ):
                yield
        else:
            look, source = self.target.look, WithStates(power)
            start = None if look is None else await look()

            def keep(readings: Sequence[Reading]) -> None:
                for reading in readings:
                    self._reading(reading)
                for state in source.states():
                    self.writer.boards.append(state)

            sampling = asyncio.create_task(sample(source, self.order.scenario.power.interval_s, keep, stop))
            try:
                yield
            finally:
                stop.set()
                self.writer.manifest["warnings"] += (await sampling).warnings
            if look is not None and start is not None:
                end = await look()
                others = {(p["board"], p["pid"]): p for p in (*start.others, *end.others)}
                self.writer.manifest["power"]["server"] = seen(start, end, others.values())

    def _reading(self, reading: Reading) -> None:
        self.writer.power.append(reading)
        self.view.reading(reading)

    def _sidecars(self, zero_s: float) -> None:
        """Writes down what is known of the sidecars, if there are any."""
        if isinstance(self.target.power, Sidecars):
            self.writer.manifest["sidecars"] = self.target.power.manifest(zero_s)

    @asynccontextmanager
    async def _scraping(self) -> AsyncIterator[None]:
        """Collects the server's own metrics in the block, where they are asked for."""
        if self.target.scrape is None:
            yield
            return
        stop, looked = asyncio.Event(), asyncio.Event()
        scraping = asyncio.ensure_future(self.target.scrape(self.writer.metrics.append, stop, looked))
        try:
            await looked.wait()  # no request may be counted before the first sample
            yield
        finally:
            stop.set()
            metrics = dataclasses.asdict(await scraping)
            self.writer.manifest["warnings"] += metrics.pop("warnings")
            self.writer.manifest["metrics"] = metrics

    def seal(self, status: str, engine_end_s: float) -> None:
        """Writes what is known only at the end, then closes the directory."""
        writer, target = self.writer, self.target
        zero_s = writer.zero_s
        self._sidecars(clock.now() if zero_s is None else zero_s)
        if zero_s is None:
            writer.set_zero(clock.now())
        elif self.last_done_s is not None:
            writer.manifest["window"] = {"start_s": 0.0, "end_s": self.last_done_s - zero_s}
        writer.manifest["warnings"] += getattr(target.power, "warnings", ())
        if target.power is not None:  # how often exporters renew their values was seen during the run
            writer.manifest["power"]["domains"] = [dataclasses.asdict(d) for d in target.power.domains()]
        if resent := getattr(target.client, "resent", 0):
            writer.manifest["warnings"].append(
                f"{resent} requests were sent again: the server had closed their pooled connection before"
            )
        if target.embedded is not None:
            writer.manifest["engine"] = {"energy_j": target.embedded.energy_j(engine_end_s)}
            for index, board in enumerate(target.embedded.boards):
                if board.capped_s > 0:
                    writer.manifest["warnings"].append(
                        f"gpu{index} was held at its power limit for {board.capped_s:.3g} s; "
                        "a real board would also have slowed down"
                    )
        writer.seal(status)

    def _manifest(self, scenario: dict[str, Any], digest: str, now: datetime) -> dict[str, Any]:
        order, target = self.order, self.target
        power = target.power
        domains = power.domains() if power is not None else ()
        # Sidecars and a Prometheus sample at an interval of their own.
        interval_s = getattr(power, "interval_s", order.scenario.power.interval_s)
        return {
            "name": order.scenario.name,
            "seed": order.scenario.seed,
            "clock": "virtual" if clock.is_virtual() else "real",
            "scenario": scenario,
            "scenario_hash": digest,
            "server": target.manifest(),
            "protocol": target.protocol,
            "closed_loop": order.planned.measured.closed,
            "counts": {
                "planned": len(order.planned.measured.arrivals),
                "warmup": len(order.planned.warmup.arrivals),
            },
            "power": {
                "interval_s": interval_s,
                "baseline_s": self.baseline_s,
                "domains": [dataclasses.asdict(domain) for domain in domains],
                "label": target.power_label,
                "reason": target.power_reasons["gpu"],
                "reasons": dict(target.power_reasons),
                "server": None,
            },
            "sidecars": None,
            "window": None,
            "engine": None,
            "metrics": None,
            "slo": scenario["slo"],
            "gpus": list(getattr(target.power, "boards", ())),
            "host": provenance.host(),
            "packages": provenance.packages(),
            "git": provenance.git(),
            "anchors": {"wall_utc": now.isoformat(), "monotonic_s": time.monotonic(), "clock_s": clock.now()},
            "warnings": [*order.planned.notes, *target.notes],
        }
