"""Scenario files: YAML in, a checked `Scenario` out, or one line for every mistake.

A line has its origin (file:line or flag), key, expectation, value, and the near
name if there is one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from loadgen.config import Place, Tree, explain, read_yaml, resolve_paths
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.models import MODELS
from loadgen.scenario import SECTIONS, SERVER_SECTIONS, SOURCES, Scenario
from loadgen.scenario_load import LOADS, StageLoad
from loadgen.scenario_shaping import Shaping
from loadgen.section import Section


def _expectation(name: str, model: type[BaseModel]) -> str:
    examples = {
        "name": "a name for the run",
        "load": "a section with a pattern",
        "path": "a file",
        "stages": "a list of {rate_rps, duration_s}",
        "max_in_flight": "a whole number (--concurrency)",
    }
    annotation = str(model.model_fields[name].annotation)
    kind = "a whole number" if "int" in annotation else "a number" if "float" in annotation else "a value"
    return examples.get(name, "text" if "str" in annotation and kind == "a value" else kind)


def keys_at(place: Place) -> Mapping[str, str]:
    """The keys allowed at a place of the file, each with what it expects; {} where anything goes.

    A trailing empty key asks for the names a ``pattern`` or ``source`` may take.
    """
    if place in (("load", ""), ("prompts", "")):
        return dict.fromkeys(LOADS if place[0] == "load" else SOURCES, "")
    model: type[BaseModel] | None = Scenario if not place else None
    if place and place[0] in ("load", "prompts"):
        table: Mapping[str, type[Section]] = LOADS if place[0] == "load" else SOURCES
        model = table.get(str(place[1])) if len(place) > 1 else None
        if "stages" in place:
            model = StageLoad
        elif "shaping" in place:
            model = Shaping
    elif place:
        model = SECTIONS.get(str(place[0]))
        if place[0] == "server" and len(place) > 1:
            model = SERVER_SECTIONS.get(str(place[1]))
    return {name: _expectation(name, model) for name in model.model_fields} if model else {}


_PATHS = ("load.path", "prompts.path", "prompts.tokenizer", "power.sidecar_token_file")
_IDS_OR_PATHS: Mapping[str, Container[str]] = {"server.gpu": GPUS, "server.model": MODELS}


def validate(tree: Tree, base: Path) -> Scenario:
    """Checks a tree and builds the scenario. Raises ConfigError, one line per mistake."""
    problems: list[str] = []
    prompts = tree.get("prompts")
    if isinstance(prompts, dict) and "path" not in prompts:
        prompts.setdefault("source", "synthetic")  # a path alone does not say what is in it
    try:
        resolve_paths(tree, base, _PATHS, _IDS_OR_PATHS)
    except ConfigError as exc:
        problems.append(str(exc))
    try:
        scenario = Scenario.model_validate(tree.data)
    except ValidationError as exc:
        tags = frozenset(LOADS) | frozenset(SOURCES)
        problems += explain(exc.errors(include_url=False), tree, keys_at, tags)
        raise ConfigError("\n".join(problems)) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return scenario


def load_scenario(path: Path) -> Scenario:
    """Reads and checks a scenario file as it stands. Raises ConfigError."""
    return validate(read_yaml(path), path.parent)
