"""What `loadgen analyze` does: a study, printed for people or machines, with its tables on disk."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.progress import working
from analysis.run import load_run
from analysis.study import Options, as_object, study, write
from analysis.study.scale import Service
from analysis.study.view import render
from analysis.tables import export
from loadgen.errors import RunDirError
from loadgen.terminal import print_json


def options_of(args: argparse.Namespace, service: Mapping[str, Any] | None) -> Options:
    """The options of `loadgen.verbs.analyze.add_flags`; ``service``: of `loadgen.verbs.service.given`.

    Raises ConfigError for a service that cannot be.
    """
    described = None if service is None else Service(**service)
    return Options(args.attribution, args.window, args.slice, args.weights, described)


def analyze(
    path: Path,
    options: Options,
    *,
    as_json: bool = False,
    directory: Path | None = None,
    formats: Sequence[str] = ("csv", "parquet"),
) -> bool:
    """Studies a run directory, writes its findings and prints them on stdout; whether the run is valid.

    ``directory``: where the run's tables go, with the joules of each request. Findings that cannot be
    written are a line on stderr. Raises LoadgenError.
    """
    with working("studying the run"):
        found = study(load_run(path), options)
    try:
        write(found)
    except RunDirError as exc:  # somebody else's or a read-only directory can be analysed all the same
        print(f"loadgen: findings were not kept: {exc}", file=sys.stderr)
    if directory is not None:
        export(found.run, directory, formats, found.attributed)
    if as_json:
        print_json(as_object(found))
    else:
        render(found, Console())
    return bool(found.summary["valid"])
