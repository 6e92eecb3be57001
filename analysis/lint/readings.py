"""Were the power readings all there, and did they give the energy that was wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from analysis.energy import COVERED_PERIODS, Part, PartEnergy, ran_backwards, spacing_s
from analysis.energy.integral import widest_gap_s
from analysis.lint.rule import Check, Rule
from analysis.run import Run

SHOWN_NAMES = 3
_VALIDITY = "docs/method.md, When a run says that it is invalid"
_ENERGY = "docs/method.md, Energy"
_WRONG = "docs/lint.md, What goes wrong"

FORWARDS = Check("counter-forwards", "no energy counter ran backwards", "", f"{_WRONG}, 13")
GAP = Check("power-gap", "power was read without a gap", "s", _VALIDITY)
AVAILABLE = Check("energy-available", "the energy of GPU, CPU and RAM is known", "", _ENERGY)
BLOCKS = Check("energy-intervals", "the sensor is fast enough for intervals", "", "docs/method.md, Intervals")
BEST = Check("best-series", "the best series of each board was of use", "", _ENERGY)
CHECKS = (FORWARDS, GAP, AVAILABLE, BLOCKS, BEST)


def rules(run: Run, parts: Mapping[Part, PartEnergy]) -> Iterator[Rule]:
    """In the order of CHECKS."""
    cumulative = [name for name, series in run.series.items() if series.cumulative]
    backwards = [name for name in cumulative if ran_backwards(run.series[name])]
    for name in backwards:
        yield FORWARDS.invalid(f"power: the counter of {name} ran backwards (driver reset?)")
    if not backwards:
        none = "no energy counter was read"
        yield FORWARDS.holds(", ".join(cumulative)) if cumulative else FORWARDS.not_judged(none)
    yield from _gaps(run)
    yield from _available(run, parts)
    yield from _blocks_and_best(parts)


def _gaps(run: Run) -> Iterator[Rule]:
    if run.end_s is None or run.period_s is None or not run.series:
        yield GAP.not_judged("no request ended" if run.end_s is None else "no power was sampled")
        return
    widest: dict[float, dict[str, float]] = {}  # by the period that they were due at
    unread = False
    for name, series in run.series.items():
        if not len(series.t_s):
            unread = True
            yield GAP.invalid(f"power: {name} was never read")
            continue
        gap_s = widest_gap_s(series.t_s, 0.0, run.end_s)
        widest.setdefault(spacing_s(series, run.period_s), {})[name] = gap_s
    wide = False
    for period_s, found in widest.items():
        bound_s = COVERED_PERIODS * period_s
        over = {name: gap_s for name, gap_s in found.items() if gap_s > bound_s * (1 + 1e-9)}
        if over:
            wide = True
            names = sorted(over, key=lambda name: -over[name])
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            yield GAP.invalid(
                f"power: {over[names[0]]:.3g} s without a reading of {', '.join(names[:SHOWN_NAMES])}{more}, "
                f"more than {COVERED_PERIODS:g} periods of {period_s:g} s",
                over[names[0]],
                bound_s,
            )
    if not wide and not unread:
        gap_s, period_s, name = max((g, p, n) for p, found in widest.items() for n, g in found.items())
        bound_s = COVERED_PERIODS * period_s
        yield GAP.holds(f"at most {gap_s:.3g} s without a reading ({name})", gap_s, bound_s)


def _available(run: Run, parts: Mapping[Part, PartEnergy]) -> Iterator[Rule]:
    """A part that nobody tried to read is no news; one that was read and has no energy is."""
    told = False
    for part in parts.values():
        read = any(name.rpartition("/")[2].startswith(part.part) for name in run.series)
        if part.reason is not None and read:
            told = True
            yield AVAILABLE.warns(f"energy of {part.part} is unavailable: {part.reason}")
    if told:
        return
    known = [part.part for part in parts.values() if part.total_j is not None]
    missing = [f"{part.part}: {part.reason}" for part in parts.values() if part.total_j is None]
    if not parts:
        yield AVAILABLE.not_judged("no request ended, so there is no window")
    elif known:
        yield AVAILABLE.holds("; ".join([f"energy of {', '.join(known)} is known", *missing]))
    else:
        yield AVAILABLE.not_judged("; ".join(missing))


def _blocks_and_best(parts: Mapping[Part, PartEnergy]) -> Iterator[Rule]:
    known = [part for part in parts.values() if part.total_j is not None]
    slow = [(part.part, part.block_reason) for part in known if part.block_reason is not None]
    for name, why in slow:
        yield BLOCKS.warns(f"no intervals for the energy of {name}: {why}")
    passed = [board for part in parts.values() for board in part.boards if board.passed_over is not None]
    if not slow:
        found = f"energy of {', '.join(part.part for part in known)} is known in blocks"
        yield BLOCKS.holds(found) if known else BLOCKS.not_judged("no energy is known")
    for board in passed:
        yield BEST.warns(f"energy: {board.passed_over}; {board.domain} was integrated instead")
    if not passed:
        used = ", ".join(board.domain for part in known for board in part.boards)
        yield BEST.holds(f"energy by {used}") if known else BEST.not_judged("no energy is known")
