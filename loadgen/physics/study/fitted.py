"""The laws the study fitted to its measurements, apart from its roofline: the two disagree.

LLaMA-3.1-8B in float32 on one H100 SXM, one request at a time, replies of 10 to
300 tokens (arXiv 2601.22362, section 3.4). Decode laws are 0 up to two tokens:
the study counts the first token in prefill and, re-tokenising, one that was
never generated, which is what their negative constants say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from loadgen.physics.study.llm import Numbers, at_least

MODEL, GPU, DTYPE, BATCH = "llama-3.1-8b", "h100-sxm", "float32", 1
"""What the laws were fitted to, by this project's ids."""
_NOTHING_TO_DECODE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class PrefillLaw:
    """``linear s + quadratic s^2 + constant``, in seconds or Wh; s: prompt tokens."""

    linear: float
    quadratic: float
    constant: float

    def __call__(self, prompt_tokens: ArrayLike) -> Numbers:
        """The law at s >= 1. Raises ConfigError for fewer."""
        s = at_least("prompt_tokens", prompt_tokens, 1)
        return np.asarray(self.linear * s + self.quadratic * s**2 + self.constant)


@dataclass(frozen=True, slots=True)
class DecodeLaw:
    """``linear g + mixed s g + quadratic g^2 + constant``, in seconds or Wh; g: output tokens."""

    linear: float
    mixed: float
    quadratic: float
    constant: float

    def __call__(self, prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> Numbers:
        """The law at s >= 1, g >= 0: 0 for g <= 2, and never below 0. Raises ConfigError for fewer."""
        s = at_least("prompt_tokens", prompt_tokens, 1)
        g = at_least("output_tokens", output_tokens, 0)
        law = self.linear * g + self.mixed * s * g + self.quadratic * g**2 + self.constant
        return np.asarray(np.where(g <= _NOTHING_TO_DECODE_TOKENS, 0.0, np.maximum(law, 0.0)))


PREFILL_S = PrefillLaw(3.18e-4, 1.17e-8, 1.68e-2)
DECODE_S = DecodeLaw(2.61e-2, 3.31e-7, 5.86e-8, -5.32e-2)
PREFILL_WH = PrefillLaw(6.05e-5, 0.0, 5.00e-3)
DECODE_WH = DecodeLaw(2.13e-3, 2.87e-7, 0.0, -4.71e-3)
PREFILL_W, DECODE_W = 684.0, 293.0
"""Powers the study states; they are ratios of its fitted slopes, not means of a measured power."""


def total_wh(prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> Numbers:
    """Wh of one request by the two energy laws."""
    return np.asarray(PREFILL_WH(prompt_tokens) + DECODE_WH(prompt_tokens, output_tokens))
