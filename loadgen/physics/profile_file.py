"""Profiles as JSON files, and `find_board`, which takes an id of the table or the path of a profile."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from loadgen.config import known, near, show
from loadgen.errors import ConfigError
from loadgen.physics.boards import GPUS
from loadgen.physics.hardware import Efficiency, Gpu
from loadgen.physics.profile import EFFICIENCY_FIELDS, GPU_FIELDS, TEXTS, Fitted, Label, Profile

SCHEMA, KIND = 1, "loadgen-hardware-profile"
_KEYS = ("schema", "kind", "id", "name", "base", "label", "runs", "gpu", "efficiency", "calibration")
_CONSTANT_KEYS = ("value", "source", "relative_uncertainty", "low", "high", "label", "runs")
_MAY_BE_ZERO = {
    *("tail_s", "allreduce_latency_s", "graph_overhead_s", "eager_overhead_s", "decomposition_s"),
    *("memory_weight", "compute_weight", "power_spread", "sensor_gain_error", "graph_max_rows"),
}
_SHARES = ("compute", "bandwidth")
_RISING = ("bare_idle_w", "context_idle_w", "tail_w", "active_w", "tdp_w")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def find_board(name: str, *, place: str = "server.gpu") -> tuple[Gpu, Efficiency]:
    """The board of the table with this id, or of the profile at this path, with its kernels' efficiency.

    ``place`` names it in errors. Raises ConfigError in one line: an unknown id with the nearest
    one, or the file, key, value and expectation of a profile that cannot be used.
    """
    found = profile_of(name, place=place)
    return found.gpu, found.efficiency


def profile_of(name: str, *, place: str = "server.gpu") -> Profile:
    """The same as a profile: of an id, one that no run told anything."""
    path = Path(name)
    if name not in GPUS and (path.suffix == ".json" or path.is_file()):
        return read_profile(path)
    gpu = known(place, name, GPUS, ", or the path of a hardware profile (.json)")
    return Profile(gpu, Efficiency(), name)


def write_profile(path: str | Path, profile: Profile) -> None:
    """Writes the profile as JSON, every field of the board and its efficiency with its origin.

    Raises ConfigError when the file cannot be written.
    """
    text = json.dumps(as_object(profile), indent=2, allow_nan=False) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error


def as_object(profile: Profile) -> dict[str, Any]:
    """The profile as the object its file holds."""

    def constants(part: Gpu | Efficiency, names: Sequence[str]) -> dict[str, Any]:
        return {name: _constant(part, name, profile.fitted.get(name)) for name in names}

    return {
        "schema": SCHEMA,
        "kind": KIND,
        "id": profile.gpu.id,
        "name": profile.gpu.name,
        "base": profile.base,
        "label": profile.label,
        "runs": [dict(run) for run in profile.runs],
        "gpu": constants(profile.gpu, GPU_FIELDS),
        "efficiency": constants(profile.efficiency, EFFICIENCY_FIELDS),
        "calibration": dict(profile.calibration),
    }


def read_profile(path: str | Path) -> Profile:
    """The profile that a file holds. What it leaves out is taken from its ``base``.

    Raises ConfigError naming file, key, value and expectation.
    """
    path = Path(path)
    try:
        keys = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected a hardware profile in JSON: {error}") from error
    return parse_profile(keys, str(path))


def parse_profile(keys: Any, place: str) -> Profile:
    """The profile that an object holds, as `as_object` makes it; ``place`` names it in errors.

    Raises ConfigError naming place, key, value and expectation.
    """
    if not isinstance(keys, dict):
        raise ConfigError(f"{place}: expected a JSON object, got {type(keys).__name__}")
    return _Reader(place, keys).profile()


def _no_number(text: str) -> float:
    raise ValueError(f"a finite number, got {text}")


def _constant(part: Gpu | Efficiency, name: str, fitted: Fitted | None) -> dict[str, Any]:
    value = getattr(part, name)
    wide = part.uncertainty[name]
    found: dict[str, Any] = {
        "value": dict(value) if isinstance(value, Mapping) else value,
        "source": part.sources[name],
        "relative_uncertainty": wide,
        "low": None,
        "high": None,
        "label": None,
        "runs": [],
    }
    if fitted is not None:
        return found | {
            "low": fitted.low,
            "high": fitted.high,
            "label": fitted.label,
            "runs": list(fitted.runs),
        }
    if isinstance(value, int | float) and wide > 0:
        found |= {"low": value / (1.0 + wide), "high": value * (1.0 + wide)}
    return found


class _Reader:
    """One profile's keys, refused by name."""

    def __init__(self, place: str, keys: Mapping[str, Any]) -> None:
        self._place, self._keys = place, keys

    def refuse(self, key: str, expected: str, got: Any, among: Iterable[str] = ()) -> ConfigError:
        hint = near(got, among)
        return ConfigError(f"{self._place} {key}: expected {expected}, got {show(got)}{hint}")

    def only(self, keys: Mapping[str, Any], names: Sequence[str], place: str = "") -> None:
        for key in keys:
            if key not in names:
                raise ConfigError(
                    f"{self._place} {place}{key}: expected one of {', '.join(names)}{near(key, names)}"
                )

    def profile(self) -> Profile:
        keys = self._keys
        if keys.get("kind") != KIND:
            raise self.refuse("kind", KIND, keys.get("kind"))
        if keys.get("schema") != SCHEMA or isinstance(keys.get("schema"), bool):
            raise self.refuse("schema", f"{SCHEMA}, what this version reads", keys.get("schema"))
        self.only(keys, _KEYS)
        base = self._base()
        runs = keys.get("runs", [])
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise self.refuse("runs", "a list of objects", runs)
        fitted: dict[str, Fitted] = {}
        start = None if base is None else GPUS[base]
        gpu = self._part("gpu", GPU_FIELDS, start, len(runs), fitted)
        efficiency = self._part("efficiency", EFFICIENCY_FIELDS, Efficiency(), len(runs), fitted)
        texts = {key: keys.get(key, getattr(start, key, None)) for key in TEXTS}
        for key, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise self.refuse(key, "a text", text)
        if not _ID.fullmatch(texts["id"]):
            raise self.refuse("id", "letters, digits, dots and dashes", texts["id"])
        board = Gpu(**texts, **gpu[0], sources=gpu[1], uncertainty=gpu[2])
        for low, high in pairwise(_RISING):
            if getattr(board, low) > getattr(board, high):
                above = f"at most gpu.{high}, {getattr(board, high):g}"
                raise self.refuse(f"gpu.{low}", above, getattr(board, low))
        calibration = keys.get("calibration", {})
        if not isinstance(calibration, dict):
            raise self.refuse("calibration", "an object", calibration)
        return Profile(
            board,
            Efficiency(**efficiency[0], sources=efficiency[1], uncertainty=efficiency[2]),
            base,
            self._label(keys.get("label"), "label"),
            tuple(runs),
            fitted,
            calibration,
        )

    def _base(self) -> str | None:
        base = self._keys.get("base")
        if base is not None and base not in list(GPUS):
            raise self.refuse("base", f"one of {', '.join(GPUS)}, or null", base, GPUS)
        found: str | None = base
        return found

    def _label(self, label: Any, key: str) -> Label | None:
        if label is not None and label not in get_args(Label):
            raise self.refuse(key, f"{', '.join(get_args(Label))} or null", label)
        found: Label | None = label
        return found

    def _part(
        self,
        part: str,
        names: Sequence[str],
        start: Gpu | Efficiency | None,
        runs: int,
        fitted: dict[str, Fitted],
    ) -> tuple[dict[str, Any], dict[str, str], dict[str, float]]:
        """Values, sources and uncertainties of a section; ``fitted`` takes up what runs told."""
        given = self._keys.get(part, {})
        if not isinstance(given, dict):
            raise self.refuse(part, "an object", given)
        self.only(given, names, f"{part}.")
        values, sources, wide = {}, {}, {}
        for name in names:
            if name not in given:
                if start is None:
                    raise ConfigError(f"{self._place} {part}.{name}: expected a value, as there is no base")
                values[name] = getattr(start, name)
                sources[name], wide[name] = start.sources[name], start.uncertainty[name]
                continue
            place, constant = f"{part}.{name}", given[name]
            if not isinstance(constant, dict) or "value" not in constant:
                raise self.refuse(place, "an object with value and source", constant)
            self.only(constant, _CONSTANT_KEYS, f"{place}.")
            values[name] = self._value(name, constant["value"], f"{place}.value")
            source = constant.get("source")
            if not isinstance(source, str) or not source.strip():
                raise self.refuse(f"{place}.source", "a text: where the value is from", source)
            sources[name] = source
            wide[name] = self._number(
                constant.get("relative_uncertainty", 0.0), f"{place}.relative_uncertainty", 0
            )
            told = self._fitted(constant, values[name], place, runs)
            if told is not None:
                fitted[name] = told
        return values, sources, wide

    def _fitted(self, constant: Mapping[str, Any], value: Any, place: str, runs: int) -> Fitted | None:
        label = self._label(constant.get("label"), f"{place}.label")
        if label is None:
            return None
        low = self._number(constant.get("low"), f"{place}.low", 0)
        high = self._number(constant.get("high"), f"{place}.high", 0)
        if not low <= value <= high:
            raise self.refuse(f"{place}.value", f"a value within low {low:g} and high {high:g}", value)
        which = constant.get("runs", [])
        if not isinstance(which, list) or any(
            not isinstance(k, int) or isinstance(k, bool) or not 0 <= k < runs for k in which
        ):
            raise self.refuse(f"{place}.runs", f"places in runs, 0 to {runs - 1}", which)
        return Fitted(low, high, label, tuple(which))

    def _value(self, name: str, value: Any, place: str) -> Any:
        if name == "peak_flop_per_s":
            if not isinstance(value, dict) or not value:
                raise self.refuse(place, "an object of rates by number format", value)
            return {k: self._number(v, f"{place}.{k}", None) for k, v in value.items()}
        if name == "tgi_f16_flop_per_s" and value is None:
            return None
        number = self._number(value, place, 0 if name in _MAY_BE_ZERO else None)
        if name in _SHARES and number > 1:
            raise self.refuse(place, "a share of the peak, above 0 and at most 1", value)
        if name == "graph_max_rows":
            if number != int(number):
                raise self.refuse(place, "a whole number", value)
            return int(number)
        return number

    def _number(self, value: Any, place: str, least: float | None) -> float:
        """A finite number above 0, or from ``least`` on."""
        expected = "a number above 0" if least is None else f"a number >= {least:g}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.refuse(place, expected, value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or (number <= 0 if least is None else number < least):
            raise self.refuse(place, expected, value)
        return number
