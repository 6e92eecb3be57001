"""YAML in which every value knows where it came from, so that a mistake can be pointed at.

A `Tree` is plain data plus, for each place in it, an origin: ``file.yaml:14`` or
the flag that set it. Validation itself is pydantic's; `explain` turns what it
finds into one line each: origin, key, value, expectation, near name.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Container, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic_core import ErrorDetails

from loadgen.errors import ConfigError

_MOST_BITS = 63
Place = tuple[str | int, ...]
T = TypeVar("T")


@dataclass
class Tree:
    """Nested plain data and the origin of every place in it."""

    data: dict[str, Any]
    origins: dict[Place, str] = field(default_factory=dict)
    source: str = ""

    def origin(self, place: Place) -> str:
        """Where ``place`` or its nearest known ancestor was written."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.origins:
                return self.origins[place[:end]]
        return self.source

    def get(self, dotted: str) -> Any:
        """The value at ``a.b.c``, or None."""
        node: Any = self.data
        for key in dotted.split("."):
            node = node.get(key) if isinstance(node, dict) else None
        return node

    def assign(self, dotted: str, value: Any, origin: str) -> None:
        """Sets ``a.b.c``; sections on the way are made. Raises ConfigError if one is not a mapping."""
        place: Place = tuple(dotted.split("."))
        node = self.data
        for depth, key in enumerate(place[:-1], 1):
            if str(key) not in node:
                self.origins.setdefault(place[:depth], origin)
            child = node.setdefault(str(key), {})
            if not isinstance(child, dict):
                where = ".".join(map(str, place[:depth]))
                raise ConfigError(f"{origin}: {where} is {show(child)}, not a section with keys of its own")
            node = child
        node[str(place[-1])] = value
        for inner in [p for p in self.origins if p[: len(place)] == place]:
            del self.origins[inner]
        self.origins[place] = origin

    def drop(self, dotted: str, *keys: str) -> None:
        """Removes ``keys`` from the section at ``dotted``, where present."""
        section = self.get(dotted)
        if isinstance(section, dict):
            for key in keys:
                section.pop(key, None)


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats are YAML 1.2's: ``1e-3`` is a number, as everyone expects."""


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    value = int(loader.construct_yaml_int(node))
    if value.bit_length() > _MOST_BITS:
        raise yaml.constructor.ConstructorError(
            None, None, f"an integer of more than {_MOST_BITS} bits", node.start_mark
        )
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> Tree:
    """Reads a YAML mapping with the line of each key. Raises ConfigError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc
    tree = Tree({}, source=str(path))
    try:
        loader = _Loader(text)  # refuses control characters at once
        try:
            node = loader.get_single_node()
            if node is None:
                raise ConfigError(f"{path}: expected a scenario, got an empty file")
            _note_origins(node, (), str(path), tree.origins)
            data = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(exc).split())}") from exc
    except ValueError as exc:  # a date of the 13th month, a number that is none
        raise ConfigError(f"{path}: not valid YAML: a value is unreadable: {exc}") from exc
    except RecursionError:
        raise ConfigError(
            f"{path}: expected a scenario, got nesting without end (an alias of itself)"
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected a mapping with keys such as name and load, got {show(data)}")
    tree.data = data
    return tree


def _note_origins(node: yaml.Node, place: Place, file: str, origins: dict[Place, str]) -> None:
    origins.setdefault(place, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key_node, value_node in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{file}:{line}: expected a plain key")
            if key in seen:
                dotted = ".".join(map(str, (*place, key)))
                raise ConfigError(f"{file}:{line} {dotted}: given twice (first on line {seen[key]})")
            seen[key] = line
            origins[(*place, key)] = f"{file}:{line}"
            _note_origins(value_node, (*place, key), file, origins)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _note_origins(child, (*place, index), file, origins)


def parse_value(text: str, origin: str) -> Any:
    """A flag's value, read as YAML (``0.3``, ``true``, ``[1, 2]``, ``text``)."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        why = f" ({exc.problem})" if isinstance(exc, yaml.constructor.ConstructorError) else ""
        raise ConfigError(f"{origin}: expected a YAML value, got {text!r}{why}") from exc


def resolve_paths(
    tree: Tree, base: Path, paths: Iterable[str], ids_or_paths: Mapping[str, Container[str]]
) -> None:
    """Makes relative paths count from ``base``, the folder of the file that names them; a flag's stay.

    ``paths``: dotted keys whose files must exist. ``ids_or_paths``: keys that also take ids, and these
    ids; what is neither an id nor a file there is left as it is. Raises ConfigError.
    """
    for dotted in (*paths, *ids_or_paths):
        value, place = tree.get(dotted), tuple(dotted.split("."))
        if not isinstance(value, str) or value in ids_or_paths.get(dotted, ()):
            continue
        origin, path = tree.origin(place), Path(value).expanduser()
        if not path.is_absolute() and not origin.startswith("--"):
            path = base / path
        if dotted in ids_or_paths and not path.exists():
            continue
        if dotted not in ids_or_paths and not path.is_file():
            raise ConfigError(f"{origin} {dotted}: expected an existing file, got {value}")
        section = tree.get(".".join(place[:-1])) if len(place) > 1 else tree.data
        section[place[-1]] = str(path)


def show(value: Any) -> str:
    """A value as it would stand in YAML, cut to a readable length."""
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity" if value > 0 else "-infinity" if value < 0 else "nan"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def near(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest known name, or nothing."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def known(place: str, name: str, table: Mapping[str, T], also: str = "") -> T:
    """The entry of ``table`` by this name; ``also``: what else may be given, for the message.

    Raises ConfigError naming ``place``, the known names and the nearest.
    """
    if name not in table:
        raise ConfigError(f"{place}: expected one of {', '.join(table)}{also}, got {name}{near(name, table)}")
    return table[name]


_SECRET = re.compile(r"key|token(?!s|ize)|secret|authorization|cookie|password", re.IGNORECASE)
"""Names whose values are not repeated; numbers of tokens and a tokenizer are none."""
_USERINFO = re.compile(r"(?<=://)[^/?#\s]+@")
_EXPECTATIONS: dict[str, str] = {
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "too_short": "at least {min_length} entries",
    "string_too_short": "at least {min_length} characters",
    "literal_error": "{expected}",
}


def explain(
    errors: Iterable[ErrorDetails],
    tree: Tree,
    keys_at: Callable[[Place], Mapping[str, str]],
    tags: frozenset[str],
) -> list[str]:
    """One line per validation error.

    ``keys_at(place)`` gives the keys a section may have and what each expects;
    ``tags`` are the union tags pydantic puts into a location, which no file has.
    """
    lines: dict[str, None] = {}
    for error in errors:
        raw: Place = error["loc"]
        place = tuple(p for depth, p in enumerate(raw) if not (depth == 1 and p in tags))
        dotted = ".".join(map(str, place))
        kind, context = error["type"], error.get("ctx", {})
        value = "***" if place and _SECRET.search(str(place[-1])) else show(error["input"])
        value = _USERINFO.sub("***@", value)
        if kind == "missing":
            hint = keys_at(raw[:-1]).get(str(raw[-1]), "a value")
            text = f"{tree.origin(place[:-1])} {dotted}: missing; expected {hint}"
        elif kind == "extra_forbidden":
            known = keys_at(raw[:-1])
            text = (
                f"{tree.origin(place)} {dotted}: unknown key, got {value}; "
                f"expected one of {', '.join(known)}{near(place[-1], known)}"
            )
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag_key = str(context["discriminator"]).strip("'")
            section = tree.get(dotted) or {}
            known = keys_at((*place, ""))
            got = section.get(tag_key) if isinstance(section, dict) else section
            said = "missing" if got is None else f"got {show(got)}"
            text = (
                f"{tree.origin((*place, tag_key))} {dotted}.{tag_key}: "
                f"expected one of {', '.join(known)}; {said}{near(got, known)}"
            )
        elif kind == "scenario":
            key = str(context.get("key", ""))
            spot = (*place, *key.split(".")) if key else place
            got = context.get("got", "")
            text = f"{tree.origin(spot)} {'.'.join(map(str, spot))}: expected {context['expected']}"
            text += f", got {got}" if got else ""
        else:
            expected = _EXPECTATIONS.get(kind)
            limits = {key: f"{v:g}" if isinstance(v, float) else v for key, v in context.items()}
            wanted = expected.format(**limits) if expected else error["msg"].lower()
            text = f"{tree.origin(place)} {dotted}: expected {wanted}, got {value}"
            if kind == "literal_error":
                text += near(error["input"], re.findall(r"'([^']*)'", str(context["expected"])))
        lines[text] = None
    return list(lines)
