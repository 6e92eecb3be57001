"""The sidecar's event file: numbered, bounded, whole after a cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.sidecar import events as event_log
from loadgen.sidecar.events import EventLog, read_events


def test_events_of_two_writers_are_numbered_together_and_found_by_number(tmp_path: Path) -> None:
    logs = EventLog(tmp_path), EventLog(tmp_path)
    for k in range(300):
        logs[k % 2].add("kind", f"event {k}", k=k)
    assert [e["seq"] for e in read_events(tmp_path)] == list(range(1, 301))
    for after in (0, 1, 149, 299, 300):
        assert [e["k"] for e in read_events(tmp_path, after, 3)] == list(range(300))[after : after + 3]


def test_an_event_cut_short_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    log, path = EventLog(tmp_path), tmp_path / "events.jsonl"
    log.add("a", "one")
    log.add("a", "two")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert [e["text"] for e in read_events(tmp_path)] == ["one"]
    path.write_bytes(whole[:-5])
    log.add("a", "three")
    assert [(e["seq"], e["text"]) for e in read_events(tmp_path)] == [(1, "one"), (2, "three")]
    path.write_bytes(whole[:-1])  # whole but for the end of its line: it keeps its number
    log.add("a", "four")
    assert [e["seq"] for e in read_events(tmp_path)] == [1, 2, 3]


def test_the_event_file_is_bounded_and_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LARGEST_BYTES", 5000)
    log = EventLog(tmp_path)
    for k in range(500):
        log.add("kind", "text", k=k)
    assert sum(path.stat().st_size for path in tmp_path.glob("events*.jsonl")) < 12_000
    kept = read_events(tmp_path)
    assert kept[-1]["seq"] == 500 and [e["seq"] for e in kept] == list(range(501 - len(kept), 501))


def test_events_wait_while_the_folder_cannot_be_written(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "later")
    log.add("a", "one")
    assert read_events(tmp_path / "later") == []
    (tmp_path / "later").mkdir()
    log.add("a", "two")
    assert [e["text"] for e in read_events(tmp_path / "later")] == ["one", "two"]
