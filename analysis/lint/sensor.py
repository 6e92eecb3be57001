"""Do a board's own readings agree, and can its sensor have kept step with the arrivals. All of it warns.

A sensor that looks for a window w of every update period u samples the power signal at
1/u. What it shows on average is wrong by the lines of the signal's spectrum at multiples
m/u of that rate, each weighed by sinc(m w/u). Requests put a line at frequency f in
proportion to the Rayleigh statistic of their instants t_j (Mardia and Jupp, Directional
Statistics, 2000, 6.3.1):

    R(f) = |1/n sum_j exp(2 pi i f t_j)|,

1 for a constant spacing whose rate divides f, about n**-1/2 for Poisson arrivals. If a
counter is fed by such a sensor, instant, average and counter agree and all are wrong: only
the arrivals tell. The spread of the readings does not, since constant power looks the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np

from analysis.energy import BoardEnergy, PartEnergy, board_of
from analysis.energy.publication import is_continuous
from analysis.lint.client import load_of, number_of
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.served import gpu_of
from loadgen.types import Floats

AGREEMENT = 0.05
"""How far two readings of one energy may differ."""
SHORT_WINDOW_S = 5.0
"""Below this a 100 ms sensor says too little (SC24, arXiv 2312.02741)."""
LOCK_TOLERANCE = 0.02
"""Of an update period: how near to a multiple of it a number of spacings must come to keep step."""
LOCKED = 0.5
"""The Rayleigh statistic from which arrivals keep step; 1: all at one phase."""
PART_TIME_S = {"a100-sxm": (0.025, 0.1), "h100-sxm": (0.025, 0.1)}
"""(window, update) of boards whose counter is fed by a part-time sensor (arXiv 2312.02741)."""
_MOST_UPDATES = 40
_LEAST_WEIGHT = 0.25
_MOST_HARMONICS = 32
_MOST_ARRIVALS = 1000
_FEWEST_ARRIVALS = 50
_CHANCE = 0.01

AGREE = Check(
    "counter-against-integral",
    "two readings of one energy agree",
    "1",
    "docs/lint.md, What goes wrong, 6; arXiv 2312.02741",
)
PHASE = Check(
    "sensor-phase",
    "arrivals do not keep step with a part-time sensor",
    "1",
    "docs/lint.md, What goes wrong, 5; arXiv 2312.02741",
)
CHECKS = (AGREE, PHASE)


def rules(run: Run, gpu: PartEnergy | None, others: tuple[PartEnergy, ...] = ()) -> Iterator[Rule]:
    """In the order of CHECKS. ``others``: the parts beside the GPU, whose series are compared too."""
    yield from _agreement([part for part in (gpu, *others) if part is not None])
    yield from _phase(run, gpu)


def _agreement(parts: list[PartEnergy]) -> Iterator[Rule]:
    compared: list[float] = []
    tripped = False
    for part in parts:
        for board in part.boards:
            if board.total_j is None or part.window_s < SHORT_WINDOW_S:
                continue
            compared += [_off(joules, board.total_j) for _, joules in board.checks]
            for rule in _disagreements(board, board.total_j):
                tripped = True
                yield rule
    if tripped:
        return
    if not compared:
        yield AGREE.not_judged("no board has two readings of one energy over 5 s")
        return
    widest = max(compared, key=abs)
    yield AGREE.holds(f"{len(compared)} readings within {100 * abs(widest):.3g} %", widest, AGREEMENT)


def _off(joules: float, reference_j: float) -> float:
    return joules / reference_j - 1 if reference_j else math.inf


def _disagreements(board: BoardEnergy, total_j: float) -> Iterator[Rule]:
    told = False
    kind = "counter" if board.cumulative else "integral"
    for name, integral_j in board.checks:
        off = _off(integral_j, total_j)
        if abs(off) > AGREEMENT:
            told = True
            yield AGREE.warns(
                f"energy: the integral of {name} is {100 * off:+.3g} % off the {kind} of "
                f"{board.domain} (a 25 ms sensor can lock on to regular arrivals)",
                off,
                AGREEMENT,
            )
    for (one, one_j), (other, other_j) in combinations(board.checks, 2):
        # Where one of the two is off the counter already, their difference is no news.
        if not told and one_j and abs(other_j / one_j - 1) > AGREEMENT:
            off = other_j / one_j - 1
            yield AGREE.warns(
                f"energy: the integral of {other} is {100 * off:+.3g} % off that of {one}", off, AGREEMENT
            )


def _phase(run: Run, gpu: PartEnergy | None) -> Iterator[Rule]:
    """One rule for all boards whose sensors are alike."""
    if gpu is None or gpu.total_j is None:
        yield PHASE.not_judged("no energy of the GPU")
        return
    # A counter that shows what was drawn up to its reading was fed by no sensor that looks away.
    counted = [board for board in gpu.boards if not _continuous(run, board)]
    if not counted:
        yield PHASE.holds("the energy is that of counters that add up all that was drawn")
        return
    alike: dict[tuple[float, float], list[str]] = {}
    for board in counted:
        if (sensor := _sensor(run, board)) is not None:
            name, window_s, update_s = sensor
            alike.setdefault((window_s, update_s), []).append(name)
    if not alike:
        yield PHASE.not_judged("for how much of the time the boards' sensors look is not known")
    for (window_s, update_s), names in alike.items():
        yield _in_step(run, ", ".join(names), window_s, update_s)


def _continuous(run: Run, board: BoardEnergy) -> bool:
    if not board.cumulative:
        return False
    series = run.series[board.domain]
    return board.method == "simulated" or is_continuous(series.t_s, series.value, series.domain.update_s)


def _sensor(run: Run, board: BoardEnergy) -> tuple[str, float, float] | None:
    """(series, window, update) of a board's fastest looking sensor, declared or known by the board's name."""
    for name, series in run.series.items():
        window_s, update_s = series.domain.averaging_s, series.domain.update_s
        if window_s is not None and update_s is not None and board_of(name) == board_of(board.domain):
            return name, window_s, update_s
    known = gpu_of(run)
    if known is not None and known.id in PART_TIME_S:
        window_s, update_s = PART_TIME_S[known.id]
        return board.domain, window_s, update_s
    return None


def _in_step(run: Run, names: str, window_s: float, update_s: float) -> Rule:
    sees = f"{1e3 * window_s:.3g} of every {1e3 * update_s:.4g} ms"
    if window_s >= update_s:
        return PHASE.holds(f"the sensor of {names} sees all the time")
    declared_s = _spacing_s(run)
    if declared_s is not None and (updates := in_step(declared_s, update_s, window_s)) is not None:
        return PHASE.warns(
            f"energy: arrivals every {1e3 * declared_s:.4g} ms keep step with the sensor of "
            f"{names}, which sees {sees}: "
            f"always the same {1e3 * updates * window_s:.3g} ms of each spacing, so sensor and counter "
            "may be wrong alike; vary the spacing",
            1.0,
            LOCKED,
        )
    at_s = np.unique(np.round(run.requests["sent_s"].dropna().to_numpy(dtype=np.float64), 3))
    if len(at_s) < _FEWEST_ARRIVALS:
        return PHASE.not_judged(f"{len(at_s)} instants of sending, {_FEWEST_ARRIVALS} needed")
    spacing_s = float(at_s[-1] - at_s[0]) / (len(at_s) - 1)
    if update_s - window_s <= AGREEMENT * spacing_s:
        return PHASE.holds(
            f"what the sensor of {names} misses is little beside {spacing_s:.3g} s between arrivals"
        )
    found, period_s = concentration(at_s, update_s, window_s)
    if found > LOCKED:
        return PHASE.warns(
            f"energy: arrivals keep step with the sensor of {names}, which sees {sees}: their phases within "
            f"{1e3 * period_s:.4g} ms are concentrated (Rayleigh's R {found:.2f}), so sensor and counter may "
            "be wrong alike; vary the spacing",
            found,
            LOCKED,
        )
    return PHASE.holds(f"the phases of arrivals within the updates of {names} are spread", found, LOCKED)


def concentration(at_s: Floats, update_s: float, window_s: float) -> tuple[float, float]:
    """The largest Rayleigh statistic of instants (n,), increasing, at a rate that the sensor confuses with 0.

    Multiples of 1 / update within 2 %, which is how well its period is known, and only those
    that its window does not average away. 0 where chance explains it. And the period, seconds.
    """
    skip = max(0, len(at_s) - _MOST_ARRIVALS) // 2
    at_s = at_s[skip : skip + _MOST_ARRIVALS]
    span_s = float(at_s[-1] - at_s[0])
    best, best_period_s, tried = 0.0, update_s, 0
    for harmonic in range(1, _MOST_HARMONICS + 1):
        if abs(np.sinc(harmonic * window_s / update_s)) < _LEAST_WEIGHT:
            continue
        rate = harmonic / update_s
        count = max(3, 2 * math.ceil(3 * LOCK_TOLERANCE * rate * span_s) + 1)
        tried += count
        for rates in np.array_split(
            np.linspace(-1, 1, count) * LOCK_TOLERANCE * rate + rate, count // 256 + 1
        ):
            r = np.abs(np.exp(2j * np.pi * np.outer(rates, at_s - at_s[0])).mean(axis=1))
            if r.max() > best:
                best, best_period_s = float(r.max()), float(1 / rates[int(np.argmax(r))])
    # Of uniform phases P(R > r) is about exp(-n r**2), here of the largest of many.
    return (best if len(at_s) * best**2 > math.log(tried / _CHANCE) else 0.0), best_period_s


def in_step(spacing_s: float, update_s: float, window_s: float) -> int | None:
    """After how many updates a part-time sensor meets the arrivals at the same phase again, if it does.

    None too where the moments that it meets leave nothing unseen: k updates show k
    windows of each spacing. And where the spacing is so long that what is missed between
    two looks cannot move the mean by 5 %.
    """
    missed_s = update_s - window_s
    if missed_s <= 0 or missed_s <= AGREEMENT * spacing_s:
        return None
    for updates in range(1, _MOST_UPDATES + 1):
        if updates * window_s >= spacing_s * (1 - 1e-9):
            return None
        spacings = round(updates * update_s / spacing_s)
        if spacings and abs(spacings * spacing_s - updates * update_s) <= LOCK_TOLERANCE * update_s:
            return updates
    return None


def _spacing_s(run: Run) -> float | None:
    """The constant spacing of what is released, seconds: of arrivals or of a gate; None otherwise."""
    load = load_of(run)
    shaping = load.get("shaping") or {}
    if shaping.get("policy") == "gate":
        return number_of(shaping, "interval_s")
    if run.closed_loop or load.get("pattern") != "constant":
        return None
    rate_rps = number_of(load, "rate_rps")
    return number_of(load, "interval_s") or (1.0 / rate_rps if rate_rps is not None else None)
