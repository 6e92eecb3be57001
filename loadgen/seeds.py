"""Separate random streams from one seed, so that using more of one never shifts another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Streams:
    """Generators for arrivals and prompts. Reply lengths are keyed by request id instead
    (`loadgen.prompts.replies`), since replies are drawn in the order requests reach a server.
    """

    arrivals: np.random.Generator
    prompts: np.random.Generator


def streams(seed: int) -> Streams:
    """The streams of a seed (>= 0; 0 is a seed): children of one numpy SeedSequence."""
    arrivals, prompts = np.random.SeedSequence(seed).spawn(2)
    return Streams(np.random.default_rng(arrivals), np.random.default_rng(prompts))
