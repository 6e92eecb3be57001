"""The words of simulated replies: deterministic, and ready as bytes.

A reply is not computed, only its timing is, so its text is a walk over a fixed
list of words: reply ``id`` takes ``WORDS[(start + stride * i) % 128]`` for its
i-th token with an odd stride, which visits every word before it repeats. Start
and stride are keyed by the request id alone, so the same request reads the same
in every run and through every route. One word is one token; its text begins
with a space as most tokens of a byte-pair vocabulary do.

Token ids and log-probabilities are stable fillers, exact in float32.
"""

from __future__ import annotations

from typing import Any

import orjson

_PROSE = (
    "you are welcome it was a pleasure to help with this today please feel free come back any time "
    "dear if more questions appear later we can look through them one by another and find an answer "
    "that works for your project in the meantime take care enjoy rest of day good luck every step "
    "small plan first then test what holds keep notes short names clear measure whenever change "
    "nothing stays hidden when numbers carry their units light runs into glass water follows stone "
    "birds cross river before noon morning tea warms both hands while rain taps old window letters "
    "travel slowly over green hills music fills quiet rooms friends share bread beside open fire wind "
    "turns wheel again until evening stars return above harbour boats sleep"
)
WORDS: tuple[str, ...] = tuple(" " + word for word in _PROSE.split())
"""128 different words: a power of two, so that an odd stride visits them all."""

EOS_TEXT = "<|eot_id|>"
EOS_ID = 128009
_FIRST_ID = 1000
_MASK = len(WORDS) - 1


def _logprob(word: int) -> float:
    return -(1 + word * 53 % 320) / 128


def token_fields(word: int | None) -> dict[str, Any]:
    """The ``token`` object of TGI for word number ``word``, or of the end marker for None."""
    if word is None:
        return {"id": EOS_ID, "text": EOS_TEXT, "logprob": -0.015625, "special": True}
    return {"id": _FIRST_ID + word, "text": WORDS[word], "logprob": _logprob(word), "special": False}


TOKEN_JSON: tuple[bytes, ...] = tuple(orjson.dumps(token_fields(word)) for word in range(len(WORDS)))
"""`token_fields` of each word, encoded once."""

WORD_JSON: tuple[bytes, ...] = tuple(orjson.dumps(word)[1:-1] for word in WORDS)
"""Each word as it stands inside a JSON string, without the quotes."""


def walk(request_id: int) -> tuple[int, int]:
    """``(start, stride)`` of a request's walk: its i-th word (from 1) is number ``start + stride * i``."""
    # Fibonacci hashing: neighbouring ids land far apart.
    key = (request_id * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    return key >> 40, (key >> 32) | 1


def word_numbers(request_id: int, count: int) -> list[int]:
    """The first ``count`` word numbers of a request's reply, each below ``len(WORDS)``."""
    start, stride = walk(request_id)
    return [(start + stride * i) & _MASK for i in range(1, count + 1)]


def stopped_at(numbers: list[int], stop: list[str]) -> int | None:
    """The first token count at which the text ends with a stop sequence, or None.

    As in TGI the text is looked at after each token and only its end counts.
    """
    text = ""
    longest = max((len(s) for s in stop), default=0) + max(len(w) for w in WORDS)
    for count, word in enumerate(numbers, 1):
        text = (text + WORDS[word])[-longest:]
        if any(text.endswith(s) for s in stop):
            return count
    return None
