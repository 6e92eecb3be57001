"""Lengths and arrival times of the Azure LLM inference traces (2023; Patel et al., Splitwise, ISCA 2024).

Columns ``TIMESTAMP,ContextTokens,GeneratedTokens``; CRLF, seven fractional digits,
no newline at the end. The traces hold no text, so prompts are composed to length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadgen.errors import ConfigError
from loadgen.prompts.files import read_text
from loadgen.prompts.synthetic import SyntheticSource
from loadgen.prompts.tokens import PIECE_TOKENS
from loadgen.types import Floats, Request

_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class AzureTrace:
    """Arrays of shape (n,), in order of time: seconds from the first row, tokens, tokens."""

    times_s: Floats
    context_tokens: Ints
    generated_tokens: Ints

    def take(self, rows: Ints) -> AzureTrace:
        """Those rows only."""
        return AzureTrace(self.times_s[rows], self.context_tokens[rows], self.generated_tokens[rows])


def _seconds(stamp: str) -> float:
    """A UTC-naive stamp as seconds; digits beyond what datetime takes (six) are added by hand."""
    whole, _, fraction = stamp.removesuffix("+00:00").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


def read_azure(path: Path) -> AzureTrace:
    """Reads a trace, plain or .gz. Raises ConfigError naming file, line, value and expectation."""
    lines = read_text(path)[0].splitlines()
    if not lines or lines[0].strip().split(",") != _HEADER:
        got = lines[0][:60] if lines else "an empty file"
        raise ConfigError(f"{path}:1: expected the header {','.join(_HEADER)}, got {got!r}")
    rows: list[tuple[float, int, int]] = []
    for number, line in enumerate(lines[1:], 2):
        if line.strip():
            try:
                stamp, context, generated = line.strip().split(",")
                rows.append((_seconds(stamp), int(context), int(generated)))
            except ValueError:
                raise ConfigError(
                    f"{path}:{number}: expected time,tokens,tokens, got {line[:60]!r}"
                ) from None
    if not rows:
        raise ConfigError(f"{path}: expected at least one request, got only a header")
    table = np.array(sorted(rows, key=lambda row: row[0]))
    return AzureTrace(table[:, 0] - table[0, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64))


class TraceSource:
    """Plain prompts of given lengths (by `count_tokens`, to the token) over composed text.

    ``prompt_tokens``, ``output_tokens``: shape (n,). Reply lengths are known, at
    least one token. A chat route adds its template to what the server counts.
    """

    def __init__(self, prompt_tokens: Ints, output_tokens: Ints, *, repeat: bool = False) -> None:
        self.prompt_tokens, self.output_tokens, self.repeat = prompt_tokens, output_tokens, repeat
        self._text = SyntheticSource()

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        lengths: Any = zip(self.prompt_tokens.tolist(), self.output_tokens.tolist(), strict=True)
        for id, (prompt, output) in enumerate(itertools.cycle(lengths) if self.repeat else lengths):
            pieces = max(round(max(int(prompt), 1) / PIECE_TOKENS), 1)
            reply_tokens = max(int(output), 1)
            body = {
                "prompt": self._text.text(rng, id, pieces),
                "prompt_tokens": max(round(PIECE_TOKENS * pieces), 1),
                "max_new_tokens": reply_tokens,
                "output_tokens": reply_tokens,
                "source_id": f"row-{id}",
            }
            yield Request(id, "text", body)
