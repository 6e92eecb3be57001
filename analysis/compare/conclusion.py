"""The sentence that may be quoted of a comparison: what the GPU energy per success did, and at which load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.compare.comparison import Headline
from analysis.compare.listed import Listed
from analysis.compare.load import SameLoad
from analysis.compare.sides import Side
from analysis.stats.systematic import Systematic
from analysis.words import quantity

_MOST_KEYS = 4
_NOT_OF_LOAD = ("hardware", "server", "protocol", "clock", "sampling", "scenario")


def conclude(
    a: Side,
    b: Side,
    i: int,
    load: SameLoad,
    rows: Mapping[str, Headline],
    listed: Sequence[Listed],
    systematic: Systematic | str,
) -> str:
    """B, ``sides[i + 1]``, against A. ``rows``: the headlines by name."""
    words = []
    for side in (a, b):
        if not side.valid:
            words.append(f"{side.name} is invalid ({side.reasons[0]}), so this is not to be relied on.")
    main = rows.get("energy_per_request_j")
    if main is None:
        return " ".join([*words, f"No GPU energy per success to compare. {_of_load(load)}"])
    words.append(_energy(a.name, b.name, main, i, load))
    words.append(_beyond(main, i, systematic))
    if main.ratios[i].value is not None:
        words.append(_split(main, i, rows))
    words.append(_of_load(load))
    words.append(_what_differs(load, listed))
    return " ".join(word for word in words if word)


def _energy(a: str, b: str, main: Headline, i: int, load: SameLoad) -> str:
    ratio, what = main.ratios[i], f"GPU energy per success ({main.label})"
    if ratio.value is None:
        return f"{what}: no ratio of {b} to {a}: {ratio.method.removeprefix('unavailable: ')}."
    times = f"{ratio.value:.4g} times"
    p = main.p_adjusted[i]
    if ratio.low is None or ratio.high is None or p is None:
        return f"{what} of {b} is {times} that of {a}; there is no interval, so chance is not ruled out."
    level = f"{100 * ratio.level:g} % interval {ratio.low:.4g} to {ratio.high:.4g}, {_p(p)} after Holm"
    if not main.told(i):
        return f"{what} of {b} and {a} is not told apart ({times}, {level})."
    if load.verdict.equal is not True:
        return f"{what} of {b} is {times} that of {a} ({level})."
    percent, word = 100 * abs(ratio.value - 1), "more" if ratio.value > 1 else "less"
    return f"{b} used {percent:.3g} % {word} {what} than {a} ({times}, {level})."


def _beyond(main: Headline, i: int, systematic: Systematic | str) -> str:
    """That a difference told from chance is not told from the meters' errors, if so."""
    ratio = main.ratios[i].value
    if isinstance(systematic, str) or ratio is None or not main.told(i):
        return ""
    if systematic.expanded < abs(ratio - 1):
        return ""
    percent = f"+-{100 * systematic.expanded:.2g} %"
    return f"The meters may differ by as much: the systematic uncertainty of the ratio is {percent}."


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _split(main: Headline, i: int, rows: Mapping[str, Headline]) -> str:
    idle, active = rows.get("idle_share_j"), rows.get("active_share_j")
    parts = [None if row is None else row.differences[i].value for row in (idle, active)]
    if main.differences[i].value is None or None in parts:
        return "How much of it is idle power is not known: no idle stretch was read."
    signed = [_signed(value) for value in (main.differences[i].value, *parts)]
    return (
        f"Of the difference of {signed[0]}, {signed[1]} is idle power over the time per success "
        f"and {signed[2]} work."
    )


def _signed(joules: float | None) -> str:
    assert joules is not None
    return f"{'-' if joules < 0 else '+'}{quantity(abs(joules), 'J')}"


def _of_load(load: SameLoad) -> str:
    if load.verdict.equal is True:
        return "The loads were equal."
    if load.verdict.equal is False:
        return "The loads were NOT equal: this compares load and shape together, not shape alone."
    happened = {
        True: "by the values alone they were",
        False: "by the values alone they were not",
        None: "not all of it is known",
    }[load.verdict.as_happened]
    return f"Whether the loads were equal cannot be told ({happened}): load and shape may both be in it."


def _what_differs(load: SameLoad, listed: Sequence[Listed]) -> str:
    besides = [row for row in listed if row.section in _NOT_OF_LOAD]
    if besides:
        keys = ", ".join(f"{row.section} {row.key}" for row in besides[:_MOST_KEYS])
        more = f" and {len(besides) - _MOST_KEYS} more" if len(besides) > _MOST_KEYS else ""
        return f"The runs differ in more than their load: {keys}{more}."
    software = " The software differs too." if any(row.section == "software" for row in listed) else ""
    keys_of_load = [row.key for row in listed if row.section == "load"]
    if any(key.startswith("prompts") for key in keys_of_load):
        return f"The settings of the prompts differ.{software}"
    if any(key.startswith("load") for key in keys_of_load):
        if load.verdict.equal is True and not software:
            return (
                "Only how the requests arrived differs in the configuration, so the difference is of shape."
            )
        return f"Of the configuration only the load differs.{software}"
    return f"Nothing{' but the seed' if keys_of_load else ''} differs in the configuration.{software}"
