"""Prompts of recorded lengths. Traces hold no text, so it is composed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from loadgen.prompts.recording import BLOCK_TOKENS, Blocks, Ints
from loadgen.prompts.synthetic import SyntheticSource
from loadgen.prompts.tokens import PIECE_TOKENS
from loadgen.types import Request


class TraceSource:
    """Plain prompts of given lengths (by `count_tokens`, to the token) over composed text.

    ``prompt_tokens``, ``output_tokens``: shape (n,). Reply lengths are known, at
    least one token. A chat route adds its template to what the server counts.

    ``blocks`` (see `Recording`): two prompts whose first k ids are equal begin with the
    same 512 k tokens of text, so that a prefix cache can serve one from the
    other; texts of different ids differ from their first words on. When the rows are
    repeated, each round has blocks of its own, and finds nothing cached that the first left.
    """

    def __init__(
        self,
        prompt_tokens: Ints,
        output_tokens: Ints,
        *,
        repeat: bool = False,
        blocks: Blocks | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.prompt_tokens, self.output_tokens, self.repeat = prompt_tokens, output_tokens, repeat
        self.blocks, self.notes = blocks, list(notes)
        self._text = SyntheticSource()

    def requests(self, rng: np.random.Generator) -> Iterator[Request]:
        lengths: Any = zip(self.prompt_tokens.tolist(), self.output_tokens.tolist(), strict=True)
        rows = len(self.prompt_tokens)
        base = int(rng.integers(2**32)) if self.blocks is not None else 0
        for id, (prompt, output) in enumerate(itertools.cycle(lengths) if self.repeat else lengths):
            pieces = max(round(max(int(prompt), 1) / PIECE_TOKENS), 1)
            reply_tokens = max(int(output), 1)
            if self.blocks is None or prompt == 0:
                text = self._text.text(rng, id, pieces)
            else:
                text = self._shared((base, id // rows), self.blocks[id % rows], pieces)
            body = {
                "prompt": text,
                "prompt_tokens": max(round(PIECE_TOKENS * pieces), 1),
                "max_new_tokens": reply_tokens,
                "output_tokens": reply_tokens,
                "source_id": f"row-{id}",
            }
            yield Request(id, "text", body)

    def _shared(self, seed: tuple[int, int], ids: tuple[int, ...], pieces: int) -> str:
        """Text of so many pieces, block after block; a block is a function of its id, place and seed."""
        texts, before = [], 0
        for place, block in enumerate(ids, 1):
            end = min(round(place * BLOCK_TOKENS / PIECE_TOKENS), pieces)
            if place == len(ids):
                end = pieces
            if end > before:
                draw = np.random.Generator(np.random.PCG64((*seed, block, place)))
                texts.append(self._text.text(draw, block, end - before))
            before = end
        return " ".join(texts)
