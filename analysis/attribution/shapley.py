"""What each request truly cost the embedded server: its Shapley value in every step. For scoring only.

A step that runs the rows S costs ``v(S) = boards x t(S) P(S)`` by the engine's own
time and power law, which no sum over rows gives: the weights are read once, GEMMs
switch from memory to compute bound, power saturates. Row i is charged the mean,
over all orders in which the rows could have joined, of what it added
(Shapley, 1953): the only division that is complete, symmetric, additive and charges
nothing to a row that changes nothing. ``P_idle t(S)`` and the rest are games of
their own, whose values add to it, so that the parts idle, prefill and decode are
defined too. A stretch without rows is nobody's.

This reads ``server.jsonl``, which only the embedded server writes. No module that
attributes may import it: it is what they are measured against.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

from loadgen.physics.transformer import StepModel
from loadgen.types import Floats, Step

Row = tuple[int, int, int, int]
"""(request id, prefill tokens, decode tokens, context tokens before the step), as in a `Step`."""
Game = npt.NDArray[np.float64]

EXACT_ROWS = 7
"""Up to so many rows every coalition is valued; 128 of them."""
EXACT_PROMPTS = 8
"""Up to so many prompts in a step, likewise, beside decode rows taken to be alike."""
UNKNOWN_ORDERS = 16
PARTS = ("idle_j", "prefill_j", "decode_j")


class StepGame:
    """The coalitions of one step's rows: joules of every board together.

    ``emits``: whether a prefill row ends its prompt in this step. ``idle_w``: of one board.
    """

    def __init__(
        self, model: StepModel, rows: tuple[Row, ...], emits: tuple[bool, ...], idle_w: float
    ) -> None:
        self._model, self._idle_w = model, idle_w
        self._terms = np.array(
            [
                (n, n * c + n * (n + 1) // 2 if n else 0, c + n if n else 0, d, c if d else 0, e or d)
                for (_, n, d, c), e in zip(rows, emits, strict=True)
            ],
            dtype=np.int64,
        )
        self.rows = len(rows)

    def value_j(self, sums: npt.NDArray[np.int64]) -> Game:
        """(idle, active) joules, (m, 2), of coalitions given by the sums of their rows' terms, (m, 6)."""
        step, shards, idle_w = self._model.step, self._model.shards, self._idle_w
        found = np.empty((len(sums), 2))
        for k, (prefill, pairs, span, decode, context, emitting) in enumerate(sums.tolist()):
            if not prefill and not decode:
                found[k] = 0.0
                continue
            cost = step(
                prefill_tokens=prefill, prefill_pairs=pairs, prefill_span_tokens=span,
                decode_rows=decode, decode_context_tokens=context, emitting_rows=emitting,
            )  # fmt: skip
            idle_j = shards * idle_w * cost.duration_s
            found[k] = idle_j, shards * cost.power_w * cost.duration_s - idle_j
        return found

    def total_j(self) -> float:
        """The whole step."""
        return float(self.value_j(self._terms.sum(axis=0, keepdims=True)).sum())

    def exact(self) -> Game:
        """Each row's value, (n, 2), from all 2^n coalitions."""
        n = self.rows
        masks = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        worth = self.value_j(masks @ self._terms)
        weight = _size_weights(n)[masks.sum(axis=1)]
        found = np.empty((n, 2))
        for i in range(n):
            without = np.flatnonzero(masks[:, i] == 0)
            found[i] = weight[without] @ (worth[without | (1 << i)] - worth[without])
        return found

    def sampled(self, orders: int, rng: np.random.Generator) -> tuple[Game, Floats]:
        """Each row's value, (n, 2), and the variance of its sum, (n,), from ``orders`` orders, even.

        Decode rows differ in nothing but their context. Were it the mean one for all, a
        coalition would be known by its prefill rows and by how many decode, and its values
        would be exact (`_alike`); sampled is only what the contexts change. Each order is
        taken with its reverse, so that who comes early in one comes late in the other, and
        adds up to the whole step, hence so does the mean; the variance is that of the
        pairs' mean. Beside more than `EXACT_PROMPTS` prompts all is sampled, with as many more orders.
        """
        decoding = self._terms[:, 3] > 0
        known = int((~decoding).sum()) <= EXACT_PROMPTS
        n, pairs = self.rows, max(2, orders // 2 * (1 if known else UNKNOWN_ORDERS))
        forward = np.array([rng.permutation(n) for _ in range(pairs)])
        order = np.concatenate([forward, forward[:, ::-1]])
        sums = np.cumsum(self._terms[order], axis=1)
        level = sums.copy()
        level[:, :, 4] = self._mean_context(level[:, :, 3])
        worth = self.value_j(sums.reshape(-1, 6))
        if known:
            worth -= self.value_j(level.reshape(-1, 6))
        gain = np.diff(worth.reshape(2 * pairs, n, 2), axis=1, prepend=0.0)
        by_row = np.empty_like(gain)
        np.put_along_axis(by_row, order[:, :, None], gain, axis=1)
        paired = 0.5 * (by_row[:pairs] + by_row[pairs:])
        found = paired.mean(axis=0)
        if known:
            found += self._alike(decoding)
        return found, paired.sum(axis=2).var(axis=0, ddof=1) / pairs

    def _mean_context(self, decoding: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Context tokens of so many decode rows, each with the mean one."""
        whole = self._terms.sum(axis=0)
        found: npt.NDArray[np.int64] = np.rint(decoding * (whole[4] / max(whole[3], 1))).astype(np.int64)
        return found

    def _alike(self, decoding: npt.NDArray[np.bool_]) -> Game:
        """Exact values, (n, 2), were all decode rows of the mean context: by kind, not by coalition."""
        n, prefills, d = self.rows, np.flatnonzero(~decoding), int(decoding.sum())
        p = len(prefills)
        masks = (np.arange(2**p)[:, None] >> np.arange(p)) & 1
        sums = np.zeros((d + 1, 2**p, 6), dtype=np.int64)
        sums += (masks @ self._terms[prefills])[None]
        some = np.arange(d + 1)
        sums[:, :, 3] += some[:, None]
        sums[:, :, 4] += self._mean_context(some)[:, None]
        sums[:, :, 5] += some[:, None]
        worth = self.value_j(sums.reshape(-1, 6)).reshape(d + 1, 2**p, 2)
        size = some[:, None] + masks.sum(axis=1)
        found = np.empty((n, 2))
        if d:
            often = _size_weights(n)[size[:-1]] * _chosen(d - 1)[:, None]
            found[decoding] = np.einsum("kt,ktj->j", often, np.diff(worth, axis=0))
        for i, row in enumerate(prefills):
            without = np.flatnonzero(masks[:, i] == 0)
            often = _size_weights(n)[size[:, without]] * _chosen(d)[:, None]
            found[row] = np.einsum("kt,ktj->j", often, worth[:, without | (1 << i)] - worth[:, without])
        return found

    def leave_one_out(self) -> Floats:
        """What the step would have saved without each row, (n,); these do not add up to it."""
        whole = self._terms.sum(axis=0)
        saved: Floats = self.total_j() - self.value_j(whole - self._terms).sum(axis=1)
        return saved


def _size_weights(n: int) -> Floats:
    """1 / (n C(n - 1, s)) of a coalition of s others, (n,) and one unused."""
    weights = np.ones(n + 1)
    weights[0] = 1.0 / n
    for s in range(1, n):
        weights[s] = weights[s - 1] * s / (n - s)
    return weights


def _chosen(n: int) -> Floats:
    """C(n, k) for k from 0 to n, (n + 1,)."""
    return np.array([float(comb(n, k)) for k in range(n + 1)])


def truth(
    steps: Iterable[Step],
    model: StepModel,
    idle_w: float,
    start_s: float,
    end_s: float,
    *,
    orders: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """What each request cost in [start, end], by request id; steps at the edges count in part.

    Columns: ``idle_j``, ``prefill_j``, ``decode_j`` and their sum ``total_j``;
    ``error_j``, the standard error of the sum from sampling orders (0 where every step
    was small enough to be exact); ``alone_j``, leave-one-out. The attribute ``idle_j``
    of the frame holds the stretches without rows.
    Raises ValueError when a step did not cost what this model says.
    """
    rng = np.random.default_rng(seed)
    sums: dict[int, Floats] = {}
    unattributed_j = 0.0
    for step, emits in _with_ends(steps):
        inside_s = min(end_s, step.start_s + step.duration_s) - max(start_s, step.start_s)
        if inside_s <= 0:
            continue
        share = inside_s / step.duration_s
        rows = step.sequences
        if not rows:
            unattributed_j += share * step.energy_j
            continue
        game = StepGame(model, rows, emits, idle_w)
        modelled_j = game.total_j()
        if abs(modelled_j - step.energy_j) > 1e-6 * step.energy_j:
            raise ValueError(f"step at {step.start_s} s: cost {step.energy_j} J, by the model {modelled_j} J")
        if len(rows) <= EXACT_ROWS:
            value, variance = game.exact(), np.zeros(len(rows), dtype=np.float64)
        else:
            value, variance = game.sampled(orders, rng)
        alone = game.leave_one_out() if len(rows) > 1 else value.sum(axis=1)
        for (id, prefill, _, _), (idle_j, active_j), v, a in zip(
            rows, value.tolist(), variance, alone, strict=True
        ):
            into = sums.setdefault(id, np.zeros(5))
            into[0] += share * idle_j
            into[1 if prefill else 2] += share * active_j
            into[3] += share * share * v
            into[4] += share * a
    table = np.array([sums[id] for id in sums]).reshape(-1, 5)
    found = pd.DataFrame(table[:, :3], columns=list(PARTS), index=pd.Index(list(sums), name="id"))
    found["total_j"] = found.sum(axis=1)
    found["error_j"], found["alone_j"] = np.sqrt(table[:, 3]), table[:, 4]
    found.attrs["idle_j"] = unattributed_j
    return found.sort_index()


def _with_ends(steps: Iterable[Step]) -> Iterator[tuple[Step, tuple[bool, ...]]]:
    """Each step, and which of its rows emit a token: all but those whose prefill goes on."""
    held = [*steps, Step(0.0, 0.0, 0.0)]
    following: dict[int, Row] = {}
    emitting: list[tuple[bool, ...]] = []
    for step, _ in pairwise(reversed([held[-1], *held[:-1]])):
        flags = []
        for id, prefill, _, context in step.sequences:
            then = following.get(id)
            flags.append(not (prefill and then is not None and then[1] and then[3] == context + prefill))
        following.update({row[0]: row for row in step.sequences})
        emitting.append(tuple(flags))
    yield from zip(held[:-1], reversed(emitting), strict=True)
