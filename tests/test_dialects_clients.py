"""Clients against each dialect over TCP: ours with its probe, and OpenAI's own library."""

from __future__ import annotations

import asyncio
import re

import openai
import pytest
from served import ask

from loadgen.clients import make_client
from loadgen.clients.probe import probe
from loadgen.launch import Launch, Launcher
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Request, Tape

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PEERS = ["vllm", "sglang", "llama.cpp", "transformers"]
CHAT = "/v1/chat/completions"


def with_server(call, dialect):
    """``call(url)`` against a server on a free port of loopback, on the real clock."""

    async def main():
        launch = Launch(seed=1, dialect=dialect, launcher=Launcher(warm_up=False))
        async with serving(Service(launch), address=("127.0.0.1", 0)) as found:
            return await call(found.url)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("dialect", "kind", "limits"),
    [
        ("vllm", "vllm", {"max_model_len": 131072}),
        ("sglang", "sglang", {"max_model_len": 131072}),
        ("llama.cpp", "llama.cpp", {"n_ctx": 131072, "n_ctx_train": 131072}),
        ("transformers", "transformers", {}),
    ],
)
def test_probe(dialect, kind, limits):
    target = with_server(probe, dialect)
    assert (target.kind, target.protocol, target.model) == (kind, "openai-chat", MODEL)
    assert target.limits == limits


async def exchange(url, protocol, body, **options):
    async with make_client(protocol, url, model=MODEL, headers={}, **options) as client:
        tape = Tape()
        await client.exchange(Request(7, "text", body), tape)
        return tape, client.decode(tape)


@pytest.mark.parametrize("dialect", PEERS)
@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
@pytest.mark.parametrize("streaming", [True, False])
def test_our_client(dialect, protocol, streaming):
    body = {"prompt": "Name three colours.", "max_new_tokens": 6}
    tape, reply = with_server(lambda url: exchange(url, protocol, body, streaming=streaming), dialect)
    assert (reply.error, reply.output_tokens, reply.tokens_from, reply.finish_reason) == (
        None,
        6,
        "server",
        "length",
    )
    assert reply.prompt_tokens > 0
    assert tape.complete
    assert len(reply.text.split()) == 6
    if streaming:
        assert sum(reply.chunk_tokens) == 6


@pytest.mark.parametrize("dialect", PEERS)
def test_our_client_on_characters_of_several_tokens(dialect):
    body = {"prompt": "Nur Emojis: 🦊", "max_new_tokens": 12}
    _, reply = with_server(lambda url: exchange(url, "openai-chat", body), dialect)
    assert (reply.error, reply.output_tokens, len(reply.text)) == (None, 12, 4)
    # vLLM's empty chunks are tokens too; where none is sent, chunks are fewer than tokens.
    assert sum(reply.chunk_tokens) == (12 if dialect == "vllm" else 4)


@pytest.mark.parametrize("dialect", PEERS)
def test_exact_lengths_are_refused_by_transformers_alone(dialect):
    body = {"prompt": "Hi", "max_new_tokens": 5}
    tape, reply = with_server(
        lambda url: exchange(url, "openai-chat", body, exact_lengths="ignore_eos"), dialect
    )
    if dialect == "transformers":
        assert tape.http_status == 422
        assert "ignore_eos" in reply.error
    else:
        assert (reply.error, reply.output_tokens) == (None, 5)


@pytest.mark.parametrize("dialect", PEERS)
def test_openai_s_library(dialect):
    messages = [{"role": "user", "content": "Thank you!"}]

    async def call(url):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
            assert [m.id async for m in client.models.list()] == [MODEL]
            whole = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4)
            completion = await client.completions.create(model=MODEL, prompt="Hi", max_tokens=3)
            stream = await client.chat.completions.create(
                model=MODEL,
                messages=messages,
                max_tokens=4,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            pieces = await client.completions.create(model=MODEL, prompt="Hi", max_tokens=3, stream=True)
            texts = [p.choices[0].text async for p in pieces if p.choices]
            refused = None
            try:
                await client.chat.completions.create(model=MODEL, messages=messages, max_tokens="x")
            except openai.APIStatusError as error:
                refused = error.status_code
            return whole, completion, chunks, texts, refused

    whole, completion, chunks, texts, refused = with_server(call, dialect)
    assert whole.usage.completion_tokens == 4
    assert whole.choices[0].finish_reason == "length"
    assert len(whole.choices[0].message.content.split()) == 4
    assert (completion.usage.completion_tokens, len("".join(texts).split())) == (3, 3)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert len(said.split()) == 4
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [4]
    assert bool(chunks[-1].choices) == (dialect == "transformers")  # it alone has usage in the finish chunk
    assert refused == (500 if dialect == "transformers" else 400)


def value_of(page: str, name: str) -> float:
    return float(re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE)[1])


NAMES = {
    "vllm": "vllm:{} prompt_tokens_total generation_tokens_total num_requests_running num_requests_waiting",
    "sglang": "sglang:{} prompt_tokens_total generation_tokens_total num_running_reqs num_queue_reqs",
    "llama.cpp": (
        "llamacpp:{} prompt_tokens_total tokens_predicted_total requests_processing requests_deferred"
    ),
}
"""The prefix, and the names of four metrics: tokens in and out, requests running and waiting."""


@pytest.mark.parametrize("dialect", NAMES)
def test_metrics_agree_with_the_usages(dialect):
    """Sum over usages = counters; in between, 10 requests in 4 places are 4 running and 6 waiting."""
    prefix, *names = NAMES[dialect].split()
    prompt, generated, running, waiting = map(prefix.format, names)

    async def main(server):
        bodies = [
            {"messages": [{"role": "user", "content": f"No. {i}"}], "max_tokens": 20 + i} for i in range(10)
        ]
        tasks = [asyncio.create_task(server.post(CHAT, body)) for body in bodies]
        await asyncio.sleep(0.1)
        during = (await server.get("/metrics")).body.decode()
        usages = [(await task).json()["usage"] for task in tasks]
        return during, usages, (await server.get("/metrics")).body.decode()

    during, usages, after = ask(main, dialect=dialect, launcher=Launcher(max_num_seqs=4))
    assert (value_of(during, running), value_of(during, waiting)) == (4, 6)
    # Recorded: llama.cpp counts a reply's tokens when it has ended.
    assert (value_of(during, generated) == 0) == (dialect == "llama.cpp")
    assert value_of(during, generated) < value_of(after, generated)
    assert value_of(after, generated) == sum(u["completion_tokens"] for u in usages)
    cached = value_of(after, "llamacpp:prompt_tokens_cached_total") if dialect == "llama.cpp" else 0
    assert value_of(after, prompt) + cached == sum(u["prompt_tokens"] for u in usages)
    assert (value_of(after, running), value_of(after, waiting)) == (0, 0)


def test_vllm_s_histograms_hold_every_request_and_their_sums_are_conserved():
    async def main(server):
        for tokens in (5, 9):
            await server.post(CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": tokens})
        return (await server.get("/metrics")).body.decode()

    page = ask(main, dialect="vllm")
    name = "vllm:{}_seconds_{}".format
    assert value_of(page, name("e2e_request_latency", "count")) == 2
    parts = sum(
        value_of(page, name(f"request_{part}_time", "sum")) for part in ("queue", "prefill", "decode")
    )
    assert parts == pytest.approx(value_of(page, name("e2e_request_latency", "sum")), rel=1e-12)
    assert value_of(page, name("inter_token_latency", "count")) == 4 + 8
    assert value_of(page, name("inter_token_latency", "sum")) == pytest.approx(
        value_of(page, name("request_decode_time", "sum"))
    )


@pytest.mark.parametrize(
    ("dialect", "key", "text_key"),
    [("vllm", "prompt", "prompt"), ("sglang", "prompt", "text"), ("llama.cpp", "content", "content")],
)
def test_tokens_round_trip(dialect, key, text_key):
    text = "Hello there, wind and wünsche 🦊!"

    async def main(server):
        ids = (await server.post("/tokenize", {key: text})).json()["tokens"]
        used = (await server.post("/v1/completions", {"prompt": text, "max_tokens": 1})).json()["usage"]
        return ids, used["prompt_tokens"], (await server.post("/detokenize", {"tokens": ids})).json()

    ids, prompt_tokens, back = ask(main, dialect=dialect)
    assert len(ids) == prompt_tokens
    assert back == {text_key: text}


def test_slots_show_who_is_served():
    async def main(server):
        asked = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200}
        tasks = [asyncio.create_task(server.post(CHAT, asked)) for _ in range(3)]
        await asyncio.sleep(0.2)
        slots, props = (await server.get("/slots")).json(), (await server.get("/props")).json()
        await asyncio.gather(*tasks)
        return slots, props, (await server.get("/slots")).json()

    during, props, after = ask(main, dialect="llama.cpp", launcher=Launcher(max_num_seqs=2))
    assert [s["is_processing"] for s in during] == [True, True]
    assert all(s["next_token"][0]["n_decoded"] + s["next_token"][0]["n_remain"] == 200 for s in during)
    assert [s["is_processing"] for s in after] == [False, False]
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 131072)


def test_timings_of_llama_cpp_are_the_engine_s():
    """Prompt and generation times sum to the span the service took, on the virtual clock."""

    async def main(server):
        await asyncio.sleep(1.0)
        asked = {"prompt": "Hello there", "max_tokens": 50, "ignore_eos": True}
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        value = (await server.post("/v1/completions", asked)).json()
        return value["timings"], loop.time() - start_s

    timings, span_s = ask(main, dialect="llama.cpp")
    assert timings["predicted_n"] == 50
    assert timings["prompt_ms"] + timings["predicted_ms"] == pytest.approx(span_s * 1e3, abs=0.01)
    assert timings["predicted_per_token_ms"] == pytest.approx(timings["predicted_ms"] / 49, rel=1e-3)


def test_a_prompt_seen_before_is_reported_as_cached():
    """Blocks of 16 tokens, and never the whole prompt: 16 * ((n - 1) // 16) of n tokens."""

    async def main(server):
        asked = {"prompt": "Say it once more, with feeling. " * 20, "max_tokens": 2}
        values = [(await server.post("/v1/completions", asked)).json() for _ in range(2)]
        return [(v["usage"], v["timings"]) for v in values], (await server.get("/metrics")).body.decode()

    ((first, _), (second, timings)), page = ask(main, dialect="llama.cpp")
    n = first["prompt_tokens"]
    hit = 16 * ((n - 1) // 16)
    assert (first["prompt_tokens_details"], second["prompt_tokens_details"]) == (
        {"cached_tokens": 0},
        {"cached_tokens": hit},
    )
    assert (timings["cache_n"], timings["prompt_n"]) == (hit, n - hit)
    assert value_of(page, "llamacpp:prompt_tokens_cached_total") == hit
    assert value_of(page, "llamacpp:prompt_tokens_total") == 2 * n - hit
