"""From studies to the page: chapters, their order, and the file on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loadgen
from analysis.progress import working
from analysis.report import pictures
from analysis.report.blocks import Chapter, Page, Section
from analysis.report.page import html
from analysis.report.sections import sections
from analysis.report.sections.comparison import comparison as compared_sections
from analysis.report.subject import Subject, subject_of
from analysis.report.words import tone
from analysis.run import load_run
from analysis.study import Options, Study, study
from loadgen.errors import LoadgenError, RunDirError

if TYPE_CHECKING:
    from analysis.compare.comparison import Comparison

EXTRA = ("jinja2", "matplotlib")
"""Packages of the extra ``report`` that a page needs."""
FOLDER, FILE = "report", "report.html"


@dataclass(frozen=True, slots=True)
class Made:
    """A page on disk. ``valid``: every run in it is."""

    file: Path
    valid: bool


def report(
    paths: Sequence[Path],
    options: Options | None = None,
    *,
    output: Path | None = None,
    figures: Path | None = None,
) -> Made:
    """Reads run directories and writes their page: one run, or several with their comparison.

    ``output``: by default ``report/report.html`` of the first run. Raises what loading, studying, comparing
    and `render` raise.
    """
    from analysis.compare import compare

    with working("making the page"):
        runs = [load_run(path) for path in paths]
        studies = [study(run, options) for run in runs]
        text = render(studies, compare(runs) if len(runs) > 1 else None, figures=figures)
    file = output or paths[0] / FOLDER / FILE
    write(text, file)
    return Made(file, all(bool(one.summary["valid"]) for one in studies))


def render(
    studies: Sequence[Study], comparison: Comparison | None = None, *, figures: Path | None = None
) -> str:
    """The page of one study, or of several with their ``comparison`` on top.

    ``figures``: a folder that the figures are also written to, as PNG and PDF. Equal studies give equal
    pages. Raises LoadgenError without the extra ``report``, RunDirError when a figure cannot be written.
    """
    for package in EXTRA:
        if find_spec(package) is None:
            raise LoadgenError(
                f"report: the package {package} is not installed; pip install 'loadgen[report]'"
            )
    subjects = []
    for i, one in enumerate(studies, 1):
        drawn = pictures.drawn(one, f"drawn-{i}")
        if figures is not None:
            pictures.save_all(drawn, figures)
        subjects.append(subject_of(one, pictures.pictures(drawn)))
    top: list[Section] = []
    if comparison is not None:
        drawn = pictures.of_comparison(comparison)
        if figures is not None:
            pictures.save_all(drawn, figures)
        top = compared_sections(comparison, [p for found in pictures.pictures(drawn).values() for p in found])
    return html(page_of(subjects, top))


def page_of(subjects: Sequence[Subject], top: Sequence[Section] = ()) -> Page:
    """The page's blocks. ``top``: the sections of a comparison."""
    if not subjects:
        raise LoadgenError("report: expected at least one run")
    single = len(subjects) == 1
    names = [subject.name for subject in subjects]
    twice = len(set(names)) < len(names)
    chapters = [
        _chapter(subject, f"run-{i}", f"{subject.name} ({i})" if twice else subject.name)
        for i, subject in enumerate(subjects, 1)
    ]
    if top:
        chapters.insert(0, Chapter("comparison", "Comparison", "", top))
    title = names[0] if single else f"{len(names)} runs: {', '.join(dict.fromkeys(names))}"
    about = _about(subjects[0]) if single else "Each run has its own verdict; the first is the reference."
    files = "the run" if single else "the runs"
    made = f"Made by loadgen {loadgen.__version__} from the files of {files} alone."
    return Page(title, about, chapters, made)


def _chapter(subject: Subject, key: str, title: str) -> Chapter:
    word = "valid" if subject.summary["valid"] else "invalid"
    return Chapter(key, title, _about(subject), sections(subject), word, tone(word))


def _about(subject: Subject) -> str:
    manifest = subject.manifest
    server: Mapping[str, Any] = manifest.get("server") or {}
    embedded = server.get("kind") == "embedded"
    shards = server.get("shards") or 1
    board = server.get("gpu") and (f"{shards} x {server['gpu']}" if shards > 1 else server["gpu"])
    where = " on ".join(str(part) for part in (server.get("model"), board) if part)
    words = [
        f"{'' if embedded or not where else 'declared '}{where}",
        str(server.get("dtype") or ""),
        f"{server.get('kind') or 'unknown'} server",
        f"{manifest.get('clock') or 'unknown'} clock",
        _day((manifest.get("anchors") or {}).get("wall_utc")),
    ]
    return " · ".join(word for word in words if word)


def _day(wall_utc: Any) -> str:
    try:
        return datetime.fromisoformat(str(wall_utc)).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return ""


def write(text: str, file: Path) -> None:
    """Puts the page on disk in one piece. Raises RunDirError when it cannot be written."""
    draft = file.with_name(f"{file.name}.draft")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, file)
    except OSError as exc:
        raise RunDirError(f"{file}: cannot be written: {exc.strerror or exc}") from exc
