"""Clients that no one here wrote, against the embedded server over real sockets on the real clock."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import openai
import pytest
from conformance.processes import Server, occupied, servers
from huggingface_hub import AsyncInferenceClient, ChatCompletionInputStreamOptions, InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

ROOT = Path(__file__).parents[1]
PEERS = Path(os.environ.get("LOADGEN_PEERS", ROOT / ".venv-peers"))
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
MESSAGES: list[Any] = [{"role": "user", "content": "Thank you!"}]


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Server]]:
    flags = {"open": ("--no-warm-up",), "full": ("--no-warm-up", "--max-concurrent-requests=1")}
    with servers(**flags) as found, occupied(found["full"]):
        yield found


@pytest.fixture(scope="module")
def url(running: dict[str, Server]) -> str:
    return running["open"].url


@pytest.fixture(scope="module")
def full_url(running: dict[str, Server]) -> str:
    """A server that refuses every request."""
    return running["full"].url


@pytest.fixture(autouse=True)
def no_accounts_no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The hub's offline mode would refuse loopback too; with a URL for a model it asks nobody else.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


@pytest.fixture
def hub(url: str) -> InferenceClient:
    return InferenceClient(url)


@pytest.fixture
def oai(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_hub_generates_with_details(hub: InferenceClient) -> None:
    output = hub.text_generation("hello", details=True, max_new_tokens=4, return_full_text=False)
    assert output.details is not None
    assert output.details.generated_tokens == 4
    assert output.details.finish_reason == "length"
    assert output.generated_text == "".join(t.text for t in output.details.tokens)
    assert isinstance(hub.text_generation("hello", max_new_tokens=2), str)


def test_hub_streams_with_details(hub: InferenceClient) -> None:
    events = list(hub.text_generation("hello", details=True, stream=True, max_new_tokens=4))
    assert [e.index for e in events] == [1, 2, 3, 4]
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 4
    assert events[-1].details.input_length == 1
    texts = list(hub.text_generation("hello", stream=True, max_new_tokens=3))
    assert len(texts) == 3


def test_hub_chats(hub: InferenceClient) -> None:
    whole = hub.chat_completion(MESSAGES, max_tokens=4)
    assert whole.usage.completion_tokens == 4
    assert whole.choices[0].finish_reason == "length"
    options = ChatCompletionInputStreamOptions(include_usage=True)
    chunks = list(hub.chat_completion(MESSAGES, max_tokens=4, stream=True, stream_options=options))
    assert len(chunks) == 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-2].choices[0].finish_reason == "length"


def test_hub_raises_tgi_s_errors(hub: InferenceClient, full_url: str) -> None:
    with pytest.raises(ValidationError, match="top_k"):
        hub.text_generation("hello", top_k=0)
    with pytest.raises(ValidationError, match="top_k"):
        list(hub.text_generation("hello", top_k=0, stream=True))
    full = InferenceClient(full_url)
    with pytest.raises(OverloadedError):
        full.text_generation("hello")
    with pytest.raises(OverloadedError):
        list(full.text_generation("hello", stream=True))


def test_hub_async(url: str) -> None:
    async def main() -> None:
        async with AsyncInferenceClient(url) as client:
            outputs = await asyncio.gather(
                *(client.text_generation("hi", details=True, max_new_tokens=4) for _ in range(8))
            )
            assert [o.details.generated_tokens for o in outputs if o.details] == [4] * 8
            stream = await client.text_generation("hi", details=True, stream=True, max_new_tokens=4)
            assert [e.index async for e in stream] == [1, 2, 3, 4]
            whole = await client.chat_completion(MESSAGES, max_tokens=3)
            assert whole.usage.completion_tokens == 3
            chunks = await client.chat_completion(MESSAGES, max_tokens=3, stream=True)
            assert len([c async for c in chunks]) == 3

    asyncio.run(main())


def test_openai_chats(oai: openai.OpenAI) -> None:
    whole = oai.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=4)
    assert whole.model == MODEL
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4
    assert whole.choices[0].message.content
    stream = oai.chat.completions.create(
        model="tgi", messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len(chunks) == 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert len(text.split()) == 4


def test_openai_completes_and_lists(oai: openai.OpenAI) -> None:
    whole = oai.completions.create(model="tgi", prompt="hello", max_tokens=4)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4
    chunks = list(oai.completions.create(model="tgi", prompt="hello", max_tokens=4, stream=True))
    assert len(chunks) == 4
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert len(oai.completions.create(model="tgi", prompt=["a", "b"], max_tokens=2).choices) == 2
    assert [model.id for model in oai.models.list()] == [MODEL]


def test_openai_raises(oai: openai.OpenAI, full_url: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError):
        oai.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=0)
    with openai.OpenAI(base_url=f"{full_url}/v1", api_key="-", max_retries=0) as full:
        with pytest.raises(openai.RateLimitError):
            full.chat.completions.create(model="tgi", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError):
            full.completions.create(model="tgi", prompt="a")
        with pytest.raises(openai.APIError, match="Model is overloaded"):
            list(full.chat.completions.create(model="tgi", messages=MESSAGES, stream=True))


def test_openai_async(url: str) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tgi", messages=MESSAGES, max_tokens=4, stream=True
            )
            assert len([chunk async for chunk in stream]) == 4

    asyncio.run(main())


def heard(environment: str, script: str, *urls: str) -> dict[str, Any]:
    """What a client in an environment of its own understood."""
    python = PEERS / environment / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {environment} environment: {python} does not exist (make test installs it)")
    run = subprocess.run(
        [python, Path(__file__).parent / "peers" / script, *urls],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"NO_PROXY": "127.0.0.1", "PATH": os.environ["PATH"]},
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_text_generation_0_7_0_in_its_own_environment(url: str, full_url: str) -> None:
    assert heard("text-generation", "text_generation_client.py", url, full_url) == {
        "version": "0.7.0",
        "generated": {"tokens": 4, "reason": "length", "words": 4},
        "streamed": {"events": 4, "tokens": 4, "reason": "length"},
        "async_streamed": {"events": 4, "tokens": 4, "reason": "length"},
        "chat": {"tokens": 4, "reason": "length"},
        "errors": ["ValidationError", "OverloadedError", "OverloadedError"],
    }


def test_hub_0_36_in_its_own_environment(url: str, full_url: str) -> None:
    found = heard("text-generation", "hub_client.py", url, full_url)
    assert found.pop("version").startswith("0.36.")
    assert found == {
        "plain": 5,  # the compat route repeats the prompt, one word of it
        "generated": {"tokens": 4, "reason": "length", "seed": 5},
        "full_text": "hello ",
        "best_of": 1,
        "streamed": {
            "index": [1, 2, 3, 4],
            "last": {"tokens": 4, "reason": "length", "prompt_tokens": 1},
        },
        "texts": 3,
        "chat": {"tokens": 4, "reason": "length", "logprobs": 4},
        "chat_streamed": {"roles": ["assistant"], "chunks": 5, "tokens": 4},
        "async": {"whole": {"tokens": 4, "reason": "length"}, "events": [1, 2, 3, 4], "chunks": 3},
        "healthy": True,
        "model": MODEL,
        "errors": ["ValidationError", "ValidationError", "OverloadedError", "OverloadedError"],
    }


def test_langchain_in_its_own_environment(url: str, full_url: str) -> None:
    assert heard("langchain", "langchain_client.py", url, full_url) == {
        "words": 4,
        "pieces": [1, 1, 1, 1],
        "passed_a_stop": [],
        "chat": {"tokens": 4, "reason": "length", "words": 4},
        "chat_words": 4,
        "chat_reason": ["length"],
        "async": {"words": [4, 4, 4], "pieces": 4, "chat": 4},
        "errors": ["ValidationError", "OverloadedError", "OverloadedError"],
    }
