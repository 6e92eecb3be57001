"""Engines, workloads and policies that the tests of the engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.physics.transformer import DecodeLine, StepCost, StepModel
from loadgen.server.engine import Emission, Engine, Policy, Row, Sequence, StepWork, drive
from loadgen.server.tgi_policy import TgiPolicy, UnchunkedTgiPolicy
from loadgen.server.vllm_policy import VllmPolicy

GPU = GPUS["h100-sxm"]
MODEL = StepModel(MODELS["llama-3.1-8b"], GPU, DTYPES["bfloat16"])
Floats = npt.NDArray[np.float64]


@dataclass
class ConstantSteps:
    """A model whose every step takes ``step_s`` seconds at 1 W."""

    step_s: float

    def step(self, **work: int) -> StepCost:
        return StepCost(self.step_s, 1.0, 0.0, 0.0)

    def decode_line(self, rows: int) -> DecodeLine:
        return DecodeLine(self.step_s, 0.0, 0.0, 0.0, 0.0, 0.0)

    def power_w(self, duration_s: float, flop: float, traffic_bytes: float) -> float:
        return 1.0


def tgi(prefill_tokens: int = 59_870, blocks: int = 400_000, **more: object) -> Engine:
    return Engine(MODEL, TgiPolicy(prefill_tokens), blocks, **more)  # type: ignore[arg-type]


def sequence(
    id: int, prompt: int, reply: int, max_new: int | None = None, ids: Iterable[int] | None = None
) -> Sequence:
    return Sequence(
        id,
        prompt,
        reply if max_new is None else max_new,
        reply,
        prompt_ids=None if ids is None else b"".join(i.to_bytes(8, "little") for i in ids),
    )


def step(e: Engine, now_s: float = 0.0) -> tuple[StepWork, list[Emission]]:
    work = e.start_step(now_s)
    assert work is not None
    return work, e.finish_step(now_s + work.duration_s)


def rows(e: Engine) -> tuple[Row, ...]:
    """The rows of the next step."""
    return step(e)[0].rows


def tokens(emissions: list[Emission]) -> list[tuple[int, int, str | None]]:
    return [(s.id, index, reason) for s, index, reason in emissions]


class Run(NamedTuple):
    """Sequences, busy seconds and joules, and the end of the last work."""

    everyone: list[Sequence]
    busy_s: float
    busy_j: float
    end_s: float


def simulate(engine: Engine, arrivals: Iterable[tuple[float, Sequence]], *, leap: bool = True) -> Run:
    arrivals = list(arrivals)
    busy_s = busy_j = end_s = 0.0
    for work in drive(engine, arrivals, leap=leap):
        busy_s += work.duration_s
        busy_j += work.duration_s * work.power_w
        end_s = work.start_s + work.duration_s
    return Run([s for _, s in arrivals], busy_s, busy_j, end_s)


def alike(gaps_s: Floats, prompt: int, reply: int) -> list[tuple[float, Sequence]]:
    """Requests of one size."""
    return [(t, sequence(i, prompt, reply)) for i, t in enumerate(np.cumsum(gaps_s).tolist())]


def waits_s(everyone: list[Sequence]) -> Floats:
    return np.array([s.scheduled_s - s.submitted_s for s in everyone])  # type: ignore[operator]


def latencies_s(everyone: list[Sequence]) -> Floats:
    return np.array([s.done_s - s.submitted_s for s in everyone])  # type: ignore[operator]


class Setting(NamedTuple):
    """A policy and a pool, made anew for each run."""

    policy: Callable[[], Policy]
    block_tokens: int
    total_blocks: int
    prefix_caching: bool
    stretch_tokens: int
    name: str

    def engine(self) -> Engine:
        return Engine(
            MODEL,
            self.policy(),
            self.total_blocks,
            block_tokens=self.block_tokens,
            prefix_caching=self.prefix_caching,
        )


LONGEST_TOKENS = 60 + 24 + 12 + 8
"""Of a wish: prompt, reply, what it asked for beyond it, and a last stretch that overshoots."""


@st.composite
def engine_settings(draw: st.DrawFn) -> Setting:
    """Any policy, tight or wide, over a pool that holds at least one wish."""
    kind = draw(st.sampled_from(["chunked", "unchunked", "vllm"]))
    block = draw(st.sampled_from([1, 4, 16]))
    need = -(-LONGEST_TOKENS // block)
    total = draw(st.integers(need, 6 * need))
    size = draw(st.none() | st.integers(1, 6))
    caching = draw(st.booleans())
    if kind == "vllm":
        seqs = size or 40
        budget = draw(st.integers(seqs, 200))
        return Setting(lambda: VllmPolicy(budget, seqs), block, total, caching, 1024, f"vllm {budget} {seqs}")
    stretch_tokens = draw(st.sampled_from([8, 1024]))
    ratio = draw(st.sampled_from([0.0, 0.3, 1.2, 3.0]))
    wait = draw(st.integers(0, 12))
    budget = draw(st.integers(1 if kind == "chunked" else LONGEST_TOKENS, 300))

    def policy() -> Policy:
        made = (
            TgiPolicy(budget, size)
            if kind == "chunked"
            else UnchunkedTgiPolicy(budget, size, waiting_served_ratio=ratio, max_waiting_tokens=wait)
        )
        made.stretch_tokens = stretch_tokens
        return made

    name = f"{kind} {budget} {size} {ratio} {wait}"
    return Setting(policy, block, total, caching, stretch_tokens, name)


class Wish(NamedTuple):
    """A request of a random workload; ``prompt`` picks its first tokens, so that prompts share prefixes."""

    gap: int
    family: int
    prompt_tokens: int
    reply_tokens: int
    spare_tokens: int
    with_ids: bool

    def sequence(self, id: int) -> Sequence:
        n = self.prompt_tokens
        # The family decides how the ids go on after the common start.
        ids = [k if k < 12 else k + 1000 * self.family for k in range(n)]
        return sequence(
            id, n, self.reply_tokens, self.reply_tokens + self.spare_tokens, ids if self.with_ids else None
        )


wishes = st.lists(
    st.builds(
        Wish,
        st.integers(0, 400) | st.just(0),
        st.integers(0, 2),
        st.integers(1, 60),
        st.integers(1, 24),
        st.integers(0, 12),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)
