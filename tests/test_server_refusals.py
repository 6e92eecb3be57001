"""What TGI's own routes refuse, in which order and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import Served, ask, exact, post

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
    # The order: the earlier rule speaks.
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
    (b"{", 400, "Failed to parse the request body as JSON: "),
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


def test_content_type_and_size_are_checked_first() -> None:
    response = post("/generate", b"{", content_type="text/plain")
    assert response.status == 415
    assert response.body == b"Expected request with `Content-Type: application/json`"
    assert post("/generate", exact(1), content_type="application/json; charset=utf-8").status == 200
    response = post("/generate", {"inputs": "a" * 2_000_001})
    assert response.status == 413
    assert response.body == b"Failed to buffer the request body: length limit exceeded"
