"""docs/errata.md and what it is made of: every id, figures recomputed here, verdicts that can fail."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from loadgen import cli
from loadgen.physics.errata.collection import all_errata
from loadgen.physics.errata.digits import number, quantity
from loadgen.physics.errata.erratum import (
    MEANING,
    VERDICTS,
    ErrataError,
    Erratum,
    Figure,
    Relation,
    proofread,
)
from loadgen.physics.errata.markdown import COMMAND, markdown
from loadgen.physics.errata.published import CAMPAIGN, LTX_FIRST_STAGE_S, WAN_480P_S
from loadgen.verbs import theory

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LOADGEN_SHARED", ROOT.parent / "shared"))
MEASURED = SHARED / "data" / "video_benchlab_measurements.csv.gz"
ERRATA = {entry.id: entry for entry in all_errata()}


def given(entry: str, what: str) -> float:
    """The computed number of the figure of this text, or of the only one that begins so."""
    figures = ERRATA[entry].figures
    (figure,) = [f for f in figures if f.what == what] or [f for f in figures if f.what.startswith(what)]
    return figure.given


def test_every_id_is_there_once_and_says_something() -> None:
    expected = [f"A{i}" for i in range(1, 37)] + [f"B{i}" for i in range(1, 24)]
    found = [entry.id for entry in all_errata()]
    assert found[: len(expected)] == expected and len(set(found)) == len(found)
    for entry in ERRATA.values():
        assert entry.where and entry.stated and (entry.figures or entry.cause)
        if entry.id[0] in "AB":
            assert entry.document == ("report" if entry.id[0] == "A" else "paper")
        if entry.fault is None:
            assert entry.checks and all(figure.holds for figure in entry.checks)
    assert set(MEANING) == set(VERDICTS)


# The digits of the reference values; none of them is in the code that computes.
REFERENCE = {
    ("A1", "fitted beta"): (1.170609e-8, 1e-6),
    ("A2", "const, 0.7"): (2.971338e-2, 1e-6),
    ("A2", "const, 0.675"): (1.878047e-2, 1e-6),
    ("A3", "gamma, 0.7"): (2.747314e-4, 1e-6),
    ("A4", "eta as printed, 0.675"): (1.159288e-8, 1e-6),
    ("A5", "A as printed, 0.7"): (2.972232e-2, 1e-6),
    ("A6", "B as it must be"): (7.205117e-8, 1e-6),
    ("A10", "g* from the formulas"): (412_564, 1e-6),
    ("A14", "K and V"): (42.0534, 2e-6),
    ("A21", "A with the output projection, 0.675"): (2.023600e-2, 1e-6),
    ("A28", "energy laws"): (0.201559, 3e-6),
    ("A31", "mean power"): (79.2, 1e-3),
    ("A31", "arithmetic"): (3.29e-3, 2e-3),
    ("B3", "from 410 s, the released model and its"): (0.3098, 1e-4),
    ("B4", "time with"): (278.56, 2e-5),
    ("B4", "energy"): (79.051, 1e-5),
    ("B9", "twice the frames"): (3.510, 2e-4),
    ("B10", "MLP, exact"): (923, 1e-3),
    ("B21", "Mochi"): (611.9, 1e-4),
    ("F11", "time of the 14B"): (1447.9, 3e-5),
}


@pytest.mark.parametrize(("entry", "what"), REFERENCE, ids=str)
def test_computed_numbers_are_the_reference_values(entry: str, what: str) -> None:
    value, relative = REFERENCE[entry, what]
    assert given(entry, what) == pytest.approx(value, rel=relative)


def test_computed_numbers_by_hand() -> None:
    llama = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # weights of the blocks
    dominant = llama - 32 * 4096**2 + 4096 * 128256  # equations 2 to 6 have no output projection
    assert given("A2", "const, 0.7") == pytest.approx(dominant * 4 / (0.28 * 3.35e12), rel=1e-12)
    assert given("A2", "without") == pytest.approx(
        (3 * 32 * 4096 * 14336 + 4096 * 128256) * 4 / (0.28 * 3.35e12), rel=1e-12
    )
    assert given("A16", "FLOP of Table 7") == pytest.approx((4 * 4096 + 5 * 32) / 4096, rel=1e-12)
    assert given("A20", "what is left") == pytest.approx(
        (4096 + 128256 * 4096 + 1) * 4 / (0.443 * 3.35e12), rel=1e-12
    )
    assert given("A24", "eta x 293") == pytest.approx(2.61e-2 * 293 / 3600, rel=1e-12)
    assert given("A26", "mean energy of a reply with D / 10") == pytest.approx(
        6.05e-5 * 1200 + 5.00e-3 + 2.13e-3 * 52 + 2.87e-8 * 1200 * 52 - 4.71e-3, rel=1e-12
    )
    assert given("A31", "arithmetic") == pytest.approx(2 * llama * 1200 / 989e12 * 700 / 3600, rel=1e-12)
    assert given("A33", "four idle") == pytest.approx(4 * 120 * 0.5 / 3600, rel=1e-12)
    assert given("B2", "weights") == 30 * (8 * 1536**2 + 2 * 1536 * 8960)
    tokens = (1 + 81 / 4) * 45 * 80
    block = 8 * tokens * 2048**2 + 4 * tokens**2 * 2048 + 16 * tokens * 2048**2
    cross = 4 * tokens * 2048**2 + 4 * 512 * 2048**2 + 4 * tokens * 512 * 2048
    passes = 100 * (32 * (block + cross) + 2 * 256 * 2048 + 14 * 2048**2)
    once = 7.627862e12 + 1.145981e14 + 7.045330e12  # text encoder, decoder, its middle attention
    assert given("B4", "time") == pytest.approx((passes + once) / (0.456 * 989e12), rel=1e-7)
    beta = 989 / 3.35
    assert given("B10", "MLP, rightly") == pytest.approx(
        2 * beta * 8192 / (2 * 8192 - 2 * beta * 5), rel=1e-12
    )
    assert [f.given for f in ERRATA["B20"].figures][:2] == pytest.approx([90.5, 31.2069], rel=1e-5)
    assert given("F1", "households, over") == pytest.approx(10.29, abs=5e-3)
    assert given("F1", "households, with CPU") == pytest.approx(21.0, abs=5e-2)


def test_intercept_of_a_line_through_the_prefill_law() -> None:
    """By fitting the line: no closed form."""
    s = np.linspace(200, 4000, 200_001)
    _, intercept = np.polyfit(s, 3.18e-4 * s + 1.17e-8 * s**2 + 1.68e-2, 1)
    assert given("A25", "B, intercept") == pytest.approx(intercept * 684 / 3600, rel=1e-3)


@pytest.mark.parametrize(
    ("entry", "verdict"),
    {"A13": "reproduces", "A14": "typo", "A31": "not physical", "A34": "ambiguous", "A35": "wording"}.items(),
)
def test_verdicts(entry: str, verdict: str) -> None:
    assert ERRATA[entry].verdict == verdict
    assert ERRATA[entry].read == (entry == "A34")


# --- verdicts that can fail ---


def perturbed(entry: Erratum, index: int, factor: float) -> Erratum:
    figures = list(entry.figures)
    figures[index] = replace(figures[index], stated=figures[index].stated * factor)
    return replace(entry, figures=tuple(figures))


def test_another_stated_number_has_another_verdict() -> None:
    right = ERRATA["A24"]
    assert perturbed(right, 0, 1.001).verdict == "reproduces"
    wrong = perturbed(right, 0, 1.01)
    assert wrong.verdict == "not reproduced" and wrong.verdict_on(wrong.figures[0]) == "not reproduced"
    with pytest.raises(ErrataError, match=r"A24: eta x 293 W: expected to reproduce within 0\.005"):
        proofread([wrong])
    mended = perturbed(ERRATA["A14"], 0, 42.05 / 42.5)
    assert mended.verdict == "reproduces"
    with pytest.raises(ErrataError, match="A14: said to be typo, but every check holds"):
        proofread([mended])


def test_every_entry_that_reproduces_would_be_caught_if_it_did_not() -> None:
    for entry in (e for e in ERRATA.values() if e.verdict == "reproduces"):
        for index, figure in enumerate(entry.figures):
            if figure.role == "check" and figure.stated:
                # Enough to leave a factor of 10, in the direction that an inequality minds.
                off = perturbed(entry, index, 0.001 if figure.relation == ">=" else 1000)
                assert off.verdict == "not reproduced", (entry.id, figure.what)
                with pytest.raises(ErrataError, match=entry.id):
                    proofread([off])


def test_an_explanation_must_explain() -> None:
    entry = ERRATA["A3"]
    (index,) = (i for i, f in enumerate(entry.figures) if f.role == "cause")
    with pytest.raises(ErrataError, match=r"A3: MLP alone, at 0\.7: does not explain"):
        proofread([perturbed(entry, index, 1.1)])


def test_what_else_proofreading_refuses() -> None:
    entry = ERRATA["A24"]
    with pytest.raises(ErrataError, match="A24: comes twice"):
        proofread([entry, entry])
    with pytest.raises(ErrataError, match="A24: expected a check or a verdict by reading"):
        proofread([replace(entry, figures=())])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ErrataError, match="expected a finite number"):
            proofread([replace(entry, figures=(replace(entry.figures[0], given=bad),))])


@pytest.mark.parametrize(
    ("stated", "relation", "computed", "tolerance", "holds"),
    [
        (1.0, "=", 1.004, 0.005, True),
        (1.0, "=", 1.006, 0.005, False),
        (1.006, "=", 1.0, 0.005, False),
        (-2.0, "=", -2.001, 0.005, True),
        (2.0, "=", -2.0, 9.0, False),
        (0.0, "=", 0.0, 0.0, True),
        (0.0, "=", 4.0, 0.5, False),
        (1e5, "=", 4e5, 9.0, True),
        (1e8, "=", 4e5, 9.0, False),
        (10.0, "<=", 10.3, 0.0, True),
        (10.0, "<=", 9.9, 0.0, False),
        (10.0, "<=", 9.9, 0.05, True),
        (1.1e-3, ">=", 1.7e-3, 0.005, False),
        (90.0, ">=", 87.0, 0.0, True),
    ],
)
def test_relations(stated: float, relation: Relation, computed: float, tolerance: float, holds: bool) -> None:
    assert Figure("x", stated, computed, "", tolerance, relation).holds is holds


# --- forms ---


def test_json_has_every_entry_with_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["theory", "errata", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["id"] for entry in found["errata"]] == [erratum.id for erratum in all_errata()]
    assert sum(found["verdicts"].values()) == len(found["errata"]) == len(ERRATA)
    (lamp,) = (entry for entry in found["errata"] if entry["id"] == "A28")
    assert lamp["verdict"] == "reproduces" and lamp["decided"] == "by numbers"
    assert lamp["figures"][1]["given"] == pytest.approx(2.94) and lamp["figures"][1]["tolerance"] == 0.05


def test_the_document_is_what_the_command_writes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["theory", "errata", "--markdown"]) == 0
    written = capsys.readouterr().out
    same = (ROOT / "docs" / "errata.md").read_bytes() == written.encode()
    assert same, f"docs/errata.md is not what the code computes; look at the difference, then: {COMMAND}"
    for name in ERRATA:
        assert f"**{name}** " in written


def test_the_document_follows_the_numbers() -> None:
    changed = [perturbed(e, 0, 2.0) if e.id == "A24" else e for e in ERRATA.values()]
    assert "| 0.00426 Wh/token | = | 0.002124 Wh/token | 0.4987 | not reproduced |" in markdown(changed)


def test_text_shows_lines_or_everything_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["theory", "errata"]) == 0
    out = capsys.readouterr().out
    assert "A26" in out and "not physical" in out and f"{len(ERRATA)} entries" in out
    assert cli.main(["theory", "errata", "b4", "A34"]) == 0
    out = capsys.readouterr().out
    assert "406.5 s" in out and "by reading" in out and "A26" not in out
    assert cli.main(["theory", "errata", "--verdict", "not physical"]) == 0
    assert [line[:3] for line in capsys.readouterr().out.splitlines()[1:] if line[:1] in "AB"] == [
        "A31",
        "B19",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["A99"], "got A99"),
        (["B1O"], "got B1O; did you mean 'B1'?"),
        (["--verdict", "tipo"], "got tipo; did you mean 'typo'?"),
    ],
)
def test_one_line_for_a_mistake(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["theory", "errata", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err and "Traceback" not in err


def test_the_verb_is_in_the_help() -> None:
    parser = argparse.ArgumentParser()
    theory.add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter)
    assert parser.parse_args(["theory", "errata", "A1"]).ids == ["A1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.68e-8, "1.68e-8"),
        (9.99996, "10"),
        (0.00099996, "0.001"),
        (412563.6, "412,564"),
        (999999.6, "1e6"),
        (-0.0532, "-0.0532"),
        (1.307e15, "1.307e15"),
        (128256.0, "128,256"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text and quantity(value, "") == text and quantity(value, "s") == f"{text} s"


@pytest.mark.skipif(not MEASURED.exists(), reason="the measurements are not in the repository")
def test_the_public_table_has_the_means_that_are_quoted() -> None:
    with gzip.open(MEASURED, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["duration_generate"]) > 0]

    def mean(name: str, *columns: str, width: str = "") -> float:
        """Of a model's rows, of the sum of the columns; 0 where a stage is not there."""
        of = [
            row for row in rows if name.lower() in row["model_name"].lower() and width in ("", row["width"])
        ]
        return fmean(sum(float(row[column] or 0) for column in columns) for row in of)

    for name, (n, seconds, wh) in CAMPAIGN.items():
        width = "1280" if "14B" in name else ""
        time = mean(name, "duration_generate", "duration_upsample", "duration_denoise", width=width)
        energy = mean(name, "energy_generate_gpu", "energy_upsample_gpu", "energy_denoise_gpu", width=width)
        assert time == pytest.approx(seconds, rel=5e-4), name
        assert 1000 * energy == pytest.approx(wh, rel=5e-4), name
        assert n == (1 if "14B" in name else 10)
    assert mean("LTX", "duration_generate") == pytest.approx(LTX_FIRST_STAGE_S, rel=1e-4)
    assert mean("WAN2.1-T2V-1.3B", "duration_generate") == pytest.approx(WAN_480P_S, rel=1e-4)
