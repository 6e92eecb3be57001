"""The fluid bound: what a replica can sustain when lengths and arrivals are averages.

Let m requests enter and leave an average step. Each brings P prompt tokens once and takes D = o - 1
decode rows, so that an average step holds m P new tokens, m D rows and what they attend to, and takes at
least t(m): the step model is convex in its load, so no mix of steps is faster than the mean step with the
smallest overhead its batch allows (Jensen). A request stays for at least o steps, so Little's law bounds m:
m o <= requests under way (admission, batch size) and m E[tokens held x o] <= KV cache; the tokens of a
forward bound m P + m D. Then no rate above max m / t(m) can be sustained. With m -> rate x t that is
stability, ``lambda (tau_prefill + o s'(b)) < 1``. For mixtures of experts, whose weights touched are
concave in the rows, it is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from loadgen.emulation.jobs import Lengths
from loadgen.physics.transformer import StepModel
from loadgen.server.deployment import Deployment
from loadgen.types import Floats

_POINTS = 160
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Fluid:
    """``stable_rps``: no higher rate can be sustained; ``cap``: what keeps the batch from growing there
    (kv, admission, batch, forward), None when a larger one would not help. ``residents``: requests under
    way. ``tpot_rps``: the highest rate whose mean step is within a limit on TPOT, None without one.
    """

    stable_rps: float
    cap: str | None
    residents: float
    tpot_rps: float | None


@dataclass(frozen=True, slots=True)
class Means:
    """Of one request on average: tokens, pairs of tokens that attend, decode rows and their contexts.

    ``held_tokens``: KV tokens reserved times the steps they are held for.
    """

    prompt: float
    pairs: float
    decode: float
    context: float
    held_tokens: float

    @property
    def steps(self) -> float:
        """Steps that a request is under way."""
        return self.decode + 1.0


def means_of(lengths: Lengths, *, reserves: bool) -> Means:
    """``reserves``: the whole of a request's KV tokens are held from its start (TGI), not as they come."""
    s, o = lengths.prompt_tokens.astype(np.float64), lengths.reply_tokens.astype(np.float64)
    d = o - 1
    context = d * s + d * (d + 1) / 2
    held = (s + lengths.max_new_tokens.clip(max=1024) - 1) * o if reserves else s + context
    pairs = s * (s + 1) / 2
    return Means(*(float(x.mean()) for x in (s, pairs, d, context, held)))


def fluid(deployment: Deployment, lengths: Lengths, tpot_s: float | None = None) -> Fluid:
    """The bound for requests of these lengths on this deployment, whose steps must be a `StepModel`'s."""
    model = deployment.step_model
    assert isinstance(model, StepModel)
    means = means_of(lengths, reserves=deployment.launch.scheduling == "tgi")
    caps = _caps(deployment, means)
    name = min(caps, key=lambda key: caps[key])
    m_most = caps[name]
    grid = np.geomspace(min(m_most, 0.25 / means.steps), m_most, _POINTS)
    seconds = np.array([mean_step_s(model, means, float(m)) for m in grid])
    rates = grid / seconds
    best = int(rates.argmax())
    tpot_rps = None
    if tpot_s is not None and means.decode > 0:
        tpot_rps = float(rates[seconds <= tpot_s].max(initial=0.0))
    at_cap = best == len(grid) - 1
    return Fluid(float(rates[best]), name if at_cap else None, float(grid[best] * means.steps), tpot_rps)


def mean_step_s(model: StepModel, means: Means, m: float) -> float:
    """Seconds of the mean step with m requests entering it, the least overhead of its batch in it."""
    rows = int(m * means.decode)
    cost = model.step(
        prefill_tokens=int(m * means.prompt),
        prefill_pairs=int(m * means.pairs),
        prefill_span_tokens=int(m * means.prompt),
        decode_rows=rows,
        decode_context_tokens=int(m * means.context),
        emitting_rows=max(1, int(m * means.steps)),
    )
    groups = model.groups
    charged_s = groups.eager_s if int(m * means.prompt) or rows > groups.graph_rows else groups.graph_s
    # Steps that only decode may be replayed; where there is nothing to decode, every step is a prefill.
    graph = means.decode > 0 and rows <= groups.graph_rows
    return cost.duration_s - charged_s + (groups.graph_s if graph else groups.eager_s)


def _caps(deployment: Deployment, means: Means) -> dict[str, float]:
    """The most requests that may enter the mean step, by what says so."""
    limits = deployment.limits
    requests = {"admission": limits.max_concurrent_requests, "batch": limits.max_batch_size}
    caps = {name: most / means.steps for name, most in requests.items() if most is not None}
    caps["kv"] = limits.max_batch_total_tokens / means.held_tokens
    caps["forward"] = limits.max_batch_prefill_tokens / (means.prompt + means.decode)
    return caps


def little(deployment: Deployment, lengths: Lengths, rates_rps: Floats) -> Floats:
    """Mean decode batch b at these rates, (k,): the fixed point ``b = lambda o s(b) / (1 - lambda tau)``.

    serving.md, section 5: prefills take tau of every second from the decode steps s(b). Infinite where
    there is none: the rate cannot be sustained without limits.
    """
    model = deployment.step_model
    assert isinstance(model, StepModel)
    means = means_of(lengths, reserves=False)
    prompt = round(means.prompt)
    tau_s = model.step(
        prefill_tokens=prompt, prefill_pairs=int(means.pairs), prefill_span_tokens=prompt, emitting_rows=1
    ).duration_s
    per_row = means.context / means.decode if means.decode else 0.0

    def step_s(b: float) -> float:
        low = max(1, int(b))
        ends = [
            model.step(
                decode_rows=rows, decode_context_tokens=int(rows * per_row), emitting_rows=rows
            ).duration_s
            for rows in (low, low + 1)
        ]
        return ends[0] + max(b - low, 0.0) * (ends[1] - ends[0])

    found = []
    for rate in rates_rps.tolist():
        left = 1 - rate * tau_s
        b = 0.0 if left > 0 and means.decode else inf if means.decode else 0.0
        for _ in range(_ROUNDS if b == 0.0 and means.decode else 0):
            b_new = rate * means.decode * step_s(b) / left
            if b_new > 1e5:
                b = inf
                break
            if abs(b_new - b) < 1e-6 * max(b, 1e-9):
                break
            b = b_new
        found.append(b)
    return np.array(found, dtype=np.float64)
