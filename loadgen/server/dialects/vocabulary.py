"""Token ids for clients, both ways."""

from __future__ import annotations

from collections.abc import Iterable

from loadgen.server.text import EOS_ID, WORDS
from loadgen.server.tokenizer import Token, tokenize, vocabulary_id

_REMEMBERED_TOKENS = 100_000


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
