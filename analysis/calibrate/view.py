"""A calibration for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from analysis.calibrate import powers, times
from analysis.calibrate.calibration import Calibration, calibrate
from analysis.calibrate.estimate import Answer
from analysis.console import bare_table, line
from analysis.fit.estimate import CONDITION
from analysis.progress import working
from analysis.run import load_run
from loadgen.physics.profile import Profile
from loadgen.physics.profile_file import as_object, write_profile
from loadgen.terminal import print_json

_UNITS = {"eager_overhead_s": ("ms", 1e3), "graph_overhead_s": ("ms", 1e3)}
_UNITS |= dict.fromkeys(("context_idle_w", "active_w"), ("W", 1.0))


def report(
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    gpu: str | None = None,
    model: str | None = None,
    dtype: str | None = None,
    as_json: bool = False,
) -> Calibration:
    """Calibrates to the runs, writes the profile where asked, and prints what was found on stdout.

    Raises ConfigError for runs that cannot be calibrated to, RunDirError for what is no run.
    """
    with working("calibrating"):
        found = calibrate([load_run(path) for path in paths], gpu=gpu, model=model, dtype=dtype)
    if output is not None:
        write_profile(output, found.profile)
    if as_json:
        print_json(as_object(found.profile))
    else:
        render(found, Console(), output)
    return found


def render(found: Calibration, console: Console, output: Path | None) -> None:
    """The constants before and after with their intervals, what was kept and why, held-out errors."""
    profile = found.profile
    count = len(profile.runs) - len(found.start.runs)
    line(
        console,
        "calibrated  ",
        f"{profile.gpu.id} ({profile.gpu.name}) to {count} {profile.label} run{'s' * (count != 1)}",
    )
    console.print()
    table = bare_table("constant", "table", "fitted", "95 % interval", "unit")
    told = {name for answer in (found.times, found.powers) if answer is not None for name in _told(answer)}
    for name in (*times.NAMES, *powers.NAMES):
        unit, scale = _UNITS.get(name, ("", 1.0))
        before, after = (scale * _value(p, name) for p in (found.start, profile))
        if name not in told:
            table.add_row(name, _number(before), "-", "kept", unit)
            continue
        ends = profile.fitted[name]
        interval = f"[{_number(scale * ends.low)}, {_number(scale * ends.high)}]"
        table.add_row(name, _number(before), _number(after), interval, unit)
    console.print(Padding(table, (0, 0, 0, 2)), highlight=False)
    console.print()
    for label, answer, what in (("times  ", found.times, "steps"), ("powers  ", found.powers, "slices")):
        if answer is not None:
            _quality(console, label, answer, what)
    if found.no_power is not None:
        line(console, "powers  ", found.no_power, "yellow")
    for held in found.held_out:
        text = f"{held.what}: median error {_share(held.median)}, 95 % within {_share(held.p95)}, n {held.n}"
        line(console, "held out  ", f"{text} ({found.folds})")
    if output is not None:
        line(console, "profile  ", f"{output}: server.gpu, --gpu and GPU candidates take its path")


def _quality(console: Console, label: str, answer: Answer, what: str) -> None:
    style = "yellow" if answer.condition >= CONDITION else ""
    line(console, label, f"{answer.n} {what}, condition {answer.condition:.3g}", style)
    for group in answer.tangled:
        line(
            console, label, f"{' and '.join(group)} are hardly told apart: their errors go together", "yellow"
        )
    for name, why in answer.kept.items():
        line(console, label, f"{name} kept at the table's value: {why}", "yellow")


def _told(answer: Answer) -> list[str]:
    names = times.NAMES if len(answer.value) == len(times.NAMES) else powers.NAMES
    return [name for name, is_told in zip(names, answer.told, strict=True) if is_told]


def _value(profile: Profile, name: str) -> float:
    part = profile.gpu if hasattr(profile.gpu, name) else profile.efficiency
    return float(getattr(part, name))


def _number(value: float) -> str:
    return f"{value:.5g}"


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"
