"""One streamed reply as events: a chunk for each token that sends text, cut out once and filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from loadgen.server.dialects.script import Script
from loadgen.server.stream import event
from loadgen.server.text import WORD_JSON

Fields = dict[str, Any]
MakeChunk = Callable[[str, int], Fields]
"""The JSON of the chunk that sends this text after this many tokens."""

_MARK = "\x00"
_MARK_JSON = orjson.dumps(_MARK)[1:-1]


class ReplyEvents:
    """The dialect of one reply (`loadgen.server.stream.Dialect`).

    ``opening`` is what stands before the first token's chunk (a role). A token
    that sends no text sends no chunk either, unless ``sends_empty``; the opening
    then goes alone, or not at all with ``opens_with_text``. With ``uniform``
    chunks differ in their text only. ``last`` makes the events of the last token
    and what follows it, ``failed`` that of a failure.
    """

    __slots__ = (
        "_after",
        "_before",
        "_chunk",
        "_failed",
        "_last",
        "_numbers",
        "_opening",
        "_opens_with_text",
        "_script",
        "_sends_empty",
        "token",
    )

    def __init__(
        self,
        script: Script,
        chunk: MakeChunk,
        *,
        last: Callable[[], list[bytes]],
        failed: Callable[[str], bytes],
        opening: bytes = b"",
        sends_empty: bool = False,
        opens_with_text: bool = False,
        uniform: bool = True,
    ) -> None:
        self._script = script
        self._chunk = chunk
        self._last = last
        self._failed = failed
        self._opening = opening
        self._sends_empty = sends_empty
        self._opens_with_text = opens_with_text
        self._numbers = script.plan.numbers
        self._before = self._after = b""
        if uniform:
            before, self._after = event(chunk(_MARK, 1)).split(_MARK_JSON)
            self._before = before
        self.token: Callable[[int], bytes] = self._own
        if uniform:
            self.token = self._word if script.released is None else self._piece

    def _word(self, index: int) -> bytes:
        data = b"%b%b%b" % (self._before, WORD_JSON[self._numbers[index - 1]], self._after)
        return self._opening + data if index == 1 else data

    def _piece(self, index: int) -> bytes:
        text = self._script.piece(index)
        if not text and not self._sends_empty:
            return self._silent(index)
        data = self._before + orjson.dumps(text)[1:-1] + self._after
        return self._opening + data if index == 1 else data

    def _own(self, index: int) -> bytes:
        text = self._script.piece(index)
        if not text and not self._sends_empty:
            return self._silent(index)
        data = event(self._chunk(text, index))
        return self._opening + data if index == 1 else data

    def _silent(self, index: int) -> bytes:
        return b"" if index > 1 or self._opens_with_text else self._opening

    def last(self) -> list[bytes]:
        """The last token's events; the opening first if the reply is a single token."""
        events = self._last()
        if self._script.plan.tokens > 1 or not self._opening:
            return events
        if self._opens_with_text and not self._script.piece(1):
            return events
        return [self._opening + b"".join(events[:1]), *events[1:]]

    def error(self, message: str) -> bytes:
        """A backend failure."""
        return self._failed(message)
