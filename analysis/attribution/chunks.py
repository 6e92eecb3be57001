"""Prompts that the server computed in several steps: chunked prefill.

A client sees the step that ends a prompt, not those in which earlier chunks of it ran. A server
that chunks feeds at most a budget of tokens a step, decode rows included (TGI's
``max_batch_prefill_tokens``, vLLM's ``max_num_batched_tokens``), to whoever came first. So a
prompt that is longer than its last step had room for took the steps before, each filled.

The budget need not be known: `by_durations` takes the one that explains the steps' durations best.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from analysis.attribution.activity import Activity
from analysis.attribution.calibration import ridge, work_of
from analysis.attribution.weights import Weights

BUDGETS_TOKENS = tuple(float(2**k) for k in range(8, 15))
"""Servers are told powers of two; beyond 16,384 hardly a prompt is cut."""
CLEARLY = 0.9
"""How much smaller the durations' mean error must become before prompts are taken to be cut."""
MOST_STEPS = 20_000
"""So many steps tell the budget."""


def by_durations(did: Activity, weights: Weights) -> Activity:
    """The same with prompts spread over steps, if the steps' durations say that they were cut.

    Each budget is judged by the mean of |duration / expected - 1|, with the tariff of seconds
    corrected for it as in `analysis.attribution.calibration`.
    """
    if not did.stamped or not len(did.step):
        return did
    some = _first(did, MOST_STEPS)
    most = float(some.per_step(some.prefill_tokens).max())
    off = {np.inf: _off(some, weights)}
    off |= {b: _off(chunked(some, b), weights) for b in BUDGETS_TOKENS if b < most}
    best = min(off, key=lambda budget: off[budget])
    return chunked(did, best) if off[best] < CLEARLY * off[np.inf] else did


def _first(did: Activity, steps: int) -> Activity:
    """The first so many steps of an activity."""
    kept = did.step < steps
    rows = {name: getattr(did, name)[kept] for name in _OF_ROWS}
    return replace(did, start_s=did.start_s[:steps], end_s=did.end_s[:steps], **rows)


_OF_ROWS = ("step", "request", "prefill_tokens", "decode_tokens", "context_tokens")


def _off(did: Activity, weights: Weights) -> float:
    work = work_of(did, weights) * weights.time_s.array
    factor, *_ = ridge(work, did.duration_s, relative=True)
    lasting_s = did.duration_s
    return float(np.mean(np.abs(work @ factor - lasting_s) / np.maximum(lasting_s, 1e-6)))


def chunked(did: Activity, budget_tokens: float) -> Activity:
    """The same with each prompt spread over the steps that its tokens took.

    A prompt takes as few steps as have room for it, back from that of its first token, none from
    before it was sent; what finds no room stays in the last, and so does a prompt whose steps
    showed no token of anybody: they are one step here.
    """
    ends = np.flatnonzero(did.prefill_tokens > 0)
    decoding = did.per_step((did.prefill_tokens == 0).astype(np.float64))
    room = np.maximum(budget_tokens - decoding, 1.0) - did.per_step(did.prefill_tokens)
    over = ends[room[did.step[ends]] < 0]
    if not len(over):
        return did
    prefill, context = did.prefill_tokens.copy(), did.context_tokens.copy()
    sent_s = did.requests["sent_s"].to_numpy(dtype=np.float64)
    of_step, of_request, tokens, before = [], [], [], []
    for row in over[np.lexsort((sent_s[did.request[over]], did.step[over]))].tolist():
        last, whole, request = int(did.step[row]), float(prefill[row]), int(did.request[row])
        owed, first = -float(room[last]), last
        while owed > 0 and first > 0 and did.start_s[first - 1] >= sent_s[request]:
            first -= 1
            owed -= max(float(room[first]), 0.0)
        done = 0.0
        for step in range(first, last):
            part = min(max(float(room[step]), 0.0), whole - 1.0 - done)  # the last has one at least
            if part > 0:
                of_step.append(step)
                of_request.append(request)
                tokens.append(part)
                before.append(float(context[row]) + done)
                room[step] -= part
                done += part
        room[last] += done
        prefill[row], context[row] = whole - done, context[row] + done
    return replace(
        did,
        step=np.concatenate([did.step, np.array(of_step, dtype=np.int64)]),
        request=np.concatenate([did.request, np.array(of_request, dtype=np.int64)]),
        prefill_tokens=np.concatenate([prefill, tokens]),
        decode_tokens=np.concatenate([did.decode_tokens, np.zeros(len(tokens))]),
        context_tokens=np.concatenate([context, before]),
    )
