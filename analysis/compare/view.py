"""A comparison for people and for machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.compare.compare import compare
from analysis.compare.comparison import Against, Comparison, Headline
from analysis.compare.sides import CompareError, Side
from analysis.compare.table import render, systematic_sentence
from analysis.plain import plain
from analysis.progress import working
from analysis.run import Run, load_run
from analysis.stats.pairs import ALPHA
from loadgen.terminal import print_json


def report(
    runs: Sequence[Path],
    groups: Sequence[tuple[str, Sequence[Path]]] = (),
    *,
    tolerance: float,
    as_json: bool,
    draw: Callable[[Comparison], object] | None = None,
) -> bool:
    """Compares run directories and prints the result on stdout; whether every run is valid.

    ``draw`` sees the comparison before anything is printed, so that stdout is empty when it fails.
    Raises RunDirError for what is no run, CompareError for what cannot be compared.
    """
    names = [name for name, _ in groups]
    if len(set(names)) < len(names):
        raise CompareError(f"compare: --group: expected each name once, got {', '.join(names)}")
    paths = [*runs, *(path for _, members in groups for path in members)]
    with working("comparing"):
        loaded: dict[Path, Run] = {path: load_run(path) for path in dict.fromkeys(paths)}
        found = compare(
            [loaded[path] for path in runs],
            groups={name: [loaded[path] for path in members] for name, members in groups} or None,
            tolerance=tolerance,
        )
    if draw is not None:
        draw(found)
    if as_json:
        print_json(as_object(found))
    else:
        render(found, Console())
    return found.valid


def as_object(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one JSON-ready dict; an *estimate* has the fields of `loadgen.types.Estimate`.

    - ``valid``: whether every run is; ``tolerance`` of the load check; ``level`` of significance; ``notes``
    - ``sides``, the reference first: ``name``, ``runs`` (paths), ``valid``, ``reasons``, ``grouped`` (null,
      or why several runs are one side)
    - ``headlines``: ``name``, ``title``, ``unit``, ``kind``, ``label``, ``values`` (estimates, of each
      side), and ``against``, of each side but the reference: ``side``, ``difference`` and ``ratio``
      (estimates), ``p``, ``p_adjusted``, ``told`` (whether that is at most ``level``), ``method``
    - ``against``, of each side but the reference: ``side``, ``conclusion``, ``paired``, ``shared`` (how the
      requests were recognised, or why not), ``load`` (``verdict``: equal, not equal or cannot be told;
      ``as_happened``: true, false or null, by the values alone; ``sentences``; ``shape``),
      ``systematic`` (``relative``: expanded half-width of the ratio of GPU energies, or null; its
      ``factor``; ``sentence``), ``notes``
    - ``differences``: ``section``, ``key``, ``values`` (text, of each side)
    """
    others = comparison.sides[1:]
    return {
        "valid": comparison.valid,
        "tolerance": comparison.tolerance,
        "level": ALPHA,
        "notes": list(comparison.notes),
        "sides": [
            {
                "name": side.name,
                "runs": [str(run.path) for run in side.runs],
                "valid": side.valid,
                "reasons": list(side.reasons),
                "grouped": side.why,
            }
            for side in comparison.sides
        ],
        "headlines": [_row(headline, others) for headline in comparison.headlines],
        "against": [_against(one) for one in comparison.against],
        "differences": [
            {"section": row.section, "key": row.key, "values": list(row.values)} for row in comparison.listed
        ],
    }


def _row(headline: Headline, others: Sequence[Side]) -> dict[str, Any]:
    return {
        **{key: getattr(headline, key) for key in ("name", "unit", "kind", "label")},
        "title": headline.title.strip(),
        "values": plain(headline.values),
        "against": [
            {
                "side": side.name,
                "difference": plain(headline.differences[i]),
                "ratio": plain(headline.ratios[i]),
                "p": headline.p[i],
                "p_adjusted": headline.p_adjusted[i],
                "told": headline.told(i),
                "method": headline.methods[i],
            }
            for i, side in enumerate(others)
        ],
    }


def _against(one: Against) -> dict[str, Any]:
    found = None if isinstance(one.systematic, str) else one.systematic
    return {
        "side": one.name,
        "conclusion": one.conclusion,
        "paired": one.paired,
        "shared": one.shared,
        "load": {
            "verdict": one.load.word,
            "as_happened": one.load.verdict.as_happened,
            "sentences": list(one.load.verdict.sentences),
            "shape": one.load.shape,
        },
        "systematic": {
            "relative": None if found is None else found.expanded,
            "factor": None if found is None else found.factor,
            "sentence": systematic_sentence(one),
        },
        "notes": list(one.notes),
    }
