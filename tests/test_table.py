"""The table: what a kill or a power cut leaves, several readers, bounded work and memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from table_rows import COLUMNS, append, fill, only_segment, seqs

from loadgen.errors import ConfigError
from loadgen.sidecar import segments, table
from loadgen.sidecar.table import Row, TableReader, TableWriter


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    reader = TableReader(tmp_path, "power")
    assert reader.columns == COLUMNS and (reader.first_seq, reader.last_seq) == (1, 3)
    one, two, three = reader.rows()
    assert (one.seq, one.t_s, one.values) == (1, 0.0, (10.0, 101.0, 1.0))
    assert two.lag_s == pytest.approx((0.001, 0.0, 0.002), abs=1e-9)
    assert three.values == (30.0, None, 3.0)  # missing is None, never 0
    assert reader.last() == three


def test_a_table_that_is_not_there_is_empty_and_the_reader_sees_it_come(tmp_path: Path) -> None:
    reader = TableReader(tmp_path / "later", "power")
    assert (reader.columns, reader.first_seq, reader.last_seq) == ((), None, None)
    assert reader.last() is None and reader.rows() == [] and len(reader.arrays().seq) == 0
    fill(tmp_path / "later", 2)
    assert seqs(reader) == [1, 2]


def test_rows_by_seq_and_by_time_agree_with_a_search_through_all(tmp_path: Path) -> None:
    """Against a plain filter, over many random queries and segment borders."""
    rng = np.random.default_rng(4)
    writer = TableWriter.open(tmp_path, "power", COLUMNS, segment_rows=7)
    times = np.cumsum(rng.choice([0.0, 0.5, 1.0, 20.0], 100))  # with equal instants, and gaps
    for t_s in times:
        append(writer, float(t_s))
    reader = TableReader(tmp_path, "power")
    every = list(zip(range(1, 101), times, strict=True))
    for _ in range(300):
        after = int(rng.integers(-1, 103)) if rng.random() < 0.5 else None
        since_s = float(rng.choice(times)) + float(rng.choice([-0.1, 0, 0.1])) if rng.random() < 0.5 else None
        until_s = float(rng.choice(times)) + float(rng.choice([-0.1, 0, 0.1])) if rng.random() < 0.5 else None
        limit = int(rng.integers(1, 40))
        expected = [
            seq
            for seq, t_s in every
            if (after is None or seq > after)
            and (since_s is None or t_s >= since_s)
            and (until_s is None or t_s <= until_s)
        ][:limit]
        assert seqs(reader, after=after, since_s=since_s, until_s=until_s, limit=limit) == expected


def test_cut_at_every_byte_of_the_last_record_the_rows_before_it_are_all_there(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    path = only_segment(tmp_path)
    whole = path.read_bytes()
    width = segments.record_type(len(COLUMNS)).itemsize
    for cut in range(1, width + 1):
        path.write_bytes(whole[:-cut])
        assert seqs(TableReader(tmp_path, "power")) == [1, 2, 3]
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    path.write_bytes(whole[:-5])
    writer.close()
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    assert append(writer, 9.0) == 4
    assert seqs(TableReader(tmp_path, "power")) == [1, 2, 3, 4]


@pytest.mark.parametrize("zeros", [1, 3, 87, 88, 4096, 100_000])
def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_no_rows(tmp_path: Path, zeros: int) -> None:
    fill(tmp_path, 40)
    path = only_segment(tmp_path)
    path.write_bytes(path.read_bytes() + bytes(zeros))
    reader = TableReader(tmp_path, "power")
    assert reader.last_seq == 40 and seqs(reader, after=37) == [38, 39, 40]
    assert seqs(reader, since_s=38.0) == [39, 40]
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    assert append(writer, 50.0) == 41 and seqs(reader, after=39) == [40, 41]


def test_a_record_whose_second_half_is_zeros_is_no_row(tmp_path: Path) -> None:
    """Its seq and time are right; without the check sum its values would read as 0 J."""
    fill(tmp_path, 5)
    path = only_segment(tmp_path)
    whole, half = path.read_bytes(), segments.record_type(len(COLUMNS)).itemsize // 2
    path.write_bytes(whole[:-half] + bytes(half))
    assert seqs(TableReader(tmp_path, "power")) == [1, 2, 3, 4]


def test_a_file_cut_anywhere_in_its_header_is_passed_over_and_replaced(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    first = only_segment(tmp_path)
    fill(tmp_path, 1, 5.0)
    [second] = set(tmp_path.glob("power.*.table")) - {first}
    whole = second.read_bytes()
    length = whole.index(b"\n") + 1
    for cut in (0, 1, length // 2, length - 1):
        second.write_bytes(whole[:cut])
        assert seqs(TableReader(tmp_path, "power")) == [1, 2]
    second.write_bytes(bytes(200))
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    assert not second.exists() and append(writer, 6.0) == 3
    assert seqs(TableReader(tmp_path, "power")) == [1, 2, 3]


def test_a_file_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    path = only_segment(tmp_path)
    newer = path.read_bytes().replace(b'"schema":1', b'"schema":2')
    path.write_bytes(newer)
    with pytest.raises(ConfigError, match="schema 2, this loadgen reads 1"):
        TableWriter.open(tmp_path, "power", COLUMNS)
    with pytest.raises(ConfigError, match="schema 2"):
        TableReader(tmp_path, "power").rows()
    assert path.read_bytes() == newer


def test_rows_wait_while_the_directory_is_gone_and_come_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    writer = TableWriter.open(folder, "power", COLUMNS)
    append(writer, 0.0)
    shutil.rmtree(folder)
    append(writer, 1.0)
    append(writer, 2.0)
    assert writer.broken == os.strerror(errno.ENOENT) and writer.lost_rows == 0
    folder.mkdir()
    append(writer, 3.0)
    assert writer.broken is None and seqs(TableReader(folder, "power")) == [2, 3, 4]


def test_openings_without_a_row_leave_no_file_behind(tmp_path: Path) -> None:
    for _ in range(5):
        fill(tmp_path, 0)
    fill(tmp_path, 1)
    assert len(list(tmp_path.glob("power.*.table"))) == 1


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    with pytest.raises(ConfigError, match="another process writes the table power"):
        TableWriter.open(tmp_path, "power", COLUMNS)
    TableWriter.open(tmp_path, "state", COLUMNS).close()  # another table is another's
    writer.close()
    TableWriter.open(tmp_path, "power", COLUMNS).close()


def test_a_folder_that_cannot_be_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot write the table"):
        TableWriter.open(tmp_path / "file" / "below", "power", COLUMNS)


def test_a_column_nobody_announced_is_an_error(tmp_path: Path) -> None:
    writer = TableWriter.open(tmp_path, "power", COLUMNS)
    with pytest.raises(KeyError):
        writer.append(0.0, {"gpu7": (0.0, 1.0)})


def test_a_board_more_or_fewer_after_a_restart_keeps_every_value_under_its_name(tmp_path: Path) -> None:
    for k, columns in enumerate([("gpu0", "gpu1"), ("gpu1",), ("gpu1", "gpu2")]):
        writer = TableWriter.open(tmp_path, "power", columns)
        writer.append(float(k), {c: (float(k), 10.0 * k + int(c[-1])) for c in columns})
        writer.close()
    reader = TableReader(tmp_path, "power")
    assert reader.columns == ("gpu0", "gpu1", "gpu2")
    assert [row.values for row in reader.rows()] == [(0.0, 1.0, None), (None, 11.0, None), (None, 21.0, 22.0)]


def test_rows_of_an_earlier_boot_are_found_by_seq_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock starts anew with a boot: the same instants mean other ones."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(segments, "BOOT_ID", boot)
    boot.write_text("one\n")
    fill(tmp_path, 30, 100.0, segment_rows=10)
    boot.write_text("two\n")
    fill(tmp_path, 30, 5.0, segment_rows=10)
    reader = TableReader(tmp_path, "power")
    assert seqs(reader, since_s=0.0, until_s=1000.0) == list(range(31, 61))
    assert seqs(reader, after=28, limit=4) == [29, 30, 31, 32]
    old = TableReader(tmp_path, "power", boot="one")
    assert seqs(old, since_s=110.0, until_s=112.0) == [11, 12, 13]


def test_retention_deletes_whole_old_segments_and_never_a_young_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = TableWriter.open(tmp_path, "power", COLUMNS, keep_s=50.0, segment_rows=10)
    reader = TableReader(tmp_path, "power")
    for t_s in range(1000):
        append(writer, float(t_s))
        first = reader.first_seq
        assert first is not None and t_s - (first - 1) >= min(t_s, 50)  # row `seq` has t_s = seq - 1
    assert len(list(tmp_path.glob("power.*.table"))) <= 7
    assert seqs(reader, after=0, limit=1) == [reader.first_seq]
    # Rows of an earlier boot go by the file's age: their instants cannot be compared.
    writer.close()
    boot = tmp_path / "boot_id"
    boot.write_text("next\n")
    monkeypatch.setattr(segments, "BOOT_ID", boot)
    for path in tmp_path.glob("power.*.table"):
        os.utime(path, (path.stat().st_mtime - 60, path.stat().st_mtime - 60))
    writer = TableWriter.open(tmp_path, "power", COLUMNS, keep_s=50.0, segment_rows=10)
    for t_s in range(11):
        append(writer, float(t_s))
    assert seqs(reader) == list(range(1001, 1012))


def test_readers_in_other_processes_see_every_row_once_while_it_is_written(tmp_path: Path) -> None:
    """A writer in another process, segments ending and vanishing; each row's values follow from its seq."""
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from loadgen.sidecar.table import TableWriter
        writer = TableWriter.open(Path(sys.argv[1]), "power", {COLUMNS!r}, segment_rows=500)
        for i in range(20_000):
            writer.append(i * 0.05, {{"gpu0": (i * 0.05, 10.0 * (i + 1)), "ram": (i * 0.05, 1.0)}})
        """)
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    reader, after, seen = TableReader(tmp_path, "power"), 0, list[int]()
    while len(seen) < 20_000:
        ended = process.poll() is not None
        rows = reader.rows(after=after, limit=700)
        for row in rows:
            assert row.values == (10.0 * row.seq, None, 1.0) and row.t_s == pytest.approx(
                (row.seq - 1) * 0.05
            )
        seen += [row.seq for row in rows]
        after = seen[-1] if seen else 0
        assert rows or not ended, f"only {len(seen)} rows came"
    assert seen == list(range(1, 20_001)) and process.wait() == 0


def test_kill_9_loses_no_row_that_was_appended(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from loadgen.sidecar.table import TableWriter
        writer = TableWriter.open(Path(sys.argv[1]), "power", {COLUMNS!r}, segment_rows=100)
        while True:
            seq = writer.append(writer.last_seq * 0.05, {{"gpu0": (0.0, 1.0)}})
            print(seq, flush=True)
        """)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = 0
    for line in process.stdout:
        told = int(line)
        if told == 1234:
            process.kill()
            break
    told = max([told, *(int(line) for line in process.stdout.read().splitlines(True) if line.endswith("\n"))])
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    last = TableReader(tmp_path, "power").last_seq
    assert last is not None and told <= last <= told + 1
    assert seqs(TableReader(tmp_path, "power"), limit=10_000) == list(range(1, last + 1))
    writer = TableWriter.open(tmp_path, "power", COLUMNS)  # the kernel freed the lock
    assert append(writer, 1e6) == last + 1


@pytest.mark.parametrize("rows", [1000, 64_000])
def test_a_query_reads_a_few_records_whatever_the_length_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Bisection: the calls to the system grow with log2 of the rows, by segments and within one."""
    writer = TableWriter.open(tmp_path, "power", ("a",), segment_rows=max(100, rows // 16))
    for i in range(rows):
        writer.append(i * 0.05, {"a": (i * 0.05, 1.0)})
    reader = TableReader(tmp_path, "power")
    reader.rows(limit=1)  # headers are read once
    calls = 0
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        nonlocal calls
        calls += 1
        assert size <= 1000 * 40
        return real(fd, size, offset)

    monkeypatch.setattr(segments.os, "pread", pread)
    middle_s = rows * 0.05 / 2
    for ask in (
        reader.last,
        lambda: reader.rows(after=rows // 2, limit=10),
        lambda: reader.rows(since_s=middle_s, until_s=middle_s + 1),
    ):
        calls = 0
        assert ask()
        assert calls <= 3 * np.log2(rows) + 20, calls


def test_neither_writer_nor_reader_grows_with_the_rows(tmp_path: Path) -> None:
    """Objects' own sizes after 2,000 and after 20,000 rows, with retention; no timing, no allocator."""
    writer = TableWriter.open(tmp_path, "power", COLUMNS, keep_s=500.0, segment_rows=100)
    reader = TableReader(tmp_path, "power")

    def held() -> int:
        kept = {**vars(writer), **vars(reader)}
        return sum(sys.getsizeof(v) + (len(v) if hasattr(v, "__len__") else 0) for v in kept.values())

    sizes = []
    for rows in (2000, 18_000):
        for _ in range(rows):
            append(writer, float(writer.last_seq))
            if writer.last_seq % 97 == 0:
                reader.rows(after=writer.last_seq - 5)
        sizes.append(held())
    assert abs(sizes[1] - sizes[0]) <= 64
    assert len(os.listdir(tmp_path)) <= 8


def test_the_format_is_the_documented_one_byte_for_byte(tmp_path: Path) -> None:
    """Read with struct and zlib alone, as another program would."""
    import zlib

    fill(tmp_path, 2, 7.0)
    line, body = only_segment(tmp_path).read_bytes().split(b"\n", 1)
    header = json.loads(line)
    assert (header["schema"], header["table"], header["columns"]) == (1, "power", list(COLUMNS))
    assert header["first_seq"] == 1 and header["boot"] == table.boot_id()
    shape = struct.Struct("<Qd3d3fI")
    assert len(body) == 2 * shape.size
    seq, t_s, gpu_j, gpu_w, ram_j, *lag_s, check = shape.unpack(body[: shape.size])
    assert (seq, t_s, gpu_j, gpu_w, ram_j) == (1, 7.0, 10.0, 101.0, 1.0)
    assert lag_s == pytest.approx([0.001, 0.0, 0.002], abs=1e-7)
    assert check == zlib.crc32(body[: shape.size - 4])
    assert isinstance(TableReader(tmp_path, "power").last(), Row)
