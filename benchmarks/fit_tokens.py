"""Fits the splitter of loadgen.prompts.tokens to real token counts, and prints its error.

    python benchmarks/fit_tokens.py conversations.jsonl.gz

Each line needs ``n_tokens`` (by a real tokenizer, over all contents) and ``messages``.
Weights are fitted on the odd lines and judged on the even ones.
"""

from __future__ import annotations

import gzip
import json
import sys
import time

import numpy as np

from loadgen.prompts.tokens import PIECE, count_tokens


def main(path: str) -> None:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [[m["content"] for m in row["messages"]] for row in rows]
    truth = np.array([row["n_tokens"] for row in rows], dtype=float)
    pieces = np.array([sum(len(PIECE.findall(t)) for t in ts) for ts in texts], dtype=float)
    other = np.array([sum(len(t) - len(t.encode("ascii", "ignore")) for t in ts) for ts in texts], float)
    relative = np.stack([pieces, other], axis=1) / truth[:, None]
    weights, *_ = np.linalg.lstsq(relative[1::2], np.ones(len(relative[1::2])), rcond=None)
    print(
        f"fitted on {len(relative[1::2])}: {weights[0]:.4f} a piece, {weights[1]:.4f} a non-ASCII character"
    )
    began_s = time.perf_counter()
    counts = np.array([sum(map(count_tokens, ts)) for ts in texts], dtype=float)
    each_us = (time.perf_counter() - began_s) / len(texts) * 1e6
    error = counts[::2] / truth[::2] - 1
    print(
        f"shipped weights on the other {len(error)}: mean |error| {np.abs(error).mean():.2%}, "
        f"bias {error.mean():+.2%}, p95 {np.quantile(np.abs(error), 0.95):.2%}, "
        f"total {counts.sum() / truth.sum() - 1:+.2%}; {each_us:.0f} us a conversation"
    )


if __name__ == "__main__":
    main(sys.argv[1])
