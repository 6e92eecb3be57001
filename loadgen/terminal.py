"""What every verb prints alike: tables for people, one object for machines."""

from __future__ import annotations

from typing import Any

import orjson
from rich.table import Table


def bare_table(*columns: str, left: int = 1, header: bool = True) -> Table:
    """A table without lines; its first ``left`` columns flush left, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=header)
    for i, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if i < left else "right")
    return table


def print_json(found: Any) -> None:
    """One JSON object on stdout, indented."""
    print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
