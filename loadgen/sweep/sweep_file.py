"""A sweep's file in, its points out: a checked scenario each; or one line for every mistake."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loadgen import provenance, shipped
from loadgen.config import Place, Tree, explain, near, parse_value, read_yaml, show
from loadgen.errors import CapacityError, ConfigError
from loadgen.launch import Launch
from loadgen.scenario import Scenario
from loadgen.scenario_file import validate
from loadgen.server.deployment import Deployment
from loadgen.sweep import axes, spec
from loadgen.sweep.axes import Label, Level
from loadgen.sweep.base import of_file, pace, put
from loadgen.sweep.figures import FIGURES
from loadgen.sweep.spec import Mistake, Sheet

MOST_POINTS = 100_000
_SHOWN_MISTAKES = 10
_BLOCKS = ("grid", "zip", "list")


@dataclass(frozen=True, slots=True)
class Point:
    """One point: its number, the level of each axis, its scenario, and the mean gap it is scaled to."""

    number: int
    levels: Mapping[str, Label]
    scenario: Scenario
    mean_gap_s: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep: its points, what to make of them (``sheet``), the file, and what identifies the points."""

    path: Path
    text: str
    sheet: Sheet
    points: tuple[Point, ...]
    digest: str

    @property
    def axes(self) -> tuple[str, ...]:
        """The keys that change, in the order of the file."""
        return tuple(self.points[0].levels)


def read_sweep(path: Path, overrides: Sequence[str] = (), *, http: bool = False) -> Sweep:
    """Reads and checks a sweep's file; ``overrides``: K=V of the base, after the file's ``set``.

    Raises ConfigError, one line for every mistake (the first ten of them).
    """
    tree = read_yaml(path)
    sheet = _sheet(tree)
    chosen = _points(tree)
    levels: dict[str, dict[Label, None]] = {}
    for point in chosen:
        for key, level in point.items():
            levels.setdefault(key, {})[level.label] = None
    try:
        spec.check(sheet, {key: list(labels) for key, labels in levels.items()}, list(FIGURES))
    except Mistake as mistake:
        known = mistake.known
        among = f" ({', '.join(map(show, known))})" if 0 < len(known) <= 12 else ""
        hint = near(mistake.got, map(str, known))
        raise _wrong(tree, mistake.place, mistake.expected + among, mistake.got, hint) from None
    base, folder = _base(tree, sheet)
    _set(base, tree, sheet, overrides, frozenset(levels))
    points = _scenarios(base, folder, tree, chosen, http=http)
    return Sweep(
        path, path.read_text(encoding="utf-8"), sheet, points, _digest(points, sheet.draws, http=http)
    )


def _wrong(tree: Tree, place: Place, expected: str, got: Any, hint: str = "") -> ConfigError:
    return ConfigError(
        f"{tree.origin(place)} {'.'.join(map(str, place))}: expected {expected}, got {show(got)}{hint}"
    )


def _sheet(tree: Tree) -> Sheet:
    try:
        return Sheet.model_validate(tree.data)
    except ValidationError as exc:
        lines = explain(exc.errors(include_url=False), tree, _keys_at, frozenset())
        # A scenario is a file or a mapping; pydantic tells of both.
        kept = [line for line in lines if "scenario.str" not in line]
        raise ConfigError("\n".join(kept or lines)) from None


def _keys_at(place: Place) -> Mapping[str, str]:
    model = spec.SECTIONS.get(str(place[0])) if place else Sheet
    expected = {"scenario": "a scenario's file, or its keys", "axes": "a list of grid, zip and list"}
    return {key: expected.get(key, "a value") for key in model.model_fields} if model else {}


def _points(tree: Tree) -> tuple[axes.Point, ...]:
    """The points that the file's axes make."""
    blocks: list[tuple[axes.Point, ...]] = []
    for number, block in enumerate(tree.data["axes"]):
        place: Place = ("axes", number)
        kinds = [key for key in block if key in _BLOCKS]
        if len(block) != 1 or not kinds:
            got = ", ".join(block) or "nothing"
            raise _wrong(tree, place, "one of grid, zip, list", got, near(got, _BLOCKS))
        kind, held, place = kinds[0], block[kinds[0]], (*place, kinds[0])
        if kind == "list":
            made = partial(axes.listed, _listed(tree, place, held))
        else:
            made = partial(axes.grid if kind == "grid" else axes.zipped, _axes(tree, place, held))
        try:
            blocks.append(made())
        except ConfigError as exc:
            raise ConfigError(f"{tree.origin(place)} {'.'.join(map(str, place))}: {exc}") from None
        if len(blocks[-1]) > MOST_POINTS:
            raise _wrong(tree, place, f"at most {MOST_POINTS:,} points", len(blocks[-1]))
    total = 1
    for made_of in blocks:
        total *= len(made_of)
    if total > MOST_POINTS:
        raise _wrong(tree, ("axes",), f"at most {MOST_POINTS:,} points", total)
    try:
        return axes.product(blocks)
    except ConfigError as exc:
        raise ConfigError(f"{tree.origin(('axes',))} axes: {exc}") from None


def _axes(tree: Tree, place: Place, held: Any) -> dict[str, list[Level]]:
    if not isinstance(held, dict) or not held:
        raise _wrong(tree, place, "keys of the scenario, each with its values", held)
    return {key: _levels(tree, (*place, key), values) for key, values in held.items()}


def _levels(tree: Tree, place: Place, values: Any) -> list[Level]:
    """The levels of one axis: a list of values, or a mapping from names to values."""
    if not isinstance(values, list | dict) or not values:
        raise _wrong(tree, place, "a list of values, or names with values", values)
    if isinstance(values, dict):
        return [Level(name, value, (*place, name)) for name, value in values.items()]
    named = [Level(_label(value, values), value, (*place, k)) for k, value in enumerate(values)]
    seen: set[tuple[type, Label]] = set()
    for level in named:
        if (type(level.label), level.label) in seen:
            raise _wrong(tree, level.place, "every value of an axis once", level.label)
        seen.add((type(level.label), level.label))
    return named


def _label(value: Any, among: Sequence[Any]) -> Label:
    """How a value is called: itself, or of one with keys its pattern, if no other has it, or all it says."""
    if not isinstance(value, dict | list):
        return value if isinstance(value, str | int | float | bool | None) else str(value)
    if isinstance(value, dict):
        for tag in ("pattern", "source", "policy"):
            tags = [other.get(tag) for other in among if isinstance(other, dict)]
            if tag in value and tags.count(value[tag]) == 1 and isinstance(value[tag], str):
                return str(value[tag])
        return ", ".join(f"{key} {_label(held, ())}" for key, held in value.items())
    return "[" + ", ".join(str(_label(held, ())) for held in value) + "]"


def _listed(tree: Tree, place: Place, held: Any) -> list[axes.Point]:
    if not isinstance(held, list) or not held:
        raise _wrong(tree, place, "a list of points, each with its keys", held)
    points: list[axes.Point] = []
    for number, point in enumerate(held):
        if not isinstance(point, dict) or not point:
            raise _wrong(tree, (*place, number), "a point: keys of the scenario with a value each", point)
        columns = {key: [other.get(key) for other in held if isinstance(other, dict)] for key in point}
        points.append({k: Level(_label(v, columns[k]), v, (*place, number, k)) for k, v in point.items()})
    return points


def _base(tree: Tree, sheet: Sheet) -> tuple[Tree, Path]:
    """The scenario that the points change, and the folder that its relative paths count from."""
    folder = Path(tree.source).resolve().parent
    if isinstance(sheet.scenario, str):
        near_by = folder / sheet.scenario
        try:
            file = near_by if near_by.is_file() else shipped.find(sheet.scenario, "scenario")
        except ConfigError as exc:
            raise ConfigError(f"{tree.origin(('scenario',))} scenario: {exc}") from None
        return of_file(file), folder
    origins = {place[1:]: line for place, line in tree.origins.items() if place[:1] == ("scenario",)}
    base = Tree(copy.deepcopy(sheet.scenario), origins, tree.source)
    base.data.setdefault("name", sheet.name)
    return base, folder


def _set(base: Tree, tree: Tree, sheet: Sheet, overrides: Sequence[str], taken: frozenset[str]) -> None:
    for key, value in sheet.set.items():
        put(base, key, value, lambda place, key=key: tree.origin(("set", key, *place)))  # type: ignore[misc]
    for pair in overrides:
        dotted, equals, text = pair.partition("=")
        dotted = dotted.strip()
        if not equals or not all(dotted.split(".")):
            raise ConfigError(f"--set: expected KEY=VALUE such as load.requests=300, got {pair!r}")
        if dotted in taken:
            raise ConfigError(
                f"--set {dotted}: expected a key that is no axis of the sweep ({', '.join(taken)})"
            )
        put(base, dotted, parse_value(text, f"--set {dotted}"), lambda place: "--set")


def _scenarios(
    base: Tree, folder: Path, tree: Tree, chosen: Sequence[axes.Point], *, http: bool
) -> tuple[Point, ...]:
    mistakes: dict[str, str] = {}
    fits: set[Launch] = set()
    points = []
    for number, point in enumerate(chosen):
        one = Tree(copy.deepcopy(base.data), dict(base.origins), base.source)
        try:
            for key, level in point.items():
                put(one, key, level.value, lambda place, at=level.place: tree.origin((*at, *place)))  # type: ignore[misc]
            gap_s = pace(one)
            scenario = validate(one, folder)
            _simulable(scenario, one, gap_s, fits, http=http)
        except ConfigError as exc:
            for text in str(exc).splitlines():
                mistakes.setdefault(text.partition(": ")[0], text)  # a key once, however many points
            if len(mistakes) >= _SHOWN_MISTAKES:
                break
        else:
            points.append(Point(number, {k: level.label for k, level in point.items()}, scenario, gap_s))
    if mistakes:
        raise ConfigError("\n".join(list(mistakes.values())[:_SHOWN_MISTAKES]))
    return tuple(points)


def _simulable(scenario: Scenario, tree: Tree, gap_s: float | None, fits: set[Launch], *, http: bool) -> None:
    """Raises ConfigError for a point that no simulation can be made of, too small a memory apart."""
    if scenario.server.url is not None:
        raise _wrong(tree, ("server", "url"), "none (a sweep is simulated)", "a url")
    pattern = scenario.load.pattern
    if gap_s is not None and pattern in ("closed_loop", "all_at_once"):
        raise _wrong(tree, ("load", "pattern"), "a load with gaps that a mean can be given to", pattern)
    if gap_s is not None and getattr(scenario.load, "requests", None) == 1:
        raise _wrong(tree, ("load", "requests"), ">= 2 where a mean gap or rate is set", 1)
    if not http:
        _without_wire(scenario, tree)
    launch = scenario.server.launch(0)
    if launch in fits:
        return
    try:
        Deployment(launch)
    except CapacityError:
        pass  # said in the table: the point has no figures
    except ConfigError as exc:
        key = str(exc).split(":")[0].removeprefix("server.")
        raise ConfigError(f"{tree.origin(('server', *key.split('.')))} {exc}") from None
    fits.add(launch)


def _without_wire(scenario: Scenario, tree: Tree) -> None:
    """Raises ConfigError for what only the whole path has: faults, and a sensor."""
    for section, key in (("faults", ""), ("hardware", "board_seed"), ("hardware", "sensor_gain")):
        held = getattr(scenario.server, section)
        fresh = type(held)()
        value, default = (getattr(held, key), getattr(fresh, key)) if key else (held, fresh)
        if value != default:
            place = ("server", section, key) if key else ("server", section)
            told = value if key else held.model_dump(exclude_defaults=True)
            raise _wrong(tree, place, "its default, or the whole path (--http)", told)


def _digest(points: Sequence[Point], draws: int, *, http: bool) -> str:
    """What the rows follow from: every point, and what is in the files that they name."""
    rows = [
        {"levels": dict(p.levels), "scenario": p.scenario.model_dump(mode="json"), "gap_s": p.mean_gap_s}
        for p in points
    ]
    files = {text for row in rows for text in _texts(row["scenario"]) if len(text) < 4096}
    known = {
        name: hashlib.sha256(Path(name).read_bytes()).hexdigest()
        for name in sorted(files)
        if "/" in name and Path(name).is_file()
    }
    return provenance.digest({"points": rows, "files": known, "draws": draws, "http": http})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for held in value.values() if isinstance(value, dict) else value:
            yield from _texts(held)
