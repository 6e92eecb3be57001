"""Recorded traffic: arrival times and lengths, without text, from three public formats.

Azure       CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``: UTC-naive stamps of seven
            fractional digits, CRLF, no newline at the end (Patel et al., Splitwise, ISCA 2024).
BurstGPT    CSV with ``Timestamp,Request tokens,Response tokens``, seconds, among other columns
            (``Model``, ``Total tokens``, ``Log Type``; version 2 adds ``Session ID`` and ``Elapsed time``);
            0 response tokens mark a failure (Wang et al., KDD 2025).
Mooncake    JSON lines ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``: one id
            a 512-token block of the prompt, equal where the prompt up to the block's end is
            equal (Qin et al., FAST 2025).

Which one a file is, its first line says, not its name. All may be gzipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from loadgen.errors import ConfigError
from loadgen.prompts.files import read_text
from loadgen.types import Floats

BLOCK_TOKENS = 512
_MOST_TOKENS = 10**9

_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
_MOONCAKE = ("timestamp", "input_length", "output_length")
_FORMATS = (
    f"Azure CSV ({','.join(_AZURE)}), BurstGPT CSV ({','.join(_BURSTGPT)} among its columns) "
    f"or Mooncake JSON lines ({', '.join(_MOONCAKE)}, hash_ids)"
)
Ints = npt.NDArray[np.int64]
Blocks = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Arrays of shape (n,), in order of time: seconds from the first row, tokens, tokens.

    ``blocks``: for each request the ids of its prompt's blocks of `BLOCK_TOKENS`
    tokens, the last one maybe shorter, or None where the format has none.
    ``notes``: what the user should know of the file.
    """

    times_s: Floats
    context_tokens: Ints
    generated_tokens: Ints
    blocks: Blocks | None = None
    notes: tuple[str, ...] = ()

    def take(self, rows: Ints) -> Recording:
        """Those rows only."""
        blocks = None if self.blocks is None else tuple(self.blocks[row] for row in rows.tolist())
        return Recording(
            self.times_s[rows], self.context_tokens[rows], self.generated_tokens[rows], blocks, self.notes
        )

    @property
    def repeated_share(self) -> float | None:
        """Share of the prompt tokens in whole blocks that an earlier prompt began with; None without blocks.

        What a prefix cache that forgets nothing would save.
        """
        total = int(self.context_tokens.sum())
        if self.blocks is None or total == 0:
            return None
        seen, repeated = set[int](), 0
        for ids, prompt_tokens in zip(self.blocks, self.context_tokens.tolist(), strict=True):
            for id in ids[: prompt_tokens // BLOCK_TOKENS]:
                if id not in seen:
                    break
                repeated += BLOCK_TOKENS
            seen.update(ids)
        return repeated / total


@dataclass(frozen=True, slots=True)
class _Row:
    time_s: float
    context_tokens: int
    generated_tokens: int
    blocks: tuple[int, ...] | None = None


def read_recording(path: Path) -> Recording:
    """Reads a trace of any of the formats. Raises ConfigError naming file, line, value and expectation."""
    text, cut = read_text(path)
    lines = text.splitlines()
    if cut:
        lines = lines[:-1]
    notes = [f"{path.name}: the file is cut off; using the {len(lines)} whole lines before"] if cut else []
    first = lines[0].strip() if lines else ""
    columns = [column.strip().removesuffix("(s)") for column in first.split(",")]
    if tuple(columns) == _AZURE:
        rows = _table(path, lines, (0, 1, 2), _azure_time_s)
    elif set(_BURSTGPT) <= set(columns):
        one, two, three = (columns.index(name) for name in _BURSTGPT)
        rows = _table(path, lines, (one, two, three), float)
        answered = [row for row in rows if row.generated_tokens > 0]
        if len(answered) < len(rows):
            notes.append(
                f"{path.name}: left out {len(rows) - len(answered)} of {len(rows)} requests that failed "
                "when recorded (0 response tokens)"
            )
        rows = answered
    elif first.startswith("{") and set(_MOONCAKE) <= set(_object(first)):
        rows = [_mooncake(line, f"{path}:{k}") for k, line in enumerate(lines, 1) if line.strip()]
    else:
        raise ConfigError(f"{path}:1: expected a trace, {_FORMATS}, got {_shown(first) or 'an empty line'}")
    if not rows:
        raise ConfigError(f"{path}: expected at least one answered request, got none")
    rows.sort(key=lambda row: row.time_s)
    known = [row.blocks for row in rows if row.blocks is not None]
    times_s = np.array([row.time_s for row in rows])
    return Recording(
        times_s - times_s[0],
        np.array([row.context_tokens for row in rows], dtype=np.int64),
        np.array([row.generated_tokens for row in rows], dtype=np.int64),
        tuple(known) if len(known) == len(rows) else None,
        tuple(notes),
    )


def _shown(line: str) -> str:
    return repr(line[:60]) if line else ""


def _azure_time_s(stamp: str) -> float:
    """A UTC-naive stamp as seconds; digits beyond what datetime takes (six) are added by hand."""
    whole, _, fraction = stamp.removesuffix("+00:00").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


def _checked(row: _Row) -> _Row:
    lengths = (row.context_tokens, row.generated_tokens)
    if not np.isfinite(row.time_s) or not all(0 <= length <= _MOST_TOKENS for length in lengths):
        raise ValueError
    return row


def _table(path: Path, lines: list[str], places: tuple[int, int, int], time_s: Any) -> list[_Row]:
    """The rows below a header; ``places`` of time, prompt and reply tokens."""
    rows, width = [], lines[0].count(",") + 1
    names = [lines[0].strip().split(",")[place] for place in places]
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            cells = line.strip().split(",")
            try:
                if len(cells) != width:
                    raise ValueError
                stamp, context, generated = (cells[place] for place in places)
                rows.append(_checked(_Row(time_s(stamp), int(context), int(generated))))
            except ValueError:
                raise ConfigError(
                    f"{path}:{number}: expected a time and two numbers of tokens as {','.join(names)}, "
                    f"got {_shown(line)}"
                ) from None
    return rows


def _object(line: str) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _mooncake(line: str, where: str) -> _Row:
    row = _object(line)
    stamp: Any = row.get("timestamp")
    context: Any = row.get("input_length")
    generated: Any = row.get("output_length")
    if type(stamp) not in (int, float) or type(context) is not int or type(generated) is not int:
        raise ConfigError(
            f"{where}: expected {', '.join(_MOONCAKE)} as numbers of ms and tokens, got {_shown(line)}"
        )
    ids = row.get("hash_ids")
    if ids is not None and not (isinstance(ids, list) and all(type(id) is int and id >= 0 for id in ids)):
        raise ConfigError(f"{where} hash_ids: expected a list of whole numbers >= 0, got {_shown(str(ids))}")
    if ids is not None and len(ids) != -(-context // BLOCK_TOKENS):
        raise ConfigError(
            f"{where} hash_ids: expected {-(-context // BLOCK_TOKENS)} of them, one for each {BLOCK_TOKENS} "
            f"tokens of input_length {context}, got {len(ids)}"
        )
    try:
        return _checked(_Row(stamp / 1000, context, generated, None if ids is None else tuple(ids)))
    except ValueError:
        raise ConfigError(f"{where}: expected lengths of 0 to {_MOST_TOKENS}, got {_shown(line)}") from None
