"""Is the boards' power one that they can have drawn, and their energy one that the work can have cost."""

from __future__ import annotations

from collections.abc import Iterator

from analysis import floor
from analysis.energy import PartEnergy
from analysis.energy.idle import LEAST_BASELINE_S
from analysis.floor import Floor
from analysis.lint.rule import Check, Rule
from analysis.run import Run
from analysis.served import drawn, gpu_of
from loadgen.physics.hardware import Gpu

OVER_LIMIT = 1.05
UNDER_OWN_IDLE = 0.90
"""Sensor gain and counter quantisation over a 2 s baseline stay within a tenth."""
_POSSIBLE = "docs/lint.md, Is a published number possible?"
_WRONG_BOARD = "docs/lint.md, What goes wrong, 1"

OWN_IDLE = Check(
    "own-idle", "the boards drew more under load than in the run's own baseline", "W", _WRONG_BOARD
)
BARE = Check("bare-idle-floor", "mean power is above idle without a context", "W", _POSSIBLE)
LOADED = Check(
    "loaded-idle-floor",
    "mean power is above idle with a server's context",
    "W",
    f"{_POSSIBLE}; arXiv 2605.23918",
)
LIMIT = Check("power-limit", "mean power is within the boards' power limit", "W", _POSSIBLE)
FLOP = Check("flop-floor", "the energy pays for the FLOP that were certainly computed", "J", _POSSIBLE)
BYTE = Check("byte-floor", "the energy pays for the bytes that certainly crossed memory", "J", _POSSIBLE)
FULL_POWER = Check("flop-floor-tdp", "the energy pays for all FLOP at full power", "J", _POSSIBLE)
TAIL = Check(
    "idle-in-tail", "the baseline outlasts the boards' decay after work", "s", "docs/method.md, Energy"
)
CHECKS = (OWN_IDLE, BARE, LOADED, LIMIT, FLOP, BYTE, FULL_POWER, TAIL)


def rules(run: Run, gpu: PartEnergy | None) -> Iterator[Rule]:
    """In the order of CHECKS."""
    if gpu is None or gpu.total_j is None or gpu.mean_power_w is None:
        why = "no request ended, so there is no window" if gpu is None else str(gpu.reason)
        yield from (check.not_judged(f"no energy of the GPU: {why}") for check in CHECKS)
        return
    known = gpu_of(run)
    yield _own_idle(gpu, gpu.mean_power_w, known)
    if known is None or drawn(run):
        why = "the board is not known" if known is None else "the run drew its board's constants"
        yield from (check.not_judged(why) for check in (BARE, LOADED))
    else:
        yield _bare(len(gpu.boards), gpu.mean_power_w, known)
        yield _loaded(len(gpu.boards), gpu.mean_power_w, known)
    yield _limit(run, len(gpu.boards), gpu.mean_power_w, known)
    yield from _work(run, gpu, gpu.total_j, known)
    yield _tail(run, gpu, known)


def _least_shown(gpu: Gpu) -> float:
    """The share of what it draws that a board's sensor shows at least."""
    return 1.0 - gpu.sensor_gain_error


def _own_idle(gpu: PartEnergy, mean_w: float, known: Gpu | None) -> Rule:
    own = [w for w in (gpu.idle_before_w, gpu.idle_after_w) if w is not None]
    if not own:
        return OWN_IDLE.not_judged("no idle stretch was read before or after the load")
    # A baseline may fall into the tail after work, from which some boards decay in a quarter of a minute.
    decay = known.context_idle_w / known.tail_w if known is not None and known.tail_s > 0 else 1.0
    bound_w = UNDER_OWN_IDLE * decay * min(own)
    if mean_w < bound_w:
        return OWN_IDLE.invalid(
            f"mean GPU power {mean_w:.4g} W is below this run's own idle, {min(own):.4g} W: "
            "wrong board or dead server",
            mean_w,
            bound_w,
        )
    return OWN_IDLE.holds(f"mean GPU power {mean_w:.4g} W, idle {min(own):.4g} W", mean_w, bound_w)


def _bare(boards: int, mean_w: float, known: Gpu) -> Rule:
    idle_w, shown = boards * known.bare_idle_w, _least_shown(known)
    if mean_w < shown * idle_w:
        return BARE.invalid(
            f"mean GPU power {mean_w:.4g} W is below bare idle: {boards} x {known.name} without any context "
            f"draws {idle_w:.4g} W, of which sensors show at least {100 * shown:.3g} %",
            mean_w,
            shown * idle_w,
        )
    return BARE.holds(f"mean GPU power {mean_w:.4g} W, bare idle {idle_w:.4g} W", mean_w, shown * idle_w)


def _loaded(boards: int, mean_w: float, known: Gpu) -> Rule:
    least_w, shown = floor.least_idle_w(known), _least_shown(known)
    if least_w <= known.bare_idle_w:
        return LOADED.not_judged(f"what a context adds on {known.name} was not measured")
    idle_w = boards * least_w
    if mean_w < shown * idle_w:
        return LOADED.invalid(
            f"mean GPU power {mean_w:.4g} W is below idle: {boards} x {known.name} with a server's "
            f"context draws at least {idle_w:.4g} W (bare {boards * known.bare_idle_w:.4g} W), of which "
            f"sensors show at least {100 * shown:.3g} %",
            mean_w,
            shown * idle_w,
        )
    return LOADED.holds(
        f"mean GPU power {mean_w:.4g} W, idle with a context at least {idle_w:.4g} W", mean_w, shown * idle_w
    )


def _limit(run: Run, boards: int, mean_w: float, known: Gpu | None) -> Rule:
    limits = [row.get("power_limit_w") for row in run.manifest.get("gpus") or ()]
    if limits and all(w is not None for w in limits) and len(limits) == boards:
        limit_w = float(sum(limits))
    elif known is not None:
        limit_w = boards * known.tdp_w
    else:
        return LIMIT.not_judged("neither the board nor its power limit is known")
    if mean_w > OVER_LIMIT * limit_w:
        return LIMIT.invalid(
            f"mean GPU power {mean_w:.4g} W exceeds {OVER_LIMIT:g} x the power limit of {limit_w:.4g} W",
            mean_w,
            OVER_LIMIT * limit_w,
        )
    return LIMIT.holds(f"mean GPU power {mean_w:.4g} W, limit {limit_w:.4g} W", mean_w, OVER_LIMIT * limit_w)


def _work(run: Run, gpu: PartEnergy, total_j: float, known: Gpu | None) -> Iterator[Rule]:
    """The floors under the energy per success; of other requests no work is counted."""
    bound = floor.physical_floor(run, gpu.window_s, len(gpu.boards))
    n = len(run.ok)
    if bound is None or known is None or bound.flop_j is None or bound.soft_j is None or not n:
        if not n:
            why = "no request succeeded"
        elif known is not None and drawn(run):
            why = "the run drew its board's constants"
        else:
            why = f"the {'board' if known is None else 'model'} is not known"
        yield from (check.not_judged(why) for check in (FLOP, BYTE, FULL_POWER))
        return
    yield _hard(FLOP, bound.flop_j, bound, known, total_j, n)
    if bound.byte_j is None:
        yield BYTE.not_judged("whether the server speculated tokens, and so took fewer steps, is not known")
    else:
        yield _hard(BYTE, bound.byte_j, bound, known, total_j, n)
    each_j, soft_j = total_j / n, bound.soft_j / n
    if total_j < bound.soft_j:
        yield FULL_POWER.warns(
            f"GPU energy {each_j / 3.6:.3g} mWh per success is below {soft_j / 3.6:.3g} mWh, the work's "
            "FLOP at peak rate and full power: possible only with lower clocks or a prefix cache",
            each_j,
            soft_j,
        )
    else:
        yield FULL_POWER.holds(_above(each_j, soft_j), each_j, soft_j)


def _hard(check: Check, floor_j: float, bound: Floor, known: Gpu, total_j: float, n: int) -> Rule:
    shown = _least_shown(known)
    each_j, least_j = total_j / n, floor_j / n
    if total_j >= shown * floor_j:
        return check.holds(_above(each_j, least_j), each_j, shown * least_j)
    what = "physical floor" if check is FLOP else "byte floor"
    work = "the work at peak rate" if check is FLOP else "weights and contexts at full bandwidth"
    return check.invalid(
        f"GPU energy {each_j / 3.6:.3g} mWh per success is below the {what} of "
        f"{least_j / 3.6:.3g} mWh (idle {bound.idle_w:.3g} W per board, and {work})",
        each_j,
        shown * least_j,
    )


def _above(each_j: float, least_j: float) -> str:
    return f"GPU energy {each_j / 3.6:.3g} mWh per success, floor {least_j / 3.6:.3g} mWh"


def _tail(run: Run, gpu: PartEnergy, known: Gpu | None) -> Rule:
    baseline_s = run.power.get("baseline_s")
    if known is None:
        return TAIL.not_judged("the board is not known")
    if known.tail_s == 0:
        return TAIL.holds(f"no decay after work is known of {known.name}")
    if baseline_s is None or (gpu.idle_before_w is None and gpu.idle_after_w is None):
        return TAIL.not_judged("no idle stretch was read before or after the load")
    least_s = known.tail_s + LEAST_BASELINE_S
    if baseline_s < least_s:
        return TAIL.warns(
            f"power: the idle power is that of the {known.tail_s:.3g} s in which {known.name} decays after "
            f"work: power.baseline_s is {baseline_s:g}, expected >= {least_s:.3g} to see it idle",
            baseline_s,
            least_s,
        )
    return TAIL.holds(f"power.baseline_s is {baseline_s:g}", baseline_s, least_s)
