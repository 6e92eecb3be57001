"""``--fail-if NAME OP NUMBER``: a condition on the summary, for CI.

OP is one of ``> >= < <= == !=``; ``invalid`` alone is a condition too. A value
that does not exist counts as met (the run fails): a gate that opens because
nothing was measured is no gate.

============================================= ==============================================
name                                          value
============================================= ==============================================
``invalid``                                   the verdict (no operator)
``mean_M std_M p50_M p90_M p95_M p99_M``      latency in seconds; M: ``ttft``, ``ttft_from_due``,
                                              ``ttft_from_demand``, ``tpot``, ``itl``, ``e2e``,
                                              ``e2e_from_due``, ``e2e_from_demand``
``p50_lateness p99_lateness max_lateness``    seconds
the same with ``_s`` or ``_ms`` appended      seconds, milliseconds
``success_ratio``, ``error_ratio``            of all records; error is everything but success
``goodput_ratio``, ``goodput_rps``            of requests within the SLO
``missing``, ``records``, ``ok``              counts
``offered_rps achieved_rps in_flight_mean``   requests per second; requests
``output_tokens_per_s``                       tokens per second
``energy_per_attempt_j`` (``_wh``)            GPU; per attempted request
``energy_per_request_j`` (``_wh``)            GPU; per successful request
``energy_per_output_token_j`` (``_wh``)       GPU
``output_tokens_per_joule``                   GPU
``total_j mean_power_w idle_power_w``         GPU
the energy names with ``cpu_`` or ``ram_``    CPU, RAM
============================================= ==============================================
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.latency import METRICS, STATISTICS
from loadgen.config import near
from loadgen.errors import ConfigError

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_EXPRESSION = re.compile(r"^\s*(?P<name>[A-Za-z_0-9]+)\s*(?:(?P<op>>=|<=|==|!=|>|<)\s*(?P<number>\S+)\s*)?$")
_EXPECTED = "expected NAME OP NUMBER, such as 'p99_ttft>0.5', or 'invalid'"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a name's value is in the summary: keys down to it, and a factor to the name's unit."""

    path: tuple[str, ...]
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed ``--fail-if``; ``operator`` is empty for ``invalid``."""

    text: str
    name: str
    operator: str
    threshold: float


def _places() -> dict[str, _Place]:
    times: dict[str, tuple[str, ...]] = {
        f"{statistic}_{metric}": ("latency", f"{metric}_s", statistic)
        for metric in METRICS
        for statistic in STATISTICS
    }
    times.update({f"{s}_lateness": ("lateness_s", s) for s in ("p50", "p99", "max")})
    places = {name: _Place(path) for name, path in times.items()}
    places.update({f"{name}_s": _Place(path) for name, path in times.items()})
    places.update({f"{name}_ms": _Place(path, 1e3) for name, path in times.items()})
    places.update({name: _Place(("requests", name)) for name in ("missing", "records", "ok")})
    places["success_ratio"] = places["error_ratio"] = _Place(("requests", "success_ratio"))
    places.update({f"goodput_{name}": _Place(("goodput", name)) for name in ("ratio", "rps")})
    places.update(
        {name: _Place(("rate", name)) for name in ("offered_rps", "achieved_rps", "in_flight_mean")}
    )
    places["output_tokens_per_s"] = _Place(("tokens", "output_tokens_per_s"))
    for part in ("gpu", "cpu", "ram"):
        prefix = "" if part == "gpu" else f"{part}_"
        for name in ("output_tokens_per_joule", "total_j", "mean_power_w", "idle_power_w"):
            places[prefix + name] = _Place(("energy", part, name))
        for name in ("energy_per_attempt", "energy_per_request", "energy_per_output_token"):
            places[f"{prefix}{name}_j"] = _Place(("energy", part, name))
            places[f"{prefix}{name}_wh"] = _Place(("energy", part, f"{name}_wh"))
    return places


_PLACES = _places()
NAMES: tuple[str, ...] = ("invalid", *_PLACES)
"""Every name that `parse` accepts."""


def parse(text: str) -> Condition:
    """Reads one condition. Raises ConfigError naming the flaw and the nearest name."""
    found = _EXPRESSION.match(text)
    if found is None:
        raise ConfigError(f"--fail-if {text!r}: {_EXPECTED}")
    name, op, number = found["name"], found["op"], found["number"]
    if name not in NAMES:
        raise ConfigError(f"--fail-if {text!r}: unknown name {name!r}{near(name, NAMES)}")
    if name == "invalid":
        if op is not None:
            raise ConfigError(f"--fail-if {text!r}: 'invalid' takes no operator")
        return Condition(text, name, "", 0.0)
    if op is None:
        raise ConfigError(f"--fail-if {text!r}: {_EXPECTED}")
    try:
        threshold = float(number)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise ConfigError(f"--fail-if {text!r}: expected a finite number, got {number!r}")
    return Condition(text, name, op, threshold)


def met(condition: Condition, summary: Mapping[str, Any]) -> str | None:
    """One line saying that, and why, the run fails this condition; None when it does not.

    ``summary`` is what `analysis.summary.summarize` returned.
    """
    if condition.name == "invalid":
        return None if summary["valid"] else f"{condition.text}: " + "; ".join(summary["reasons"])
    value, why = _value(condition.name, summary)
    if value is None:
        return f"{condition.text}: there is no value ({why})"
    if _OPERATORS[condition.operator](value, condition.threshold):
        return f"{condition.text}: it is {value:.6g}"
    return None


def _value(name: str, summary: Mapping[str, Any]) -> tuple[float | None, str]:
    place = _PLACES[name]
    here: Any = summary
    for key in place.path:
        if not isinstance(here, Mapping) or here.get(key) is None:
            return None, _why(place.path, summary)
        here = here[key]
    if isinstance(here, Mapping):  # an estimate
        if here["value"] is None:
            return None, str(here["method"])
        here = here["value"]
    value = float(here) * place.factor
    return (1.0 - value if name == "error_ratio" else value), ""


def _why(path: tuple[str, ...], summary: Mapping[str, Any]) -> str:
    if path[0] == "lateness_s":
        return str(summary.get("lateness_reason"))
    if path[0] == "goodput":
        return "the scenario has no slo"
    if path[0] == "energy":
        return str((summary.get("energy") or {}).get("reason") or "no power source was read")
    return f"the summary has no {'.'.join(path)}"
