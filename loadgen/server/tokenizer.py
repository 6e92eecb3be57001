"""The embedded server's tokenizer: as many tokens as `count_tokens` says, with ids and places.

Text is cut into the pieces of ``loadgen.prompts.tokens`` and the characters beyond
ASCII between them; control characters stick to what stands before them. After the
j-th of these units there are

    C_j = round(PIECE_TOKENS * pieces_j + NON_ASCII_TOKENS * non_ascii_j)

tokens, the definition of `count_tokens` applied to the text so far, so unit j gets
C_j - C_{j-1} >= 1 tokens: the fractions are carried from left to right, and how a
prefix is cut does not depend on what follows, except for the last word of the
prefix and the white space around it. A unit of several tokens is cut into equal
parts; some are empty where it has fewer characters than tokens, as tokens are that
hold the first bytes of a character.

Ids are functions of a token's text alone, the same in every process: 64 bits for
the prefix cache, where equal ids must mean equal text, and a number below 128,000
that looks like a vocabulary's for clients, where they need not.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.prompts.tokens import NON_ASCII_TOKENS, PIECE, PIECE_TOKENS
from loadgen.server.text import EOS_ID, EOS_TEXT, WORDS, token_fields

_UNIT = re.compile(rf"(?:{PIECE.pattern}|[^\x00-\x7f])[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]*")
_KNOWN_IDS: dict[str, int] = {text: token_fields(word)["id"] for word, text in enumerate(WORDS)}
_FIRST_HASHED_ID = max(_KNOWN_IDS.values()) + 1
_KNOWN_IDS[EOS_TEXT] = EOS_ID
_ORDINARY_IDS = 128_000  # of Llama 3; its special tokens come after them
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2**64


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """``base ** k`` modulo 2**64 for k below ``count``."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


_TABLE_CHARACTERS = 1 << 16
_POWERS = _powers(_BASE, _TABLE_CHARACTERS)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64), _TABLE_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text; ``start`` and ``stop`` are bytes into the UTF-8 text."""

    id: int
    text: str
    start: int
    stop: int


def token_ids(text: str) -> bytes:
    """The ids of ``text`` for the prefix cache: 8 bytes a token, ``8 * count_tokens(text)`` in all.

    The id of the characters c_0 .. c_{m-1} is sum (c_k + 1) B^k modulo 2^64 (Karp and
    Rabin, IBM J. Res. Dev. 31(2), 1987), got for all tokens at once from the sums over
    the text up to their ends.
    """
    ends = _ends(text)
    powers, inverses = _POWERS, _INVERSES
    if len(text) > _TABLE_CHARACTERS:
        powers = _powers(_BASE, len(text))
        inverses = _powers(pow(_BASE, -1, 1 << 64), len(text))
    sums = np.zeros(len(text) + 1, np.uint64)
    np.cumsum((_characters(text) + 1) * powers[: len(text)], out=sums[1:])
    starts = np.concatenate(([0], ends[:-1]))
    ids: NDArray[np.uint64] = (sums[ends] - sums[starts]) * inverses[starts]
    return ids.astype("<u8", copy=False).tobytes()


def tokenize(text: str) -> list[Token]:
    """The tokens of ``text``; put together they are the text, and there are ``count_tokens(text)``."""
    tokens = []
    start = start_bytes = 0
    for end in _ends(text).tolist():
        part = text[start:end]
        stop_bytes = start_bytes + (
            len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
        )
        tokens.append(Token(vocabulary_id(part), part, start_bytes, stop_bytes))
        start, start_bytes = end, stop_bytes
    return tokens


def vocabulary_id(text: str) -> int:
    """The id that clients see for a token's text.

    Words of replies have the ids that replies give them; any other text a CRC-32
    folded below 128,000, so different texts may share one.
    """
    known = _KNOWN_IDS.get(text)
    if known is not None:
        return known
    crc = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return _FIRST_HASHED_ID + crc % (_ORDINARY_IDS - _FIRST_HASHED_ID)


def _characters(text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _ends(text: str) -> NDArray[np.int64]:
    """Where the tokens end, in characters."""
    units: list[str] = _UNIT.findall(text)
    if not units:
        return np.array([len(text)] if text else [], np.int64)
    lengths = np.fromiter(map(len, units), np.int64, len(units))
    ends = np.cumsum(lengths)
    # Control characters at the very beginning have nothing before them: the first token takes them.
    ends += len(text) - ends[-1]
    weights = PIECE_TOKENS * np.arange(len(units) + 1)
    if not text.isascii():
        beyond_ascii = _characters(text) > 127
        pieces = np.ones(len(units), np.int64)
        for unit in np.flatnonzero(beyond_ascii[ends - lengths]).tolist():
            pieces[unit] = _is_piece(units[unit])
        weights[1:] = PIECE_TOKENS * np.cumsum(pieces) + NON_ASCII_TOKENS * np.cumsum(beyond_ascii)[ends - 1]
    totals = np.rint(weights).astype(np.int64)
    counts = totals[1:] - totals[:-1]
    token_ends = np.empty(totals[-1], np.int64)
    token_ends[totals[1:] - 1] = ends
    several = np.flatnonzero(counts > 1)
    for first, count, length, end in zip(
        totals[several].tolist(),
        counts[several].tolist(),
        lengths[several].tolist(),
        ends[several].tolist(),
        strict=True,
    ):
        for part in range(1, count):
            token_ends[first + part - 1] = end - length + part * length // count
    return token_ends


def _is_piece(unit: str) -> bool:
    """Whether a unit that begins beyond ASCII is a piece: digits, or white space up to a line break."""
    return unit[0].isdecimal() or "\n" in unit or "\r" in unit
