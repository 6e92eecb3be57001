"""How to get the same figures again, from the files or from nothing; and what each file means."""

from __future__ import annotations

import shlex

from analysis.report.blocks import Block, Cell, Code, Column, Facts, Prose, Section, Table
from analysis.report.sections.setup import scenario_yaml
from analysis.report.subject import Subject
from analysis.report.words import given

FILES = (
    ("run.json", "the manifest: resolved scenario, seed, hash, hardware, software, clocks, warnings"),
    ("scenario.yaml", "the scenario file as given, before overrides"),
    ("plan.jsonl", "every planned request, a line each: when due, how long"),
    ("requests.jsonl", "one record a request: instants, tokens, status, cause"),
    ("power.jsonl", "every reading of power or energy"),
    ("boards.jsonl", "clocks, temperatures and limits of real boards"),
    ("metrics.jsonl", "the server's own metrics"),
    ("server.jsonl", "the embedded engine's steps: for scoring only, no figure here uses it"),
    ("uncertainty.json", "ranges over draws of the simulated constants"),
)


def rerun(subject: Subject) -> Section:
    manifest, summary = subject.manifest, subject.summary
    version = (manifest.get("packages") or {}).get("loadgen")
    git = manifest.get("git") or {}
    where = shlex.quote(str(summary["run"]))
    asked = _flags(subject)
    again = [
        f"pip install {shlex.quote(f'loadgen[report]=={version}')}"
        if version
        else "pip install 'loadgen[report]'",
        "# the configuration above, saved as scenario.yaml:",
        "loadgen check scenario.yaml",
        "loadgen run scenario.yaml",
    ]
    figures = [
        f"loadgen summary {where}",
        f"loadgen analyze {where}{asked}",
        f"loadgen report {where}{asked}",
    ]
    blocks: list[Block] = [
        Code("The same figures, from the files of this run", "\n".join(figures) + "\n"),
        Code("The same run again", "\n".join(again) + "\n"),
        Facts(
            (
                ("Seed", given(manifest.get("seed"))),
                ("Scenario hash", given(manifest.get("scenario_hash"))),
                ("loadgen", given(version)),
                ("Commit", _commit(git)),
                ("Started (UTC)", given((manifest.get("anchors") or {}).get("wall_utc"))),
            )
        ),
    ]
    if scenario_yaml(manifest) is None:
        blocks.append(
            Prose("Without a resolved scenario in the manifest the run cannot be repeated.", "warn")
        )
    lead = (
        "In virtual time the same scenario, seed and version give the same records, to the bit."
        if summary["clock"] == "virtual"
        else "The same scenario and seed give the same requests at the same due times; the server and the "
        "board decide the rest, so figures differ between runs by more than their sampling intervals say."
    )
    return Section("rerun", "How to reproduce", blocks, lead)


def _commit(git: dict[str, object]) -> str:
    if not git:
        return "not known: an installed package"
    return f"{git.get('commit')}{', with uncommitted changes' if git.get('dirty') else ''}"


def _flags(subject: Subject) -> str:
    """The flags of `loadgen analyze` and `loadgen report` that give this study again."""
    asked = subject.found["options"]
    service = (subject.found["macro"] or {}).get("service") or {}
    values = {flag: asked[key] for key, flag in _FLAGS.items()} | {
        flag: service.get(key) for key, flag in _SERVICE_FLAGS.items()
    }
    said = {
        flag: value for flag, value in values.items() if value is not None and value != _DEFAULTS.get(flag)
    }
    words = [word for flag, value in said.items() for word in (flag, given(value))]
    return "".join(f" {shlex.quote(word)}" for word in words)


_FLAGS = {"method": "--attribution", "window": "--window", "slice_s": "--slice", "weights": "--weights"}
_SERVICE_FLAGS = {
    "requests_per_day": "--requests-per-day",
    "pue": "--pue",
    "price_per_kwh": "--price-per-kwh",
    "currency": "--currency",
    "grid": "--grid",
    "grid_g_per_kwh": "--grid-intensity",
    "embodied_kg": "--embodied-kg",
    "embodied_years": "--embodied-years",
    "embodied_source": "--embodied-source",
    "embodied_hours_per_day": "--embodied-hours-per-day",
    "embodied_share": "--embodied-share",
}
_DEFAULTS = {
    "--attribution": "work",
    "--window": "whole",
    "--currency": "EUR",
    "--embodied-hours-per-day": 24.0,
    "--embodied-share": 1.0,
}


def data(subject: Subject) -> Section:
    rows = [[Cell(name), Cell(meaning)] for name, meaning in FILES]
    note = "Fields, units and clocks: docs/format.md. Neither prompts and replies nor credentials are stored."
    table = Table(
        "Files of a run directory", (Column("File"), Column("What it holds")), rows, note, sortable=False
    )
    return Section("data", "Data files", [table])
