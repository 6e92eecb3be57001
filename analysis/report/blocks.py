"""What a page is made of: plain values that the one template turns into HTML.

Text in them is text. Nothing here holds markup but `Picture.svg`, which is this
program's own; so a prompt, an error or a name has one way into the page, the
template's, and that way escapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Tone = Literal["plain", "good", "bad", "warn", "quiet", "measured", "estimated", "simulated"]
"""How a word is set off. Colour never stands alone: the word itself says the same."""


@dataclass(frozen=True, slots=True)
class Cell:
    """``text`` as shown; ``sort``: the number that the column is sorted by, None sorts last."""

    text: str
    sort: float | None = None
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Column:
    """``numeric``: right-aligned and sorted by number. ``wide``: sentences, which need the room."""

    title: str
    numeric: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one cell a column; the first cell of a row is its header.

    ``note`` stands under the table. ``sortable``: a table whose order carries no meaning.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    sortable: bool = True

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.caption}: expected {len(self.columns)} columns, got {len(row)}")


@dataclass(frozen=True, slots=True)
class Card:
    """One headline: ``second`` is the same in another unit, ``interval`` the interval or why none."""

    title: str
    value: str
    second: str
    interval: str
    label: str
    tone: Tone
    basis: str


@dataclass(frozen=True, slots=True)
class Cards:
    kind: ClassVar[str] = "cards"
    items: Sequence[Card]


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph; ``more``: the words of a link that ends it, and the section that it leads to."""

    kind: ClassVar[str] = "prose"
    text: str
    tone: Tone = "plain"
    more: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Points:
    """A list of sentences, numbered when ``ordered``."""

    kind: ClassVar[str] = "points"
    items: Sequence[str]
    ordered: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied, in a box that scrolls by itself."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG of ours, which names and describes itself."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Side by side where there is room."""

    kind: ClassVar[str] = "pictures"
    items: Sequence[Picture]


@dataclass(frozen=True, slots=True)
class Banner:
    """The verdict: ``valid`` in words, and each reason against it."""

    kind: ClassVar[str] = "banner"
    valid: bool
    headline: str
    reasons: Sequence[str]


Block = Table | Cards | Prose | Points | Facts | Code | Pictures | Banner


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it. ``id``: unique within a run's part of the page."""

    id: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A run, or the comparison of several. ``key`` goes before the ids of its sections."""

    key: str
    title: str
    about: str
    sections: Sequence[Section]
    verdict: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Page:
    title: str
    about: str
    chapters: Sequence[Chapter]
    made: str
