"""``loadgen theory video``: what it prints, its one-line mistakes, and measured points beside predictions."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.errors import ConfigError
from loadgen.physics.video import MODELS, mean_percentage_error, video_cost, video_flop
from loadgen.verbs import theory_video

SHARED = Path(os.environ.get("LOADGEN_SHARED", Path(__file__).resolve().parent.parent.parent / "shared"))
MEASURED = SHARED / "data" / "video_benchlab_measurements.csv.gz"

Talk = Callable[..., dict[str, Any]]


def test_mean_percentage_error() -> None:
    assert mean_percentage_error([100, 200], [110, 160]) == pytest.approx(15)
    for measured, predicted in (([], []), ([1, 2], [1]), ([0.0], [1.0])):
        with pytest.raises(ConfigError):
            mean_percentage_error(measured, predicted)


@pytest.mark.skipif(not MEASURED.exists(), reason="the measurements are not in the repository")
def test_one_rate_misses_the_real_measurements_and_two_rates_do_not(talk: Talk) -> None:
    real = ("--measured", MEASURED, "--steps", 50, "--tokens", "exact", "--vae", "wan21")
    both = talk("video", *real, "--config", "wan2.1-14b", "--mu-attn", 0.36, "--mu-linear", 0.333)
    assert both["n"] == 12 and both["mpe_percent"]["latency"] < 1
    one = talk("video", *real, "--config", "wan2.1-14b")
    assert one["mpe_percent"]["latency"] > 20
    paper = talk("video", "--measured", MEASURED, "--steps", 50)
    assert paper["n"] == 10 and paper["mpe_percent"]["latency"] == pytest.approx(9.8, abs=0.1)


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str]) -> Talk:
    """What ``theory WORDS --json`` prints; without ``as_json`` the text stands under ``text``."""

    def run(*words: object, as_json: bool = True) -> dict[str, Any]:
        parser = argparse.ArgumentParser(prog="theory")
        verbs = parser.add_subparsers(required=True)
        theory_video.add_video(verbs, argparse.RawDescriptionHelpFormatter, theory_video.show_video)
        theory_video.add_thresholds(verbs, argparse.RawDescriptionHelpFormatter, theory_video.show_thresholds)
        args = parser.parse_args([str(word) for word in words] + ["--json"] * as_json)
        assert args.go(args) == 0
        out = capsys.readouterr().out
        found = json.loads(out) if as_json else {"text": out}
        assert isinstance(found, dict)
        return found

    return run


def test_the_command_prints_the_reference_points(talk: Talk) -> None:
    real = ("--tokens", "exact", "--vae", "wan21")
    for name, rules, tokens, total in (
        ("paper", (), 76_500, 1.833462e17),
        ("wan2.1-1.3b", real, 75_600, 1.256268e17),
        ("wan2.1-14b", real, 75_600, 6.529758e17),
    ):
        found = talk("video", "--config", name, *rules)
        keys = ["text", "vae_conv", "vae_mid", "self", "cross", "mlp", "tau", "total"]
        assert list(found["flop"]) == keys
        assert found["flop"]["total"] == pytest.approx(total, rel=1e-6)
        assert found["tokens"] == tokens and found["label"] == "estimated"
        assert found["energy_wh"] == pytest.approx(700 * found["latency_s"] / 3600)
        assert found["parameters"]["hidden"] == MODELS[name].hidden


def test_the_command_takes_every_parameter(talk: Talk) -> None:
    size = ("--height", 480, "--width", 832, "--frames", 33, "--steps", 20, "--guidance-passes", 1)
    found = talk("video", *size, "--mu-attn", 0.35, "--mu-linear", 0.2)
    cost = video_cost(MODELS["paper"], 480, 832, 33, 20, guidance_passes=1, mu_attention=0.35, mu_linear=0.2)
    assert found["latency_s"] == float(cost.latency_s)
    assert talk("video", *size, "--mu", 0.3)["parameters"]["mu_attn"] == 0.3


def test_the_command_says_where_its_rules_leave_the_pipeline(talk: Talk) -> None:
    rounded, config = talk("video")["notes"]
    assert "76,500" in rounded and "75,600" in rounded and "no released model" in config
    assert talk("video", "--config", "wan2.1-14b", "--frames", 80)["notes"] == []
    assert "no video of 8x1280" in talk("video", "--height", 8)["notes"][0]


def test_people_get_tables(talk: Talk) -> None:
    text = talk("video", as_json=False)["text"]
    assert "88.15%" in text and "406.55 s" in text and "79.051 Wh" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--config", "wan2.1-13b"], r"config: .*got 'wan2.1-13b'; did you mean 'wan2.1-1.3b'"),
        (["--tokens", "exakt"], "tokens: expected one of paper, exact; .*did you mean 'exact'"),
        (["--vae", "tabel"], "vae: expected one of table, text, wan21; .*did you mean 'table'"),
        (["--mu", "0"], "--mu: expected a share of the peak"),
        (["--mu", "nan"], "--mu: expected a share of the peak"),
        (["--mu-attn", "1.5"], "mu-attn: expected a share of the peak, 0 < mu <= 1, got 1.5"),
        (["--mu-linear", "-1"], "mu-linear: expected a number > 0, got -1"),
        (["--mu", "0.3", "--mu-attn", "0.3"], "expected either --mu or --mu-attn and --mu-linear"),
        (["--tokens", "exact", "--width", "15"], "width: expected >= 16 pixels"),
        (["--measured", "none.csv"], "none.csv: cannot be read"),
        (["--measured", "none.csv", "--frames", "4"], "leave out --frames"),
    ],
)
def test_a_mistake_is_one_clear_line(talk: Talk, words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        talk("video", *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--height", "--width", "--frames", "--steps", "--guidance-passes"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "9" * 400])
def test_sizes_on_the_command_line_are_whole_numbers(
    talk: Talk, capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    with pytest.raises(SystemExit):
        talk("video", flag, value)
    assert f"argument {flag}: expected a whole number from 1 to 1000000, got" in capsys.readouterr().err


def test_a_cut_off_file_of_points_is_refused(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "points.csv.gz"
    path.write_bytes(gzip.compress((HEADER + "WAN2.1-1.3B,480,832,81,50,1,1\n" * 999).encode())[:-30])
    with pytest.raises(ConfigError, match=r"points\.csv\.gz: cut off"):
        talk("video", "--measured", path)


@pytest.mark.parametrize(
    "size", [(0, 1280, 81, 50), (720, -1, 81, 50), (720, 1280, np.nan, 50), (720, 1280, 81, 0)]
)
def test_sizes_are_positive_numbers(size: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError, match="expected a number > 0"):
        video_flop(MODELS["paper"], *size)


HEADER = "model_name,height,width,num_frames,steps,duration_generate,energy_generate_gpu\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("height,width\n1,2\n", "no num_frames, duration_generate, steps"),
        (HEADER, "no row of a paper"),
        (HEADER + "Mochi,480,832,81,50,1,1\n", "no row of a paper"),
        (HEADER + "WAN2.1-1.3B,480,832,81,50,fast,1\n", r"points.csv:2 duration_generate: .*got 'fast'"),
        (HEADER + "WAN2.1-1.3B,1e300,832,81,50,1,1\n", r"points.csv:2 height: .*got '1e300'"),
        (HEADER + "x" * 200_000, "points.csv: cannot be read as CSV"),
        (HEADER + "WAN2.1-1.3B,480,832,81,50\n", r"points.csv:2 duration_generate: .*got None"),
    ],
)
def test_measured_points_that_cannot_be_used(talk: Talk, tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        talk("video", "--measured", path)


def test_measured_points_beside_predictions(talk: Talk, tmp_path: Path) -> None:
    cost = video_cost(MODELS["paper"], 720, 1280, 81, 50)
    row = f"720,1280,81,50,{float(cost.latency_s) / 1.1!r}"
    path = tmp_path / "points.csv.gz"
    path.write_bytes(
        gzip.compress(f"height,width,num_frames,steps,duration_generate\n{row}\n{row}\n".encode())
    )
    found = talk("video", "--measured", path)
    assert found["mpe_percent"]["latency"] == pytest.approx(10) and found["mpe_percent"]["energy"] is None
    text = talk("video", "--measured", path, as_json=False)["text"]
    assert "+10.0%" in text and "not measured" in text
