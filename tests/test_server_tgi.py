"""TGI's own routes, byte for byte, on the virtual clock."""

from __future__ import annotations

import asyncio
import re

import pytest
from served import RawConnection, Response, Served, ask, exact, post, request_bytes

from loadgen import clock
from loadgen.launch import Launcher
from loadgen.prompts.replies import reply_tokens
from loadgen.prompts.tokens import count_tokens


def test_stream_framing_is_tgi_s() -> None:
    response = post("/generate_stream", exact(3, details=True), x_request_id="7")
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-compute-type"] == "gpu+optimized"
    assert response.headers["x-compute-characters"] == "11"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["access-control-allow-origin"] == "*"
    assert "x-total-time" not in response.headers
    assert len(response.chunks) == 3, "one HTTP chunk an event"
    pattern = (
        rb'data: \{"index":%d,"token":\{"id":\d+,"text":" [a-z]+","logprob":-[0-9.]+,"special":false\},'
        rb'"generated_text":null,"details":null\}\n\n'
    )
    assert re.fullmatch(pattern % 1, response.chunks[0])
    assert re.fullmatch(pattern % 2, response.chunks[1])
    text = "".join(event["token"]["text"] for event in response.events())
    tail = (
        f'"generated_text":"{text}","details":{{"finish_reason":"length","generated_tokens":3,'
        f'"seed":null,"input_length":{count_tokens("Hello there")}}}}}\n\n'
    )
    assert response.chunks[2].endswith(tail.encode())
    assert b"[DONE]" not in response.body


def test_details_of_a_stream_are_null_unless_asked_for() -> None:
    last = post("/generate_stream", exact(2)).events()[-1]
    assert last["details"] is None
    assert last["generated_text"]


def test_a_connection_serves_one_stream_after_another_and_then_json() -> None:
    async def call(server: Served) -> list[Response]:
        connection = server.connect()
        # Pipelined: a framing fault of one body would corrupt the next.
        connection.transport.write(request_bytes("/generate_stream", exact(4), x_request_id="1"))
        connection.transport.write(request_bytes("/generate_stream", exact(2), x_request_id="2"))
        connection.transport.write(request_bytes("/generate", exact(2), x_request_id="2"))
        return [await connection.response() for _ in range(3)]

    first, second, third = ask(call)
    assert [e["index"] for e in first.events()] == [1, 2, 3, 4]
    assert [e["index"] for e in second.events()] == [1, 2]
    assert third.json()["generated_text"] == second.events()[-1]["generated_text"]


def test_http_1_0_stream_is_not_chunked_and_ends_with_the_connection() -> None:
    async def call(server: Served) -> RawConnection:
        connection = server.connect()
        connection.transport.write(request_bytes("/generate_stream", exact(2), version="1.0"))
        while not connection.closed:
            await asyncio.sleep(0.1)
        return connection

    head, _, body = ask(call).data.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"}\n\n")
    assert body.count(b"\n\n") == 2


def test_each_token_leaves_at_its_step_and_the_body_ends_with_the_last() -> None:
    async def call(server: Served) -> RawConnection:
        connection = server.connect()
        connection.transport.write(request_bytes("/generate_stream", exact(5)))
        await connection.until(lambda: connection.data.endswith(b"0\r\n\r\n"))
        return connection

    reads = ask(call).reads
    assert len(reads) == 6, "the head, then a read a token"
    instants = [at for at, _ in reads]
    assert instants == sorted(set(instants))
    assert reads[-1][1].count(b"data: ") == 1
    assert reads[-1][1].endswith(b"\r\n0\r\n\r\n")


def test_generate_has_tgi_s_keys_order_and_headers() -> None:
    response = post("/generate", exact(4, details=True))
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["generated_text", "details"]
    assert list(body["details"]) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert body["details"]["generated_tokens"] == 4 == len(body["details"]["tokens"])
    assert body["generated_text"] == "".join(t["text"] for t in body["details"]["tokens"])
    headers = response.headers
    assert headers["x-generated-tokens"] == "4"
    assert headers["x-prompt-tokens"] == str(count_tokens("Hello there"))
    whole = {
        k: int(headers[f"x-{k}"]) for k in ("total-time", "validation-time", "queue-time", "inference-time")
    }
    assert whole["total-time"] == int(float(headers["x-compute-time"]) * 1000) > 0
    parts = whole["validation-time"] + whole["queue-time"] + whole["inference-time"]
    assert 0 <= whole["total-time"] - parts <= 2, "three truncations"
    assert int(headers["x-time-per-token"]) == int(float(headers["x-compute-time"]) * 1000 / 4)


def test_details_are_absent_unless_asked_for() -> None:
    assert list(post("/generate", exact(2)).json()) == ["generated_text"]


@pytest.mark.parametrize("request_id", [0, 3, -2])
def test_reply_length_is_the_law_s_and_the_end_marker_counts(request_id: int) -> None:
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 300, "details": True}}
    response = post("/generate", body, x_request_id=str(request_id)).json()
    expected = reply_tokens(1, request_id, 300)
    details = response["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == expected == len(details["tokens"])
    assert [t["special"] for t in details["tokens"]] == [False] * (expected - 1) + [True]
    assert details["tokens"][-1]["text"] not in response["generated_text"]
    stream = post("/generate_stream", body, x_request_id=str(request_id)).events()
    assert [e["token"] for e in stream] == details["tokens"]
    assert stream[-1]["generated_text"] == response["generated_text"]
    assert stream[-1]["details"]["finish_reason"] == "eos_token"


def test_replies_repeat_by_id_and_differ_between_ids() -> None:
    texts = [post("/generate", exact(8), x_request_id=i).json()["generated_text"] for i in ("5", "5", "6")]
    assert texts[0] == texts[1] != texts[2]


def test_compat_route_answers_a_list_with_the_prompt() -> None:
    body = exact(3)
    listed = post("/", body).json()
    assert isinstance(listed, list)
    assert listed[0]["generated_text"].startswith("Hello there ")
    streamed = post("/", body | {"stream": True})
    assert streamed.headers["content-type"] == "text/event-stream"
    assert streamed.events()[-1]["generated_text"].startswith("Hello there ")
    body["parameters"]["return_full_text"] = False
    assert not post("/", body).json()[0]["generated_text"].startswith("Hello there")


def test_stop_sequence_ends_the_reply_and_stays_in_the_text() -> None:
    text = post("/generate", exact(30), x_request_id="9").json()["generated_text"]
    fifth = text.split()[4]
    body = exact(30, stop=[fifth], details=True)
    stopped = post("/generate", body, x_request_id="9").json()
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert stopped["details"]["generated_tokens"] == 5
    assert stopped["generated_text"].endswith(fifth)
    both = post("/generate", exact(5, stop=[fifth], details=True), x_request_id="9").json()
    assert both["details"]["finish_reason"] == "length", "which wins where both limits meet"


@pytest.mark.parametrize(
    ("parameters", "samples"),
    [
        ({}, False),
        ({"temperature": 1.0}, False),
        ({"temperature": 0.5}, True),
        ({"top_k": 5}, True),
        ({"top_p": 0.9}, True),
        ({"typical_p": 0.9}, True),
        ({"do_sample": True}, True),
    ],
)
def test_a_seed_is_said_when_anything_makes_it_sample(parameters: dict[str, float], samples: bool) -> None:
    details = post("/generate", exact(1, details=True, **parameters)).json()["details"]
    assert (details["seed"] is not None) is samples


def test_the_time_in_the_queue_is_a_part_of_the_whole() -> None:
    async def call(server: Served) -> tuple[float, dict[str, str]]:
        first = server.connect()
        first.transport.write(request_bytes("/generate_stream", exact(100)))
        await first.until(lambda: b'"index":1,' in first.data)
        sent_s = clock.now()
        headers = (await server.post("/generate", exact(3))).headers
        ended_s = next(at for at, data in first.reads if b'"index":100,' in data)
        return ended_s - sent_s, headers

    waited_s, headers = ask(call, launcher=Launcher(prefill_chunking=False, max_batch_size=1))
    assert waited_s > 0.5
    assert int(headers["x-queue-time"]) == int(waited_s * 1000)
    rest = int(headers["x-total-time"]) - int(headers["x-queue-time"]) - int(headers["x-inference-time"])
    assert 0 <= rest <= 1


def test_sampling_truncation_best_of_and_top_tokens() -> None:
    details = {"details": True, "max_new_tokens": 2, "ignore_eos": True}
    assert post("/generate", {"inputs": "a", "parameters": details}).json()["details"]["seed"] is None
    sampled = {**details, "do_sample": True, "seed": 11}
    assert post("/generate", {"inputs": "a", "parameters": sampled}).json()["details"]["seed"] == 11
    cut = {"inputs": "one two three four", "parameters": details | {"truncate": 2}}
    assert post("/generate", cut).headers["x-prompt-tokens"] == "2"
    best = exact(3, best_of=2, do_sample=True, details=True, top_n_tokens=2)
    body = post("/generate", best).json()
    (other,) = body["details"]["best_of_sequences"]
    assert other["generated_tokens"] == 3
    assert other["generated_text"] != body["generated_text"]
    assert "best_of_sequences" not in other
    for token, top in zip(body["details"]["tokens"], body["details"]["top_tokens"], strict=True):
        assert top[0] == token
        assert top[1]["logprob"] < top[0]["logprob"]
        assert len(top) == 2
    streamed = post("/generate_stream", exact(3, top_n_tokens=2)).events()
    assert all(list(e) == ["index", "token", "top_tokens", "generated_text", "details"] for e in streamed)


def test_truncate_keeps_the_end_of_the_prompt() -> None:
    """As its prefill shows, whose first token has no log-probability."""
    text = "one two three four five six"
    body = exact(1, truncate=3, decoder_input_details=True) | {"inputs": text}
    launcher = Launcher(enable_prefill_logprobs=True)
    response = ask(lambda server: server.post("/generate", body), launcher=launcher)
    prefill = response.json()["details"]["prefill"]
    assert [list(token) for token in prefill] == [["id", "text", "logprob"]] * 3
    assert text.endswith("".join(token["text"] for token in prefill))
    assert [token["logprob"] is None for token in prefill] == [True, False, False]
    assert all(token["logprob"] < 0 for token in prefill[1:])
    tokens = post("/tokenize", {"inputs": text}).json()
    assert [token["id"] for token in prefill] == [token["id"] for token in tokens[-3:]]
    plain = exact(1, details=True)
    unasked = ask(lambda server: server.post("/generate", plain), launcher=launcher)
    assert unasked.json()["details"]["prefill"] == []
    assert post("/generate", body).json()["details"]["prefill"] == [], "without the launcher's flag"


@pytest.mark.parametrize("request_id", ["1", "2", "3", "4"])
def test_best_of_answers_with_the_likeliest_and_lists_the_others(request_id: str) -> None:
    body = exact(5, best_of=2, do_sample=True, details=True, top_n_tokens=1)
    details = post("/generate", body, x_request_id=request_id).json()["details"]
    assert list(details)[-3:] == ["tokens", "best_of_sequences", "top_tokens"]
    (other,) = details["best_of_sequences"]
    assert list(other)[:1] + list(other)[-1:] == ["generated_text", "top_tokens"]
    means = [sum(t["logprob"] for t in d["tokens"]) / 5 for d in (details, other)]
    assert means[0] >= means[1]
    assert details["seed"] != other["seed"]


def test_beyond_the_limit_429_at_once_even_for_an_invalid_request() -> None:
    async def call(server: Served) -> None:
        busy = [server.connect() for _ in range(2)]
        for connection in busy:
            connection.transport.write(request_bytes("/generate_stream", exact(50)))
        for connection in busy:
            await connection.until(lambda c=connection: b'"index":1,' in c.data)  # type: ignore[misc]
        assert server.service.in_flight == 2
        expected = {"error": "Model is overloaded", "error_type": "overloaded"}
        refused = await server.post("/generate", {"inputs": "", "parameters": {}})
        assert (refused.status, refused.json()) == (429, expected)
        assert "retry-after" not in refused.headers
        stream = await server.post("/generate_stream", exact(1))
        assert (stream.status, stream.events()) == (200, [expected])
        for connection in busy:
            await connection.response()
        assert server.service.in_flight == 0
        assert (await server.post("/generate", exact(1))).status == 200
        text = (await server.get("/metrics")).body.decode()
        assert 'tgi_request_failure{err="overloaded"} 2' in text

    ask(call, max_concurrent_requests=2)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
def test_a_client_that_hangs_up_frees_its_place_at_once(path: str) -> None:
    async def call(server: Served) -> None:
        connection = server.connect()
        body = exact(500) | {"prompt": ["a", "b"], "max_tokens": 500, "ignore_eos": True}
        connection.transport.write(request_bytes(path, body))
        while server.service.batch_size == 0:
            await asyncio.sleep(0.005)
        hung_up_s = clock.now()
        connection.transport.close()
        while server.service.in_flight:
            await asyncio.sleep(0)
        assert clock.now() == hung_up_s
        assert (await server.post("/generate", exact(1))).status == 200
        dropped = 2 if path == "/v1/completions" else 1  # the backend counts sequences
        assert (
            f'tgi_request_failure{{err="dropped"}} {dropped}' in (await server.get("/metrics")).body.decode()
        )

    ask(call, max_concurrent_requests=2)


def test_queued_stream_carries_a_comment_each_15_s() -> None:
    async def call(server: Served) -> RawConnection:
        # A first request that fills the cache keeps the second one waiting.
        total = server.service.limits.max_total_tokens
        hogs = [server.connect() for _ in range(server.service.limits.max_batch_total_tokens // total + 4)]
        for hog in hogs:
            words = "a " * 60_000
            body = {"inputs": words, "parameters": {"max_new_tokens": 40_000, "ignore_eos": True}}
            hog.transport.write(request_bytes("/generate_stream", body))
        await asyncio.sleep(1)
        waiting = server.connect()
        waiting.transport.write(request_bytes("/generate_stream", exact(1)))
        await asyncio.sleep(50)
        for hog in hogs:
            hog.transport.close()
        await waiting.until(lambda: waiting.data.endswith(b"0\r\n\r\n"))
        return waiting

    reads = ask(call).reads
    comments = [at for at, data in reads if data == b"3\r\n:\n\n\r\n"]
    assert [at - reads[0][0] for at in comments] == pytest.approx([15.0, 30.0, 45.0])


def test_a_backend_failure_is_an_event_or_a_424() -> None:
    async def call(server: Served) -> None:
        stream, whole = server.connect(), server.connect()
        stream.transport.write(request_bytes("/generate_stream", exact(500)))
        whole.transport.write(request_bytes("/generate", exact(500)))
        await stream.until(lambda: b'"index":2,' in stream.data)
        server.service.close()
        expected = {
            "error": "Request failed during generation: the server is shutting down",
            "error_type": "generation",
        }
        assert (await stream.response()).events()[-1] == expected
        response = await whole.response()
        assert (response.status, response.json()) == (424, expected)

    ask(call)


def test_a_reader_that_stalls_delays_nobody_else() -> None:
    async def call(server: Served) -> None:
        slow, quick = server.connect(), server.connect()
        slow.transport.write(request_bytes("/generate_stream", exact(600)))
        await slow.until(lambda: b'"index":1,' in slow.data)
        slow.transport.pause_reading()
        quick.transport.write(request_bytes("/generate_stream", exact(600)))
        assert len((await quick.response()).events()) == 600
        assert server.service.in_flight == 0, "both replies were generated"
        slow.transport.resume_reading()
        assert len((await slow.response()).events()) == 600

    ask(call)


def test_routes_that_only_tell() -> None:
    async def call(server: Served) -> None:
        for path in ("/", "/health"):
            health = await server.get(path)
            assert (health.status, health.body) == (200, b"")
        info = (await server.get("/info")).json()
        assert info["model_id"] == "meta-llama/Llama-3.1-8B-Instruct"
        assert info["max_concurrent_requests"] == 128
        assert info["max_total_tokens"] == info["max_input_tokens"] + 1
        models = (await server.get("/v1/models")).json()
        name = info["model_id"]
        entry = {"id": name, "object": "model", "created": 0, "owned_by": name}
        assert models == {"object": "list", "data": [entry]}
        lost = await server.get("/nowhere")
        assert (lost.status, lost.body) == (404, b"")
        wrong = await server.get("/generate")
        assert (wrong.status, wrong.body, wrong.headers["allow"]) == (405, b"", "POST")
        wrong = await server.get("/info", method="DELETE")
        assert (wrong.status, wrong.headers["allow"]) == (405, "GET,HEAD")
        preflight = await server.get("/generate", method="OPTIONS")
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, "*")

    ask(call)


def test_api_key_guards_the_post_routes() -> None:
    async def call(server: Served) -> None:
        refused = await server.post("/generate", exact(1))
        assert (refused.status, refused.body) == (401, b"")
        assert (await server.post("/generate", exact(1), authorization="Bearer wrong")).status == 401
        assert (await server.post("/generate", exact(1), authorization="bearer SECRET")).status == 200
        assert (await server.get("/info")).status == 200

    ask(call, api_key="Secret")
