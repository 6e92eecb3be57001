"""Where the energy went, by phase, by request and by component; and how far off it can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.report.blocks import (
    Block,
    Cell,
    Column,
    Facts,
    Points,
    Prose,
    Section,
    Table,
)
from analysis.report.subject import PART_NAMES, PARTS, Subject, side_by_side
from analysis.report.words import (
    DASH,
    cell,
    count,
    counted,
    figure,
    given,
    known,
    plain,
    share,
    tagged,
    value_of,
)

_WHERE = (
    ("succeeded_j", "Successes (no phases by this method)", "succeeded"),
    ("idle_j", "Idle power while successes were served", "succeeded"),
    ("prefill_j", "Prefill of successes", "succeeded"),
    ("decode_j", "Decode of successes", "succeeded"),
    ("failed_j", "Failed requests", "failed"),
    ("warmup_j", "Warm-ups in the window", "warmups"),
    ("unattributed_j", "Unattributed: nothing ran", ""),
)
_PER_SUCCESS = (
    ("total_j", "Total"),
    ("idle_j", "Idle"),
    ("prefill_j", "Prefill"),
    ("decode_j", "Decode"),
)
_COMPONENTS = (
    ("total_j", "Total"),
    ("active_j", "Active (total less idle)"),
    ("static_j", "Static (idle power x window)"),
    ("mean_power_w", "Mean power"),
    ("idle_power_w", "Idle power"),
    ("energy_per_attempt", "Per attempt"),
    ("energy_per_request", "Per success"),
    ("energy_per_request_wh", "Per success, in Wh"),
    ("energy_per_output_token", "Per output token"),
    ("output_tokens_per_joule", "Output tokens"),
)


def energy(subject: Subject) -> Section:
    found = subject.found
    told = found["attribution"]
    blocks: list[Block] = []
    if told["spent"] is None:
        blocks.append(Prose(f"Not divided among requests: {told['reason']}.", "warn"))
    else:
        blocks += [_divided(told, found["parts"]["gpu"]["failed"])]
    blocks += [Prose(f"{note}.", "warn") for note in found["notes"]]
    blocks += side_by_side(subject.pictures.get("parts", ()))
    blocks.append(_components(subject))
    if told["spent"] is not None:
        blocks.append(_per_success(told))
    blocks += side_by_side(subject.pictures.get("energy", ()))
    hosts = _hosts(found["hosts"])
    if hosts:
        blocks.append(Points(hosts, title="CPU and RAM by time share"))
    window = found["window"]
    lead = "" if window is None else f"Window: {window['sentence']}."
    return Section("energy", "Where the energy went", blocks, lead)


def _divided(told: Mapping[str, Any], failed: int) -> Table:
    spent = told["spent"]
    whole_j = known(spent["energy_j"]) or 0.0
    rows = []
    for key, name, counter in _WHERE:
        joules = known(spent[key])
        known_by_phase = key == "succeeded_j" and spent["idle_j"] is not None
        if joules is None or known_by_phase or (key == "warmup_j" and not joules > 0):
            continue
        joules = _tidy(joules, whole_j)
        part = joules / whole_j if whole_j > 0 else None
        of = counted(spent[counter]) if counter else Cell(DASH)
        rows.append([Cell(name), plain(joules, "J"), Cell(share(part), part), of])
    idle_from = _IDLE.get(str(told["idle_from"]), given(told["idle_from"]))
    note = (
        f"Method {spent['method']}, {spent['label']}; weights: {given(told['weights'])}; idle power "
        f"{figure(told['idle_w'], 'W')} from the {idle_from}. The rows add up to the "
        f"{figure(whole_j, 'J', 4)} of the window."
    )
    if failed > spent["failed"]:
        note += f" Of {count(failed)} that failed, the client saw tokens of {count(spent['failed'])}."
    if spent["unseen"]:
        unseen = count(spent["unseen"])
        note += f" Of {unseen} failed requests no token was seen: their cost is in the others' shares."
    columns = (Column("Part"), Column("Energy", True), Column("Share", True), Column("Requests", True))
    return Table("GPU energy of the window by what it was spent on", columns, rows, note)


_IDLE = {"baseline": "run's own baseline", "physics": "board's constant (the run kept no baseline)"}


def _per_success(told: Mapping[str, Any]) -> Table:
    names = ("mean", "p50", "p95", "p99", "max")
    rows = [
        [Cell(title), *(cell(told["per_success"][key][name]) for name in names)]
        for key, title in _PER_SUCCESS
        if key in told["per_success"]
        and (
            key == "total_j" or any(known(e["value"]) is not None for e in told["per_success"][key].values())
        )
    ]
    n = next((row["mean"]["n"] for row in told["per_success"].values()), None)
    return Table(
        "GPU energy of one success",
        (Column("Phase"), *(Column(_TITLES[name], True) for name in names)),
        rows,
        f"Attributed ({told['method']}); n = {count(n)} successes due in the window. In "
        "brackets: 95 % sampling interval; the largest of a sample has none.",
        sortable=False,
    )


_TITLES = {"mean": "Mean", "p50": "Median", "p95": "p95", "p99": "p99", "max": "Largest"}


def _components(subject: Subject) -> Table | Prose:
    found = subject.summary["energy"]
    told = [part for part in PARTS if part in found]
    shown = [part for part in told if found[part]["label"] != "unavailable"]
    lacking = [f"{PART_NAMES[p]} unavailable: {found[p]['reason']}." for p in told if p not in shown]
    if not shown:
        return Prose(" ".join(lacking) or f"No energy was read: {subject.energy_reason}.", "warn")
    rows = [[Cell("How it is known"), *(tagged(str(found[part]["label"])) for part in shown)]]
    rows += [[Cell(title), *(_estimate(found[part], key) for part in shown)] for key, title in _COMPONENTS]
    rows.append([Cell("Off by the readings, at most"), *(_bound(found[part]) for part in shown)])
    rows.append([Cell("Window covered"), *(Cell(share(found[part]["coverage"])) for part in shown)])
    columns = (Column("Whole run"), *(Column(PART_NAMES[part], True) for part in shown))
    apart = ", ".join(f"{name} {figure(joules, 'J')}" for name, joules in (found.get("apart") or {}).items())
    note = " ".join(
        [*lacking, f"In no sum: {apart}." if apart else "", "Parts with different labels are not added."]
    )
    return Table("Energy by component", columns, rows, note.strip(), sortable=False)


def _estimate(part: Mapping[str, Any], key: str) -> Cell:
    made = part[key]
    return Cell(DASH) if made is None or known(made["value"]) is None else cell(made)


def _bound(part: Mapping[str, Any]) -> Cell:
    bound_j = known(part["bound_j"])
    return Cell(DASH) if bound_j is None else Cell(f"± {figure(bound_j, 'J')}", bound_j)


def _hosts(hosts: Mapping[str, Any]) -> list[str]:
    said = []
    for part, row in hosts.items():
        name = PART_NAMES.get(part, part)
        if row["spent"] is None:
            continue  # the table says why
        spent = row["spent"]
        each_j = None if not spent["succeeded"] else spent["succeeded_j"] / spent["succeeded"]
        said.append(
            f"{name} ({spent['label']}): {figure(spent['succeeded_j'], 'J')} to {count(spent['succeeded'])} "
            f"successes ({figure(each_j, 'J')} each), {figure(spent['failed_j'], 'J')} to failed ones, "
            f"{figure(_tidy(spent['unattributed_j'], spent['energy_j']), 'J')} while nothing ran."
        )
    return said


def _tidy(joules: float, whole_j: float) -> float:
    return 0.0 if abs(joules) < 1e-6 * abs(whole_j) else joules


def uncertainty(subject: Subject) -> Section:
    """Systematic parts, apart from every sampling interval."""
    told, gpu = subject.found["systematic"], subject.gpu
    blocks: list[Block] = []
    if told["reason"] is not None:
        blocks.append(Prose(f"Not known: {told['reason']}.", "warn"))
    else:
        columns = (
            Column("Part"),
            Column("Off by at most", True),
            Column("Distribution"),
            Column("Standard uncertainty", True),
        )
        rows = [
            [
                Cell(str(row["name"])),
                Cell(f"± {figure(row['half_width'], told['unit'])}", known(row["half_width"])),
                Cell(str(row["distribution"])),
                plain(_standard(row), told["unit"]),
            ]
            for row in told["components"]
        ]
        combined = f"± {figure(told['expanded'], told['unit'])}"
        note = f"In quadrature, expanded by k = {told['factor']:g}: {combined} of the window's GPU energy."
        blocks.append(Table("Systematic parts of the GPU energy", columns, rows, note, sortable=False))
        if told["missing"]:
            blocks.append(Points([f"Not known, so not in it: {name}." for name in told["missing"]]))
    if gpu is not None and gpu["bound_j"] is not None:
        bound = f"± {figure(gpu['bound_j'], 'J')} of {value_of(gpu['total_j'], 4)}"
        facts = [("Certain bound by the readings", bound)]
        if gpu["label"] == "measured":  # a simulated board has no gain
            gain = f"± {share(gpu['sensor_gain_error'])}, in no interval"
            facts.append(("Of the boards' sensor gain", gain))
        blocks.append(Facts(facts))
    blocks += _envelope(subject.found["uncertainty"])
    lead = (
        "These are the same for every request of the run, so more requests do not average them out: they "
        "stand apart from the 95 % sampling intervals. A gain cancels only between runs on the same board."
    )
    return Section("uncertainty", "Systematic uncertainty", blocks, lead)


_DIVISORS = {"rectangular": 3.0**0.5, "triangular": 6.0**0.5, "normal": 2.0}


def _standard(row: Mapping[str, Any]) -> float | None:
    half = known(row["half_width"])
    return None if half is None else half / _DIVISORS[str(row["distribution"])]


def _envelope(found: Mapping[str, Any] | None) -> list[Block]:
    """Ranges over draws of the simulated hardware's constants, from `run --uncertainty`."""
    if found is None:
        return []
    columns = (
        Column("Figure"),
        Column("This run", True),
        Column("Low", True),
        Column("Median", True),
        Column("High", True),
    )
    rows = []
    for name, row in found["figures"].items():
        if known(row.get("median")) is not None:
            values = (plain(row[key], str(row["unit"])) for key in ("nominal", "low", "median", "high"))
            rows.append([Cell(str(name)), *values])
    note = f"{found['kind']} of {count(found['draws'])} draws; {found['label']}. No sampling interval."
    return [Table("Range over the simulated hardware's uncertain constants", columns, rows, note)]
