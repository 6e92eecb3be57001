"""Drives text-generation 0.7.0 and prints what it understood. Runs in that client's own environment.

    python text_generation_client.py URL URL_OF_A_FULL_SERVER

Standard library and the client only: nothing of loadgen is installed there.
"""

import asyncio
import importlib.metadata
import json
import sys

from text_generation import AsyncClient, Client


def _stream(events: list) -> dict:
    last = events[-1].details
    return {"events": len(events), "tokens": last.generated_tokens, "reason": last.finish_reason}


async def _async_stream(url: str) -> list:
    return [event async for event in AsyncClient(url).generate_stream("hello", max_new_tokens=4)]


def _error(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return type(error).__name__
    return "none"


def main(url: str, full_url: str) -> None:
    """Every call of the client that works against TGI v3."""
    client, full = Client(url), Client(full_url)
    whole = client.generate("hello", max_new_tokens=4)
    chat = client.chat([{"role": "user", "content": "Thank you!"}], max_tokens=4)
    found = {
        "version": importlib.metadata.version("text-generation"),
        "generated": {
            "tokens": whole.details.generated_tokens,
            "reason": whole.details.finish_reason,
            "words": len(whole.generated_text.split()),
        },
        "streamed": _stream(list(client.generate_stream("hello", max_new_tokens=4))),
        "async_streamed": _stream(asyncio.run(_async_stream(url))),
        "chat": {"tokens": chat.usage["completion_tokens"], "reason": chat.choices[0].finish_reason},
        "errors": [
            # Longer than the server takes; the client's own checks let it pass.
            _error(lambda: client.generate("a " * 140_000, max_new_tokens=1)),
            _error(lambda: full.generate("hello")),
            _error(lambda: list(full.generate_stream("hello"))),
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
