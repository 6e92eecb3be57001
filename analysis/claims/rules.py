"""What a published energy per request is held against: idle, arithmetic, memory traffic, power.

For G boards, one request per T seconds and an energy E per request, steady state:

    bare-idle-floor     E >= G P_bare T
    loaded-idle-floor   E >= G P_idle T
    flop-floor          E >= P_bare max(G T, F / peak) + (P_act - P_bare) F / peak
    byte-floor          E >= P_bare max(G T, B / bandwidth) + (P_act - P_bare) B / bandwidth
    flop-floor-tdp      E >= TDP F / peak          a warning: lower clocks can beat it
    mean-power          E <= 1.05 G TDP T

F and B are the FLOP and the bytes of one request, P_bare a board's idle power, P_idle
the least it draws with a server's context, P_act the least of a working one. A
figure is impossible only where the sensor's gain and the constants' uncertainty
cannot explain it, and where no open question can lower the bound; else the rule
says what it hangs on ("unless prompts were cached"). FLOP and bytes stand on bare
idle, so that what a context draws is the loaded-idle floor's alone to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis import floor
from analysis.claims.claim import Claim
from analysis.claims.judgement import Finding, Judgement, Status
from analysis.words import J_PER_WH, quantity
from loadgen.physics.hardware import Gpu
from loadgen.physics.models import Transformer

OVER_LIMIT = 1.05
_CACHED = "prompts were cached"
_SPECULATED = "tokens were speculated"
_SHRUNK = "the KV cache was quantised"
_TF32 = "the products ran in TF32"
_CONTEXT = "a CUDA context adds 26-50 W on HBM boards (arXiv 2605.23918)"


@dataclass(frozen=True, slots=True)
class _Powers:
    """Watts of a board that the bounds stand on."""

    bare: float
    idle: float
    active: float


def judge(claim: Claim) -> Judgement:
    """Holds the claim against every rule, in the order of the module's table."""
    return Judgement(claim, tuple(rule(claim) for rule in RULES))


def _words(rule: str, status: Status, unless: Sequence[str] = (), always: str = "") -> str:
    hangs = f" unless {' or '.join(unless)}" if unless else ""
    match status:
        case "holds":
            return f"above {NAMES[rule]}"
        case "doubtful":
            return (
                f"below {NAMES[rule]}{hangs}, but by no more than the sensor's gain and the constants allow"
            )
        case _:
            return f"below {NAMES[rule]}{hangs or always}"


def _nominal(gpu: Gpu) -> _Powers:
    return _Powers(gpu.bare_idle_w, floor.least_idle_w(gpu), gpu.active_w)


def _least(gpu: Gpu) -> _Powers:
    """The low ends of the constants' 95 % intervals, which no good board undercuts."""
    bare_w = gpu.bare_idle_w / (1.0 + gpu.uncertainty["bare_idle_w"])
    active_w = gpu.active_w / (1.0 + gpu.uncertainty["active_w"])
    idle_w = floor.least_idle_w(replace(gpu, bare_idle_w=bare_w))
    return _Powers(bare_w, idle_w, max(active_w, idle_w))


def _shown(gpu: Gpu) -> float:
    """The share of what it draws that a board's sensor shows at least."""
    return 1.0 - gpu.sensor_gain_error


def _status(figure_j: float, strict_j: float, sure_j: float, conceded_j: float) -> Status:
    """``conceded_j``: the sure bound once every open question lowers it; <= ``sure_j`` <= ``strict_j``."""
    if figure_j < conceded_j:
        return "impossible"
    if figure_j < sure_j:
        return "conditional"
    return "doubtful" if figure_j < strict_j else "holds"


def _wh(energy_j: float) -> str:
    return quantity(energy_j / J_PER_WH, "Wh")


def _not_judged(claim: Claim, rule: str, equation: str, missing: str) -> Finding:
    return Finding(
        rule, "not judged", "J", claim.energy_j, None, None, (), equation, "", "not judged", missing
    )


def _idle(
    claim: Claim, rule: str, equation: str, reference: str, nominal_w: float, least_w: float
) -> Finding:
    assert claim.interval_s is not None
    board_s = claim.boards * claim.interval_s
    bound_j, sure_j = nominal_w * board_s, _shown(claim.gpu) * least_w * board_s
    status = _status(claim.energy_j, bound_j, sure_j, sure_j)
    each = "the board" if claim.boards == 1 else f"each of {claim.boards} boards"
    detail = (
        f"{_wh(claim.energy_j)} per {quantity(claim.interval_s, 's')} is "
        f"{quantity(claim.energy_j / board_s, 'W')} for {each}, and {claim.gpu.name} draws at least "
        f"{quantity(nominal_w, 'W')}"
    )
    words = _words(rule, status, always=_ALWAYS)
    return Finding(rule, status, "J", claim.energy_j, bound_j, sure_j, (), equation, reference, words, detail)


def _bare_idle(claim: Claim) -> Finding:
    rule, equation, gpu = "bare-idle-floor", "E >= G P_bare T", claim.gpu
    if claim.interval_s is None:
        return _not_judged(claim, rule, equation, "interval_s is not claimed")
    least_w = _least(gpu).bare
    return _idle(claim, rule, equation, f"P_bare: {gpu.sources['bare_idle_w']}", gpu.bare_idle_w, least_w)


def _loaded_idle(claim: Claim) -> Finding:
    rule, equation, gpu = "loaded-idle-floor", "E >= G P_idle T", claim.gpu
    if claim.interval_s is None:
        return _not_judged(claim, rule, equation, "interval_s is not claimed")
    if floor.least_idle_w(gpu) <= gpu.bare_idle_w:
        return _not_judged(claim, rule, equation, f"what a context adds on {gpu.name} was not measured")
    reference = f"P_idle: {_CONTEXT}; {gpu.sources['context_idle_w']}"
    found = _idle(claim, rule, equation, reference, _nominal(gpu).idle, _least(gpu).idle)
    usual_j = gpu.context_idle_w * claim.boards * claim.interval_s
    usual = f" with a server's context, {gpu.context_idle_w:.3g} W ({_wh(usual_j)}) as a rule"
    return replace(found, detail=found.detail + usual)


def _work_j(claim: Claim, powers: _Powers, busy_s: float) -> float:
    """Bare idle power over the request's board seconds, at least its busy ones, and the work on top."""
    standing_s = max(claim.boards * (claim.interval_s or 0.0), busy_s)
    return powers.bare * standing_s + (powers.active - powers.bare) * busy_s


def _by_work(
    claim: Claim,
    rule: str,
    equation: str,
    reference: str,
    busy_s: float,
    least_s: float,
    open_: Sequence[str],
) -> Finding:
    """``busy_s`` board seconds of work at peak, ``least_s`` when all of ``open_`` is so."""
    least, shown = _least(claim.gpu), _shown(claim.gpu)
    bound_j = _work_j(claim, _nominal(claim.gpu), busy_s)
    sure_j = shown * _work_j(claim, least, busy_s)
    conceded_j = shown * _work_j(claim, least, least_s)
    status = _status(claim.energy_j, bound_j, sure_j, conceded_j)
    unless = tuple(open_) if status in ("conditional", "doubtful") else ()
    spaced = "" if claim.interval_s is None else f" every {quantity(claim.interval_s, 's')}"
    detail = (
        f"{quantity(busy_s, 's')} of work at peak rate{spaced} cost at least {_wh(bound_j)} on "
        f"{claim.boards} x {claim.gpu.name}, {_wh(claim.energy_j)} are claimed"
    )
    words = _words(rule, status, unless, _ALWAYS if _CACHED in open_ else "")
    return Finding(
        rule, status, "J", claim.energy_j, bound_j, sure_j, unless, equation, reference, words, detail
    )


def _reply(claim: Claim) -> float:
    """Output tokens: at least one where no length is claimed."""
    return 1.0 if claim.output_tokens is None else claim.output_tokens


def _faster(claim: Claim) -> tuple[tuple[str, float], ...]:
    """What else the products may have run in, and the board's peak then; TF32 at half the 16-bit rate."""
    if claim.dtype is None:
        return ()
    if claim.dtype.rate == "float32":
        return ((_TF32, claim.gpu.peak_flop_per_s["bfloat16"] / 2),)
    return floor.other_arithmetic(claim.gpu, claim.dtype)


def _busy_by_flop_s(
    claim: Claim, model: Transformer, cached_tokens: float, faster: Sequence[tuple[str, float]] = ()
) -> float:
    gpu = claim.gpu
    peaks = gpu.peak_flop_per_s
    # A server that hides its format may use the board's fastest.
    peak = max(peaks.values()) if claim.dtype is None else peaks[claim.dtype.rate_on(gpu)]
    peak = max([peak, *(other for _, other in faster)])
    assert claim.prompt_tokens is not None
    return floor.request_flop(model, claim.prompt_tokens, _reply(claim), cached_tokens) / peak


def _flop_missing(claim: Claim) -> str | None:
    missing = [k for k, v in (("model", claim.model), ("prompt_tokens", claim.prompt_tokens)) if v is None]
    return f"{' and '.join(missing)} not claimed" if missing else None


def _flop_reference(claim: Claim) -> str:
    gpu = claim.gpu
    return f"peak: {gpu.sources['peak_flop_per_s']}; P_act: {gpu.sources['active_w']}"


def _flop(claim: Claim) -> Finding:
    rule, equation = "flop-floor", "E >= P_bare max(G T, F/peak) + (P_act - P_bare) F/peak"
    if (missing := _flop_missing(claim)) is not None:
        return _not_judged(claim, rule, equation, missing)
    assert claim.model is not None
    assert claim.cached_tokens is not None
    faster = _faster(claim)
    open_ = [] if claim.cached_tokens.known else [_CACHED]
    open_ += [words for words, _ in faster]
    busy_s = _busy_by_flop_s(claim, claim.model, claim.cached_tokens.least)
    least_s = _busy_by_flop_s(claim, claim.model, claim.cached_tokens.most, faster)
    return _by_work(claim, rule, equation, _flop_reference(claim), busy_s, least_s, open_)


def _flop_at_full_power(claim: Claim) -> Finding:
    rule, equation = "flop-floor-tdp", "E >= TDP F/peak"
    if (missing := _flop_missing(claim)) is not None:
        return _not_judged(claim, rule, equation, missing)
    assert claim.model is not None
    assert claim.cached_tokens is not None
    busy_s = _busy_by_flop_s(claim, claim.model, claim.cached_tokens.least)
    bound_j = claim.gpu.tdp_w * busy_s
    below = claim.energy_j < bound_j
    unless = (_CACHED,) if below and not claim.cached_tokens.known else ()
    unless = ("clocks were lower", *unless) if below else ()
    return Finding(
        rule,
        "doubtful" if below else "holds",
        "J",
        claim.energy_j,
        bound_j,
        None,
        unless,
        equation,
        f"peak: {claim.gpu.sources['peak_flop_per_s']}; TDP: {claim.gpu.sources['tdp_w']}",
        _words(rule, "conditional" if below else "holds", unless),
        f"{quantity(busy_s, 's')} at peak rate and {claim.gpu.tdp_w:.4g} W are {_wh(bound_j)}, "
        f"{_wh(claim.energy_j)} are claimed",
    )


def _byte(claim: Claim) -> Finding:
    rule, equation = "byte-floor", "E >= P_bare max(G T, B/bandwidth) + (P_act - P_bare) B/bandwidth"
    stated = {"dtype": claim.dtype, "output_tokens": claim.output_tokens}
    missing = [key for key, value in stated.items() if value is None]
    if (unknown := _flop_missing(claim)) is not None or missing:
        words = [unknown] if unknown is not None else []
        words += [f"{' and '.join(missing)} not claimed"] if missing else []
        return _not_judged(claim, rule, equation, ", ".join(words))
    assert claim.model is not None
    assert claim.dtype is not None
    assert claim.prompt_tokens is not None
    assert claim.cached_tokens is not None
    gpu, passes = claim.gpu, _reply(claim) - 1.0
    weights = floor.layer_weight_bytes(claim.model, claim.dtype)
    # Cached tokens may be shared by all requests, and read and kept once: only a request's own count.
    own_tokens = claim.prompt_tokens - claim.cached_tokens.least
    contexts = passes * (2.0 * own_tokens + _reply(claim)) / 2.0
    kv_bytes = claim.model.kv_token_bytes(claim.dtype) * contexts
    # A step serves no more requests than are under way, nor more than the boards' memory holds.
    room = max(1.0, claim.boards * gpu.memory_bytes - claim.model.weights_bytes(claim.dtype))
    together = passes / claim.max_in_flight if claim.max_in_flight is not None else 0.0
    steps = min(passes, max(together, kv_bytes / room))
    busy_s = (weights * steps + kv_bytes) / gpu.bandwidth_bytes_per_s
    sure = weights * together if claim.speculation is False else 0.0
    open_ = [] if claim.cached_tokens.known else [_CACHED]
    open_ += [] if claim.speculation is False else [_SPECULATED]
    open_ += [_SHRUNK]
    reference = f"bandwidth: {gpu.sources['bandwidth_bytes_per_s']}; P_act: {gpu.sources['active_w']}"
    return _by_work(claim, rule, equation, reference, busy_s, sure / gpu.bandwidth_bytes_per_s, open_)


def _mean_power(claim: Claim) -> Finding:
    rule, equation, gpu = "mean-power", f"E <= {OVER_LIMIT:g} G TDP T", claim.gpu
    if claim.interval_s is None:
        return _not_judged(claim, rule, equation, "interval_s is not claimed")
    mean_w = claim.energy_j / (claim.boards * claim.interval_s)
    over = mean_w > OVER_LIMIT * gpu.tdp_w
    slow = ": it cannot keep up with its requests, or other energy is in the figure" if over else ""
    return Finding(
        rule,
        "impossible" if over else "holds",
        "W",
        mean_w,
        gpu.tdp_w,
        OVER_LIMIT * gpu.tdp_w,
        (),
        equation,
        f"TDP: {gpu.sources['tdp_w']}; {100 * (OVER_LIMIT - 1):.0f} %: the sensor's gain (arXiv 2312.02741)",
        f"{'above' if over else 'within'} {NAMES[rule]}",
        f"{quantity(mean_w, 'W')} for a board of {quantity(gpu.tdp_w, 'W')}{slow}",
    )


NAMES = {
    "bare-idle-floor": "the bare-idle floor",
    "loaded-idle-floor": "the loaded-idle floor",
    "flop-floor": "the FLOP floor",
    "byte-floor": "the byte floor",
    "flop-floor-tdp": "the FLOP floor at full power",
    "mean-power": "the power limit",
}
_ALWAYS = " whatever was cached"
RULES: tuple[Callable[[Claim], Finding], ...] = (
    _bare_idle,
    _loaded_idle,
    _flop,
    _byte,
    _flop_at_full_power,
    _mean_power,
)
