"""What the study's LLM model says of one model, board, number format and request, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from loadgen.config import known, near
from loadgen.errors import ConfigError
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import find_model
from loadgen.physics.profile_file import find_board
from loadgen.physics.study import fitted
from loadgen.physics.study.closed import closed_forms, decode_is_memory_bound, switching
from loadgen.physics.study.llm import EFFICIENCIES, Efficiency, Operation, Roofline, Scope, at_least


def efficiency_of(text: str) -> Efficiency:
    """A pair by its name, or two shares of the peaks: ``0.6,0.8`` (compute, bandwidth).

    Raises ConfigError for neither.
    """
    if text in EFFICIENCIES:
        return EFFICIENCIES[text]
    try:
        compute, bandwidth = (float(share) for share in text.split(","))
    except ValueError:
        compute = bandwidth = 0.0
    if not (0.0 < compute <= 1.0 and 0.0 < bandwidth <= 1.0):
        raise ConfigError(
            f"efficiency: expected one of {', '.join(EFFICIENCIES)}, or two shares above 0 and up to 1 "
            f"such as 0.6,0.8, got {text}{near(text, EFFICIENCIES)}"
        )
    return Efficiency(text, compute, bandwidth)


def answer(
    model: str,
    gpu: str,
    dtype: str,
    *,
    efficiency: str = "main",
    scope: Scope = "dominant+wo",
    batch: int = 1,
    prompt_tokens: int,
    output_tokens: int,
    operations: bool = False,
) -> dict[str, Any]:
    """Times of prefill and decode of the whole batch, closed forms, regimes, and the fitted laws apart.

    ``model`` is an id or the path of a config.json, ``gpu`` an id or the path of
    a profile. None stands for "never" in ``switching``, and for what a ``reason``
    beside it explains. With ``operations``, each operation's totals over its
    phase. Raises ConfigError naming what is unknown or out of range.
    """
    shape = find_model(model)
    pair = efficiency_of(efficiency)
    board, number = find_board(gpu, place="gpu")[0], known("dtype", dtype, DTYPES)
    roofline = Roofline.of(shape, board, number, pair, scope)
    s, g = prompt_tokens, output_tokens
    at_least("output_tokens", g, 0)
    prefill_s = float(roofline.prefill_s(s, batch))
    decode_s = float(roofline.decode_s(s, g, batch))
    found: dict[str, Any] = {
        "model": shape.id,
        "gpu": board.id,
        "dtype": number.name,
        "label": "estimated",
        "efficiency": {"name": pair.name, "compute": pair.compute, "bandwidth": pair.bandwidth},
        "scope": scope,
        "batch": batch,
        "prompt_tokens": s,
        "output_tokens": g,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "total_s": prefill_s + decode_s,
        "ceilings": {
            "flop_per_s": roofline.flop_per_s,
            "bytes_per_s": roofline.bytes_per_s,
            "word_bytes": roofline.word_bytes,
            "ridge_flop_per_byte": roofline.ridge_flop_per_byte,
        },
        "closed_form": _closed(roofline, s, g, batch),
        "switching": {
            name: value if np.isfinite(value) else None
            for name, value in switching(roofline)._asdict().items()
        },
        "fit": _fit(shape.id, board.id, number.name, batch, s, g),
    }
    if operations:
        found["operations"] = {
            "prefill": [_row(o) for o in roofline.prefill_operations(s, batch)],
            "decode": [_row(o) for o in roofline.decode_operations(s, g, batch)] if g > 1 else [],
        }
    return found


def _row(operation: Operation) -> dict[str, Any]:
    return {
        "name": operation.name,
        "where": operation.where,
        "count": int(operation.count),
        "flop": float(operation.flop),
        "bytes": float(operation.traffic_bytes),
        "time_s": float(operation.time_s),
        "bound": operation.bound,
    }


def _closed(roofline: Roofline, s: int, g: int, batch: int) -> dict[str, Any]:
    forms = closed_forms(roofline, batch)
    exact = bool(decode_is_memory_bound(roofline, s, g, batch))
    turns = bool(np.isfinite(switching(roofline).flash_tokens))
    return {
        "scope": "dominant" if roofline.scope == "dominant" else "dominant+wo",
        "const_s": float(forms.const_s),
        "gamma_s": float(forms.gamma_s),
        "eta_s": float(forms.eta_s),
        "a_s": float(forms.a_s),
        "b_s": float(forms.b_s),
        "delta_s": float(forms.delta_s(s)),
        "epsilon_s": float(forms.epsilon_s),
        "constant_s": float(forms.constant_s(s)),
        "theta_s": float(forms.theta_s(g)),
        "lambda_s": float(forms.lambda_s(g)),
        "decode_s": float(forms.decode_s(s, g)) if exact else None,
        "decode_reason": None if exact else "some operations of a decode step are compute bound",
        "linear_from_tokens": float(forms.linear_from_tokens),
        "quadratic_from_tokens": float(forms.quadratic_from_tokens) if turns else None,
        "knee_output_tokens": float(forms.knee_output_tokens(s)),
        "knee_prompt_tokens": float(forms.knee_prompt_tokens(g)),
        "prefill_regime": str(forms.prefill_regime(s)) if turns else None,
        "prefill_reason": None
        if turns
        else "attention is memory bound at any length, gamma / eta is no bound",
        "decode_regime": str(forms.decode_regime(s, g)) if exact else None,
    }


def _fit(model: str, gpu: str, dtype: str, batch: int, s: int, g: int) -> dict[str, Any]:
    """The fitted laws where they were fitted; elsewhere only why not."""
    fitted_to = (fitted.MODEL, fitted.GPU, fitted.DTYPE, fitted.BATCH)
    what = f"{fitted.MODEL} in {fitted.DTYPE} on {fitted.GPU}, batch {fitted.BATCH}"
    if (model, gpu, dtype, batch) != fitted_to:
        return {"label": "fit", "total_s": None, "energy_wh": None, "reason": f"fitted to {what} only"}
    prefill_s, decode_s = float(fitted.PREFILL_S(s)), float(fitted.DECODE_S(s, g))
    return {
        "label": "fit",
        "of": what,
        "prefill_s": prefill_s,
        "decode_s": decode_s,
        "total_s": prefill_s + decode_s,
        "prefill_wh": float(fitted.PREFILL_WH(s)),
        "decode_wh": float(fitted.DECODE_WH(s, g)),
        "energy_wh": float(fitted.total_wh(s, g)),
        "reason": None,
    }
