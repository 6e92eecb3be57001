"""The table on a disk that is full, taken in part, or never there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from table_rows import COLUMNS, append, seqs

from loadgen.sidecar import table
from loadgen.sidecar.table import TableReader, TableWriter


def full_disk(folder: Path, hold_rows: int, held: int) -> dict[str, object]:
    """Fills a table until the system takes no byte more (a limit on the file), then lifts the limit."""
    script = textwrap.dedent(f"""
        import json, resource, sys
        from pathlib import Path
        from loadgen.sidecar.table import TableReader, TableWriter
        folder = Path(sys.argv[1])
        writer = TableWriter.open(folder, "power", {COLUMNS!r}, hold_rows={hold_rows})
        def append():
            t_s = float(writer.last_seq)
            writer.append(t_s, {{"gpu0": (t_s, 2.0 * t_s)}})
        for _ in range(10):
            append()
        [path] = folder.glob("power.*.table")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))  # a row and a torn one
        for _ in range({held}):
            append()
        found = {{"broken": writer.broken, "lost": writer.lost_rows, "waiting": len(writer._waiting)}}
        found["during"] = [row.seq for row in TableReader(folder, "power").rows()]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        append()
        found |= {{"after": writer.broken, "last": writer.last_seq}}
        writer.close()
        print(json.dumps(found))
        """)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_on_a_full_disk_rows_wait_and_are_written_in_order_when_there_is_space(tmp_path: Path) -> None:
    found = full_disk(tmp_path, hold_rows=100, held=60)
    assert found["broken"] in (os.strerror(errno.EFBIG), os.strerror(errno.ENOSPC)) and found["lost"] == 0
    assert found["during"] == list(range(1, 12)) and found["after"] is None
    rows = TableReader(tmp_path, "power").rows()
    assert [row.seq for row in rows] == list(range(1, 72))
    assert [row.values[0] for row in rows] == [2.0 * row.t_s for row in rows]


def test_what_memory_cannot_hold_is_counted_and_shows_as_a_gap_of_seq(tmp_path: Path) -> None:
    found = full_disk(tmp_path, hold_rows=20, held=60)
    assert found["waiting"] == 20
    # 60 rows came, one was written, 20 wait.
    assert found["lost"] == 39
    kept = [row.seq for row in TableReader(tmp_path, "power").rows()]
    assert kept == [*range(1, 12), *range(51, 72)]


def test_a_disk_that_is_full_from_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = os.pwrite, True

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(table.os, "pwrite", pwrite)
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    append(writer, 0.0)
    append(writer, 1.0)
    assert writer.broken == "No space left on device"
    assert list(tmp_path.glob("power.*.table")) == []  # no empty files are left, one each try
    full = False
    append(writer, 2.0)
    assert writer.broken is None and seqs(TableReader(tmp_path, "power")) == [1, 2, 3]


def test_a_write_that_is_taken_in_part_is_done_again_from_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rng = os.pwrite, np.random.default_rng(1)
    writer = TableWriter.open(tmp_path, "power", COLUMNS)

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data[: int(rng.integers(0, len(data) + 1))], offset)

    monkeypatch.setattr(table.os, "pwrite", pwrite)
    for t_s in range(200):
        append(writer, float(t_s))
        every = seqs(TableReader(tmp_path, "power"))
        assert every == list(range(1, len(every) + 1))
    monkeypatch.undo()
    append(writer, 200.0)
    assert seqs(TableReader(tmp_path, "power")) == list(range(1, 202)) and writer.lost_rows == 0


def test_close_counts_what_it_could_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = TableWriter.open(tmp_path, "power", COLUMNS)

    def refuse(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(table.os, "pwrite", refuse)
    append(writer, 0.0)
    writer.close()
    assert writer.lost_rows == 1
