"""``/metrics`` under TGI's names: counts, labels, buckets, and what the batches did."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from served import RawConnection, Served, ask, exact, request_bytes

from loadgen import clock
from loadgen.launch import Launch, Launcher
from loadgen.server.host import serving
from loadgen.server.service import Service

MESSAGES = [{"role": "user", "content": "Thank you!"}]
SAMPLE = re.compile(r'[a-z_]+(\{([a-z]+="[^"]*",?)+\})? -?[0-9.e+-]+')
ENDED = 'tgi_batch_inference_success{method="%s"}'


async def samples(server: Served) -> dict[str, float]:
    """Every series with its value; asserts the text format, each family announced once."""
    response = await server.get("/metrics")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    lines = response.body.decode().splitlines()
    families = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(families) == len(set(families))
    values: dict[str, float] = {}
    for line in lines:
        if line.startswith("#"):
            continue
        assert SAMPLE.fullmatch(line), line
        name, _, value = line.rpartition(" ")
        assert name not in values
        assert any(name.startswith(family) for family in families)
        values[name] = float(value)
    return values


def buckets(found: dict[str, float], name: str) -> list[str]:
    """The upper bounds of a histogram; asserts that its counts grow and end at the count."""
    inside = {k: v for k, v in found.items() if k.startswith(f"{name}_bucket")}
    counts = list(inside.values())
    assert counts == sorted(counts)
    assert counts[-1] == found[f"{name}_count"]
    bounds = [re.findall(r'le="([^"]*)"', k)[0] for k in inside]
    assert bounds[-1] == "+Inf"
    return bounds[:-1]


def test_nothing_but_the_constant_gauge_before_the_first_request() -> None:
    async def call(server: Served) -> None:
        limit = server.service.limits.max_batch_total_tokens
        assert await samples(server) == {"tgi_batch_max_total_tokens": limit}
        # The one token of this reply comes out of the prefill.
        await server.post("/generate", exact(1))
        found = await samples(server)
        assert found['tgi_batch_inference_count{method="prefill"}'] == 1
        assert not [name for name in found if 'method="decode"' in name or "failure" in name]
        assert (found["tgi_queue_size"], found["tgi_batch_current_size"]) == (0, 0)

    ask(call)


def test_the_warm_up_is_no_forward_of_any_batch() -> None:
    async def main() -> None:
        service = Service(Launch())
        async with serving(service, address=None) as server:
            assert service.energy_j(service.end_s) > 0, "it has warmed up"
            connection = RawConnection()
            clock.connect_memory(connection, server.protocol())
            connection.transport.write(b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n")
            text = (await connection.response()).body.decode()
            assert "tgi_batch_max_total_tokens" in text
            assert "tgi_batch_inference" not in text

    clock.run_virtual(main())


def test_buckets_are_tgi_s() -> None:
    async def call(server: Served) -> None:
        await server.post("/generate", exact(3))
        found = await samples(server)
        powers = [0.0001 * 1.5**k for k in range(1, 36)]
        for name in ("duration", "validation_duration", "queue_duration", "inference_duration"):
            assert [float(b) for b in buckets(found, f"tgi_request_{name}")] == pytest.approx(powers)
        limits = server.service.limits
        lengths = {
            "input_length": limits.max_input_tokens,
            "max_new_tokens": limits.max_total_tokens,
            "generated_tokens": limits.max_total_tokens,
        }
        for name, most in lengths.items():
            bounds = [float(b) for b in buckets(found, f"tgi_request_{name}")]
            assert bounds == pytest.approx([most * k / 100 for k in range(1, 101)])
        assert buckets(found, "tgi_batch_next_size") == [str(k) for k in range(1, 1025)]
        prefill = [name for name in found if name.startswith("tgi_batch_forward_duration_bucket")]
        assert len(prefill) == 2 * 36, "both methods have run"

    ask(call)


def test_requests_are_counted_as_tgi_counts_them() -> None:
    async def call(server: Served) -> None:
        counted: list[tuple[float, float]] = []

        async def post(path: str, body: Any) -> None:
            await server.post(path, body)
            found = await samples(server)
            counted.append((found.get("tgi_request_count", 0), found.get("tgi_request_success", 0)))

        await post("/generate", b"{")
        await post("/generate", exact(3))
        await post("/generate_stream", exact(5))
        await post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})
        await post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1, "stream": True})
        await post("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 1})
        await post("/generate", exact(2, best_of=2, do_sample=True))
        await post("/generate", exact(3, top_k=0))
        await post("/v1/completions", {"prompt": "a", "suffix": "b"})
        # A chat counts twice, three prompts 1 + 3 times; a body that nobody reads not at all.
        assert counted == [(0, 0), (1, 1), (2, 2), (4, 3), (6, 4), (10, 7), (11, 8), (12, 8), (13, 8)]
        found = await samples(server)
        assert {k: v for k, v in found.items() if "failure" in k} == {
            'tgi_request_failure{err="validation"}': 2
        }
        assert found["tgi_request_input_length_count"] == 9, "both sequences of best_of are validated"
        assert found["tgi_request_generated_tokens_count"] == found["tgi_request_duration_count"] == 8
        assert found["tgi_request_generated_tokens_sum"] == 3 + 5 + 1 + 1 + 3 + 2
        parts = ("validation_duration", "queue_duration", "inference_duration")
        assert found["tgi_request_duration_sum"] == pytest.approx(
            sum(found[f"tgi_request_{part}_sum"] for part in parts)
        )

    ask(call)


def test_failures_by_cause() -> None:
    async def call(server: Served) -> None:
        busy = server.connect()
        busy.transport.write(request_bytes("/generate_stream", exact(500)))
        await busy.until(lambda: b'"index":1,' in busy.data)
        await server.post("/generate", exact(1))
        await server.post("/generate_stream", exact(1))
        busy.transport.close()
        while server.service.in_flight:
            await asyncio.sleep(0.01)
        await server.post("/generate_stream", exact(1, top_k=0))
        dying = server.connect()
        dying.transport.write(request_bytes("/generate_stream", exact(500)))
        await dying.until(lambda: b'"index":1,' in dying.data)
        server.service.close()
        await dying.response()
        await server.post("/generate", exact(1))
        found = await samples(server)
        failures = {k.partition('err="')[2][:-2]: v for k, v in found.items() if "failure" in k}
        assert failures == {"dropped": 1, "generation": 2, "overloaded": 2, "validation": 1}
        assert "tgi_request_success" not in found

    ask(call, max_concurrent_requests=1)


def test_forwards_of_a_lone_request() -> None:
    async def call(server: Served) -> None:
        await server.post("/generate", exact(10))
        found = await samples(server)
        assert (found[ENDED % "prefill"], found[ENDED % "decode"]) == (1, 9)
        assert found["tgi_request_skipped_tokens_count"] == 10
        assert found["tgi_request_skipped_tokens_sum"] == 0
        assert found['tgi_request_skipped_tokens{quantile="0.5"}'] == 0
        assert (found["tgi_batch_next_size_count"], found["tgi_batch_next_size_sum"]) == (1, 1)
        assert not [name for name in found if "concat" in name]
        for name in ("inference", "forward"):
            spent = sum(
                found[f'tgi_batch_{name}_duration_sum{{method="{m}"}}'] for m in ("prefill", "decode")
            )
            assert spent == pytest.approx(found["tgi_request_inference_duration_sum"])

    ask(call)


def joined(reason: str, late: int, **launcher: Any) -> None:
    """One request decodes, ``late`` others come together: a batch of so many joins it, for ``reason``."""

    async def call(server: Served) -> None:
        first = server.connect()
        first.transport.write(request_bytes("/generate_stream", exact(200)))
        await first.until(lambda: b'"index":1,' in first.data)
        others = [server.connect() for _ in range(late)]
        for other in others:
            other.transport.write(request_bytes("/generate_stream", exact(5)))
        await first.until(lambda: b'"index":40,' in first.data)
        found = await samples(server)
        assert (found["tgi_batch_next_size_count"], found["tgi_batch_next_size_sum"]) == (2, 1 + late)
        assert found[f'tgi_batch_concat{{reason="{reason}"}}'] == 1
        assert found['tgi_batch_concat_duration_count{method="decode"}'] == 1
        assert len([name for name in found if name.startswith("tgi_batch_concat{")]) == 1
        assert found[ENDED % "prefill"] == 2
        assert found["tgi_batch_current_size"] == 1
        # Prompt and whole reply are reserved, but for the last token's KV.
        tokens = int(found["tgi_request_input_length_sum"]) // (1 + late) + 200 - 1
        assert found["tgi_batch_current_max_tokens"] == tokens

    ask(call, launcher=Launcher(prefix_caching=False, **launcher))


def test_joining_a_running_batch_with_chunking() -> None:
    joined("chunking", 3)


def test_joining_without_chunking_when_enough_wait() -> None:
    joined("backpressure", 3, prefill_chunking=False, waiting_served_ratio=2.0, max_waiting_tokens=30)


def test_joining_without_chunking_when_they_have_waited_long_enough() -> None:
    joined("wait_exceeded", 1, prefill_chunking=False, waiting_served_ratio=2.0, max_waiting_tokens=30)


def test_a_prompt_in_chunks_is_one_prefill_and_decodes() -> None:
    """The server counts a chunk after the first as a decode call, as the router calls it."""

    async def call(server: Served) -> None:
        body = {"inputs": "word " * 1000, "parameters": {"max_new_tokens": 4, "ignore_eos": True}}
        response = await server.post("/generate", body)
        chunks = -(-int(response.headers["x-prompt-tokens"]) // 256)
        assert chunks > 2
        found = await samples(server)
        assert (found[ENDED % "prefill"], found[ENDED % "decode"]) == (1, chunks - 1 + 3)
        assert found["tgi_batch_next_size_sum"] == 1

    ask(call, launcher=Launcher(max_batch_prefill_tokens=256))


def test_the_queue_is_shown_while_it_waits() -> None:
    async def call(server: Served) -> None:
        held = [server.connect() for _ in range(3)]
        for connection in held:
            connection.transport.write(request_bytes("/generate_stream", exact(300)))
        await held[0].until(lambda: b'"index":5,' in held[0].data)
        found = await samples(server)
        assert (found["tgi_batch_current_size"], found["tgi_queue_size"]) == (1, 2)
        assert found["tgi_request_count"] == 3
        assert "tgi_request_success" not in found

    ask(call, launcher=Launcher(prefill_chunking=False, max_batch_size=1))


def test_a_reply_in_stretches_is_validated_for_each() -> None:
    async def call(server: Served) -> None:
        response = await server.post("/generate", exact(2500))
        prompt = int(response.headers["x-prompt-tokens"])
        found = await samples(server)
        assert found["tgi_request_input_length_count"] == found["tgi_request_max_new_tokens_count"] == 3
        assert found["tgi_request_input_length_sum"] == 3 * prompt + 1024 + 2048
        assert found["tgi_request_max_new_tokens_sum"] == 3 * 1024
        assert (found["tgi_request_count"], found["tgi_request_success"]) == (1, 1)
        assert found["tgi_request_generated_tokens_sum"] == 2500
        assert found[ENDED % "prefill"] == 3

    ask(call)
