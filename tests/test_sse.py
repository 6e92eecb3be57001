"""The event-stream parser and the chunked coding, against slow models of their own."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.clients import sse
from loadgen.clients.chunked import ChunkedBody, ChunkedError

PAYLOADS = st.lists(
    st.dictionaries(
        st.text(max_size=8), st.text(max_size=20) | st.integers(-9, 10**12) | st.none(), max_size=3
    ),
    min_size=1,
    max_size=12,
)


def model(body: bytes) -> list[bytes]:
    """The standard's own words, one line at a time (plus the unterminated last event)."""
    found, data = [], []
    lines = re.split(rb"\r\n|\r|\n", body)
    for line in [*lines, b""]:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif not line.startswith(b":"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value[1:] if value.startswith(b" ") else value)
    return found


@settings(deadline=None)
@given(
    PAYLOADS,
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"data: ", b"data:"]),
    st.sampled_from([b"", b": keep-alive", b":", b"event: token", b"id: 7", b"retry: 3"]),
    st.booleans(),
    st.booleans(),
)
def test_json_events_survive_every_spelling(payloads, eol, field, extra, done, terminated):
    lines = []
    for payload in payloads:
        lines += ([extra] if extra else []) + [field + orjson.dumps(payload), b""]
    if done:
        lines += [b"data: [DONE]", b""]
    body = eol.join(lines) + eol
    if not terminated:
        body = body.rstrip(b"\r\n")
    values, ends, error = sse.json_events(body)
    assert error is None
    assert values == payloads
    assert ends == sorted(set(ends))
    assert ends[-1] <= len(body)
    # An event is complete exactly at its end: with one byte less, its blank line is not.
    for n, end in enumerate(ends):
        assert len(sse.events(body[:end])) == n + 1
        assert sse.json_events(body[:end])[0] == payloads[: n + 1]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"data", b":", b" ", b"\n", b"\r", b"\r\n", b"x", b"{}", b"id: 1"]), max_size=40
    )
)
def test_events_equal_the_line_by_line_model(pieces):
    body = b"".join(pieces)
    assert [e.data for e in sse.events(body)] == model(body)


def test_ends_say_which_bytes_completed_an_event():
    body = b'data: {"a":1}\n\n: ping\n\ndata: {"a":2}\n\n'
    values, ends, error = sse.json_events(body)
    assert (values, error) == ([{"a": 1}, {"a": 2}], None)
    assert ends == [len(b'data: {"a":1}\n\n'), len(body)]


def test_multi_line_data_and_byte_order_mark():
    body = b'\xef\xbb\xbfdata: {"a":\ndata: 1}\n\ndata\n\n'
    found = sse.events(body)
    assert [e.data for e in found] == [b'{"a":\n1}', b""]
    assert found[0].end_bytes == body.index(b"data\n\n")


def test_garbage_is_named_and_what_came_before_it_kept():
    values, ends, error = sse.json_events(b'data: {"a":1}\n\ndata: {"a":\n\ndata: {"a":3}\n\n')
    assert values == [{"a": 1}]
    assert len(ends) == 1
    assert error is not None
    assert '{"a":' in error


def test_values_hidden_in_one_event_are_not_counted_as_two():
    # Joined by commas these would decode as an array of three.
    values, _, error = sse.json_events(b'data: {"a":1},{"a":2}\n\ndata: {"a":3}\n\n')
    assert values == []
    assert error is not None


@pytest.mark.parametrize(
    ("ends", "sizes", "expected"),
    [
        ([], [5], ((), ())),
        ([3], [], ((), ())),
        ([3, 6, 9], [3, 6, 9], ((0, 1, 2), (1, 1, 1))),
        ([3, 6, 9], [2, 7, 9], ((1, 2), (2, 1))),
        ([3, 6, 9], [1, 2, 3, 4, 5, 9, 12], ((2, 5), (1, 2))),
        ([3, 9], [4, 8], ((0, 1), (1, 1))),
    ],
)
def test_group_by_read(ends, sizes, expected):
    assert sse.group_by_read(ends, sizes) == expected


@given(st.lists(st.integers(1, 50), min_size=1), st.lists(st.integers(1, 50), min_size=1))
def test_group_by_read_equals_the_first_read_that_covers(gaps, steps):
    ends = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    sizes = [sum(steps[: i + 1]) for i in range(len(steps))] + [ends[-1] + sum(steps)]
    reads, counts = sse.group_by_read(ends, sizes)
    flat = [r for r, c in zip(reads, counts, strict=True) for _ in range(c)]
    assert flat == [next(i for i, s in enumerate(sizes) if s >= end) for end in ends]
    assert sum(counts) == len(ends)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from([b"\r\n", b"0\r\n\r\n"]), max_size=8),
    st.sampled_from([b"", b";name=1", b" "]),
    st.sampled_from([b"", b"x-trailer: 1\r\n"]),
    st.binary(max_size=6),
    st.data(),
)
def test_chunked_body_survives_any_split(payloads, extension, trailer, rest, data):
    wire = b"".join(chunk(p, extension) for p in payloads) + b"0\r\n" + trailer + b"\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire)), max_size=10)))
    body = ChunkedBody()
    at = 0
    for cut in [*cuts, len(wire)]:
        if cut > at:
            assert not body.done
            body.feed(wire[at:cut] + (rest if cut == len(wire) else b""))
            assert body.size_bytes == sum(map(len, body.parts)) <= sum(map(len, payloads))
            at = cut
    assert body.done
    assert b"".join(body.parts) == b"".join(payloads)
    assert body.rest == rest


def test_chunked_size_grows_with_every_read_of_whole_chunks():
    body = ChunkedBody()
    sizes = []
    for payload in (b"abc", b"x" * 300, b"de"):
        body.feed(chunk(payload))
        sizes.append(body.size_bytes)
    body.feed(chunk(b"1") + chunk(b"22") + b"0\r\n\r\n")
    assert (*sizes, body.size_bytes, body.done) == (3, 303, 305, 308, True)


@pytest.mark.parametrize(
    "wire",
    [
        b"zz\r\n",
        b"garbage without a line end",
        b"-3\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"3\r\nabcX",
        b"3\r\nabcde\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"+3\r\nabc\r\n",
        b"3\r\nabc\r\nHTTP/1.1 200 OK\r\n",
        b"f" * 17 + b"\r\n",
    ],
)
def test_broken_chunks_are_refused_at_once(wire):
    with pytest.raises(ChunkedError):
        ChunkedBody().feed(wire)
