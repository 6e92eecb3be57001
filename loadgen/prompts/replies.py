"""How long a reply is when nobody said: the law the embedded server draws from.

Lognormal with median exp(MU) and shape SIGMA, rounded, clipped to 10-256 tokens.
The thank-you study's replies range over about 10 to 300 tokens with mean 52 (its
fits cover g = 10..300; reference point s = 1200, g = 52); SIGMA = 0.7 [assumed]
puts 2.6 % at the lower end and 0.4 % at the upper, p95 at 129, and MU makes the
clipped mean 52.
"""

from __future__ import annotations

import numpy as np

MU, SIGMA = 3.7113, 0.7
SHORTEST_TOKENS, LONGEST_TOKENS = 10, 256
_STREAM = 0x7265706C  # keeps these draws apart from the plan's streams of the same seed


def reply_tokens(seed: int, request_id: int, max_new_tokens: int) -> int:
    """Tokens of one reply, at least 1: a function of seed and id only, then cut to the maximum.

    Ids may be negative (warm-up).
    """
    key = np.random.SeedSequence([_STREAM, seed, request_id & 0xFFFFFFFFFFFFFFFF])
    draw = np.random.default_rng(key).normal(MU, SIGMA)
    tokens = min(max(round(float(np.exp(draw))), SHORTEST_TOKENS), LONGEST_TOKENS)
    return max(min(tokens, max_new_tokens), 1)
