"""The account of a server's replies, from which its metrics page is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.server.dialects.asks import Reply


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
