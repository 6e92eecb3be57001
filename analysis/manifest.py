"""The shape of ``run.json`` where figures depend on it; what its keys mean: docs/format.md.

A key may be missing and a value null, as in a killed run or one of an older writer: who reads it
says what is then not known. A value of another kind is damage, and is refused with its place; so is
the lack of what no row of its kind goes without (below: ``key?`` must be there, ``key!`` must not be null).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from analysis.columns import MOST
from loadgen.errors import RunDirError

Shape: TypeAlias = "str | Mapping[str, Shape] | list[Shape]"

_CLOCK_END: Shape = {"at_s!": "number", "offset_s": "number", "bound_s": "number"}
_LOOK: Shape = {"boards?": ["text"], "pids": ["any"]}
_PROCESSES: Shape = {"start?": _LOOK, "end?": _LOOK, "others": [{"board": "text", "name": "text"}]}
_SHAPE: Mapping[str, Shape] = MappingProxyType(
    {
        "status": "text",
        "name": "text",
        "seed": "whole",
        "clock": "text",
        "protocol": "text",
        "scenario_hash": "text",
        "counts": {"planned": "count", "warmup": "count"},
        "server": {
            "kind": "text",
            "url": "text",
            "model": "text",
            "gpu": "text",
            "dtype": "text",
            "scheduler": "text",
            "shards": "count",
            "limits": {},
        },
        "power": {
            "interval_s": "count",
            "baseline_s": "count",
            "reason": "text",
            "reasons": {"gpu": "text", "cpu": "text", "ram": "text"},
            "domains": [
                {
                    "name!": "text",
                    "method!": "text",
                    "note!": "text",
                    "averaging_s": "count",
                    "update_s": "count",
                }
            ],
            "server": _PROCESSES,
        },
        "sidecars": [
            {
                "name?": "text",
                "url?": "text",
                "interval_s?": "count",
                "domains!": ["text"],
                "metrics?": "any",
                "clock!": {
                    "start!": _CLOCK_END,
                    "end?": _CLOCK_END,
                    "drift_ppm?": "number",
                    "bound_s?": "count",
                },
                "samples!": {"received?": "count", "expected?": "count", "missing?": "count"},
                "reconnects?": "count",
                "server!": _PROCESSES,
                "reason?": "text",
            }
        ],
        "window": {"start_s": "number", "end_s": "number"},
        "metrics": {"interval_s": "count", "family": "text", "reason": "text"},
        "engine": {"energy_j": "number"},
        "slo": dict.fromkeys(("ttft_s", "ttft_from_due_s", "tpot_s", "e2e_s", "e2e_from_due_s"), "count"),
        "gpus": [{"domain": "text", "name": "text", "uuid": "text", "power_limit_w": "count"}],
        "host": {},
        "packages": {},
        "git": {"commit": "text"},
        "anchors": {"wall_utc": "text", "monotonic_s": "number", "clock_s": "number"},
        "warnings": ["text"],
        "scenario": {
            "server": {
                "launcher": {"cuda_graphs": ["count"]},
                "hardware": {"sm_clock_mhz": "count", "power_cap_w": "count", "sensor_gain": "count"},
            },
            "load": {
                "pattern": "text",
                "overflow": "text",
                "timeout_s": "count",
                "max_in_flight": "count",
                "stages": [{"rate_rps": "count", "duration_s": "count"}],
            },
            "prompts": {"source": "text"},
        },
    }
)
_WORDS = {
    "text": "text",
    "whole": "a whole number, 0 or more",
    "number": f"a number of at most {MOST:g}",
    "count": f"a number between 0 and {MOST:g}",
}


def check(manifest: Mapping[str, Any], file: Path) -> None:
    """Raises RunDirError that names the first value of another kind than its key's."""
    _check(manifest, _SHAPE, "", file)


def _check(value: Any, shape: Shape, place: str, file: Path) -> None:
    if value is None or shape == "any":
        return
    if isinstance(shape, str):
        if not _fits(value, shape):
            raise _refusal(file, place, _word(shape), value)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _refusal(file, place, _word(shape), value)
        for number, item in enumerate(value):
            at = f"{place}[{number}]"
            if item is None and shape[0] != "any":
                raise _refusal(file, at, _word(shape[0]), item)
            _check(item, shape[0], at, file)
    else:
        if not isinstance(value, Mapping):
            raise _refusal(file, place, _word(shape), value)
        for name, inner in shape.items():
            key = name.rstrip("?!")
            at = f"{place}.{key}" if place else key
            if (name != key and key not in value) or (name.endswith("!") and value[key] is None):
                raise RunDirError(f"{file}: {at}: expected {_word(inner)}, got none")
            _check(value.get(key), inner, at, file)


def _fits(value: Any, kind: str) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST:
        return False
    return kind == "number" or value >= 0


def _word(shape: Shape) -> str:
    if isinstance(shape, str):
        return _WORDS.get(shape, "a value")
    return "a list" if isinstance(shape, list) else "an object"


def _refusal(file: Path, place: str, expected: str, value: Any) -> RunDirError:
    said = repr(value)
    said = said if len(said) <= 60 else f"{said[:57]}..."
    return RunDirError(f"{file}: {place}: expected {expected}, got {said}")
