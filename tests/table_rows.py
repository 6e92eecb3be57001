"""Rows whose values follow from their number, for tests of the table."""

from __future__ import annotations

from pathlib import Path

from loadgen.sidecar.table import TableReader, TableWriter

COLUMNS = ("gpu0", "gpu0.instant", "ram")


def append(writer: TableWriter, t_s: float) -> int:
    """A row whose values follow from its seq; the board's power is missing in every third."""
    seq = writer.last_seq + 1
    values = {"gpu0": (t_s + 0.001, 10.0 * seq), "ram": (t_s + 0.002, float(seq))}
    if seq % 3:
        values["gpu0.instant"] = (t_s, 100.0 + seq)
    return writer.append(t_s, values)


def fill(folder: Path, rows: int, begin_s: float = 0.0, **options: object) -> None:
    writer = TableWriter.open(folder, "power", COLUMNS, **options)  # type: ignore[arg-type]
    for i in range(rows):
        append(writer, begin_s + i)
    writer.close()


def only_segment(folder: Path) -> Path:
    [path] = folder.glob("power.*.table")
    return path


def seqs(reader: TableReader, **query: object) -> list[int]:
    return [row.seq for row in reader.rows(**query)]  # type: ignore[arg-type]
