"""How a point changes its base scenario: keys, whole sections, and the mean gap of its arrivals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadgen.config import Place, Tree, read_yaml, show
from loadgen.errors import ConfigError
from loadgen.scenario import Prompts
from loadgen.scenario_file import validate
from loadgen.scenario_load import Load

PACES = ("mean_gap_s", "mean_rate_rps")
"""Keys of a sweep that are none of a scenario: demand is scaled to exactly this mean gap, or rate."""
_KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "load": ("pattern", frozenset(Load.model_fields)),
    "prompts": ("source", frozenset(Prompts.model_fields)),
    "load.shaping": ("policy", frozenset()),
}
"""Sections of several kinds: the key that names the kind, and the keys that all kinds share."""


def of_file(path: Path) -> Tree:
    """A scenario's file as a tree whose paths are absolute. Raises ConfigError where it is wrong."""
    tree = read_yaml(path)
    validate(tree, path.resolve().parent)
    return tree


def put(tree: Tree, dotted: str, value: Any, origin: Callable[[Place], str]) -> None:
    """Sets a key; of a section, the keys given. ``origin(place)``: where a place inside it stands.

    A section that names another kind (``load`` with a ``pattern``) loses the keys of its old one.
    """
    if not isinstance(value, dict) or not value:
        tree.assign(dotted, value, origin(()))
        return
    kind, shared = _KINDS.get(dotted, ("", frozenset()))
    held = tree.get(dotted)
    if kind in value and isinstance(held, dict):
        tree.drop(dotted, *(key for key in list(held) if key not in shared))
        tree.origins[tuple(dotted.split("."))] = origin(())
    for key, inner in value.items():
        put(tree, f"{dotted}.{key}", inner, lambda place, key=key: origin((key, *place)))  # type: ignore[misc]


def pace(tree: Tree) -> float | None:
    """Takes the mean gap in seconds out of the tree; None where none is set. Raises ConfigError."""
    given = [key for key in PACES if tree.data.get(key) is not None]
    if not given:
        return None
    key, value = given[0], tree.data[given[0]]
    if len(given) > 1:
        raise ConfigError(f"{tree.origin((key,))} {key}: expected it or {given[1]}, got both")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{tree.origin((key,))} {key}: expected a number > 0, got {show(value)}")
    for name in PACES:
        tree.data.pop(name, None)
    return float(value) if key == "mean_gap_s" else 1 / float(value)
