"""A sweep's file: the algebra of its axes, how a point changes the base, and every mistake in one line."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loadgen.config import Tree
from loadgen.errors import ConfigError
from loadgen.shipped import find, shipped
from loadgen.sweep import axes
from loadgen.sweep.axes import Level
from loadgen.sweep.base import put
from loadgen.sweep.sweep_file import Sweep, read_sweep

BASE: dict[str, Any] = {
    "name": "tiny",
    "scenario": {
        "load": {"pattern": "poisson", "rate_rps": 2, "requests": 20, "max_in_flight": 9},
        "prompts": {"source": "fixed", "prompt_tokens": 100, "output_tokens": 5},
    },
    "axes": [{"grid": {"seed": [1, 2]}}],
}


def sweep(tmp_path: Path, *overrides: str, http: bool = False, **changes: Any) -> Sweep:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(BASE | changes, sort_keys=False))
    return read_sweep(path, overrides, http=http)


def levels(counts: dict[str, int]) -> dict[str, list[Level]]:
    return {key: [Level(f"{key}{k}", k, (key, k)) for k in range(n)] for key, n in counts.items()}


def names(points: Any) -> list[tuple[Any, ...]]:
    return [tuple(level.label for level in point.values()) for point in points]


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4), min_size=1))
def test_a_grid_is_every_combination_once_the_last_axis_fastest(counts: dict[str, int]) -> None:
    made = names(axes.grid(levels(counts)))
    size = 1
    for n in counts.values():
        size *= n
    assert len(made) == len(set(made)) == size
    numbers = [tuple(int(label[1:]) for label in point) for point in made]
    assert numbers == sorted(numbers)
    assert all(len({point[k] for point in made}) == n for k, n in enumerate(counts.values()))


@given(st.integers(1, 5), st.integers(1, 4))
def test_a_product_with_one_point_changes_nothing_and_zip_goes_in_step(n: int, m: int) -> None:
    pair = axes.zipped(levels({"a": n, "b": n}))
    assert names(pair) == [(f"a{k}", f"b{k}") for k in range(n)]
    other = axes.grid(levels({"c": m}))
    both = names(axes.product([pair, other]))
    assert both == [(*x, *y) for x, y in itertools.product(names(pair), names(other))]
    assert names(axes.product([pair])) == names(pair)


def test_axes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many values in every axis, got a 2, b 3"):
        axes.zipped(levels({"a": 2, "b": 3}))
    with pytest.raises(ConfigError, match=r"every key in one axis, got a in two"):
        axes.product([axes.grid(levels({"a": 1})), axes.grid(levels({"b": 1, "a": 2}))])
    one, two = axes.grid(levels({"a": 1}))[0], axes.grid(levels({"b": 1}))[0]
    with pytest.raises(ConfigError, match="the same keys in every point"):
        axes.listed([one, two])
    with pytest.raises(ConfigError, match=r"in every point \(a\), got None in point 1"):
        axes.listed([one, {None: one["a"]}])  # type: ignore[dict-item]  # a YAML key of "~"


def test_a_section_of_another_kind_loses_the_keys_of_the_old_one_and_keeps_the_shared() -> None:
    tree = Tree(
        {"load": {"pattern": "constant", "interval_s": 1, "requests": 5, "shaping": {"policy": "none"}}}
    )
    put(tree, "load", {"pattern": "poisson", "rate_rps": 3}, lambda place: f"here {place}")
    assert tree.data["load"] == {
        "pattern": "poisson",
        "rate_rps": 3,
        "requests": 5,
        "shaping": {"policy": "none"},
    }
    assert tree.origin(("load", "rate_rps")) == "here ('rate_rps',)"
    put(tree, "load.shaping", {"policy": "gate", "interval_s": 2}, lambda place: "there")
    put(tree, "load.shaping", {"policy": "none"}, lambda place: "there")
    assert tree.data["load"]["shaping"] == {"policy": "none"}
    put(tree, "server", {"gpu": "l4"}, lambda place: "there")
    put(tree, "server", {"dtype": "int8"}, lambda place: "there")
    assert tree.data["server"] == {"gpu": "l4", "dtype": "int8"}


def test_points_have_their_keys_their_names_and_the_rest_of_the_base(tmp_path: Path) -> None:
    load = [{"pattern": "constant", "interval_s": 1}, {"pattern": "gamma", "rate_rps": 1, "burstiness": 0.5}]
    found = sweep(
        tmp_path,
        "load.requests=7",
        set={"server.gpu": "l4", "load": {"warmup_requests": 2}},
        axes=[
            {"grid": {"load": load}},
            {"zip": {"server.dtype": ["int8", "int4"], "mean_rate_rps": [2, 4]}},
            {"list": [{"seed": 3}, {"seed": 4}]},
        ],
    )
    assert found.axes == ("load", "server.dtype", "mean_rate_rps", "seed")
    told = [tuple(point.levels.values()) for point in found.points]
    assert told[0] == ("constant", "int8", 2, 3) and told[-1] == ("gamma", "int4", 4, 4) and len(told) == 8
    for point in found.points:
        scenario = point.scenario
        assert (scenario.server.gpu, scenario.load.requests, scenario.load.warmup_requests) == ("l4", 7, 2)
        assert scenario.load.max_in_flight == 9 and scenario.name == "tiny"
        assert scenario.server.dtype == point.levels["server.dtype"]
        assert point.mean_gap_s == 1 / point.levels["mean_rate_rps"]


def test_named_levels_go_by_their_names_and_paths_count_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    folder.mkdir()
    (folder / "p.jsonl").write_text('{"prompt": "hello"}\n')
    (folder / "base.yaml").write_text(
        "name: b\nload: {pattern: poisson, rate_rps: 1, requests: 1}\n"
        "prompts: {source: jsonl, path: p.jsonl}\n"
    )
    named = {"slow": {"pattern": "poisson", "rate_rps": 1}, "fast": {"pattern": "poisson", "rate_rps": 9}}
    found = sweep(tmp_path, scenario="deeper/base.yaml", axes=[{"grid": {"load": named}}])
    assert [point.levels["load"] for point in found.points] == ["slow", "fast"]
    assert found.points[0].scenario.prompts.path == folder / "p.jsonl"


def test_the_digest_follows_the_points_and_not_what_is_made_of_them(tmp_path: Path) -> None:
    first = sweep(tmp_path).digest
    assert sweep(tmp_path, pareto={"x": "e2e_p99_s", "y": "energy_j"}).digest == first
    others = [
        sweep(tmp_path, "load.requests=21").digest,
        sweep(tmp_path, draws=3).digest,
        sweep(tmp_path, http=True).digest,
        sweep(tmp_path, axes=[{"grid": {"seed": [1, 3]}}]).digest,
    ]
    assert len({first, *others}) == 5


BAD = {
    "an unknown key of the scenario": (
        {"axes": [{"grid": {"load.rate_rsp": [1]}}]},
        r"s\.yaml:\d+ load\.rate_rsp: unknown key, got 1.*did you mean 'rate_rps'",
    ),
    "a value that no scenario takes": (
        {"axes": [{"grid": {"load.rate_rps": [1, -2]}}]},
        r"s\.yaml:\d+ load.*rate_rps: expected > 0, got -2",
    ),
    "neither grid, zip nor list": ({"axes": [{"gird": {"seed": [1]}}]}, r"axes\.0.*did you mean 'grid'"),
    "one value alone": ({"axes": [{"grid": {"seed": 1}}]}, r"axes\.0\.grid\.seed: expected a list of values"),
    "a value twice": (
        {"axes": [{"grid": {"seed": [1, 2, 1]}}]},
        r"seed\.2: expected every value.*once, got 1",
    ),
    "zip of unequal lengths": (
        {"axes": [{"zip": {"seed": [1, 2], "load.rate_rps": [1]}}]},
        r"s\.yaml:\d+ axes\.0\.zip: expected as many values in every axis, got seed 2, load.rate_rps 1",
    ),
    "no axes": ({"axes": []}, r"axes: expected at least 1 entries, got \[\]"),
    "an axis that is none": (
        {"compare": {"axis": "laod", "reference": 1}},
        r"compare\.axis: expected an axis of this sweep \(.*\), got \"laod\"",
    ),
    "a level that is none": (
        {"compare": {"axis": "seed", "reference": 7}},
        r"compare\.reference: expected a level of that axis \(1, 2\), got 7",
    ),
    "a figure that is none": (
        {"pareto": {"x": "e2e_p98_s", "y": "energy_j"}},
        r"pareto\.x: expected a figure, got \"e2e_p98_s\"; did you mean 'e2e_p99_s'",
    ),
    "a ratio without a reference": (
        {"figures": [{"x": "seed", "y": "ok", "relative": True}]},
        r"figures\.0\.relative: expected a compare section",
    ),
    "an unknown key of the file": ({"axis": 1}, r"s\.yaml:\d+ axis: unknown key.*did you mean 'axes'"),
    "a scenario that is no file": (
        {"scenario": "fixed_50m"},
        r"scenario: fixed_50m: no such file.*fixed_50ms",
    ),
    "two paces": (
        {"set": {"mean_gap_s": 1}, "axes": [{"grid": {"mean_rate_rps": [1]}}]},
        r"mean_gap_s: expected it or mean_rate_rps, got both",
    ),
    "a pace that is none": (
        {"axes": [{"grid": {"mean_gap_s": [1, 0]}}]},
        r"s\.yaml:\d+ mean_gap_s: expected a number > 0, got 0",
    ),
    "a pace of what has no gaps": (
        {"set": {"load": {"pattern": "all_at_once"}}, "axes": [{"grid": {"mean_gap_s": [1]}}]},
        r"load\.pattern: expected a load with gaps",
    ),
    "a pace of one request": (
        {"set": {"load.requests": 1}, "axes": [{"grid": {"mean_gap_s": [1]}}]},
        r"s\.yaml:\d+ load\.requests: expected >= 2 where a mean gap or rate is set, got 1",
    ),
    "a real server": (
        {"set": {"server.url": "http://h:1"}},
        r"server\.url: expected none \(a sweep is simulated\)",
    ),
    "faults without the wire": (
        {"set": {"server.faults.stall_rate": 0.1}},
        r"server\.faults.*: expected its default, or the whole path \(--http\)",
    ),
    "an unknown board": (
        {"axes": [{"grid": {"server.gpu": ["h100-sxm", "h100-smx"]}}]},
        r"s\.yaml:\d+ server\.gpu: expected one of .*did you mean",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_that_says_where_and_what(name: str, tmp_path: Path) -> None:
    changes, words = BAD[name]
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, **changes)
    said = str(caught.value)
    assert re.search(words, said), said
    assert len(said.splitlines()) == 1 and "Traceback" not in said


def test_a_key_that_a_level_lacks_is_missed_where_the_level_stands(tmp_path: Path) -> None:
    axis = {"grid": {"load": [{"pattern": "ramp", "start_rps": 1, "duration_s": 5}]}}
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, axes=[axis])
    text = (tmp_path / "s.yaml").read_text().splitlines()
    line = 1 + next(k for k, words in enumerate(text) if "pattern: ramp" in words)
    assert f"s.yaml:{line} load.end_rps: missing" in str(caught.value)


def test_an_override_of_an_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set seed: expected a key that is no axis"):
        sweep(tmp_path, "seed=3")
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        sweep(tmp_path, "seed")


@pytest.mark.parametrize("path", shipped("sweep"), ids=lambda path: path.stem)
def test_every_shipped_sweep_says_what_it_asks_and_is_right(path: Path) -> None:
    found = read_sweep(path)
    text = path.read_text()
    assert text.startswith("# Question: ") and "\n# Takes:    " in text
    assert found.sheet.name == path.stem and find(path.stem, "sweep") == path
    assert found.sheet.compare is not None and found.sheet.figures


def test_an_unknown_sweep_names_the_near_one() -> None:
    with pytest.raises(ConfigError, match=r"no shipped sweep; did you mean 'arrival_shaping'"):
        find("arival_shaping", "sweep")
