"""What a reply says token by token, and why it ends. Pure.

A token is not always text: characters beyond ASCII take several tokens of a
byte-level vocabulary, and a server sends the character with the last of them. A
prompt that is not plain ASCII is answered in such characters, so that a client
meets replies whose chunks are fewer than their tokens. A reply with stop
strings is sent behind its tokens: what might become a stop string stays back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadgen.prompts.replies import reply_tokens
from loadgen.server.reply import ReplyPlan
from loadgen.server.text import WORDS, word_numbers

CHARACTER_TOKENS = 3
"""Tokens of one character beyond ASCII: what vLLM and llama.cpp needed for an emoji with SmolLM2."""
CHARACTERS = "🌊🦊🎉🎈🐢🦩🧿🌱🌍🍎🚲🎻🧭🪁🦉🐝水火木金土日月山川田人口手目耳心"

Hold = Callable[[str, Sequence[str]], int]
"""How many characters at the end of an unfinished text stay back, given the stop strings."""


def hold_longest(text: str, stop: Sequence[str]) -> int:
    """vLLM: one character less than the longest stop string, whatever the text."""
    return max(map(len, stop)) - 1


def hold_beginnings(text: str, stop: Sequence[str]) -> int:
    """llama.cpp: what could be the beginning of a stop string."""
    for k in range(min(max(map(len, stop)) - 1, len(text)), 0, -1):
        tail = text[-k:]
        if any(s.startswith(tail) for s in stop):
            return k
    return 0


def hold_nothing(text: str, stop: Sequence[str]) -> int:
    """SGLang: text leaves with its token; only a stop string inside one token's text is cut off."""
    return 0


@dataclass(frozen=True, slots=True)
class Script:
    """One reply: its plan, whose finish reason is ``length`` or ``stop``, and its text by token.

    ``texts`` are the tokens' own texts and ``released`` what each sends; None
    where that is its word. ``stop_string`` is what ended it, None for the end
    marker, which is one of the plan's tokens and says nothing.
    """

    plan: ReplyPlan
    stop_string: str | None = None
    texts: list[str] | None = None
    released: list[str] | None = None

    @property
    def text(self) -> str:
        """All that came of it."""
        if self.released is None:
            return "".join([WORDS[n] for n in self.plan.numbers])
        return "".join(self.released[: self.plan.tokens])

    @property
    def at_end_marker(self) -> bool:
        """Whether the last token is the end marker."""
        return len(self.plan.numbers) < self.plan.tokens

    def piece(self, index: int) -> str:
        """What the ``index``-th token sends, from 1; empty if it is held back."""
        return self.token_text(index) if self.released is None else self.released[index - 1]

    def token_text(self, index: int) -> str:
        """The text of the ``index``-th token itself; empty for the end marker and parts of characters."""
        numbers = self.plan.numbers
        if not 1 <= index <= len(numbers):
            return ""
        return WORDS[numbers[index - 1]] if self.texts is None else self.texts[index - 1]


def empty_script(request_id: int) -> Script:
    """A reply without a token, to a prompt without one."""
    return Script(ReplyPlan(request_id, 0, "length", []))


def write_script(
    seed: int,
    request_id: int,
    max_new_tokens: int,
    *,
    exact: bool,
    wide: bool,
    stop: Sequence[str] = (),
    keep_stop: bool = False,
    min_new_tokens: int = 0,
    hold: Hold = hold_nothing,
) -> Script:
    """A reply of at most ``max_new_tokens``, ``>= 1``.

    Exactly that long when ``exact`` (the end marker is ignored), else of a length
    keyed by seed and id, but ``min_new_tokens`` at least. ``wide``: in characters
    of several tokens. A stop string ends it wherever it stands, and is cut off
    unless ``keep_stop``; it wins over the length, as in all these servers.
    """
    tokens = max_new_tokens
    if not exact:
        drawn = reply_tokens(seed, request_id, max_new_tokens)
        tokens = max(drawn, min(min_new_tokens, max_new_tokens))
    finish_reason = "length" if tokens >= max_new_tokens else "stop"
    numbers = word_numbers(request_id, tokens - (finish_reason == "stop"))
    if not stop and not wide:
        return Script(ReplyPlan(request_id, tokens, finish_reason, numbers))
    texts = _texts(numbers, wide)
    if not stop:
        released = texts + [""] * (tokens - len(texts))
        return Script(ReplyPlan(request_id, tokens, finish_reason, numbers), None, texts, released)
    found = _first_stop(texts, stop, min_new_tokens)
    text = "".join(texts)
    matched = None
    if found is not None:
        tokens, at, matched = found
        finish_reason = "stop"
        numbers = numbers[:tokens]
        text = text[: at + len(matched) if keep_stop else at]
    released, sent, seen = [], 0, ""
    for piece in texts[: tokens - 1]:
        seen += piece
        upto = max(sent, min(len(seen) - hold(seen, stop), len(text)))
        released.append(text[sent:upto])
        sent = upto
    released.append(text[sent:])
    return Script(ReplyPlan(request_id, tokens, finish_reason, numbers), matched, texts, released)


def _texts(numbers: list[int], wide: bool) -> list[str]:
    """The text of each token. Of a character, the last token has it all; cut short, it has none."""
    if not wide:
        return [WORDS[n] for n in numbers]
    count = len(CHARACTERS)
    return [CHARACTERS[n % count] if i % CHARACTER_TOKENS == 0 else "" for i, n in enumerate(numbers, 1)]


def _first_stop(texts: list[str], stop: Sequence[str], after_tokens: int) -> tuple[int, int, str] | None:
    """(tokens, place in the text, stop string) of the first stop string to be complete."""
    longest = max(map(len, stop))
    text = ""
    start = 0
    for count, piece in enumerate(texts, 1):
        text += piece
        if count <= after_tokens:
            start = len(text)
            continue
        begin = max(len(text) - len(piece) - longest + 1, start)
        places = [(text.find(s, begin), s) for s in stop]
        found = min(((at, s) for at, s in places if at >= 0), default=None)
        if found is not None:
            return count, *found
    return None
