"""Lines and tables on a terminal, the same for every verb."""

from __future__ import annotations

import textwrap

from rich.console import Console
from rich.text import Text

from analysis.words import printable
from loadgen.terminal import bare_table

__all__ = ["bare_table", "line"]


def line(console: Console, label: str, text: str, style: str = "") -> None:
    """A bold label and its text, continued under the text's beginning."""
    width = max(20, console.width - len(label))
    rows = textwrap.wrap(printable(text), width, break_on_hyphens=False, drop_whitespace=True) or [""]
    for i, row in enumerate(rows):
        shown = Text(label if i == 0 else " " * len(label), style=f"bold {style}".strip())
        shown.append(Text(row, style=style if not label.strip() or style == "red" else "not bold"))
        console.print(shown, highlight=False)
