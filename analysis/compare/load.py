"""Did the sides bear the same load, and how were the arrivals spaced: as it happened, not as planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis import stats
from analysis.compare.sides import Side
from analysis.stats import pairs
from analysis.stats.equal_load import Verdict, same_load
from analysis.summary import Facts
from loadgen.arrivals import Shape, describe
from loadgen.types import Estimate, Floats

_SHAPE = (("gap CV", "gap_cv"), ("dispersion", "dispersion"), ("lag-1 of gaps", "lag1"))
_GAPS_OF_RUNS = 3


@dataclass(frozen=True, slots=True)
class SameLoad:
    """``verdict``: of rate, tokens and success ratio, as they happened.

    ``shape``: how many requests were sent at which gaps. No verdict counts it: shape is what is
    compared at equal load, and a longer run bears no other load.
    """

    verdict: Verdict
    shape: str

    @property
    def word(self) -> str:
        return {True: "equal", False: "not equal", None: "cannot be told"}[self.verdict.equal]


def judge_load(a: Side, b: Side, tolerance: float, *, shared: bool) -> SameLoad:
    """The verdict on B against A. ``shared``: both runs had the same requests.

    Then their token counts are facts, compared as they are: how much they vary from request to request
    says nothing of how much the runs differ.
    """
    return SameLoad(
        same_load(_of_side(a, shared=shared), _of_side(b, shared=shared), tolerance),
        f"sent: {_gaps(a)}; {_gaps(b)}",
    )


def _of_side(side: Side, *, shared: bool) -> dict[str, Estimate]:
    each = [_quantities(one, shared=shared) for one in side.facts]
    if len(each) == 1:
        return each[0]
    return {
        name: _over_runs([one[name] for one in each], same=shared and "tokens" in name) for name in each[0]
    }


def _over_runs(each: Sequence[Estimate], *, same: bool) -> Estimate:
    """Mean over a side's runs; without an interval where both sides had the same requests."""
    gone = next((one for one in each if one.value is None), None)
    if gone is not None:
        return gone
    values, unit = [one.value for one in each if one.value is not None], each[0].unit
    if same:
        return stats.exact(
            sum(values) / len(values), unit, len(values), "mean over runs of the same requests"
        )
    return pairs.mean_of_runs(values, unit)


def _quantities(facts: Facts, *, shared: bool) -> dict[str, Estimate]:
    run, blocks = facts.run, facts.blocks
    sent = run.requests[run.requests["sent_s"].notna()]
    per_block = blocks.counts(blocks.index(sent["due_s"].to_numpy(dtype=np.float64)))
    rate = (
        stats.ratio(per_block, np.diff(blocks.edges_s), blocks, "1/s", len(sent), "requests sent / window")
        if run.end_s
        else stats.missing("1/s", "no request ended")
    )
    found = {"rate": rate}
    for name, column in (("prompt tokens", "prompt_tokens"), ("output tokens", "output_tokens")):
        found[f"{name} per success"] = _tokens(facts, column, shared=shared)
    found["success ratio"] = Estimate(**facts.summary["requests"]["success_ratio"])
    return found


def _tokens(facts: Facts, column: str, *, shared: bool) -> Estimate:
    ok = facts.run.ok
    known = ok[ok[column].notna()]
    if not len(known):
        return stats.missing("tokens", "no successful request has the count")
    values = known[column].to_numpy(dtype=np.float64)
    if shared:
        return stats.exact(float(values.mean()), "tokens", len(values), "mean of the same requests")
    index = facts.blocks.index(known["due_s"].to_numpy(dtype=np.float64))
    return stats.mean(values, index, facts.blocks, "tokens")


def _gaps(side: Side) -> str:
    shapes = [describe(np.sort(_sent_s(facts))) for facts in side.facts]
    said = [_said(shape) for shape in shapes[:_GAPS_OF_RUNS]]
    more = f" and {len(shapes) - _GAPS_OF_RUNS} more runs" if len(shapes) > _GAPS_OF_RUNS else ""
    return f"{side.name}: {' | '.join(said)}{more}"


def _sent_s(facts: Facts) -> Floats:
    return facts.run.requests["sent_s"].dropna().to_numpy(dtype=np.float64)


def _said(shape: Shape) -> str:
    if shape.rate_rps is None:
        return f"{shape.count:,} requests, whose gaps tell nothing"
    words: Sequence[str] = [f"{shape.count:,} requests, mean gap {1 / shape.rate_rps:.4g} s"]
    known = [(title, getattr(shape, name)) for title, name in _SHAPE]
    return ", ".join([*words, *(f"{title} {value:.3g}" for title, value in known if value is not None)])
