"""What a sweep's file may say besides its axes: comparisons, a front, figures. Checked against its axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from loadgen.section import Section, Share
from loadgen.sweep.axes import Label

MOST_DRAWS = 100_000
Text = Annotated[str, Field(min_length=1)]


class Compare(Section):
    """Every level of ``axis`` against its level ``reference``, at equal levels of all other axes."""

    axis: Text
    reference: Label
    metrics: list[Text] = Field(["energy_per_success_j"], min_length=1)


class Pareto(Section):
    """The points that no other beats in both figures, among those of equal levels of ``within``.

    Points that serve less than the share ``served`` of their requests are no candidates: what is turned
    away costs nothing.
    """

    x: Text
    y: Text
    within: list[Text] = Field([])
    served: Share = 0.99


class Plot(Section):
    """One figure: ``y`` (a figure) over ``x`` (an axis or a figure), a line for each level of ``series``.

    ``relative``: as ratios to the reference of ``compare``. ``where``: only the points of these levels.
    """

    x: Text
    y: Text
    series: Text | None = None
    log: list[Literal["x", "y"]] = Field([])
    relative: bool = False
    where: dict[str, Any] = Field({})


class Sheet(Section):
    """The file as a whole; its ``scenario``, ``set`` and ``axes`` are checked point by point."""

    name: Text
    scenario: Text | dict[str, Any]
    set: dict[str, Any] = Field({})
    axes: Annotated[list[dict[str, Any]], Field(min_length=1)]
    draws: Annotated[int, Field(ge=0, le=MOST_DRAWS)] = 0
    compare: Compare | None = None
    pareto: Pareto | None = None
    figures: list[Plot] = Field([])


SECTIONS: Mapping[str, type[Section]] = {"compare": Compare, "pareto": Pareto, "figures": Plot}


class Mistake(Exception):
    """A name in the file that is none: where, what was expected, what stands there, what it may be."""

    def __init__(self, place: Sequence[str | int], expected: str, got: Any, known: Sequence[Any]) -> None:
        super().__init__(expected)
        self.place, self.expected, self.got, self.known = tuple(place), expected, got, known


def check(sheet: Sheet, axes: Mapping[str, Sequence[Label]], figures: Sequence[str]) -> None:
    """Raises Mistake for an axis, level or figure that is named and is not there.

    ``axes``: the levels of each, by name; ``figures``: the names of all figures.
    """

    def one_of(known: Sequence[Any], value: Any, what: str, *place: str | int) -> None:
        if not any(value == each and type(value) is type(each) for each in known):
            raise Mistake(place, what, value, known)

    names = list(axes)
    if (compare := sheet.compare) is not None:
        one_of(names, compare.axis, "an axis of this sweep", "compare", "axis")
        one_of(list(axes[compare.axis]), compare.reference, "a level of that axis", "compare", "reference")
        for k, metric in enumerate(compare.metrics):
            one_of(figures, metric, "a figure", "compare", "metrics", k)
    if (pareto := sheet.pareto) is not None:
        one_of(figures, pareto.x, "a figure", "pareto", "x")
        one_of(figures, pareto.y, "a figure", "pareto", "y")
        for k, axis in enumerate(pareto.within):
            one_of(names, axis, "an axis of this sweep", "pareto", "within", k)
    for k, plot in enumerate(sheet.figures):
        one_of([*names, *figures], plot.x, "an axis of this sweep, or a figure", "figures", k, "x")
        one_of(figures, plot.y, "a figure", "figures", k, "y")
        if plot.series is not None:
            one_of(names, plot.series, "an axis of this sweep", "figures", k, "series")
        for axis, level in plot.where.items():
            one_of(names, axis, "an axis of this sweep", "figures", k, "where")
            one_of(list(axes[axis]), level, "a level of that axis", "figures", k, "where", axis)
        if plot.relative and sheet.compare is None:
            raise Mistake(("figures", k, "relative"), "a compare section with the reference", True, ())
