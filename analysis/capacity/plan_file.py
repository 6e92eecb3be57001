"""A plan from a file and flags: YAML in, a checked `CapacityPlan` out, or one line for every mistake."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from analysis.capacity.plan import CapacityPlan, Traffic
from loadgen import shipped
from loadgen.config import Place, Tree, explain, parse_value, read_yaml, resolve_paths
from loadgen.errors import ConfigError
from loadgen.physics.models import MODELS, find_model
from loadgen.physics.profile_file import find_board
from loadgen.section import Section

PRICE, PRICE_FLAG = "price_per_gpu_h", "--price"
_PATHS = ("traffic.trace", "lengths.jsonl", "lengths.sharegpt", "lengths.trace")
_INSTEAD = {
    "traffic.rate_rps": {"traffic": [k for k in Traffic.model_fields if k != "rate_rps"]},
    "lengths.prompt_tokens": {"lengths": ["jsonl", "sharegpt", "trace"]},
    "lengths.output_tokens": {"lengths": ["jsonl", "sharegpt", "trace"]},
}


def read_plan(path: Path | None, given: Sequence[tuple[str, str, str]] = ()) -> CapacityPlan:
    """The plan of a file, or of nothing, with values put over it. Raises ConfigError, a line a mistake.

    ``given``: (dotted key, value as YAML, the flag it is from); of `PRICE_FLAG` the value is GPU=X. A rate or
    a length replaces the file's traffic or lengths. Relative paths count from the file, a flag's from
    the working directory.
    """
    path = None if path is None else shipped.find(path, "plan")
    tree = Tree({}, source="plan") if path is None else read_yaml(path)
    for dotted, _, _ in given:
        for section, keys in _INSTEAD.get(dotted, {}).items():
            tree.drop(section, *keys)
    for dotted, text, flag in given:
        if flag == PRICE_FLAG:
            _price(tree, text, flag)
            continue
        tree.assign(dotted, parse_value(text, flag), flag)
    resolve_paths(tree, Path() if path is None else path.parent, _PATHS, {"model": MODELS})
    try:
        plan = CapacityPlan.model_validate(tree.data)
    except ValidationError as exc:
        lines = explain(exc.errors(include_url=False), tree, keys_at, frozenset())
        raise ConfigError("\n".join(lines)) from None
    # A file that is none is refused here, not by every candidate.
    find_model(plan.model)
    for gpu in plan.candidates.gpus:
        find_board(gpu, place="candidates.gpus")
    return plan


def keys_at(place: Place) -> Mapping[str, str]:
    """The keys allowed at a place of the file, each with what it expects; {} where anything goes."""
    model: type[Section] | None = CapacityPlan
    for key in place:
        field = None if model is None else model.model_fields.get(str(key))
        model = None if field is None else _section(field.annotation)
    if model is None:
        return {}
    return {name: _EXPECTED.get(name, "a value") for name in model.model_fields}


_EXPECTED = {
    "traffic": "a section with rate_rps, day, mean_rps or trace (--rate)",
    "slo": "a section with ttft_s, tpot_s or e2e_s (--ttft, --tpot, --e2e)",
}


def _section(annotation: Any) -> type[Section] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _price(tree: Tree, text: str, flag: str) -> None:
    """Sets the price of a board, whose name may be a path with dots."""
    gpu, _, price = text.rpartition("=")
    prices = tree.data.setdefault(PRICE, {})
    if not isinstance(prices, dict):
        raise ConfigError(f"{tree.origin((PRICE,))} {PRICE}: expected a mapping of boards to prices")
    prices[gpu] = parse_value(price, flag)
    tree.origins[PRICE, gpu] = flag
