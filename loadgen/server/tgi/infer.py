"""From a readable body to its reply: permits, validation, generation, timing headers, what is counted.

The part of TGI's router between its routes and its backend, for all of TGI's routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from loadgen import clock
from loadgen.server.desk import Desk, GenerationFailed, InternalError, Job, Overloaded
from loadgen.server.service import Service, Ticket
from loadgen.server.stream import Dialect, StreamSink
from loadgen.server.tgi.errors import ApiError, generation_failed, incomplete, overloaded
from loadgen.server.tgi.generate import mean_logprob
from loadgen.server.tgi.metrics import BatchMetrics, RequestMetrics
from loadgen.server.tgi.timing import times, timing_headers
from loadgen.server.tgi.validation import GenerateBody, Work, check_before_admission, plan, validate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.server.reply import ReplyPlan

_STREAM_HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

MakeDialect = Callable[[int, Job, Work], Dialect]
OnError = Callable[[ApiError], bytes]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply that came whole, with its response headers; ``others`` lost the choice of ``best_of``."""

    plan: ReplyPlan
    work: Work
    headers: dict[str, str]
    others: tuple[ReplyPlan, ...] = ()


class Infer:
    """Replies whole or as a stream, counted as TGI counts them. ``compute_type`` is a header's value.

    A request's time begins here, with its body read, as it does in TGI's handlers.
    """

    def __init__(self, service: Service, compute_type: str) -> None:
        self._desk = Desk(service)
        self._limits = service.limits
        self._seed = service.launch.seed
        self._compute_type = compute_type
        self.requests = RequestMetrics(self._limits.max_input_tokens, self._limits.max_total_tokens)
        self.batches = BatchMetrics(service)
        service.on_work = self.batches.forward

    async def one(self, request: web.Request, body: GenerateBody) -> Reply:
        """Generates one reply, or ``best_of`` and the best of them. Raises ApiError."""
        started_s = clock.now()
        self.requests.count += 1
        with self._counting_failures():
            check_before_admission(body.parameters, self._limits, streaming=False)
        jobs, works, tickets, _ = await self._whole(request, [body] * (body.parameters.best_of or 1))
        best = max(range(len(jobs)), key=lambda i: mean_logprob(jobs[i].plan)) if len(jobs) > 1 else 0
        reply = self._reply(jobs[best], works[best], tickets[best], started_s)
        others = tuple(job.plan for i, job in enumerate(jobs) if i != best)
        return Reply(reply.plan, reply.work, reply.headers, others)

    async def several(
        self, request: web.Request, bodies: Sequence[GenerateBody]
    ) -> tuple[list[Reply], list[int]]:
        """Generates a reply to each, and says in which order they ended. Raises ApiError."""
        started_s = clock.now()
        self.requests.count += len(bodies)
        jobs, works, tickets, order = await self._whole(request, bodies)
        replies = [self._reply(*each, started_s) for each in zip(jobs, works, tickets, strict=True)]
        return replies, order

    async def stream(
        self,
        request: web.Request,
        bodies: Sequence[GenerateBody],
        make_dialect: MakeDialect,
        on_error: OnError,
        *,
        trailer: bytes = b"",
    ) -> web.StreamResponse:
        """Streams a reply to each, in one response. Whatever is wrong with one is an event of its own."""
        started_s = clock.now()
        self.requests.count += len(bodies)
        characters = sum(len(body.inputs) for body in bodies)
        headers = {
            **_STREAM_HEADERS,
            "x-compute-type": self._compute_type,
            "x-compute-characters": str(characters),
        }
        ids = self._desk.ids(request, len(bodies))
        under_way: list[tuple[Job, Work, Ticket]] = []
        unended = "generation"
        try:
            async with self._desk.streaming(request, headers, replies=len(bodies), trailer=trailer) as stream:
                for i, (id, body) in enumerate(zip(ids, bodies, strict=True)):
                    try:
                        with self._counting_failures(streaming=True):
                            check_before_admission(body.parameters, self._limits, streaming=True)
                            (job,), (work,) = self._admit([id], [body])
                            stream.submit(job, StreamSink(stream.body, make_dialect(i, job, work)))
                        under_way.append((job, work, stream.tickets[-1]))
                    except ApiError as error:
                        stream.body.end_reply([on_error(error)])
        except asyncio.CancelledError:
            unended = "dropped"
            raise
        finally:
            for job, work, ticket in under_way:
                if job.plan.ended:
                    self._succeeded(job, work, ticket, started_s)
                else:
                    self.requests.failed(unended)
        return stream.response

    async def _whole(
        self, request: web.Request, bodies: Sequence[GenerateBody]
    ) -> tuple[list[Job], list[Work], list[Ticket], list[int]]:
        with self._counting_failures():
            jobs, works = self._admit(self._desk.ids(request, len(bodies)), bodies)
            try:
                tickets, order = await self._desk.whole(jobs)
            except GenerationFailed as failure:
                # The whole batch fails together: every other reply under way counts too.
                self.requests.failed("generation", _under_way(jobs) - 1)
                raise generation_failed(str(failure)) from None
            except asyncio.CancelledError:
                self.requests.failed("dropped", _under_way(jobs))
                raise
        return jobs, works, tickets, order

    def _admit(self, ids: Sequence[int], bodies: Sequence[GenerateBody]) -> tuple[list[Job], list[Work]]:
        """TGI's order: first a free place for each, even for a bad request, then validation."""
        self._desk.require_places(len(bodies))
        works = [validate(body, self._limits) for body in bodies]
        for work in works:
            self.requests.accepted(work.prompt_tokens, work.stretch_tokens)
        return [plan(self._seed, id, work) for id, work in zip(ids, works, strict=True)], works

    @contextmanager
    def _counting_failures(self, *, streaming: bool = False) -> Iterator[None]:
        """Errors that leave the block are TGI's own, and counted."""
        try:
            yield
        except Overloaded:
            self.requests.failed("overloaded")
            raise overloaded() from None
        except GenerationFailed as failure:
            self.requests.failed("generation")
            raise generation_failed(str(failure)) from None
        except InternalError:
            self.requests.failed("incomplete")
            raise incomplete(streaming=streaming) from None
        except ApiError as error:
            self.requests.failed(error.counted_as)
            raise

    def _reply(self, job: Job, work: Work, ticket: Ticket, started_s: float) -> Reply:
        self._succeeded(job, work, ticket, started_s)
        headers = timing_headers(started_s, ticket, job.plan.tokens, work, self._compute_type)
        return Reply(job.plan, work, headers)

    def _succeeded(self, job: Job, work: Work, ticket: Ticket, started_s: float) -> None:
        tokens = job.plan.tokens
        self.requests.succeeded(times(started_s, ticket, tokens), tokens)
        self.requests.continued(work.prompt_tokens, work.stretch_tokens, tokens)
        self.batches.emitted(tokens)


def _under_way(jobs: Sequence[Job]) -> int:
    return sum(not job.plan.ended for job in jobs)
