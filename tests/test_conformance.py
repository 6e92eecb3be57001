"""The TGI v3 protocol notes, sentence by sentence, against ``loadgen serve`` over TCP on the real clock.

What one request and its answer show is data (`conformance/*.yaml`); what takes
several, or shows in no answer, is here. The oracle is the notes, never the server's code.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conformance.pairs import Pair, all_pairs
from conformance.processes import Server, servers
from served import RawConnection, Response, Served, ask, request_bytes

from loadgen.launch import Launch, Launcher
from loadgen.server.deployment import Deployment
from loadgen.server.tgi.validation import parse_generate

MESSAGES = [{"role": "user", "content": "Thank you!"}]
CHAT = {"messages": MESSAGES, "max_tokens": 2}
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}
POLL_S = 0.01


SMALL = (
    "--max-concurrent-requests=9 --max-best-of=3 --max-stop-sequences=2 --max-top-n-tokens=1 "
    "--max-input-tokens=100 --max-total-tokens=2000 --validation-workers=3 --max-client-batch-size=2 "
    "--payload-limit=6000 --enable-prefill-logprobs"
)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Server]]:
    flags = {
        "open": "",
        "keyed": "--api-key=Key",
        "small": SMALL,
    }
    with servers(**{name: ("--no-warm-up", *text.split()) for name, text in flags.items()}) as found:
        yield found


@pytest.fixture(scope="module")
def server(running: dict[str, Server]) -> Server:
    return running["open"]


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/info").json()
    return found


def at_once(server: Server, path: str, body: Any) -> list[Response]:
    """The answers to ten equal requests; that many replies end in more than one way."""

    async def main() -> list[Response]:
        return await asyncio.gather(*(server.exchange(request_bytes(path, body)) for _ in range(10)))

    return asyncio.run(main())


@pytest.mark.parametrize("pair", all_pairs(), ids=str)
def test_pair(pair: Pair, running: dict[str, Server], info: dict[str, Any]) -> None:
    faults = pair.faults(running[pair.server].send(pair.request()), info)
    assert not faults, "\n".join([f"TGI v3 protocol notes, {pair}", *faults])


GOOD = Response(
    200,
    {"access-control-allow-origin": "*", "vary": "origin", "x-n": "3"},
    b'data: {"a":"b \\" c","n":7}\n\n',
    [b'data: {"a":"b \\" c","n":7}\n\n'],
)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"status": 201}, "status"),
        ({"headers": {"access-control-allow-origin": "*", "vary": "", "x-n": "three"}}, "header x-n"),
        ({"headers": {"vary": "", "x-n": "3"}}, "header access-control-allow-origin"),
        ({"headers": GOOD.headers | {"x-gone": "1"}}, "must be absent"),
        ({"chunks": GOOD.chunks * 2}, "expected 1 frames, got 2"),
        ({"chunks": [b'data:{"a":"b","n":7}\n\n']}, "event 1"),
        ({"chunks": [b'data: {"a":"b","n":7}\n']}, "event 1"),
        ({"chunks": [b'data: {"n":7,"a":"b"}\n\n']}, "event 1"),
        ({"chunks": [b'data: {"a":"b","n":"7"}\n\n']}, "event 1"),
        ({"chunks": [b'data: {"a":"b","c":"d","n":7}\n\n']}, "event 1"),
        ({"body": b"other"}, "body"),
    ],
)
def test_a_pair_sees_each_fault(change: dict[str, Any], fault: str | None) -> None:
    template = '{"a":"<text>","n":<int>}'
    pair = Pair(
        "5",
        "made up",
        "POST",
        "/",
        headers={"x-n": "<limit>"},
        absent=("x-gone",),
        answer=f"data: {template}<any>",
        events=(template,),
    )
    found = pair.faults(replace(GOOD, **change), {"limit": 3})
    assert len(found) == (fault is not None), found
    assert fault is None or fault in found[0]


# Section 3: what no answer shows.


def test_section_3_the_trap_of_parameters_that_are_not_there() -> None:
    assert parse_generate(b'{"inputs":"a"}').parameters.do_sample
    assert not parse_generate(b'{"inputs":"a","parameters":{}}').parameters.do_sample


# Section 4: what the headers mean, and the texts among themselves.


def test_section_4_with_best_of_the_headers_describe_the_best(server: Server) -> None:
    body = {
        "inputs": "a",
        "parameters": {"max_new_tokens": 80, "details": True, "best_of": 2, "do_sample": True},
    }
    lengths = []
    for response in at_once(server, "/generate", body):
        details = response.json()["details"]
        assert int(response.headers["x-generated-tokens"]) == details["generated_tokens"]
        lengths.append((details["generated_tokens"], details["best_of_sequences"][0]["generated_tokens"]))
    assert any(best < other for best, other in lengths), "the best is not just the longest"
    assert any(best > other for best, other in lengths)


def test_section_4_times_add_up_and_time_per_token_is_inference_by_tokens(server: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 9, "details": True}}
    sent_s = time.monotonic()
    response = server.post("/generate", body)
    took_s = time.monotonic() - sent_s
    found = {
        k[2:]: float(v) for k, v in response.headers.items() if k.startswith("x-") and k != "x-compute-type"
    }
    assert 0 < found["compute-time"] <= took_s
    assert found["total-time"] == math.floor(found["compute-time"] * 1000)
    parts = found["validation-time"] + found["queue-time"] + found["inference-time"]
    assert 0 <= found["total-time"] - parts <= 3
    assert found["time-per-token"] in {found["inference-time"] // 9, (found["inference-time"] + 1) // 9}
    details = response.json()["details"]
    assert found["generated-tokens"] == details["generated_tokens"] == len(details["tokens"]) == 9
    assert response.json()["generated_text"] == "".join(t["text"] for t in details["tokens"])


def test_section_4_the_end_marker_is_special_counted_and_not_in_the_text(server: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 60, "details": True}}
    replies = [response.json() for response in at_once(server, "/generate", body)]
    ended = [reply for reply in replies if reply["details"]["finish_reason"] == "eos_token"]
    assert ended
    for whole in ended:
        *words, end = whole["details"]["tokens"]
        assert end["special"]
        assert not any(token["special"] for token in words)
        assert whole["details"]["generated_tokens"] == len(words) + 1
        assert whole["generated_text"] == "".join(token["text"] for token in words)


def test_section_4_a_stop_string_ends_the_text_and_stays_in_it(server: Server) -> None:
    # English ends in one of these letters within a few words.
    body = {"inputs": "a", "parameters": {"max_new_tokens": 60, "details": True, "stop": list("esty")}}
    whole = server.post("/generate", body).json()
    details = whole["details"]
    assert details["finish_reason"] == "stop_sequence"
    assert whole["generated_text"][-1] in "esty"
    *before, last = details["tokens"]
    assert not last["special"]
    assert not [token for token in before if token["text"][-1] in "esty"]
    event = server.post("/generate_stream", body).events()[-1]
    assert event["details"]["finish_reason"] == "stop_sequence"
    assert event["generated_text"].endswith(event["token"]["text"])


def test_section_4_prompt_tokens_are_the_same_wherever_they_are_said(server: Server) -> None:
    text = "Zwölf Boxkämpfer 🙂 jagen Viktor"
    body = {"inputs": text, "parameters": {"max_new_tokens": 1, "details": True}}
    header = int(server.post("/generate", body).headers["x-prompt-tokens"])
    assert server.post("/generate_stream", body).events()[-1]["details"]["input_length"] == header
    usage = server.post("/v1/completions", {"prompt": text, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == header
    tokens = server.post("/tokenize", body).json()
    assert len(tokens) == header
    raw = text.encode()
    assert tokens[0]["start"] == 0
    assert tokens[-1]["stop"] == len(raw), "offsets are bytes"
    assert [t["start"] for t in tokens[1:]] == [t["stop"] for t in tokens[:-1]]
    assert all(list(t) == ["id", "text", "start", "stop"] for t in tokens)


def test_section_2_chat_tokenize_counts_what_a_chat_costs(server: Server) -> None:
    found = server.post("/chat_tokenize", CHAT).json()
    assert list(found) == ["tokenize_response", "templated_text"]
    usage = server.post("/v1/chat/completions", CHAT).json()["usage"]
    assert len(found["tokenize_response"]) == usage["prompt_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    alone = server.post("/tokenize", {"inputs": found["templated_text"]}).json()
    assert alone == found["tokenize_response"]


def test_section_5_the_stream_s_texts_make_the_generated_text(server: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 9, "details": True}}
    events = server.post("/generate_stream", body).events()
    assert [event["index"] for event in events] == list(range(1, 10))
    assert events[-1]["generated_text"] == "".join(event["token"]["text"] for event in events)


def test_section_5_a_connection_is_kept_alive_after_a_stream(server: Server) -> None:
    async def main() -> None:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
        async with server.connected() as connection:
            for path in ("/generate_stream", "/generate", "/generate_stream"):
                connection.transport.write(request_bytes(path, body))
                response = await connection.response()
                assert (response.status, response.headers.get("connection")) == (200, None), path

    asyncio.run(main())


def test_section_5_comments_while_nothing_comes() -> None:
    """On the virtual clock: hogs fill the cache, so a late request waits for minutes."""

    async def call(server: Served) -> RawConnection:
        waiting = server.connect()
        hogs = []
        limits = (await server.get("/info")).json()
        share = limits["max_total_tokens"] - 40_000
        for i in range(40):
            hog = server.connect()
            body = {
                "inputs": f"{i} " + "a " * (share // 2),
                "parameters": {"max_new_tokens": 40_000, "ignore_eos": True},
            }
            hog.transport.write(request_bytes("/generate_stream", body))
            hogs.append(hog)
        await asyncio.sleep(1)
        waiting.transport.write(request_bytes("/generate_stream", {"inputs": "late " * 20_000}))
        await asyncio.sleep(50)
        for hog in hogs:
            hog.transport.close()
        await waiting.until(lambda: waiting.data.endswith(b"0\r\n\r\n"))
        return waiting

    reads = ask(call).reads
    comments = [at for at, data in reads if data == b"3\r\n:\n\n\r\n"]
    assert [at - reads[0][0] for at in comments] == pytest.approx([15.0, 30.0, 45.0])


# Section 6: chats and several prompts.


def test_section_6_an_image_is_its_link_to_a_model_that_reads(server: Server) -> None:
    content = [
        {"type": "text", "text": "See "},
        {"type": "image_url", "image_url": {"url": "http://h/a.png"}},
    ]
    found = server.post("/chat_tokenize", {"messages": [{"role": "user", "content": content}]}).json()
    assert "See ![](http://h/a.png)" in found["templated_text"]


def test_section_6_completions_of_one_prompt(server: Server) -> None:
    whole = server.post("/v1/completions", {"prompt": "a", "max_tokens": 3, "model": "other"}).json()
    assert set(whole) == {"object", "id", "created", "model", "system_fingerprint", "choices", "usage"}
    # Only a chat echoes the model.
    assert (whole["object"], whole["id"], whole["model"]) == ("text_completion", "", MODEL)
    (choice,) = whole["choices"]
    assert choice == {"index": 0, "text": choice["text"], "logprobs": None, "finish_reason": "length"}
    assert whole["usage"]["completion_tokens"] == 3
    streamed = server.post(
        "/v1/completions", {"prompt": "a", "max_tokens": 3, "stream": True, "model": "other"}
    )
    assert streamed.chunks[-1] == b"data: [DONE]\n\n"
    assert len(streamed.chunks) == 4
    events = streamed.events()
    assert {e["model"] for e in events} == {MODEL}
    assert [e["choices"][0]["finish_reason"] for e in events] == ["", "", "length"]
    assert [e.get("usage") is None for e in events] == [True, True, False]
    assert events[-1]["usage"]["completion_tokens"] == 3


def test_section_6_completions_of_a_list(server: Server) -> None:
    body: dict[str, Any] = {"prompt": ["one", "two words", "three more words"], "max_tokens": 4}
    response = server.post("/v1/completions", body)
    whole = response.json()
    assert sorted(choice["index"] for choice in whole["choices"]) == [0, 1, 2]
    headers = response.headers
    assert "x-compute-time" not in headers
    assert int(headers["x-generated-tokens"]) == whole["usage"]["completion_tokens"] == 12
    assert int(headers["x-prompt-tokens"]) == whole["usage"]["prompt_tokens"]
    alone = [
        int(server.post("/v1/completions", {"prompt": p, "max_tokens": 1}).headers["x-prompt-tokens"])
        for p in body["prompt"]
    ]
    assert int(headers["x-prompt-tokens"]) == sum(alone)

    streamed = server.post("/v1/completions", body | {"stream": True})
    assert streamed.body.count(b"data: [DONE]\n\n") == 1
    events = streamed.events()
    indices = [e["choices"][0]["index"] for e in events]
    assert [indices.count(i) for i in range(3)] == [4, 4, 4]
    assert indices != sorted(indices), "prompts are interleaved"
    for i in range(3):
        own = [e for e in events if e["choices"][0]["index"] == i]
        assert [e.get("usage") is None for e in own] == [True, True, True, False]
        assert [e["choices"][0]["finish_reason"] for e in own] == ["", "", "", "length"]
        assert own[-1]["usage"]["completion_tokens"] == 4


def test_section_6_choices_come_in_the_order_of_completion(server: Server) -> None:
    orders = set()
    for _ in range(3):
        body = {"prompt": ["a", "b", "c", "d"], "max_tokens": 60}
        choices = server.post("/v1/completions", body).json()["choices"]
        # All four start in one step and a word is a token, so the shortest reply ends first.
        lengths = [len(c["text"].split()) + (c["finish_reason"] == "stop") for c in choices]
        assert lengths == sorted(lengths)
        orders.add(tuple(c["index"] for c in choices))
    assert orders != {(0, 1, 2, 3)}, "a chance of 1 in 24 each"


@pytest.mark.parametrize(
    ("path", "streaming", "reason"),
    [
        ("/v1/chat/completions", False, "stop"),
        ("/v1/chat/completions", True, "stop"),
        ("/v1/completions", False, "stop"),
        ("/v1/completions", True, "eos_token"),
    ],
)
def test_section_6_reasons_to_end(server: Server, path: str, streaming: bool, reason: str) -> None:
    def ends(**more: Any) -> set[str]:
        body = {"messages": MESSAGES, "prompt": "a", "max_tokens": 80, "stream": streaming} | more
        responses = at_once(server, path, body)
        bodies = [r.events()[-1] if streaming else r.json() for r in responses]
        return {body["choices"][0]["finish_reason"] for body in bodies}

    found = ends()
    assert reason in found
    assert found <= {reason, "length"}
    assert ends(max_tokens=2) == {"length"}
    assert ends(stop=list("esty")) == {"stop_sequence"}


def test_section_6_an_end_marker_is_an_empty_chunk(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 60, "stream": True, "stream_options": {"include_usage": True}}
    streams = [response.events() for response in at_once(server, "/v1/chat/completions", body)]
    ended = [events for events in streams if events[-2]["choices"][0]["finish_reason"] == "stop"]
    assert ended
    for *chunks, usage in ended:
        assert chunks[-1]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert len(chunks) == usage["usage"]["completion_tokens"], "a chunk a token"


# Sections 8 and 9: prefix caching and the launcher's defaults.


@pytest.mark.parametrize("caching", [True, False])
def test_section_8_a_repeated_prompt_is_cheaper_unless_caching_is_off(caching: bool) -> None:
    async def call(server: Served) -> list[float]:
        body = {"inputs": "word " * 5000, "parameters": {"max_new_tokens": 1}}
        return [float((await server.post("/generate", body)).headers["x-compute-time"]) for _ in range(2)]

    fresh_s, again_s = ask(call, launcher=Launcher() if caching else Launcher(prefix_caching=False))
    assert again_s < fresh_s / 5 if caching else again_s == pytest.approx(fresh_s)


def test_section_9_the_launcher_s_defaults() -> None:
    launch = Launch()
    flags = launch.launcher
    assert launch.max_concurrent_requests == 128
    assert (flags.max_best_of, flags.max_stop_sequences, flags.max_top_n_tokens) == (2, 4, 5)
    assert (flags.max_client_batch_size, flags.validation_workers) == (4, 2)
    assert (flags.waiting_served_ratio, flags.max_waiting_tokens, flags.max_batch_size) == (0.3, 20, None)
    assert (flags.payload_limit, flags.graceful_termination_timeout) == (2_000_000, 90)
    # Graphs for up to 32 rows: the step of 33 pays the overhead of an eager one, 5.5 ms more.
    step = Deployment(launch).step_model.step
    costs_s = [step(decode_rows=n, decode_context_tokens=0, emitting_rows=n).duration_s for n in (32, 33)]
    assert costs_s[1] - costs_s[0] == pytest.approx(5.5e-3, abs=0.1e-3)
    assert (flags.prefill_chunking, flags.prefix_caching) == (True, True)
