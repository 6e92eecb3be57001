"""The yardstick: a plain streaming client in aiohttp and orjson, as most would write it.

One session, one task a request, every event decoded by that task as it arrives. It
keeps a record of every request (instants of its tokens, text, usage), but classifies
no errors and knows one dialect.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from time import monotonic

import aiohttp
import orjson


@dataclass(slots=True)
class PlainRecord:
    id: int
    due_s: float
    sent_s: float
    done_s: float = 0.0
    chunk_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    text: str = ""
    output_tokens: int | None = None
    finish_reason: str | None = None


class PlainClient:
    def __init__(self, base_url: str, max_new_tokens: int) -> None:
        self._url = base_url + "/v1/chat/completions"
        self._max_new_tokens = max_new_tokens
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> PlainClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._session.close()

    async def ask(self, request_id: int, due_s: float, prompt: str) -> PlainRecord:
        record = PlainRecord(request_id, due_s, monotonic())
        body = {
            "model": "mock",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        parts: list[str] = []
        async with self._session.post(
            self._url, data=orjson.dumps(body), headers={"content-type": "application/json"}
        ) as response:
            response.raise_for_status()
            held = b""
            async for data in response.content.iter_any():
                stamp_s = monotonic()
                *lines, held = (held + data).split(b"\n\n")
                tokens = 0
                for line in lines:
                    payload = line[6:]
                    if payload == b"[DONE]":
                        continue
                    value = orjson.loads(payload)
                    for choice in value["choices"]:
                        content = choice["delta"].get("content")
                        if content:
                            tokens += 1
                            parts.append(content)
                        if choice["finish_reason"]:
                            record.finish_reason = choice["finish_reason"]
                    if value.get("usage"):
                        record.output_tokens = value["usage"]["completion_tokens"]
                if tokens:
                    record.chunk_s.append(stamp_s)
                    record.chunk_tokens.append(tokens)
        record.done_s = monotonic()
        record.text = "".join(parts)
        return record


async def drive_plain(client: PlainClient, due_s: list[float], in_flight: int | None) -> list[PlainRecord]:
    """The same schedule and the same pacer as for ours; one task a request."""
    from loadgen.pacer import Pacer

    prompt = "Thank you! " * 20
    if in_flight is not None:
        ids = iter(range(len(due_s)))
        done: list[PlainRecord] = []

        async def worker() -> None:
            for request_id in ids:
                done.append(await client.ask(request_id, due_s[request_id], prompt))

        await asyncio.gather(*[worker() for _ in range(in_flight)])
        return done
    tasks = []
    with Pacer() as pacer:
        for request_id, due in enumerate(due_s):
            if monotonic() < due:
                await pacer.sleep_until(due)
            tasks.append(asyncio.create_task(client.ask(request_id, due, prompt)))
    return list(await asyncio.gather(*tasks))
