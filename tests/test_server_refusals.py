"""What TGI's own routes refuse, in which order and in which words."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from served import Served, ask, exact, post

from loadgen.launch import Launcher
from loadgen.prompts.tokens import count_tokens

BAD = [
    ({"best_of": 3}, "`best_of` must be > 0 and <= 2. Given: 3"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0.0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 2.5}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"grammar": {"type": "regex", "value": "a"}}, "grammar is not supported"),
    ({"typical_p": 0.0}, "`typical_p` must be > 0.0 and < 1.0"),
    # The order: the earlier rule speaks.
    (
        {"best_of": 2, "do_sample": True, "seed": 1, "stop": list("abcde")},
        "`stop` supports up to 4 stop sequences. Given: 5",
    ),
    (
        {"best_of": 2, "do_sample": True, "seed": 1, "top_n_tokens": 6},
        "`seed` must not be set when `best_of` > 1",
    ),
    ({"max_new_tokens": 0, "temperature": -1}, "`temperature` must be strictly positive"),
]


@pytest.mark.parametrize(("parameters", "text"), BAD)
def test_invalid_parameters(parameters: dict[str, Any], text: str) -> None:
    response = post("/generate", {"inputs": "a", "parameters": parameters})
    assert response.status == 422
    expected = {"error": f"Input validation error: {text}", "error_type": "validation"}
    assert response.body == json.dumps(expected, separators=(",", ":")).encode()
    if "best_of" not in parameters:
        stream = post("/generate_stream", {"inputs": "a", "parameters": parameters})
        assert stream.status == 200
        assert stream.events() == [expected]


def test_invalid_for_streams_only() -> None:
    for parameters, text in (
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ):
        (event,) = post("/generate_stream", {"inputs": "a", "parameters": parameters}).events()
        assert event["error"] == f"Input validation error: {text}"


def test_best_of_where_the_launcher_allows_none() -> None:
    body = {"inputs": "", "parameters": {"best_of": 2, "do_sample": True}}
    response = ask(lambda server: server.post("/generate", body), launcher=Launcher(max_best_of=1))
    said = "Input validation error: `best_of` != 1 is not allowed for this endpoint"
    assert (response.status, response.json()["error"]) == (422, said)


@pytest.mark.parametrize("best_of", [None, 0, 1, 2])
def test_best_of_is_looked_at_before_there_is_a_place_and_the_rest_after(best_of: int | None) -> None:
    async def call(server: Served) -> None:
        parameters = {"best_of": best_of, "temperature": -1}
        whole = await server.post("/generate", {"inputs": "", "parameters": parameters})
        assert (whole.status, whole.json()["error_type"]) == (429, "overloaded")
        beyond = await server.post("/generate", {"inputs": "", "parameters": {"best_of": 3}})
        assert beyond.json()["error"].endswith("`best_of` must be > 0 and <= 2. Given: 3")
        (event,) = (await server.post("/generate_stream", {"inputs": "", "parameters": parameters})).events()
        if best_of in (None, 1):
            assert event["error_type"] == "overloaded"
        else:
            assert event["error"].endswith("`best_of` != 1 is not supported when streaming tokens")

    ask(call, max_concurrent_requests=0)


def test_best_of_takes_a_place_for_each_sequence() -> None:
    async def call(server: Served) -> None:
        assert (await server.post("/generate", exact(1, best_of=2, do_sample=True))).status == 429
        assert (await server.post("/generate", exact(1))).status == 200

    ask(call, max_concurrent_requests=1)


def test_lengths_that_do_not_fit() -> None:
    async def call(server: Served) -> None:
        limits = server.service.limits
        empty = await server.post("/generate", {"inputs": "", "parameters": {}})
        assert empty.json()["error"] == "Input validation error: `inputs` cannot be empty"
        long = "a " * limits.max_input_tokens
        tokens = count_tokens(long)
        assert tokens > limits.max_input_tokens
        body = {"inputs": long, "parameters": {"max_new_tokens": 2000}}
        response = await server.post("/generate", body)
        assert response.json()["error"] == (
            "Input validation error: `inputs` tokens + `max_new_tokens` must be "
            f"<= {limits.max_total_tokens}. Given: {tokens} `inputs` tokens and 1024 `max_new_tokens`"
        )

    ask(call)


UNREADABLE = [
    (b"{", 400, "Failed to parse the request body as JSON: EOF while parsing a value at line 1 column 1"),
    (b"", 400, "Failed to parse the request body as JSON: EOF while parsing a value at line 1 column 0"),
    (b'{"inputs":"a"} x', 400, "as JSON: trailing characters at line 1 column 16"),
    (b'{\n"inputs": a}', 400, "as JSON: expected value at line 2 column 11"),
    (b'{"inputs":"\xff"}', 400, "as JSON: invalid unicode code point"),
    (b"[1]", 422, "invalid type: sequence, expected struct GenerateRequest at line 1 column 3"),
    (b"{}", 422, "missing field `inputs` at line 1 column 2"),
    (b'{"inputs":5}', 422, "inputs: invalid type: integer `5`, expected a string at line 1 column 11"),
    (
        b'{"inputs":"a","parameters":{"max_new_tokens":-1}}',
        422,
        "parameters.max_new_tokens: invalid value: integer `-1`, expected u32 at line 1 column 47",
    ),
    (
        b'{"inputs":"a","parameters":{"do_sample":null}}',
        422,
        "parameters.do_sample: invalid type: null, expected a boolean",
    ),
    (b'{"inputs":"a","parameters":null}', 422, "parameters: invalid type: null, expected struct"),
    (
        b'{"inputs":"a","parameters":{"stop":["a",1]}}',
        422,
        "parameters.stop[1]: invalid type: integer `1`, expected a string",
    ),
]


@pytest.mark.parametrize(("raw", "status", "text"), UNREADABLE)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_unreadable_bodies_are_plain_text(path: str, raw: bytes, status: int, text: str) -> None:
    response = post(path, raw)
    assert response.status == status
    assert response.headers["content-type"].startswith("text/plain")
    assert text in response.body.decode()
    if status == 422:
        assert response.body.startswith(b"Failed to deserialize the JSON body into the target type: ")


def test_a_body_is_what_came_whatever_its_encoding_is_said_to_be() -> None:
    body = json.dumps(exact(1)).encode()
    assert post("/generate", body, content_encoding="gzip").status == 200
    packed = post("/generate", gzip.compress(body), content_encoding="gzip")
    assert packed.status == 400
    assert packed.body.startswith(b"Failed to parse the request body as JSON: ")


def test_a_body_with_broken_framing_is_refused_and_the_connection_closed() -> None:
    async def call(server: Served) -> None:
        connection = server.connect()
        head = b"POST /generate HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        chunked = b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
        connection.transport.write(head + chunked)
        assert (await connection.response()).status == 400
        await asyncio.sleep(1)
        assert connection.closed
        assert (await server.post("/generate", exact(1))).status == 200

    ask(call)


def test_content_type_and_size_are_checked_first() -> None:
    response = post("/generate", b"{", content_type="text/plain")
    assert response.status == 415
    assert response.body == b"Expected request with `Content-Type: application/json`"
    for said in ("application/json; charset=utf-8", "Application/JSON", "application/hal+json"):
        assert post("/generate", exact(1), content_type=said).status == 200
    response = post("/generate", {"inputs": "a" * 2_000_001})
    assert response.status == 413
    assert response.body == b"Failed to buffer the request body: length limit exceeded"
