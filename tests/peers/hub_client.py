"""Drives huggingface_hub 0.36 and prints what it understood. Runs in that client's own environment.

    python hub_client.py URL URL_OF_A_FULL_SERVER

Standard library and the client only: nothing of loadgen is installed there.
"""

import asyncio
import importlib.metadata
import json
import sys

from huggingface_hub import AsyncInferenceClient, ChatCompletionInputStreamOptions, InferenceClient

MESSAGES = [{"role": "user", "content": "Thank you!"}]


def _details(details: object) -> dict:
    return {"tokens": details.generated_tokens, "reason": details.finish_reason}  # type: ignore[attr-defined]


def _error(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return type(error).__name__
    return "none"


async def _async(url: str) -> dict:
    async with AsyncInferenceClient(url) as client:
        whole = await client.text_generation("hello", details=True, max_new_tokens=4)
        stream = await client.text_generation("hello", details=True, stream=True, max_new_tokens=4)
        events = [event async for event in stream]
        chunks = [chunk async for chunk in await client.chat_completion(MESSAGES, max_tokens=3, stream=True)]
    return {"whole": _details(whole.details), "events": [e.index for e in events], "chunks": len(chunks)}


def main(url: str, full_url: str) -> None:
    """Every call of the client that a TGI answers."""
    client, full = InferenceClient(url), InferenceClient(full_url)
    hosted = InferenceClient(url, provider="hf-inference")
    whole = client.text_generation("hello", details=True, max_new_tokens=4, do_sample=True, seed=5)
    events = list(client.text_generation("hello", details=True, stream=True, max_new_tokens=4))
    best = client.text_generation("hello", details=True, best_of=2, do_sample=True, max_new_tokens=2)
    chat = client.chat_completion(MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2)
    options = ChatCompletionInputStreamOptions(include_usage=True)
    chunks = list(client.chat_completion(MESSAGES, max_tokens=4, stream=True, stream_options=options))
    found = {
        "version": importlib.metadata.version("huggingface-hub"),
        "plain": len(client.text_generation("hello", max_new_tokens=4).split()),
        "generated": _details(whole.details) | {"seed": whole.details.seed},
        "full_text": client.text_generation("hello", max_new_tokens=1, return_full_text=True)[:6],
        "best_of": len(best.details.best_of_sequences),
        "streamed": {
            "index": [event.index for event in events],
            "last": _details(events[-1].details) | {"prompt_tokens": events[-1].details.input_length},
        },
        "texts": len(list(client.text_generation("hello", stream=True, max_new_tokens=3))),
        "chat": {
            "tokens": chat.usage.completion_tokens,
            "reason": chat.choices[0].finish_reason,
            "logprobs": len(chat.choices[0].logprobs.content),
        },
        "chat_streamed": {
            "roles": sorted({choice.delta.role for chunk in chunks for choice in chunk.choices}),
            "chunks": len(chunks),
            "tokens": chunks[-1].usage.completion_tokens,
        },
        "async": asyncio.run(_async(url)),
        "healthy": hosted.health_check(),
        "model": hosted.get_endpoint_info()["model_id"],
        "errors": [
            _error(lambda: client.text_generation("hello", top_k=0)),
            _error(lambda: list(client.text_generation("hello", top_k=0, stream=True))),
            _error(lambda: full.text_generation("hello")),
            _error(lambda: list(full.text_generation("hello", stream=True))),
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
