"""Whether two runs had the same requests, and what follows: differences request by request.

A plan keeps no text. A prompt is recognised by its id in the source, its token counts and its
limit; where prompts are drawn (synthetic, trace) the seeds must be equal too.

Energy is not read per request. Where all requests of both runs succeeded in one order, it is paired by
groups of neighbours instead: the joules from the due time of a group's first request to that of the next
group's. They add up to the window's energy in both runs, so the headline is the same one and no
attribution's error enters; work that reaches into the next group is a dependence between neighbours,
which the intervals allow for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import energy
from analysis.compare.headlines import ACTIVE, IDLE, Figure
from analysis.energy import Part
from analysis.run import Run
from analysis.stats import LEVEL, Blocks, Ints, autocorrelation, paired
from analysis.stats.blocks import FEWEST_BLOCKS, MOST_BLOCKS, PERIODS_PER_BLOCK, REQUESTS_PER_BLOCK
from analysis.stats.pairs import Compared
from analysis.summary import Facts
from loadgen.types import Floats

DRAWN = ("synthetic", "trace")
UPDATES_PER_GROUP = 2.0
_OF_PROMPT = ("prompt_tokens", "max_new_tokens", "output_tokens")
_MEDIANS = {
    "p50_ttft": "ttft",
    "p50_tpot": "tpot",
    "p50_e2e": "e2e",
    "p50_e2e_from_demand": "e2e_from_demand",
}


@dataclass(frozen=True, slots=True)
class Shared:
    """``same``: both runs had the same requests; ``sentence`` says how that is known, or why not."""

    same: bool
    sentence: str


def shared(a: Run, b: Run) -> Shared:
    """Whether every request of one run is in the other, by what the plans say of the prompts."""
    hashed = _hashed(a) and _hashed(b)
    prompts_a, prompts_b = _prompts(a, hashed), _prompts(b, hashed)
    if not prompts_a or not prompts_b:
        return Shared(False, "not paired: a run has no plan to recognise its requests by")
    sections = [(run.manifest.get("scenario") or {}).get("prompts") or {} for run in (a, b)]
    seeds = [run.manifest.get("seed") for run in (a, b)]
    if any(section.get("source") in (*DRAWN, None) for section in sections) and seeds[0] != seeds[1]:
        return Shared(False, f"not paired: the prompts are drawn by seed, {seeds[0]} and {seeds[1]}")
    ids, why = paired.shared_requests(prompts_a, prompts_b)
    if why is not None:
        return Shared(False, f"not paired: {why}")
    how = "the texts' hashes, token counts and limits are equal"
    if not hashed:
        how = "source, seed, ids, token counts and limits are equal"
        if sections[0] != sections[1] or seeds[0] != seeds[1]:
            how = "ids in the source, token counts and limits are equal, prompt settings or seeds are not"
        how += " (the plan of an older version, without hashes of the texts)"
    return Shared(True, f"the same {len(ids):,} requests: {how}")


def _hashed(run: Run) -> bool:
    return all(row.get("prompt_hash") is not None for row in run.plan)


def _prompts(run: Run, hashed: bool) -> dict[Hashable, Hashable]:
    keys = ("prompt_hash" if hashed else "source_id", *_OF_PROMPT)
    rows = (row for row in run.plan if row.get("phase") != "warmup")
    return {row.get("id"): tuple(row.get(key) for key in keys) for row in rows}


class Pairing:
    """Differences between two runs of the same requests, by the name of a headline.

    ``why``: the reason why a kind of headline cannot be paired, if so.
    """

    def __init__(self, a: Facts, b: Facts) -> None:
        self._sides = (a, b)
        self._latencies = [_by_request(f.run) for f in self._sides]
        self._groups = _groups(a, b)

    def compared(self, figure: Figure) -> Compared | str:
        """B against A, or why the headline cannot be paired."""
        if figure.name == "mean_ttft" or figure.name in _MEDIANS:
            return self._latency(figure)
        if figure.kind == "latency":
            return "a tail is that of few requests: the wider interval of independent runs is kept"
        if figure.name == "success_ratio" or figure.name.startswith("goodput"):
            return "a share of requests"
        if figure.name.endswith("total_j"):
            return "the energy of a window is read, not sampled"
        return self._ratio(figure)

    def _latency(self, figure: Figure) -> Compared | str:
        column = _MEDIANS.get(figure.name, "ttft")
        a, b = (frame[column].dropna() for frame in self._latencies)
        if a.index.has_duplicates or b.index.has_duplicates:
            return "several records have one id"
        only = len(a.index.symmetric_difference(b.index))
        if only:
            return f"{only} requests have this latency in one of the runs only"
        if not len(a):
            return "no request succeeded"
        first, second = a.to_numpy(dtype=np.float64), b.loc[a.index].to_numpy(dtype=np.float64)
        blocks, place = self._neighbours(len(first)), np.arange(len(first), dtype=np.float64)
        if figure.name == "mean_ttft":
            return paired.paired_requests(first, second, place, blocks, "s")
        values = (float(np.median(first)), float(np.median(second)))
        return paired.paired_quantiles(first, second, 0.5, place, blocks, "s", values)

    def _neighbours(self, n: int) -> Blocks:
        """Blocks of neighbours by their place, 0 to n, not by either run's time.

        A block lasts a median latency in both runs, as `analysis.stats.choose_blocks` wants it.
        """
        most = [float(n), n / REQUESTS_PER_BLOCK, MOST_BLOCKS]
        for facts, frame in zip(self._sides, self._latencies, strict=True):
            latency_s = float(frame["e2e"].median())
            if latency_s > 0:
                most.append((facts.run.end_s or 0.0) / latency_s)
        count = max(1, int(min(most)))
        edges = np.linspace(0.0, n, count + 1)
        if count < FEWEST_BLOCKS:
            why = f"{n} shared requests make {count} blocks of a median latency, {FEWEST_BLOCKS} are needed"
            return Blocks(edges, None, LEVEL, why)
        return Blocks(edges, autocorrelation.waves(count), LEVEL, None)

    def _ratio(self, figure: Figure) -> Compared | str:
        if isinstance(self._groups, str):
            return self._groups
        sums = [self._groups.sums(figure, i) for i in (0, 1)]
        first, second = sums
        if first is None or second is None:
            return "a run has no energy of its groups of requests"
        n = min(len(f.run.ok) for f in self._sides)
        return paired.paired_ratios(first, second, self._groups.blocks, figure.unit, n)


def _by_request(run: Run) -> pd.DataFrame:
    """Latencies of the successes by request id, seconds, as `analysis.latency` defines them."""
    ok = run.ok.set_index("id").sort_values("due_s")
    decode_s = ok["done_s"] - ok["first_s"]
    several = ok["output_tokens"] >= 2
    return pd.DataFrame(
        {
            "due_s": ok["due_s"],
            "ttft": ok["first_s"] - ok["sent_s"],
            "tpot": (decode_s / (ok["output_tokens"] - 1)).where(several),
            "e2e": ok["done_s"] - ok["sent_s"],
            "e2e_from_demand": ok["done_s"] - ok["demand_s"],
        }
    )


@dataclass(frozen=True, slots=True)
class Groups:
    """Neighbouring requests, the same in both runs. ``edges_s``: (K + 1,) in each run's own time.

    ``counts``, ``tokens``: requests (K,) and, in each run, their output tokens (K,), None unless all known.
    """

    blocks: Blocks
    edges_s: tuple[Floats, Floats]
    counts: Floats
    tokens: tuple[Floats | None, Floats | None]
    parts: tuple[Mapping[Part, energy.PartEnergy], Mapping[Part, energy.PartEnergy]]

    def sums(self, figure: Figure, i: int) -> tuple[Floats, Floats] | None:
        """(top, bottom) of the headline's ratio in each group, (K,) each, in the i-th run."""
        durations_s = np.diff(self.edges_s[i])
        tokens = self.tokens[i]
        if figure.kind == "throughput":
            top = tokens if figure.name == "output_tokens_per_s" else self.counts
            return None if top is None else (top, durations_s)
        part = next((p for name, p in self.parts[i].items() if name == figure.kind), None)
        joules = None if part is None else part.block_j
        if figure in (IDLE, ACTIVE):
            idle_w = None if part is None else part.idle_power_w
            if joules is None or idle_w is None:
                return None
            joules = idle_w * durations_s if figure is IDLE else joules - idle_w * durations_s
        bottom = self.counts
        if figure.name.endswith("mean_power_w"):
            bottom = durations_s
        elif "per_output_token" in figure.name:
            if tokens is None:
                return None
            bottom = tokens
        return None if joules is None else (joules, bottom)


def _groups(a: Facts, b: Facts) -> Groups | str:
    """The smallest groups that both runs' readings can tell apart, or why there are none."""
    frames = []
    for facts in (a, b):
        ok = facts.run.ok
        if len(ok) < facts.run.planned or facts.run.end_s is None:
            return "not every request succeeded in both runs"
        frames.append(ok.sort_values(["due_s", "id"]))
    if not np.array_equal(frames[0]["id"].to_numpy(), frames[1]["id"].to_numpy()):
        return "the requests came in another order"
    n = len(frames[0])
    if n < FEWEST_BLOCKS * REQUESTS_PER_BLOCK:
        return f"{n} requests are too few for {FEWEST_BLOCKS} groups of {REQUESTS_PER_BLOCK}"
    due_s = [frame["due_s"].to_numpy(dtype=np.float64) for frame in frames]
    ends_s = [float(facts.run.end_s or 0.0) for facts in (a, b)]
    for size in range(max(REQUESTS_PER_BLOCK, math.ceil(n / MOST_BLOCKS)), n // FEWEST_BLOCKS + 1):
        starts = np.arange(0, n - n % size, size)
        first, second = (
            np.array([0.0, *due[starts[1:]], end]) for due, end in zip(due_s, ends_s, strict=True)
        )
        if _tells(a, first) and _tells(b, second):
            owner = np.minimum(np.arange(n) // size, len(starts) - 1)
            blocks = Blocks(first, autocorrelation.waves(len(starts)), LEVEL, None)
            return Groups(
                blocks,
                (first, second),
                np.bincount(owner).astype(np.float64),
                (_tokens(frames[0], owner), _tokens(frames[1], owner)),
                (energy.measure(a.run, first), energy.measure(b.run, second)),
            )
    return f"{FEWEST_BLOCKS} groups of requests are too short for the power readings or the latency"


def _tells(facts: Facts, edges_s: Floats) -> bool:
    """Whether a run's latency, sampling and sensors are quick enough for groups between these edges."""
    e2e_s = facts.run.ok["done_s"] - facts.run.ok["sent_s"]
    updates_s = [b.update_s for part in facts.parts.values() for b in part.boards if b.update_s is not None]
    lengths_s = np.diff(edges_s)
    least_s = UPDATES_PER_GROUP * max(updates_s, default=0.0)
    mean_s = max(float(e2e_s.median()), PERIODS_PER_BLOCK * (facts.run.period_s or 0.0))
    return bool(lengths_s.min() > 0 and lengths_s.min() >= least_s and lengths_s.mean() >= mean_s)


def _tokens(frame: pd.DataFrame, owner: Ints) -> Floats | None:
    tokens = frame["output_tokens"].to_numpy(dtype=np.float64)
    return None if np.isnan(tokens).any() else np.bincount(owner, weights=tokens).astype(np.float64)
