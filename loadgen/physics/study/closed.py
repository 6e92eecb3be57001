"""What follows from the study's roofline in closed form: coefficients, crossovers, knees, regimes.

The forms cover the dominant rows (products, attention, LM head): those in scope
``dominant`` or, for ``dominant+wo`` and ``full``, with the output projection.
Where the study misprints a formula, the printed one stands beside the exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadgen.physics.study.llm import Numbers, Roofline, at_least

Words = NDArray[np.str_]


class Switching(NamedTuple):
    """Where operations turn from memory bound (below) to compute bound (above); inf: never.

    The products' are rows: tokens of a prompt at batch 1, b s in a prefill and
    b in a decode step. ``flash_tokens`` is the prompt length s at which prefill
    attention turns, whatever the batch; ``lm_head_sequences`` a batch size.
    """

    q_o_rows: float
    k_v_rows: float
    ffn_rows: float
    flash_tokens: float
    lm_head_sequences: float


def switching_rows(ridge_flop_per_value: float, inputs: int, outputs: int) -> float:
    """Rows at which an ``inputs`` x ``outputs`` product turns compute bound.

    ``s* = r n m / (2 n m - r (n + m))`` with r = b_w F_eff / B_eff; inf where the
    denominator is not positive.
    """
    weights = float(inputs) * outputs
    return _over(ridge_flop_per_value * weights, 2.0 * weights - ridge_flop_per_value * (inputs + outputs))


def switching(roofline: Roofline) -> Switching:
    """The switching points of the dominant rows.

    Attention: ``s* = r (4 h_q + h_kv) / (4 h_q + 5 n_q - r n_q)``.
    """
    m, r = roofline.model, roofline.ridge_flop_per_value
    h, q, kv = m.hidden, roofline.q_width, roofline.kv_width
    head = float(h) * m.vocabulary
    return Switching(
        switching_rows(r, h, q),
        switching_rows(r, h, kv),
        switching_rows(r, h, m.ffn),
        _over(r * (4.0 * q + kv), 4.0 * q + (5.0 - r) * m.heads),
        _over(r * head, 2.0 * head - r * (h + 1.0)),
    )


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else float("inf")


@dataclass(frozen=True, slots=True)
class ClosedForms:
    """The coefficients of one batch size (or an array of them), and what is made of them.

    Prefill: ``const_s`` while every product is memory bound and activations
    are small (the weights, once), ``gamma_s s + eta_s s^2`` when all are compute
    bound, and ``lm_head_s`` beside it. Decode: ``A (g-1) + B (g-1)(g+2s)``
    while all is memory bound, A = ``a_s`` and B = ``b_s``. Seconds per batch.

    ``eta_printed_s``, ``a_printed_s`` and ``b_printed_s`` are the study's own
    formulas: attention's 5 n_q left out; 12 b h_q for 11, one b h_ff for 3 and no
    output projection; not halved.
    """

    const_s: Numbers
    gamma_s: Numbers
    eta_s: Numbers
    lm_head_s: Numbers
    a_s: Numbers
    b_s: Numbers
    eta_printed_s: Numbers
    a_printed_s: Numbers
    b_printed_s: Numbers

    @property
    def linear_from_tokens(self) -> Numbers:
        """const / gamma: the prompt length at which arithmetic outweighs reading the weights."""
        return np.asarray(self.const_s / self.gamma_s)

    @property
    def quadratic_from_tokens(self) -> Numbers:
        """gamma / eta: the prompt length at which attention outweighs the products."""
        return np.asarray(self.gamma_s / self.eta_s)

    @property
    def epsilon_s(self) -> Numbers:
        """Coefficient of g^2 in decode time: B."""
        return self.b_s

    def delta_s(self, prompt_tokens: ArrayLike) -> Numbers:
        """Coefficient of g in decode time: A - B + 2sB."""
        s = at_least("prompt_tokens", prompt_tokens, 0)
        return np.asarray(self.a_s - self.b_s + 2.0 * s * self.b_s)

    def constant_s(self, prompt_tokens: ArrayLike) -> Numbers:
        """What remains of decode time without g: -(A + 2sB), which the study drops."""
        s = at_least("prompt_tokens", prompt_tokens, 0)
        return np.asarray(-(self.a_s + 2.0 * s * self.b_s))

    def theta_s(self, output_tokens: ArrayLike) -> Numbers:
        """Decode time without s: (A + B g)(g - 1); the study prints (A + g)(g - 1)."""
        g = at_least("output_tokens", output_tokens, 0)
        return np.asarray((self.a_s + self.b_s * g) * (g - 1.0))

    def lambda_s(self, output_tokens: ArrayLike) -> Numbers:
        """Coefficient of s in decode time: 2B (g - 1)."""
        g = at_least("output_tokens", output_tokens, 0)
        return np.asarray(2.0 * self.b_s * (g - 1.0))

    def decode_s(self, prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> Numbers:
        """A (g-1) + B (g-1)(g+2s), 0 for g <= 1: ``Roofline.decode_s`` while all is memory bound."""
        s = at_least("prompt_tokens", prompt_tokens, 0)
        g = at_least("output_tokens", output_tokens, 0)
        steps = np.maximum(g - 1.0, 0.0)
        return np.asarray(steps * (self.a_s + self.b_s * (g + 2.0 * s)))

    def prefill_s(self, prompt_tokens: ArrayLike) -> Numbers:
        """gamma s + eta s^2 + LM head: ``Roofline.prefill_s`` with the rest compute bound."""
        s = at_least("prompt_tokens", prompt_tokens, 0)
        return np.asarray(self.gamma_s * s + self.eta_s * s**2 + self.lm_head_s)

    def knee_output_tokens(self, prompt_tokens: ArrayLike) -> Numbers:
        """g* = A/B + 2s: beyond it decode time grows as g^2."""
        s = at_least("prompt_tokens", prompt_tokens, 0)
        return np.asarray(self.a_s / self.b_s + 2.0 * s)

    def knee_prompt_tokens(self, output_tokens: ArrayLike) -> Numbers:
        """s* = A/(2B) + g/2: beyond it decode time grows with the prompt."""
        g = at_least("output_tokens", output_tokens, 0)
        return np.asarray(self.a_s / (2.0 * self.b_s) + g / 2.0)

    def prefill_regime(self, prompt_tokens: ArrayLike) -> Words:
        """``constant`` below const/gamma, ``linear`` below gamma/eta, else ``quadratic`` in s.

        On boards where const/gamma exceeds gamma/eta there is no linear part.
        """
        s = at_least("prompt_tokens", prompt_tokens, 0)
        if_long = np.where(s < self.quadratic_from_tokens, "linear", "quadratic")
        return np.asarray(np.where(s < self.linear_from_tokens, "constant", if_long))

    def decode_regime(self, prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> Words:
        """``quadratic`` in g above g*, else ``prompt`` (it grows with s) above s*, else ``linear`` in g."""
        g = at_least("output_tokens", output_tokens, 0)
        s = at_least("prompt_tokens", prompt_tokens, 0)
        if_short = np.where(s > self.knee_prompt_tokens(g), "prompt", "linear")
        return np.asarray(np.where(g > self.knee_output_tokens(s), "quadratic", if_short))


def closed_forms(roofline: Roofline, batch: ArrayLike = 1) -> ClosedForms:
    """The coefficients of ``batch`` >= 1 sequences.

    With the output projection if in scope, ([without|with]); F = F_eff,
    w/B = b_w / B_eff:
    ``const = h (2N h_kv + [1|2] N h_q + 3N h_ff + V) w/B``;
    ``gamma = b h ([2|4] N h_q + 6N h_ff + 4N h_kv) / F``;
    ``eta = b N (4 h_q + 5 n_q) / F``; ``B = N b (n_q + h_kv) w/B / 2``;
    ``A = {N [[1|2](b (h+h_q) + h h_q) + 2(b (h+h_kv) + h h_kv) + 4b h_q
    + 3(b (h+h_ff) + h h_ff)] + b h + V h + b} w/B``.
    """
    b = at_least("batch", batch, 1)
    m = roofline.model
    n, h, f, heads, v = m.layers, m.hidden, m.ffn, m.heads, m.vocabulary
    q, kv = roofline.q_width, roofline.kv_width
    value_s = roofline.word_bytes / roofline.bytes_per_s
    wide = 1 if roofline.scope == "dominant" else 2  # products of h x h_q
    weights = h * (2 * n * kv + wide * n * q + 3 * n * f + v)
    block = wide * (b * (h + q) + h * q) + 2 * (b * (h + kv) + h * kv) + 4 * b * q + 3 * (b * (h + f) + h * f)
    printed = 12 * b * q + b * f + 2 * b * kv + h * q + 2 * h * kv + 3 * h * f
    head_s = np.maximum(2.0 * b * h * v / roofline.flop_per_s, (b * h + float(v * h) + b) * value_s)
    return ClosedForms(
        const_s=np.asarray(weights * value_s),
        gamma_s=np.asarray(b * h * n * (2.0 * wide * q + 6.0 * f + 4.0 * kv) / roofline.flop_per_s),
        eta_s=np.asarray(b * n * (4.0 * q + 5.0 * heads) / roofline.flop_per_s),
        lm_head_s=np.asarray(head_s),
        a_s=np.asarray((n * block + b * h + float(v * h) + b) * value_s),
        b_s=np.asarray(0.5 * n * b * (heads + kv) * value_s),
        eta_printed_s=np.asarray(4.0 * b * n * q / roofline.flop_per_s),
        a_printed_s=np.asarray((n * printed + float(v * h) + b) * value_s),
        b_printed_s=np.asarray(1.0 * n * b * (heads + kv) * value_s),
    )


def decode_is_memory_bound(
    roofline: Roofline, prompt_tokens: ArrayLike, output_tokens: ArrayLike, batch: ArrayLike = 1
) -> NDArray[np.bool_]:
    """Whether every dominant row of every decode step is memory bound, so that the closed form is exact.

    True when nothing is decoded (g <= 1).
    """
    dominant = replace(roofline, scope="dominant" if roofline.scope == "dominant" else "dominant+wo")
    s = at_least("prompt_tokens", prompt_tokens, 1)
    g = at_least("output_tokens", output_tokens, 0)
    # Attention's two times are lines in l: memory bound at both ends is so between them.
    ends = (s + 1.0, np.maximum(s + g - 1.0, s + 1.0))
    rows = [row for end in ends for row in dominant.step_operations(end, batch)]
    bound = ~np.logical_or.reduce(np.broadcast_arrays(*(row.compute_bound for row in rows)))
    return np.asarray(bound | (g <= 1.0))
