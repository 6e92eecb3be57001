r"""Server-sent events, from the bytes of a whole body: pure, no clock, no sockets.

Follows the event-stream format of the HTML standard, section 9.2.6: lines end in
LF, CR or CRLF; one space after the colon of a field is dropped; several ``data``
lines of an event are joined by LF; a line that begins with a colon is a comment;
an event ends at a blank line. One thing is laxer: a last event without its blank
line counts (servers that die or are careless omit it), the standard drops it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import orjson

DONE = b"[DONE]"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data, and the size of the body (bytes) when it was complete."""

    data: bytes
    end_bytes: int


def events(body: bytes) -> list[Event]:
    """All events of a body in order; comments and events without data are left out."""
    found: list[Event] = []
    data: list[bytes] = []
    at = 3 if body.startswith(_BOM) else 0
    size = len(body)
    crs = b"\r" in body
    while at < size:
        end = body.find(b"\n", at)
        end = size if end < 0 else end
        stop = end + 1
        if crs and (cr := body.find(b"\r", at, end)) >= 0:
            # A CR ends the line, and swallows the LF right behind it.
            end, stop = cr, cr + 2 if body[cr + 1 : cr + 2] == b"\n" else cr + 1
        if end == at:
            if data:
                found.append(Event(b"\n".join(data), stop))
                data = []
        elif body.startswith(b"data", at):
            if end == at + 4:
                data.append(b"")
            elif body[at + 4 : at + 5] == b":":
                begin = at + 6 if body[at + 5 : at + 6] == b" " else at + 5
                data.append(body[begin:end])
        at = stop
    if data:
        found.append(Event(b"\n".join(data), size))
    return found


def json_events(body: bytes) -> tuple[list[Any], list[int], str | None]:
    """The decoded events of a body, with their ends; stops at the first garbage.

    Returns ``(values, ends, error)``: ``values[i]`` is complete once the body has
    ``ends[i]`` bytes; ``error`` names the first event that is not JSON, if any.
    ``[DONE]`` is not a value.
    """
    fast = _uniform(body)
    if fast is not None:
        return (*fast, None)
    values: list[Any] = []
    ends: list[int] = []
    for event in events(body):
        if event.data.strip() == DONE:
            continue
        try:
            values.append(orjson.loads(event.data))
        except orjson.JSONDecodeError:
            return values, ends, f"expected JSON in an event, got {event.data[:80]!r}"
        ends.append(event.end_bytes)
    return values, ends, None


def _uniform(body: bytes) -> tuple[list[Any], list[int]] | None:
    r"""The same for the plain case, at a third of the cost; None when it is not plain.

    When every event is one ``data`` line and a blank line, the separators can be
    replaced by commas and the whole decoded as one JSON array. JSON text holds
    no raw line break, so anything else (comments, other fields, CRLF, a cut)
    fails to decode or to give as many values as there were separators.
    """
    prefix = b"data: {" if body.startswith(b"data: {") else b"data:{"
    if not (body.startswith(prefix) and body.endswith(b"\n\n")):
        return None
    lines = body.split(b"\n\n")
    del lines[-1]
    ends = list(accumulate([len(line) + 2 for line in lines]))
    stop = len(body) - 2
    if lines[-1] == prefix[:-1] + DONE:
        stop -= len(lines.pop()) + 2
        ends.pop()
    start = len(prefix) - 1
    array = b"[%b]" % body[start:stop].replace(b"\n\n" + prefix[:-1], b",")
    try:
        values = orjson.loads(array)
    except orjson.JSONDecodeError:
        return None
    return (values, ends) if len(values) == len(ends) else None


def group_by_read(ends: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which read completed which events: ``(reads, counts)``.

    ``ends``: body sizes (bytes, sorted) at which events were complete; ``sizes[i]``:
    the body's size after read i. ``counts[j]`` events were completed by read
    ``reads[j]``; reads that completed none are left out. Events beyond the last
    read (there are none in a real tape) count for the last one.
    """
    reads: list[int] = []
    counts: list[int] = []
    last = len(sizes) - 1
    if last < 0:
        return (), ()
    read = 0
    for end in ends:
        if sizes[read] < end and read < last:
            read += 1  # usually the very next one
            if sizes[read] < end:
                read = min(bisect_left(sizes, end, read), last)
        if reads and reads[-1] == read:
            counts[-1] += 1
        else:
            reads.append(read)
            counts.append(1)
    return tuple(reads), tuple(counts)
