"""A study for people: where the energy went, its spread, windows, what is uncertain, the verdict last.

Fits 80 columns; wider consoles show more of each window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console

from analysis.console import bare_table, line
from analysis.sci import Statement
from analysis.show import header, verdict
from analysis.stats import reason_of
from analysis.study import Study
from analysis.study.costs import spent
from analysis.study.scale import Macro
from analysis.study.windows import Row
from analysis.timeline import Little
from analysis.words import WH_PER_J, interval, number, quantity
from loadgen.types import Estimate

_WIDE = 110
_PHASES = (("idle_j", "idle"), ("prefill_j", "prefill"), ("decode_j", "decode"))
_SHOWN_ROWS = 40


def render(found: Study, console: Console) -> None:
    """Prints the study. Colours only where the console has them."""
    header(found.summary, console)
    if found.window is not None:
        line(console, "window    ", found.window.sentence)
    if found.options.window != "steady":
        line(console, "steady    ", _steady(found))
    _energy(found, console)
    _spread(found, console)
    _hosts(found, console)
    _windows(found, console)
    if found.little is not None:
        line(console, "Little    ", _little(found.little))
    said = found.systematic
    line(console, "systematic  ", f"unknown: {said}" if isinstance(said, str) else said.describe())
    _weights(found, console)
    for note in found.notes:
        line(console, "note      ", note, "yellow")
    if found.macro is not None:
        _macro(found.macro, console)
    for warning in found.summary["warnings"]:
        line(console, "warning ", warning, "yellow")
    verdict(found.summary, console)


def _steady(found: Study) -> str:
    steady = found.steady
    if steady.start_s is None or steady.end_s is None:
        return f"no: {steady.reason} ({steady.rule})"
    return f"from {steady.start_s:.4g} s to the last arrival at {steady.end_s:.4g} s ({steady.rule})"


def _energy(found: Study, console: Console) -> None:
    """Where the joules of the boards went."""
    parts, gpu = found.spent, found.parts.get("gpu")
    if parts is None:
        line(console, "attribution  ", f"unavailable: {found.attribution_reason}", "yellow")
        if gpu is not None and gpu.energy_j.value is not None:
            per = _with_interval(gpu.per_success_j) or gpu.per_success_j.method
            line(console, "GPU energy  ", f"{quantity(gpu.energy_j.value, 'J')}; per success: {per}")
        return
    successes = gpu.succeeded if gpu is not None else 0
    table = bare_table(f"GPU energy, {parts.label}", "J", "%", "Wh per success")
    table.add_column("of")

    def row(name: str, joules: float | None, of: str) -> None:
        if joules is None:
            table.add_row(name, "-", "-", "-", of)
            return
        if joules < 1e-6 * parts.energy_j:
            joules = 0.0
        share = f"{100 * joules / parts.energy_j:.1f}" if parts.energy_j > 0 else "-"
        per = quantity(WH_PER_J * joules / successes, "Wh") if successes else "-"
        table.add_row(name, quantity(joules, "J"), share, per, of)

    who = f"{parts.succeeded:,} {_plural(parts.succeeded, 'success', 'successes')}"
    if parts.idle_j is None:
        row("requests", parts.succeeded_j, who)
    else:
        for key, name in _PHASES:
            row(name, getattr(parts, key), who)
    ended = max(parts.failed, gpu.failed if gpu is not None else 0)
    tokens = f", {parts.failed:,} with tokens" if ended > parts.failed else ""
    row("failed", parts.failed_j, f"{ended:,} {_plural(ended, 'request', 'requests')}{tokens}")
    row("warm-up", parts.warmup_j, f"{parts.warmups:,} {_plural(parts.warmups, 'request', 'requests')}")
    row(
        "unattributed", parts.unattributed_j, "while nothing ran" if parts.idle_j is not None else "left over"
    )
    row("total", parts.energy_j, f"{quantity(parts.end_s - parts.start_s, 's', digits=4)} of window")
    console.print(table, highlight=False)
    if gpu is not None and gpu.per_success_j.value is not None:
        bound = "" if gpu.bound_j is None else f"; window's total within ± {quantity(gpu.bound_j, 'J')}"
        line(console, "per success  ", f"{_with_interval(gpu.per_success_j)}{bound}")
    if parts.unseen:
        text = f"{parts.unseen} failed without a token: what they cost is in the others' shares"
        line(console, "unseen    ", text, "yellow")


def _spread(found: Study, console: Console) -> None:
    """What single successes cost."""
    total = found.per_success.get("total_j")
    if total is None:
        return
    if total["mean"].value is None:
        line(console, "a success  ", f"- ({total['mean'].method})")
        return
    names = ("p50", "p95", "p99", "max")
    table = bare_table("one success", "mean", "95 % interval", *names)
    for key, label in (("total_j", "total"), *((key, f"  {name}") for key, name in _PHASES)):
        row = found.per_success[key]
        if row["mean"].value is None:
            continue
        values = (quantity(row[name].value, "J") for name in names)
        table.add_row(label, quantity(row["mean"].value, "J"), interval(row["mean"]), *values)
    console.print(table, highlight=False)
    if total["mean"].low is None:
        line(console, "          ", f"no interval: {reason_of(total['mean'].method)}", "dim")


def _hosts(found: Study, console: Console) -> None:
    for part, one in found.hosts.items():
        name = f"{part.upper():<10}"
        if isinstance(one, str):
            line(console, name, f"unavailable: {one}", "dim")
            continue
        parts, row = spent(one), found.parts[part]
        per = row.per_success_j
        told = f"{quantity(parts.energy_j, 'J')} {parts.label}"
        if per.value is not None:
            told += f", per success {_with_interval(per)}"
        if parts.energy_j > 0:
            told += f"; {100 * parts.unattributed_j / parts.energy_j:.1f} % while nothing ran"
        line(console, name, f"{told} (by time share)")


def _windows(found: Study, console: Console) -> None:
    rows = found.windows
    if not rows:
        if found.options.slice_s is not None:
            line(console, "windows   ", f"- ({found.windows_reason})")
        return
    wide = console.width >= _WIDE
    kept = rows if len(rows) <= _SHOWN_ROWS else rows[:_SHOWN_ROWS]
    more = ("length", "sent", "failed", "energy", "power") if wide else ()
    table = bare_table("window", "due", "ok", "in flight", *more, "per success", "95 % interval")
    for row in kept:
        cells = [f"{row.due:,}", f"{row.succeeded:,}", number(row.in_flight)]
        if wide:
            cells += [quantity(row.span.end_s - row.span.start_s, "s", digits=4), f"{row.sent:,}"]
            cells += [f"{row.failed:,}", quantity(row.energy_j.value, "J"), quantity(row.power_w.value, "W")]
        each = row.per_success_j
        table.add_row(row.span.name, *cells, quantity(each.value, "J"), interval(each) or "-")
    console.print(table, highlight=False)
    if len(rows) > len(kept):
        line(console, "          ", f"and {len(rows) - len(kept)} more: --json has all", "dim")
    for why, names in _why_none(rows).items():
        line(
            console,
            "          ",
            f"no energy of {', '.join(names[:3])}{' ...' * (len(names) > 3)}: {why}",
            "dim",
        )


def _why_none(rows: Sequence[Row]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.energy_j.value is None:
            found.setdefault(reason_of(row.energy_j.method), []).append(row.span.name)
    return found


def _little(found: Little) -> str:
    if found.in_flight is None or found.expected is None or found.ratio is None:
        return f"not checked: {found.reason}"
    said = f"{number(found.in_flight)} in flight by the {found.source}, "
    said += f"rate x mean time {number(found.expected)}: ratio {found.ratio:.3f}"
    if found.edges is not None and abs(found.edges) > 5e-4 * found.expected:
        said += f"; those who crossed the window's edges explain {number(found.edges)}"
    return said if found.agreement is None else f"{said}; gauges over records {found.agreement:.3f}"


def _weights(found: Study, console: Console) -> None:
    made = found.attribution
    if made is None or made.weights is None:
        return
    told = [made.weights.source, f"idle {quantity(float(made.idle_w.sum()), 'W')} from {made.idle_from}"]
    fit = made.fit
    if fit is not None and math.isfinite(fit.r2):
        told.append(f"R2 {fit.r2:.3f} over {fit.n} stretches of a second")
    elif fit is not None:
        told.append("nothing to correct them by")
    poor = fit is not None and fit.r2 < 0
    if poor:
        told.append("they tell its power worse than its mean would, so doubt each request's share")
    line(console, "weights   ", "; ".join(told), "yellow" if poor else "")


def _macro(found: Macro, console: Console) -> None:
    service = found.service
    pue = "" if service.pue is None else f", PUE {service.pue:g}"
    line(console, "service   ", f"{service.requests_per_day:,.10g} requests a day{pue}")
    if found.reason is not None:
        line(console, "          ", f"no figures: {found.reason}", "yellow")
        return
    labels = [part.label.replace(" + ", " +\n") for part in found.footprints]
    titles = [f"{part.name}\n{label}" for part, label in zip(found.footprints, labels, strict=True)]
    table = bare_table("", *titles)
    for label, name in (
        ("kWh a day", "energy_kwh_per_day"),
        ("kWh a year", "energy_kwh_per_year"),
        (f"{service.currency} a day", "cost_per_day"),
        (f"{service.currency} a year", "cost_per_year"),
        ("kg CO2e a day", "co2e_kg_per_day"),
        ("kg CO2e a year", "co2e_kg_per_year"),
        ("households", "households"),
        ("min of a 5 W LED, one", "led_minutes"),
    ):
        values = [getattr(part, name).value for part in found.footprints]
        if any(value is not None for value in values):
            table.add_row(label, *("-" if value is None else number(value) for value in values))
    console.print(table, highlight=False)
    for statement in found.statements:
        _statement(statement, console)
    for statement in found.statements[:1]:
        line(console, "boundary  ", ", ".join(statement.boundary))
        line(console, "grid      ", statement.intensity)
        line(console, "missing   ", "; ".join(statement.gaps))
        line(console, "          ", statement.disclaimer, "dim")


def _statement(found: Statement, console: Console) -> None:
    """The score of one functional unit, or what there is of it."""
    operational, score = found.operational_g, found.score_g
    if operational.value is None:
        line(console, "SCI       ", f"per {found.functional_unit}: {operational.method}")
        return
    told = f"{_grams(operational)} operational per {found.functional_unit} ({found.label})"
    told += f"; score {_grams(score)}" if score.value is not None else f"; score {score.method}"
    line(console, "SCI       ", told)


def _grams(estimate: Estimate) -> str:
    between = interval(estimate)
    return f"{number(estimate.value or 0.0)}{f' {between}' if between else ''} {estimate.unit}"


def _with_interval(estimate: Estimate) -> str:
    """``74.2 J [72.3, 76.3] = 20.6 mWh``; empty without a value."""
    if estimate.value is None:
        return ""
    between = interval(estimate)
    wh = quantity(WH_PER_J * estimate.value, "Wh")
    return f"{quantity(estimate.value, 'J')}{f' {between}' if between else ''} = {wh}"


def _plural(n: int, one: str, many: str) -> str:
    return one if n == 1 else many
