"""Lines and tables on a terminal, the same for every verb."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.words import printable


def line(console: Console, label: str, text: str, style: str = "") -> None:
    """A bold label and its text, continued under the text's beginning."""
    width = max(20, console.width - len(label))
    rows = textwrap.wrap(printable(text), width, break_on_hyphens=False, drop_whitespace=True) or [""]
    for i, row in enumerate(rows):
        shown = Text(label if i == 0 else " " * len(label), style=f"bold {style}".strip())
        shown.append(Text(row, style=style if not label.strip() or style == "red" else "not bold"))
        console.print(shown, highlight=False)


def bare_table(*columns: str, left: int = 1, header: bool = True) -> Table:
    """A table without lines; its first ``left`` columns flush left, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for i, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if i < left else "right")
    return table
