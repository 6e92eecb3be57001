"""From a valid request to its replies: planning, submitting, whole or streamed, and the account of them.

All dialects but TGI's share this. No place is ever refused: these servers queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from aiohttp import web

from loadgen.server.desk import Desk, GenerationFailed, Job
from loadgen.server.dialects.asks import Ask, Reply
from loadgen.server.dialects.script import write_script
from loadgen.server.dialects.tally import Tally
from loadgen.server.service import Service
from loadgen.server.stream import Dialect, StreamSink, WholeSink


class Answers:
    """Answers requests from ``service``; ``tally`` keeps the account."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.desk = Desk(service)
        self.tally = Tally()

    def replies(self, request: web.Request, ask: Ask) -> list[Reply]:
        """The replies of a request, planned: choices of the first prompt first."""
        seed = self.service.launch.seed
        ids = self.desk.ids(request, ask.n * len(ask.prompts))
        replies = []
        for index, request_id in enumerate(ids):
            prompt = ask.prompts[index // ask.n]
            script = write_script(
                seed,
                request_id,
                ask.max_new_tokens,
                exact=ask.exact,
                wide=not prompt.text.isascii(),
                stop=ask.stop,
                keep_stop=ask.keep_stop,
                min_new_tokens=ask.min_new_tokens,
                hold=ask.hold,
            )
            replies.append(Reply(index, prompt, script, ask))
        return replies

    async def whole(self, replies: Sequence[Reply]) -> None:
        """Generates without streaming. Raises Overloaded, GenerationFailed."""
        self.desk.require_places(len(replies))
        self.tally.begun(replies)
        sinks = [WholeSink(reply.index, []) for reply in replies]
        try:
            for reply, sink in zip(replies, sinks, strict=True):
                reply.ticket = self.desk.submit(_job(reply), sink)
            for sink in sinks:
                failure = await sink.done
                if failure is not None:
                    raise GenerationFailed(failure)
        finally:
            for reply in replies:
                if reply.ticket is not None:
                    reply.ticket.cancel()
            self.tally.ended(replies)

    async def stream(
        self,
        request: web.Request,
        headers: Mapping[str, str],
        replies: Sequence[Reply],
        events: Callable[[Reply], Dialect],
        *,
        failed: Callable[[str], bytes],
        first: bytes = b"",
        ending: Callable[[], list[bytes]] | None = None,
        trailer: bytes = b"",
    ) -> web.StreamResponse:
        """Streams the replies.

        ``first`` is sent at once, ``ending`` is asked for after the last reply has
        ended well, ``trailer`` closes any stream. Raises Overloaded before
        anything is sent.
        """
        self.desk.require_places(len(replies))
        self.tally.begun(replies)
        try:
            async with self.desk.streaming(request, headers, replies=len(replies), trailer=trailer) as stream:
                stream.body.without_comments()
                if ending is not None:
                    stream.body.ending = ending
                if first:
                    stream.body.event(first)
                try:
                    for reply in replies:
                        stream.submit(_job(reply), StreamSink(stream.body, events(reply)))
                        reply.ticket = stream.tickets[-1]
                except GenerationFailed as failure:
                    stream.body.abort(failed(str(failure)))
            return stream.response
        finally:
            self.tally.ended(replies)


def _job(reply: Reply) -> Job:
    prompt = reply.prompt
    return Job(reply.script.plan, prompt.tokens, reply.ask.max_new_tokens, prompt.ids)


def hex_id(seed: int, number: int, digits: int) -> str:
    """A request's id in hexadecimal, keyed by the server's seed and the number of its first reply."""
    return blake2b(f"{seed}/{number}".encode(), digest_size=(digits + 1) // 2).hexdigest()[:digits]
