from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from fakes import plan

from loadgen import rundir
from loadgen.errors import RunDirError
from loadgen.types import Plan, Reading, Record, Step


def record(id: int, at_s: float, *, phase: str = "measure") -> Record:
    return Record(
        id=id,
        phase=phase,  # type: ignore[arg-type]
        block=0,
        demand_s=at_s,
        due_s=at_s,
        sent_s=at_s + 0.001,
        first_s=at_s + 0.1,
        done_s=at_s + 0.2,
        chunk_s=(at_s + 0.1, at_s + 0.2),
        chunk_tokens=(1, 3),
        prompt_tokens=7,
        output_tokens=4,
        tokens_from="server",
        finish_reason="length",
        http_status=200,
        server_times={"queue_s": 0.01},
        status="ok",
        error=None,
    )


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[rundir.RunWriter]:
    writer = rundir.RunWriter(tmp_path / "run", {"name": "t"}, "name: t\n")
    yield writer
    writer.seal("done with")


def test_what_is_written_is_what_is_read_with_times_from_zero(writer: rundir.RunWriter) -> None:
    steps = writer.server
    writer.requests.append(record(-1, 90.0, phase="warmup"))
    writer.power.append(Reading(95.0, "gpu0", energy_j=1.5))
    assert rundir.read_records(writer.path) == []  # nothing before the zero is known
    writer.set_zero(100.0)
    writer.requests.append(record(0, 100.0))
    writer.power.append(Reading(100.1, "gpu0.instant", power_w=120.0))
    steps.append(Step(100.0, 1 / 3, 0.1 + 0.2, ((0, 5, 0, 0), (1, 0, 1, 9))))
    writer.seal("complete")

    first, second = rundir.read_records(writer.path)
    assert first == record(-1, -10.0, phase="warmup") and second == record(0, 0.0)
    assert rundir.read_readings(writer.path) == [
        Reading(-5.0, "gpu0", energy_j=1.5),
        Reading(0.1, "gpu0.instant", power_w=120.0),
    ]
    (step,) = rundir.read_steps(writer.path)
    assert step == Step(0.0, 1 / 3, 0.1 + 0.2, ((0, 5, 0, 0), (1, 0, 1, 9)))
    assert rundir.read_manifest(writer.path)["status"] == "complete"
    assert (writer.path / "scenario.yaml").read_text() == "name: t\n"


def test_rounding_keeps_the_order_of_instants(writer: rundir.RunWriter) -> None:
    rng = random.Random(7)
    for _ in range(500):
        t = sorted(rng.uniform(1e5, 1e5 + 1e-5) for _ in range(5))
        sample = record(0, 0.0)
        shaken = {"demand_s": t[0], "due_s": t[1], "sent_s": t[2], "first_s": t[3], "done_s": t[4]}
        row = rundir.record_row(
            Record(**({f: getattr(sample, f) for f in sample.__slots__} | shaken)), 12345.678
        )
        kept = [row[name] for name in shaken]
        assert kept == sorted(kept)


def test_a_killed_run_is_readable_up_to_its_last_whole_line(writer: rundir.RunWriter) -> None:
    writer.set_zero(0.0)
    for k in range(5):
        writer.requests.append(record(k, float(k)))
    path = writer.path / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert [r.id for r in rundir.read_records(writer.path)] == [0, 1, 2, 3]
    assert rundir.read_manifest(writer.path)["status"] == "running"


def test_damage_inside_a_file_is_an_error_with_its_place(writer: rundir.RunWriter) -> None:
    writer.set_zero(0.0)
    writer.requests.append(record(0, 0.0))
    with (writer.path / "requests.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    writer.requests.append(record(1, 1.0))
    with pytest.raises(RunDirError, match=r"requests\.jsonl:2: expected a JSON object"):
        rundir.read_records(writer.path)


def test_the_plan_is_written_without_prompt_text(writer: rundir.RunWriter) -> None:
    writer.write_plan(plan([0.0]), plan([0.0, 0.25]))
    text = (writer.path / "plan.jsonl").read_text()
    assert "Thank you" not in text
    rows = [orjson.loads(line) for line in text.splitlines()]
    assert [row["due_s"] for row in rows] == [None, 0.0, 0.25]
    assert [row["due_s"] for row in rundir.read_plan(writer.path)] == [None, 0.0, 0.25]


def test_a_plan_must_be_sorted_causal_and_unique() -> None:
    good = plan([0.0, 0.5])
    with pytest.raises(ValueError, match="sorted"):
        Plan(good.arrivals[::-1], None, "queue", 0)
    with pytest.raises(ValueError, match="unique"):
        Plan(good.arrivals[:1] * 2, None, "queue", 0)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"schema": 99}'])
def test_what_is_no_run_directory_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunDirError) as refusal:
        rundir.read_manifest(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_path_that_is_not_there_is_told_from_a_directory_of_something_else(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "typo", "there is no such directory"), (tmp_path, "got one without")):
        with pytest.raises(RunDirError, match=said):
            rundir.read_manifest(path)


def test_a_long_name_still_makes_a_directory(tmp_path: Path) -> None:
    rundir.new_path(tmp_path, "a/b" * 200, "20261121T000000Z", "f" * 64).mkdir()


def test_a_second_run_in_the_same_second_gets_its_own_directory(tmp_path: Path) -> None:
    first = rundir.new_path(tmp_path, "a b/c", "20260101T000000Z", "abcdef0123")
    assert first.name == "20260101T000000Z-a-b-c-abcdef01"
    first.mkdir()
    assert rundir.new_path(tmp_path, "a b/c", "20260101T000000Z", "abcdef0123").name.endswith("-2")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_error_and_leaves_no_cut_line_inside(tmp_path: Path) -> None:
    """Found: it was a traceback, and lines went on to be written behind the cut one."""
    lines = rundir._Lines(Path("/dev/full"), rundir.record_row)
    lines.set_zero(0.0)
    for _ in range(2):
        with pytest.raises(RunDirError, match="cannot write /dev/full: No space left"):
            lines.append(record(1, 0.0))
    lines.close()


@pytest.mark.parametrize("line", ["5", "[1]", '{"t_s":0}'])
@pytest.mark.parametrize("name", ["requests", "power"])
def test_a_line_that_is_no_row_is_an_error_with_its_place(tmp_path: Path, name: str, line: str) -> None:
    """Found: JSON of the wrong shape was a traceback."""
    (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    read = {"requests": rundir.read_records, "power": rundir.read_readings}[name]
    with pytest.raises(RunDirError, match=rf"{name}\.jsonl:1: "):
        read(tmp_path)
