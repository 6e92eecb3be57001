"""The report's HTML, read by a parser of its own: whole, inert, and without a figure that is none."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import constant, failed, lattice, run_of

from analysis.compare import compare
from analysis.report import render, report, write
from analysis.report.blocks import Cell, Column, Page, Picture, Table
from analysis.report.page import asset, html, inert, visible
from analysis.report.sections.setup import scenario_yaml
from analysis.report.words import certainty, difference, figure, share
from analysis.run import Run, load_run
from analysis.study import Options, study
from analysis.study.scale import Service
from analysis.summary import summarize
from loadgen.errors import LoadgenError, RunDirError
from loadgen.provenance import digest
from loadgen.scenario_file import load_scenario
from loadgen.verbs.report import add_verb

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path", "rect", "line", "circle"}
HOSTILE = (
    "</td></script><script>window.__pwned=1</script><img src=x onerror=alert(1)> & \"q\" 'a' {{7*7}} $x_{$"
)


class Parsed(HTMLParser):
    """Elements with their attributes, ids and text; unbalanced ends are kept as faults."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)

    @property
    def lines(self) -> str:
        return "".join(self.words)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(*runs: Run, options: Options | None = None) -> str:
    return render([study(run, options) for run in runs], compare(runs) if len(runs) > 1 else None)


def sound(text: str) -> Parsed:
    """What must hold of every page."""
    parsed = Parsed(text)
    assert parsed.faults == []
    ids = Counter(a["id"] for _, a in parsed.elements if a.get("id"))
    assert [name for name, n in ids.items() if n > 1] == []
    referred = [
        ref
        for _, a in parsed.elements
        for key in ("aria-labelledby", "aria-describedby")
        for ref in (a.get(key) or "").split()
    ]
    referred += [(a.get("href") or "")[1:] for tag, a in parsed.elements if tag == "a"]
    assert set(referred) <= set(ids)
    for tag, attributes in parsed.elements:
        assert not [key for key in attributes if key.startswith("on")], tag
        for key in ("src", "href", "xlink:href", "action", "data", "srcset"):
            target = attributes.get(key)
            assert target is None or target.startswith(("#", "data:,")), (tag, key, target)
    assert parsed.count("script") == 1
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for never in (r"\bnan\b", r"\bNone\b", r"\binf\b", r"-inf", r"\[object", r"Estimate\("):
        assert not re.search(never, parsed.text), re.search(f".{{40}}{never}.{{20}}", parsed.text)
    return parsed


@pytest.fixture(scope="module")
def mixed(mixed_run: Path) -> str:
    service = Service(1e6, pue=1.2, price_per_kwh=0.2, grid="FR")
    return page_of(load_run(mixed_run), options=Options(window="steady", service=service))


def test_a_page_says_the_verdict_first_and_then_what_was_found(mixed: str) -> None:
    parsed = sound(mixed)
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", mixed)
    assert titles[:3] == ["Verdict", "Headline", "Where the energy went"]
    assert titles[-4:] == ["Configuration", "Hardware and software", "How to reproduce", "Data files"]
    assert {"Systematic uncertainty", "Latency", "At the size of a service", "Method"} <= set(titles)
    assert "95 % interval" in parsed.text
    assert parsed.count("svg") >= 6


def test_a_simulated_board_has_no_sensor_gain(mixed: str) -> None:
    """Found: a page of a simulated run told +-5 % of a sensor that is none."""
    text = sound(mixed).text
    assert "Certain bound by the readings" in text and "boards' sensor gain" not in text


def test_the_headline_is_that_of_the_summary(mixed: str, mixed_run: Path) -> None:
    summary = summarize(load_run(mixed_run))
    wh = summary["energy"]["gpu"]["energy_per_request_wh"]
    shown = re.search(r'GPU energy per request</dt>\s*<dd class="value">([\d.,]+) (.)Wh', mixed)
    assert shown is not None
    scale = {"m": 1e-3, "µ": 1e-6}[shown[2]]
    assert float(shown[1]) * scale == pytest.approx(wh["value"], rel=5e-3)


def test_equal_runs_give_equal_pages() -> None:
    first, second = (page_of(run_of(lattice(60, 0.5))) for _ in range(2))
    assert first == second


def test_a_page_allows_its_own_script_alone_and_no_request(mixed: str) -> None:
    import base64
    import hashlib

    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', mixed)
    script = re.search(r"<script>(.*?)</script>", mixed, re.DOTALL)
    assert policy is not None and script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    said = dict(part.split(" ", 1) for part in policy[1].replace("&#39;", "'").split("; "))
    assert said["default-src"] == "'none'"
    assert said["script-src"] == f"'sha256-{digest}'"
    assert said["img-src"] == "data:"
    assert {"connect-src", "font-src", "frame-src"} & set(said) == set()
    assert re.findall(r"(?:@import|url\((?!#))", asset("style.css")) == []


def test_the_configuration_on_the_page_is_the_run_again(mixed: str, mixed_run: Path, tmp_path: Path) -> None:
    manifest = load_run(mixed_run).manifest
    text = scenario_yaml(manifest)
    assert text is not None
    assert yaml.safe_load(text) == manifest["scenario"]
    assert text.splitlines()[3] in mixed
    (mixed_run.parent / "again.yaml").write_text(text)
    scenario = load_scenario(mixed_run.parent / "again.yaml")
    (mixed_run.parent / "again.yaml").unlink()
    assert digest(scenario.model_dump(mode="json")) == manifest["scenario_hash"]


def test_what_others_wrote_stays_text() -> None:
    records = [
        *lattice(60, 0.5),
        failed(60, 30.0, error=HOSTILE),
        failed(61, 30.5, error="\u202etxt\x00\x1b[31m"),
    ]
    server = {"kind": HOSTILE, "url": HOSTILE, "model": HOSTILE, "gpu": HOSTILE, "dtype": HOSTILE}
    run = run_of(
        records,
        constant(300.0, 32.0),
        name=HOSTILE,
        server=server,
        scenario={"name": HOSTILE, HOSTILE: [HOSTILE]},
        warnings=[HOSTILE],
        gpus=[{"domain": "gpu0", "name": HOSTILE, "uuid": HOSTILE, "power_limit_w": 700.0}],
        host={"system": HOSTILE},
        packages={HOSTILE: HOSTILE},
    )
    calm = run_of(records[:60], constant(300.0, 32.0))
    text = page_of(calm, run)
    parsed = sound(text)
    assert parsed.count("img") == 0
    assert "window.__pwned=1" in parsed.text  # there it stands, as text
    assert "&lt;script&gt;window.__pwned=1&lt;/script&gt;" in text
    assert "{{7*7}}" in parsed.text
    assert not set(text) & set("\u202e\x00\x1b")
    assert "\\u202etxt\\u0000\\u001b[31m" in parsed.text
    titles = [tag for tag, _ in parsed.elements if tag == "h2"]
    assert len(titles) == parsed.count("article") == 3  # the comparison and each run


def nothing(n: int) -> Run:
    return run_of([failed(i, 0.5 * i) for i in range(n)], constant(200.0, 0.5 * n + 1))


def gaps() -> Run:
    kept = [r for r in constant(300.0, 50.0) if not 10 < r.t_s < 20]
    return run_of(lattice(100, 0.5), kept)


def backwards() -> Run:
    readings = constant(300.0, 50.0)
    return run_of(
        lattice(100, 0.5),
        [
            replace(r, energy_j=r.energy_j - 9e3) if r.energy_j is not None and r.t_s > 20 else r
            for r in readings
        ],
    )


DEGENERATE: dict[str, Any] = {
    "no power": lambda: run_of(lattice(100, 0.5)),
    "nothing done": lambda: run_of([]),
    "one request": lambda: run_of(lattice(1, 0.5), constant(300.0, 1.0)),
    "all failed": lambda: nothing(40),
    "none sent": lambda: run_of([failed(i, 0.5 * i, "dropped", sent_s=None, done_s=None) for i in range(9)]),
    "gaps": gaps,
    "backwards": backwards,
    "killed": lambda: run_of(lattice(50, 0.5), constant(300.0, 25.0), status="running", window=None),
    "no tokens": lambda: run_of(lattice(50, 0.5, output_tokens=None, prompt_tokens=None, tokens_from=None)),
    "bare manifest": lambda: run_of(lattice(50, 0.5), server=None, power=None, warnings=None, protocol=None),
    "closed loop": lambda: run_of(lattice(50, 0.5), closed_loop=True),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_run_without_much_to_say_gives_sentences(case: str) -> None:
    options = Options(service=Service(1e6, grid="DE"))
    parsed = sound(page_of(DEGENERATE[case](), options=options))
    assert ("Invalid." in parsed.text) or ("Valid" in parsed.text)


def test_a_run_without_power_says_why_and_has_no_energy() -> None:
    parsed = sound(page_of(DEGENERATE["no power"]()))
    assert "no power source on this machine" in parsed.text
    assert re.search(
        "GPU energy per request \u2013 Unavailable: no power source on this machine", parsed.text
    )


def test_an_invalid_run_says_so_before_any_figure() -> None:
    text = page_of(backwards())
    assert text.index("Invalid. Do not quote its figures") < text.index("GPU energy per request")
    assert "ran backwards" in text[: text.index("GPU energy per request")]


def test_a_template_takes_text_and_numbers_only() -> None:
    page = Page("t", "", [], "")
    html(page)
    for wrong in (None, float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            html(replace(page, made=wrong))  # type: ignore[arg-type]


def test_tables_keep_their_number_of_columns() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        Table("t", (Column("a"), Column("b")), [[Cell("x")]])


def test_a_drawing_that_could_run_something_is_refused() -> None:
    good = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0" fill="url(#a)"/></svg>'
    assert inert(Picture("p", good)) == good
    for bad in (
        '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" onload="1"/>',
        '<svg xmlns="http://www.w3.org/2000/svg"><a href="javascript:1"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><foreignObject/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><path fill="url(http://x/y)"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><style>@import "http://x"</style></svg>',
    ):
        with pytest.raises(ValueError, match="expected a drawing"):
            inert(Picture("p", bad))


def test_hidden_characters_are_shown() -> None:
    assert visible("a\u202eb\u200bc\x7f\ud800") == "a\\u202eb\\u200bc\\u007f\\ud800"
    assert visible("µ \u2013 é 漢\n\t") == "µ \u2013 é 漢\n\t"


def test_figures_in_words() -> None:
    assert figure(8.5e-3, "Wh") == "8.50 mWh"
    assert figure(2.2e-7, "Wh") == "220 nWh"
    assert figure(3e-5, "J") == "30.0 µJ"
    assert figure(float("nan"), "J") == figure(None, "J") == "\u2013"
    assert share(0.999999) == "99.99 %"
    flat = {"value": 50.0, "low": 50.0, "high": 50.0, "unit": "W", "level": 0.95, "n": 3, "method": "m"}
    assert certainty(flat).startswith("No interval")
    assert certainty({**flat, "low": 49.0, "high": 51.0}) == "95 % interval [49.0, 51.0] W"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.document.find_spec", lambda name: None)
    with pytest.raises(LoadgenError, match=r"jinja2 is not installed; pip install 'loadgen\[report\]'"):
        render([study(DEGENERATE["nothing done"]())])


def test_differences_stand_in_one_scale_and_rounding_is_nothing() -> None:
    made = {"value": -0.722, "low": -8.265, "high": 6.821, "unit": "J", "level": 0.95, "n": 2, "method": "m"}
    cell = difference(made, 60.0)
    assert (cell.text, cell.note, cell.sort) == ("-0.72 J", "[-8.27, 6.82]", -0.722)
    assert difference({**made, "value": -7e-15, "low": -3e-14, "high": 1e-14}, 50.0).text == "0 J"
    assert difference({**made, "value": 1e-4, "low": None, "high": None}, 0.01).text == "+100 µJ"


def test_nothing_to_report_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="at least one run"):
        render([])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot be written"):
        write("<p>", tmp_path / "file" / "page.html")
    write("é", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_bytes() == "é".encode()


def test_a_page_is_made_from_run_directories(fixed_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fixed_run, run)
    (run / "power.jsonl").write_text("")  # fewer figures to draw
    made = report([run])
    assert made.file == run / "report" / "report.html"
    assert not made.valid
    assert "was never read" in sound(made.file.read_text(encoding="utf-8")).text
    with pytest.raises(RunDirError):
        report([tmp_path / "none"])


def test_the_verb_takes_runs_and_the_flags_of_analyze() -> None:
    parser = argparse.ArgumentParser()
    add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter, lambda args: 0)
    args = parser.parse_args(
        ["report", "a", "b", "-o", "f.html", "--window", "steady", "--pue", "1.2", "--open"]
    )
    assert args.runs == [Path("a"), Path("b")]
    assert (args.output, args.figures, args.window, args.pue, args.open) == (
        Path("f.html"),
        None,
        "steady",
        1.2,
        True,
    )


def test_the_commands_on_the_page_ask_for_the_same_study_again(mixed: str) -> None:
    parser = argparse.ArgumentParser()
    add_verb(parser.add_subparsers(), argparse.RawDescriptionHelpFormatter, lambda args: 0)
    (line,) = re.findall(r"^loadgen (report .*)$", Parsed(mixed).lines, re.MULTILINE)
    args = parser.parse_args(shlex.split(line))
    assert (args.window, args.requests_per_day, args.grid, args.price_per_kwh) == ("steady", 1e6, "FR", 0.2)
    assert args.embodied_kg is None


def test_figures_are_saved_beside_the_page(tmp_path: Path) -> None:
    render([study(run_of(lattice(40, 0.5)))], figures=tmp_path / "figures")
    files = list((tmp_path / "figures").iterdir())
    assert {path.suffix for path in files} == {".png", ".pdf"}
    assert all(path.stat().st_size > 1000 for path in files)
