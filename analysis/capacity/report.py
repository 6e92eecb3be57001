"""One question answered and printed, with a sign of life on stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from analysis.capacity.answer import Answer, answer, assess_all, kinds_of
from analysis.capacity.plan import CapacityPlan
from analysis.capacity.plan_file import read_plan
from analysis.capacity.view import as_object, render
from analysis.capacity.workload import workload_of
from analysis.progress import working
from loadgen.progress import CountView
from loadgen.terminal import print_json

Draw = Callable[[Answer, CapacityPlan], object]


def report(
    path: Path | None,
    given: list[tuple[str, str, str]],
    *,
    as_json: bool,
    workers: int | None = None,
    draw: Draw | None = None,
) -> bool:
    """Reads the plan, answers it, prints; whether some candidate can serve it.

    Raises ConfigError for a plan that cannot be used, one line a mistake.
    """
    plan = read_plan(path, given)
    workload, kinds = workload_of(plan), kinds_of(plan)
    found = {}
    with CountView(Console(stderr=True), "replica types", len(kinds)) as view:
        for number, assessed in assess_all(workload, kinds, workers=workers):
            found[number] = assessed
            view.advance()
    with working("comparing"):
        made = answer(workload, [found[k] for k in range(len(kinds))])
    if draw is not None:
        draw(made, plan)
    if as_json:
        print_json(as_object(made, workload))
    else:
        render(made, workload, Console())
    return made.best is not None
