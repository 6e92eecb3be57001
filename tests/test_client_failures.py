"""Every way an exchange can fail, against scripted servers in virtual time."""

from __future__ import annotations

import orjson
import pytest
from scripted import (
    CLOSE,
    HEAD,
    LAST_CHUNK,
    TGI_FLAT,
    chat,
    chunk,
    event,
    one,
    plain,
    tgi_events,
)

# Failures


OPENAI_NESTED = {"error": {"message": "Model is overloaded", "http_status_code": 422}}


@pytest.mark.parametrize(("protocol", "value"), [("tgi", TGI_FLAT), ("openai-chat", OPENAI_NESTED)])
def test_overload_inside_a_200_stream_is_a_rejection(protocol, value):
    _, tape, reply, error = one(protocol, [HEAD + chunk(event(value)) + LAST_CHUNK])
    assert (tape.http_status, error, reply.rejected) == (200, None, True)
    assert "Model is overloaded" in reply.error


def test_error_in_the_middle_of_a_stream_keeps_the_tokens_before_it():
    failure = {"error": "Request failed during generation: CUDA", "error_type": "generation"}
    body = tgi_events()[0] + event(failure)
    _, _, reply, _ = one("tgi", [HEAD + chunk(body) + LAST_CHUNK])
    assert (reply.rejected, sum(reply.chunk_tokens), reply.output_tokens) == (False, 1, 1)
    assert reply.tokens_from == "chunks"
    assert "CUDA" in reply.error
    assert "generation" in reply.error


@pytest.mark.parametrize(
    ("status", "body", "kind", "rejected", "said"),
    [
        (
            422,
            orjson.dumps({"error": "Input validation error: x", "error_type": "validation"}),
            "application/json",
            False,
            "Input validation error",
        ),
        (
            422,
            b"Failed to deserialize the JSON body into the target type: inputs",
            "text/plain",
            False,
            "deserialize",
        ),
        (
            424,
            orjson.dumps({"error": "Request failed", "error_type": "generation"}),
            "application/json",
            False,
            "failed",
        ),
        (429, orjson.dumps(TGI_FLAT), "application/json", True, "overloaded"),
        (429, b"", "text/plain", True, "HTTP 429"),
        (500, b"<html>\r\n<b>oops</b>", "text/html", False, "oops"),
        (401, b"", "text/plain", False, "HTTP 401"),
        (
            503,
            orjson.dumps({"error": {"message": "Loading model", "code": 503}}),
            "application/json",
            False,
            "Loading",
        ),
        (302, b"", "text/plain", False, "HTTP 302"),
    ],
)
@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
def test_http_errors(protocol, status, body, kind, rejected, said):
    server, tape, reply, error = one(protocol, [plain(status, body, kind)])
    assert (error, tape.http_status, tape.complete) == (None, status, True)
    assert reply.rejected is rejected
    assert said in reply.error
    assert "\n" not in reply.error
    assert server.connections == 1


def test_stream_without_a_finish_event_is_no_success():
    for done in (b"", b"data: [DONE]\n\n"):
        body = event(chat({"content": "a"})) + done
        _, tape, reply, _ = one("openai-chat", [HEAD + chunk(body) + LAST_CHUNK])
        assert tape.complete
        assert "without a finish event after 1 token" in reply.error
    _, _, reply, _ = one("tgi", [HEAD + b"".join(map(chunk, tgi_events()[:2])) + LAST_CHUNK])
    assert "without a finish event after 2 token" in reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a\n\n',
        b"data: 17\n\n",
        b"data: [1]\n\n",
        b'data: {"token":5}\n\n',
        b'data: {"choices":[3]}\n\n',
        b'data: {"choices":7}\n\n',
        b"\x00\xff\xfe garbage",
        b"",
        b'data: {"choices":[{"index":[],"delta":{}}]}\n\n',
    ],
)
def test_garbage_events_are_an_error_never_an_exception(protocol, body):
    wire = HEAD + (chunk(body) if body else b"") + LAST_CHUNK
    _, _, reply, error = one(protocol, [wire])
    assert error is None
    assert reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize("body", [b"nonsense", b"[]", b"{}", b'{"choices":[]}', b'{"choices":7}', b"null"])
def test_garbage_objects_are_an_error(protocol, body):
    _, _, reply, _ = one(protocol, [plain(200, body)], streaming=False)
    assert reply.error


@pytest.mark.parametrize("protocol", ["tgi", "openai-chat", "openai-completions"])
@pytest.mark.parametrize("value", [b"%b", b'{"error":{"a":%b}}'])
def test_deep_nesting_is_an_error_never_an_exception(protocol, value):
    """Found: orjson reads deeper than it writes, so the excerpt of the garbage raised."""
    body = value % (b"[" * 600 + b"]" * 600)
    for script, streaming in (
        ([HEAD + chunk(b"data: " + body + b"\n\n") + LAST_CHUNK], True),
        ([plain(200, body)], False),
    ):
        _, _, reply, error = one(protocol, script, streaming=streaming)
        assert error is None and reply.error


@pytest.mark.parametrize("digits", [5000, 30])
def test_a_count_of_absurd_length_is_no_count(digits):
    """Found: int() raised on it, or the record's JSON could not hold it."""
    extra = f"x-generated-tokens: {'9' * digits}\r\n"
    _, _, reply, _ = one("tgi", [plain(200, b'{"generated_text":"x"}', extra=extra)], streaming=False)
    assert reply.error is None and reply.output_tokens is None


def test_an_error_beside_a_last_choice_is_no_success():
    """Found: a router's chunk with both an error and a finish reason counted as ok."""
    broken = chat({"content": ""}, "error", error={"message": "upstream died", "code": 502})
    _, _, reply, _ = one(
        "openai-chat", [HEAD + chunk(event(chat({"content": "a"})) + event(broken)) + LAST_CHUNK]
    )
    assert reply.error is not None and "upstream died" in reply.error


def test_truncated_chunked_body_keeps_what_came():
    a, b, c = map(chunk, tgi_events())
    for script in ([HEAD + a + b, CLOSE], [HEAD + a + b, 1.0, CLOSE], [HEAD + a + b + c[:30], CLOSE]):
        _, tape, reply, error = one("tgi", script)
        assert "closed by the server in the middle" in str(error)
        assert not tape.complete
        assert sum(reply.chunk_tokens) == 2
        assert reply.error is not None


def test_a_finish_event_in_a_broken_body_is_no_success():
    body = b"".join(map(chunk, tgi_events()))
    _, tape, reply, error = one("tgi", [HEAD + body, CLOSE])
    assert error is not None
    assert not tape.complete
    assert reply.error is not None
    assert reply.finish_reason == "length"


def test_body_that_ends_with_the_connection_is_complete():
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    a, b, c = tgi_events()
    _, tape, reply, error = one("tgi", [head + a, 1.0, b + c, CLOSE])
    assert (error, tape.complete, reply.error, reply.text) == (None, True, None, "abc")
    assert tape.stamps == [0.0, 1.0]


def test_short_content_length_body():
    wire = plain(200, b'{"generated_text":"abc"}')
    _, tape, reply, error = one("tgi", [wire[:-4], CLOSE], streaming=False)
    assert "closed by the server in the middle" in str(error)
    assert tape.data == b'{"generated_text":"a'
    assert reply.error


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ([b"\x16\x03\x01 nonsense\r\n\r\n"], "not an HTTP response"),
        ([b"SSH-2.0-OpenSSH\r\n"], "not an HTTP response"),
        ([HEAD + b"this is no chunk size\r\n"], "garbage in the response"),
        ([HEAD + chunk(b"data: {}\n\n") + b"zzzz"], "garbage in the response"),
        ([CLOSE], "closed by the server before any response"),
        ([b"HTTP/1.1 200 OK\r\ncontent-", CLOSE], "closed by the server before any response"),
    ],
)
def test_bytes_that_are_not_http(script, said):
    server, tape, reply, error = one("tgi", script)
    assert said in str(error)
    assert "\n" not in str(error)
    assert not tape.complete
    assert reply.error
    assert len(server.lost_s) == 1


def test_hang_is_cut_by_the_callers_timeout_and_disconnects():
    a = chunk(tgi_events()[0])
    server, tape, reply, error = one("tgi", [1.0, HEAD + a, 1000.0], timeout_s=5.0)
    assert isinstance(error, TimeoutError)
    assert server.lost_s[0] == 5.0
    assert (tape.http_status, tape.complete) == (200, False)
    assert tape.data == tgi_events()[0]
    assert sum(reply.chunk_tokens) == 1


def test_hang_before_the_head():
    server, tape, reply, error = one("tgi", [1000.0], timeout_s=5.0)
    assert isinstance(error, TimeoutError)
    assert server.lost_s[0] == 5.0
    assert (tape.http_status, tape.data, reply.error) == (None, b"", "no response")
