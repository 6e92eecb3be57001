"""Two runs or more, or groups of runs, set against the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.compare import boards
from analysis.compare.against import couple, set_against, value_of_side
from analysis.compare.comparison import Against, Comparison, Headline
from analysis.compare.conclusion import conclude
from analysis.compare.headlines import FIGURES, Figure, label_of
from analysis.compare.listed import listed
from analysis.compare.load import judge_load
from analysis.compare.shared import Pairing, Shared, shared
from analysis.compare.sides import CompareError, Side, sides_of
from analysis.run import Run
from analysis.stats.equal_load import LOAD_TOLERANCE
from analysis.stats.pairs import Compared, holm


def compare(
    runs: Sequence[Run] = (),
    *,
    groups: Mapping[str, Sequence[Run]] | None = None,
    tolerance: float = LOAD_TOLERANCE,
) -> Comparison:
    """Compares runs with the first of them, or groups of runs (name: runs) with the first group.

    Runs of one scenario, seed aside, on one server and board are taken as repetitions and make one
    side, if at least two sides are left. ``tolerance``: up to which a load counts as equal.

    Raises CompareError for fewer than two sides, or a tolerance outside (0, 1). Data that is
    missing is said in the result.
    """
    if not 0 < tolerance < 1:
        raise CompareError(f"compare: tolerance: expected between 0 and 1, got {tolerance:g}")
    sides = sides_of(runs, groups)
    common = [_shared(sides[0], side) for side in sides[1:]]
    pairings = [
        Pairing(sides[0].facts[0], side.facts[0]) if found.same and len(side.facts) == 1 else None
        for side, found in zip(sides[1:], common, strict=True)
    ]
    headlines, notes = _headlines(sides, pairings)
    rows, differing = {h.name: h for h in headlines}, listed(sides)
    against = []
    for i, (side, found) in enumerate(zip(sides[1:], common, strict=True)):
        load = judge_load(sides[0], side, tolerance, shared=found.same)
        pair, systematic = listed((sides[0], side)), boards.of_sides(sides[0], side)
        against.append(
            Against(
                name=side.name,
                paired=found.same,
                shared=found.sentence,
                load=load,
                systematic=systematic,
                conclusion=conclude(sides[0], side, i, load, rows, pair, systematic),
                notes=tuple(
                    dict.fromkeys([*notes[i], *_mixed(sides[0], side, headlines), *_gain(sides[0], side)])
                ),
            )
        )
    return Comparison(sides, headlines, tuple(against), differing, _twice(sides), tolerance)


def _shared(a: Side, b: Side) -> Shared:
    if len(a.facts) != len(b.facts):
        return Shared(False, f"runs are the samples, {len(a.facts)} and {len(b.facts)}, which make no pairs")
    if len(a.facts) == 1:
        return shared(a.runs[0], b.runs[0])
    couples, how, _ = couple(a.facts, b.facts)
    found = [shared(a.runs[i], b.runs[k]) for i, k in couples]
    same = all(one.same for one in found)
    requests = "each pair had the same requests" if same else "not every pair had the same requests"
    return Shared(same, f"runs are the samples: {how}; {requests}")


def _headlines(
    sides: Sequence[Side], pairings: Sequence[Pairing | None]
) -> tuple[tuple[Headline, ...], list[list[str]]]:
    """Every headline that a side has, Holm's rule applied; the notes of each B."""
    found: list[Headline] = []
    notes: list[list[str]] = [[] for _ in sides[1:]]
    for figure in FIGURES:
        if figure.name.startswith("goodput") and not _one_slo(sides):
            continue
        values = tuple(value_of_side(figure, side) for side in sides)
        if all(value.value is None for value in values):
            continue
        labels = [_label(figure, side) for side in sides]
        each = [set_against(figure, sides[0], b, p) for b, p in zip(sides[1:], pairings, strict=True)]
        for own, (compared, _) in zip(notes, each, strict=True):
            own.extend(compared.notes)
        found.append(
            Headline(
                name=figure.name,
                title=figure.title,
                unit=figure.unit,
                kind=figure.kind,
                label=labels[0] if len(set(labels)) == 1 else " / ".join(labels),
                values=values,
                differences=tuple(compared.difference for compared, _ in each),
                ratios=tuple(compared.ratio for compared, _ in each),
                p=tuple(_p(figure, labels, compared) for compared, _ in each),
                p_adjusted=tuple(None for _ in each),
                methods=tuple(how for _, how in each),
            )
        )
    return _adjusted(found), notes


def _p(figure: Figure, labels: Sequence[str], compared: Compared) -> float | None:
    """Untested: parts of another headline, and estimates, whose own error no interval holds."""
    tested = figure.tested and not any("estimated" in label for label in labels)
    return compared.p if tested else None


def _adjusted(headlines: Sequence[Headline]) -> tuple[Headline, ...]:
    tested = {f"{i} {h.name}": p for h in headlines for i, p in enumerate(h.p) if p is not None}
    adjusted = holm(tested)
    return tuple(
        replace(h, p_adjusted=tuple(adjusted.get(f"{i} {h.name}") for i in range(len(h.p))))
        for h in headlines
    )


def _label(figure: Figure, side: Side) -> str:
    return "+".join(dict.fromkeys(label_of(figure, facts) for facts in side.facts))


def _one_slo(sides: Sequence[Side]) -> bool:
    slos = [facts.run.manifest.get("slo") for side in sides for facts in side.facts]
    return all(slo == slos[0] for slo in slos)


def _mixed(a: Side, b: Side, headlines: Sequence[Headline]) -> list[str]:
    labels: dict[str, list[str]] = {}
    for figure in FIGURES:
        first, second = _label(figure, a), _label(figure, b)
        shown = any(h.name == figure.name for h in headlines)
        if shown and first != second and "unavailable" not in (first, second):
            labels.setdefault(f"{a.name} is {first}, {b.name} {second}", []).append(figure.title.strip())
    return [f"labels are mixed: {who} ({titles[0]} and the like)" for who, titles in labels.items()]


def _gain(a: Side, b: Side) -> list[str]:
    measured = [f.parts["gpu"].label == "measured" for side in (a, b) for f in side.facts if "gpu" in f.parts]
    if not measured or not all(measured):
        return []
    same = boards.same_boards(a, b)
    if same is None:
        return ["the boards' UUIDs are not known: whether the sensors' gain cancels is not known either"]
    return [] if same else ["not the same boards: the sensors' gain does not cancel"]


def _twice(sides: Sequence[Side]) -> tuple[str, ...]:
    """Runs that were given more than once: each copy agrees with itself and tells nothing."""
    seen: dict[object, list[str]] = {}
    for side in sides:
        for run in side.runs:
            anchors = run.manifest.get("anchors") or {}
            same = (run.path.name, run.manifest.get("scenario_hash"), anchors.get("wall_utc"))
            seen.setdefault(same, []).append(side.name)
    return tuple(
        f"the run {key[0]} was given {len(names)} times ({', '.join(names)}): it agrees with itself, "
        "which says nothing"
        for key, names in seen.items()
        if len(names) > 1 and isinstance(key, tuple)
    )
