"""One headline of B against the reference: the way to compare it that the sides allow.

- one run each, the same requests: paired (`analysis.compare.shared`);
- one run each otherwise: unpaired, from the two intervals;
- as many runs each, two or more: pairs of runs as samples, by seed where the seeds are the same ones,
  else in order of their start;
- other numbers of runs: independent samples of runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis import stats
from analysis.compare.headlines import Figure, value_of
from analysis.compare.shared import Pairing
from analysis.compare.sides import Side, started_s
from analysis.stats import pairs
from analysis.stats.pairs import Compared
from analysis.summary import Facts
from loadgen.types import Estimate


def value_of_side(figure: Figure, side: Side) -> Estimate:
    """The headline of a side: of its one run, or the mean over its runs with Student's interval."""
    found = [value_of(figure, facts) for facts in side.facts]
    if len(found) == 1:
        return found[0]
    gone = _gone(figure, side, found)
    if gone is not None:
        return gone
    return pairs.mean_of_runs([e.value for e in found if e.value is not None], figure.unit)


def set_against(figure: Figure, a: Side, b: Side, pairing: Pairing | None) -> tuple[Compared, str]:
    """B against A, and in words how it was compared."""
    if len(a.facts) == len(b.facts) == 1:
        return _one_run_each(figure, a.facts[0], b.facts[0], pairing)
    values: list[list[float]] = []
    for side in (a, b):
        found = [value_of(figure, facts) for facts in side.facts]
        gone = _gone(figure, side, found)
        if gone is not None:
            return Compared(gone, stats.missing("1", stats.reason_of(gone.method)), None), "none"
        values.append([e.value for e in found if e.value is not None])
    if len(values[0]) != len(values[1]):
        return pairs.independent_runs(values[0], values[1], figure.unit), "independent runs"
    couples, how, in_turn = couple(a.facts, b.facts)
    first, second = [values[0][i] for i, _ in couples], [values[1][k] for _, k in couples]
    return pairs.over_runs(first, second, figure.unit, interleaved=in_turn), how


def _one_run_each(figure: Figure, a: Facts, b: Facts, pairing: Pairing | None) -> tuple[Compared, str]:
    why, apart = "", pairs.unpaired(value_of(figure, a), value_of(figure, b))
    if pairing is not None:
        found = pairing.compared(figure)
        if not isinstance(found, str):
            how = "paired by request" if figure.kind == "latency" else "paired by groups of requests"
            if found.difference.low is not None or apart.difference.low is None:
                return found, how
            found = "paired, there is no interval"
        why = f": {found}"
    return apart, f"unpaired{why}"


def _gone(figure: Figure, side: Side, found: Sequence[Estimate]) -> Estimate | None:
    """The missing estimate of a side of which a run has no value."""
    for facts, estimate in zip(side.facts, found, strict=True):
        if estimate.value is None:
            why = stats.reason_of(estimate.method)
            return stats.missing(figure.unit, f"{facts.run.path.name}: {why}", len(found))
    return None


def couple(a: Sequence[Facts], b: Sequence[Facts]) -> tuple[list[tuple[int, int]], str, bool]:
    """Places of the runs of A and of B that belong together, how that was told, and whether taken in turn.

    As many of A as of B.
    """
    n = len(a)
    started = [[started_s(facts.run) for facts in side] for side in (a, b)]
    known = [[s for s in own if s is not None] for own in started]
    dated = all(len(own) == n for own in known)
    # A simulated board has no temperature that could drift from run to run.
    in_turn = all(f.run.virtual for f in (*a, *b)) or (dated and pairs.taken_in_turn(known[0], known[1]))
    seeds = [[f.run.manifest.get("seed") for f in side] for side in (a, b)]
    if len(set(seeds[0])) == n and set(seeds[0]) == set(seeds[1]) and None not in seeds[0]:
        return [(i, seeds[1].index(seed)) for i, seed in enumerate(seeds[0])], "runs paired by seed", in_turn
    if not dated:
        return [(i, i) for i in range(n)], "runs paired in the order given, their starts are not known", False
    by_start = [sorted(range(n), key=own.__getitem__) for own in known]
    return list(zip(*by_start, strict=True)), "runs paired in order of their start", in_turn
