"""From a valid request to its replies: planning, submitting, whole or streamed, and the account of them.

All dialects but TGI's share this. No place is ever refused: these servers queue. A
prompt without tokens is answered with none, and the service never hears of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from aiohttp import web

from loadgen.server.desk import Desk, GenerationFailed, Job
from loadgen.server.dialects.asks import Ask, Reply
from loadgen.server.dialects.script import empty_script, write_script
from loadgen.server.service import Service
from loadgen.server.stream import Dialect, StreamSink, WholeSink


class Tally:
    """Totals over replies that have ended, and the replies under way. Counts are tokens where not said.

    ``watch``, when set, is told of each reply that came to its end, and of each
    that was broken off, by its client or a failure.
    """

    def __init__(self) -> None:
        self.live: dict[Reply, None] = {}
        self.finished: dict[str, int] = {"stop": 0, "length": 0, "abort": 0}
        self.preemptions = 0
        self.watch: Callable[[Reply, bool], None] | None = None
        self._prompt = 0
        self._cached = 0
        self._generated = 0

    def begun(self, replies: Sequence[Reply]) -> None:
        """The replies are about to be queued."""
        self.live |= dict.fromkeys(replies)

    def ended(self, replies: Sequence[Reply]) -> None:
        """The replies have ended, one way or the other."""
        for reply in replies:
            del self.live[reply]
            done = reply.ticket is not None and reply.ticket.done_s is not None
            self.finished[reply.script.plan.finish_reason if done else "abort"] += 1
            self._generated += reply.emitted_tokens
            self.preemptions += reply.preemptions
            if _prefilled(reply):
                self._prompt += reply.prompt.tokens
                self._cached += reply.cached_tokens
            if self.watch is not None:
                self.watch(reply, done)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens whose prefill is complete, those from the prefix cache included."""
        return self._prompt + sum(reply.prompt.tokens for reply in self.live if _prefilled(reply))

    @property
    def cached_tokens(self) -> int:
        """Of them, those that the prefix cache had."""
        return self._cached + sum(reply.cached_tokens for reply in self.live if _prefilled(reply))

    @property
    def generated_tokens(self) -> int:
        """Tokens emitted."""
        return self._generated + sum(reply.emitted_tokens for reply in self.live)


def _prefilled(reply: Reply) -> bool:
    return reply.ticket is not None and reply.ticket.first_s is not None


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
            if not prompt.tokens:
                replies.append(Reply(index, prompt, empty_script(request_id), ask))
                continue
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
        replies = _asked(replies)
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
        asked = _asked(replies)
        self.desk.require_places(len(asked))
        self.tally.begun(asked)
        try:
            async with self.desk.streaming(request, headers, replies=len(replies), trailer=trailer) as stream:
                stream.body.without_comments()
                if ending is not None:
                    stream.body.ending = ending
                if first:
                    stream.body.event(first)
                for reply in replies:
                    if not reply.prompt.tokens:
                        stream.body.end_reply(events(reply).last())
                try:
                    for reply in asked:
                        stream.submit(_job(reply), StreamSink(stream.body, events(reply)))
                        reply.ticket = stream.tickets[-1]
                except GenerationFailed as failure:
                    stream.body.abort(failed(str(failure)))
            return stream.response
        finally:
            self.tally.ended(asked)


def _asked(replies: Sequence[Reply]) -> list[Reply]:
    """Those that the service is asked for."""
    return [reply for reply in replies if reply.prompt.tokens]


def _job(reply: Reply) -> Job:
    prompt = reply.prompt
    return Job(reply.script.plan, prompt.tokens, reply.ask.max_new_tokens, prompt.ids)


def hex_id(seed: int, number: int, digits: int) -> str:
    """A request's id in hexadecimal, keyed by the server's seed and the number of its first reply."""
    return blake2b(f"{seed}/{number}".encode(), digest_size=(digits + 1) // 2).hexdigest()[:digits]
