"""The figure of ``theory video``, its sweeps, and mean percentage errors by sweep."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_figures import all_text

from analysis import figures
from analysis.figures import video
from analysis.figures.style import Drawn
from loadgen import cli
from loadgen.physics.video import MODELS, video_cost
from loadgen.physics.video_sweeps import Setting, find_sweeps

PAPER, LARGE = MODELS["paper"], MODELS["wan2.1-14b"]
AT = Setting(720, 1280, 81, 50)
REAL = {"tokens": "exact", "vae": "wan21", "mu_attention": 0.36, "mu_linear": 0.333}
HEADER = "height,width,num_frames,steps,duration_generate,energy_generate_gpu\n"
SETTINGS = [
    *(Setting(9 * k, 16 * k, 81, 50) for k in (30, 80, 120)),
    *(AT._replace(frames=t) for t in (21, 41)),
    *(AT._replace(steps=s) for s in (10, 100, 150, 200)),
]


def points(settings: list[Setting], error: float = 0.0, energy: bool = True) -> list[dict[str, Any]]:
    """Measured videos as the command lists them, two a setting: off by ``error`` +- 1 %."""
    found = []
    for setting in settings:
        cost = video_cost(PAPER, *setting)
        seconds, wh = float(cost.latency_s), float(cost.energy_wh)
        for spread in (-0.01, 0.01):
            row = setting._asdict() | {
                "latency_s": seconds * (1 + error + spread),
                "predicted_latency_s": seconds,
            }
            row |= {"energy_wh": wh * (1 + spread) if energy else None, "predicted_energy_wh": wh}
            found.append(row)
    return found


def draw(*args: Any) -> Drawn:
    drawn = video.scaling(PAPER, {}, AT, *args)
    assert drawn is not None
    return drawn


@pytest.fixture(scope="module")
def bare() -> Drawn:
    return draw()


def top(ax: Any) -> tuple[np.ndarray, np.ndarray]:
    """The line over the areas."""
    line = ax.lines[0]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_parts_add_up_to_the_latency() -> None:
    sizes: dict[str, Any] = {"height": np.array([480.0, 720.0]), "width": 1280.0, "frames": 81, "steps": 50}
    cases: tuple[tuple[Any, dict[str, Any]], ...] = ((PAPER, {}), (LARGE, REAL))
    for model, rules in cases:
        parts = video.latency_by_part(model, sizes, rules)
        assert parts.shape == (len(video.PARTS), 2) and np.all(parts > 0)
        whole = video_cost(model, *sizes.values(), **rules).latency_s
        np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=1e-12)


def test_parts_are_those_of_the_reference_point() -> None:
    # theory.md 2.4: shares of 1.833462e17 FLOP at one rate.
    seconds = video.latency_by_part(PAPER, AT._asdict(), {})
    rate = 0.456 * 989e12
    text, vae = 7.627862e12, 1.145981e14 + 7.045330e12
    flop = [text, vae, 5.161316e15, 1.642825e16, (1.616273e17 - 1.534132e17), 1.534132e17]
    np.testing.assert_allclose(seconds, np.array(flop) / rate, rtol=2e-5)


def test_two_rates_slow_the_parts_they_are_of() -> None:
    usual = video.latency_by_part(PAPER, AT._asdict(), {})
    slow = video.latency_by_part(PAPER, AT._asdict(), {"mu_attention": 0.228, "mu_linear": 0.456})
    np.testing.assert_allclose(slow / usual, [1, 1, 1, 1, 1, 2], rtol=1e-12)


def test_three_panels_hold_the_study_s_ranges_and_energy(bare: Drawn) -> None:
    height, frames, steps = bare.figure.axes
    for ax, (low, high) in ((height, (144, 1980)), (frames, (4, 100)), (steps, (1, 200))):
        x, seconds = top(ax)
        assert (x[0], x[-1]) == (low, high)
        assert np.all(np.diff(seconds) > 0) and len(ax.collections) == len(video.PARTS)
        right: Any = ax.child_axes[0]
        assert right.get_ylabel() == "energy, Wh"
        assert right._functions[0](3600.0) == pytest.approx(700)
    x, seconds = top(height)
    assert seconds[-1] == pytest.approx(5.54 * 3600, rel=1e-3)  # theory.md: 3520x1980 takes 5.54 h
    x, seconds = top(frames)
    assert seconds[x == 81] == pytest.approx(406.547, rel=1e-5)
    x, seconds = top(steps)
    assert seconds[x == 50] == pytest.approx(406.547, rel=1e-5)
    text = " ".join(all_text(bare).split())
    assert "estimated" in text and "measured" not in text and "No interval" in text
    assert "83.7 %" in text and "720x1280, 81 frames, 50 steps" in text
    assert "406.5 s" in bare.alt and "79.05 Wh" in bare.alt


def test_measured_points_stand_at_their_means_with_their_spread() -> None:
    drawn = draw(points(SETTINGS, error=0.1))
    for ax, places in zip(drawn.figure.axes, ((270, 720, 1080), (21, 41), (10, 100, 150, 200)), strict=True):
        marks: Any = ax.containers
        circles = {float(c[0].get_xdata()[0]): c for c in marks if c[0].get_marker() == "o"}
        squares = {float(c[0].get_xdata()[0]): c for c in marks if c[0].get_marker() == "s"}
        assert set(circles) == set(squares) >= set(map(float, places))
        x, seconds = top(ax)
        for place in places:
            predicted = float(np.interp(place, x, seconds))
            assert circles[place][0].get_ydata()[0] == pytest.approx(1.1 * predicted, rel=1e-3)
            assert squares[place][0].get_ydata()[0] == pytest.approx(predicted, rel=1e-3)
            (bar,) = circles[place][2][0].get_segments()
            # Two values +- 1 %: a sample standard deviation of sqrt(2) %, to both sides.
            assert bar[1][1] - bar[0][1] == pytest.approx(2 * 0.01 * 2**0.5 * predicted, rel=1e-3)
    text = " ".join(all_text(drawn).split())
    assert "n = 18 videos at 9 settings" in text and "6, 6, 10 videos in the panels" in text
    assert "off by 9.1 %" in drawn.alt


def test_a_size_in_other_proportions_stands_where_it_has_as_many_pixels() -> None:
    drawn = draw(points([Setting(720, 720, 81, 50)], energy=False))
    mark: Any = drawn.figure.axes[0].containers[0]
    assert mark[0].get_xdata()[0] == pytest.approx(540)
    assert "measured, Wh" not in all_text(drawn)
    # One step only is a range of its own, not an empty axis.
    x, _ = top(draw(points([AT._replace(steps=1)])).figure.axes[2])
    assert (x[0], x[-1]) == (1, 4)


def test_the_figure_is_harmless_text_of_one_id(bare: Drawn) -> None:
    text = figures.svg(bare)
    assert set(re.findall(r'id="([^"]+)"', text)) and len(text) < 200_000
    assert all(i.startswith("video-scaling") for i in re.findall(r'id="([^"]+)"', text))
    assert bare.alt.endswith(".") and bare.alt.count(". ") == 0
    assert figures.svg(draw()) == text


def test_sweeps_are_the_settings_that_differ_in_one_thing() -> None:
    found = find_sweeps([*SETTINGS, AT, Setting(480, 832, 33, 20)])
    assert {d: (s.values, s.rows) for d, s in found.items()} == {
        "resolution": (3, (0, 1, 2, 9)),
        "frames": (3, (1, 3, 4, 9)),
        "steps": (5, (1, 5, 6, 7, 8, 9)),
    }
    assert find_sweeps([]) == {}
    alone = find_sweeps([AT, AT])
    assert all(sweep.values == 1 and sweep.rows == (0, 1) for sweep in alone.values())


def measured(path: Path, errors: dict[Setting, float]) -> Path:
    rows = []
    for setting, error in errors.items():
        cost = video_cost(PAPER, *setting)
        seconds, kwh = float(cost.latency_s) / (1 + error), float(cost.energy_wh) / 1000
        rows.append(",".join(f"{value!r}" for value in (*map(float, setting), seconds, kwh)))
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_errors_by_sweep_and_over_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = dict.fromkeys(SETTINGS, 0.0)
    errors |= {SETTINGS[0]: 0.3, SETTINGS[3]: -0.2, SETTINGS[5]: 0.1, SETTINGS[6]: -0.1}
    path = measured(tmp_path / "points.csv", errors)
    assert cli.main(["theory", "video", "--measured", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    latency = {d: sweep["mpe_percent"]["latency"] for d, sweep in found["sweeps"].items()}
    # Of 3, 3 and 5 videos: 30 %; 20 %; 10 % twice. Over all 9 of them 70 %.
    assert latency == pytest.approx({"resolution": 10, "frames": 20 / 3, "steps": 4})
    assert found["mpe_percent"]["latency"] == pytest.approx(70 / 9)
    assert found["mpe_percent"]["energy"] == pytest.approx(0, abs=1e-9)
    assert found["sweeps"]["frames"]["held"] == {"height": 720, "width": 1280, "steps": 50}
    assert [sweep["n"] for sweep in found["sweeps"].values()] == [3, 3, 5]
    assert cli.main(["theory", "video", "--measured", str(path)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"resolution \(frames 81, steps 50\) +10\.0 % +0\.0 % +3 +3", text)
    assert re.search(r"all points +7\.8 % +0\.0 % +9 +9", text) and "…" not in text


def test_nothing_varied_has_no_error_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = measured(tmp_path / "points.csv", {AT: 0.5})
    assert cli.main(["theory", "video", "--measured", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweeps"] == {
        "resolution": None,
        "frames": None,
        "steps": None,
    }


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_command_writes_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    path = tmp_path / f"scaling.{ending}"
    csv = measured(tmp_path / "points.csv", dict.fromkeys(SETTINGS, 0.1))
    words = ["theory", "video", "--figure", str(path)]
    assert cli.main([*words, *(["--measured", str(csv)] if ending == "svg" else [])]) == 0
    begins = {"svg": b"<svg", "png": b"\x89PNG"}[ending]
    assert path.read_bytes().startswith(begins)
    assert capsys.readouterr().out


def test_a_figure_that_cannot_be_written_is_one_line_and_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "x.svg"
    assert cli.main(["theory", "video", "--figure", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"loadgen: theory video: --figure: cannot write {path}: No such file or directory\n"
    with pytest.raises(SystemExit):
        cli.main(["theory", "video", "--figure", "x.gif"])
    assert "expected a file that ends in .svg, .png, .pdf" in capsys.readouterr().err
