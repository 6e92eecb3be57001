"""What a client gives as a prompt, as text and token ids: texts, ids, chat messages; and ids back as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.prompts.template import render_llama3
from loadgen.server.prefix_cache import ID_BYTES
from loadgen.server.text import EOS_ID, WORDS
from loadgen.server.tokenizer import Token, token_ids, tokenize, vocabulary_id

_REMEMBERED_TOKENS = 100_000

Decode = Callable[[list[int]], str]
"""The text of token ids."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's text and its token ids, 8 bytes each."""

    text: str
    ids: bytes

    @property
    def tokens(self) -> int:
        """How many tokens it has."""
        return len(self.ids) // ID_BYTES


def prompt_of(text: str) -> Prompt:
    """A prompt from its text."""
    return Prompt(text, token_ids(text))


def prompts_of(given: str | list[Any] | None, decode: Decode) -> list[Prompt]:
    """The prompts of a completion request: a text or token ids, or a list of either."""
    if given is None or isinstance(given, str):
        return [prompt_of(given or "")]
    if given and isinstance(given[0], int):
        return [prompt_of_ids(given, decode)]
    return [prompt_of(p) if isinstance(p, str) else prompt_of_ids(p, decode) for p in given]


def prompt_of_ids(ids: list[int], decode: Decode) -> Prompt:
    """A prompt from ids of a vocabulary."""
    return Prompt(decode(ids), b"".join([(i % 2**64).to_bytes(ID_BYTES, "little") for i in ids]))


class NotText(Exception):
    """A content part is none of text; ``kind`` is its type, ``place`` the number of its message."""

    def __init__(self, kind: object, place: int) -> None:
        super().__init__(kind, place)
        self.kind = kind
        self.place = place


def prompt_text(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt through Llama 3's template; content parts of one message are put together.

    A message without content is empty. Raises NotText.
    """
    turns = []
    for place, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(_part(part, place) for part in content)
        elif content is not None and not isinstance(content, str):
            raise NotText(None, place)
        turns.append({"role": str(message.get("role")), "content": content or ""})
    return render_llama3(turns)


def _part(part: Any, place: int) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise NotText(kind, place)
    return str(part["text"])


class Vocabulary:
    """Ids of texts. Only ids it has handed out, and those of replies, can be turned back."""

    def __init__(self) -> None:
        self._texts = {vocabulary_id(word): word for word in WORDS}

    def encode(self, text: str) -> list[Token]:
        """The tokens of a text."""
        tokens = tokenize(text)
        if len(self._texts) < _REMEMBERED_TOKENS:
            self._texts.update((token.id, token.text) for token in tokens if token.id != EOS_ID)
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; nothing for the unknown ones."""
        return "".join([self._texts.get(i, "") for i in ids])
