"""The TGI v3 protocol notes on load, cancellation, metrics and transport, over TCP on the real clock.

The other half of `test_conformance`: what takes several requests at once, or the process.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
from conformance.pairs import refusal
from conformance.processes import Server, listening, occupied, servers, start, stop
from served import Response, request_bytes

MESSAGES = [{"role": "user", "content": "Thank you!"}]
CHAT = {"messages": MESSAGES, "max_tokens": 2}
OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}
POLL_S = 0.01


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Server]]:
    with servers(open=("--no-warm-up",), one=("--no-warm-up", "--max-concurrent-requests=1")) as found:
        yield found


@pytest.fixture(scope="module")
def server(running: dict[str, Server]) -> Server:
    return running["open"]


def samples(server: Server) -> dict[str, float]:
    """Every series of ``/metrics`` with its value."""
    text = server.get("/metrics").body.decode()
    return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in text.splitlines() if not x.startswith("#"))}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}


# Section 8: admission and cancellation.


def test_section_8_beyond_the_limit(running: dict[str, Server]) -> None:
    """One place, taken: what is refused with 429, what earlier, and how streams say it."""
    server = running["one"]
    invalid = {"inputs": "", "parameters": {"temperature": 0}}

    with occupied(server):
        for path, body in (
            ("/generate", invalid),
            ("/", invalid),
            ("/v1/chat/completions", CHAT | {"max_tokens": 0}),
            ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
            ("/generate", {"inputs": "a", "parameters": {"best_of": 2}}),
        ):
            response = server.post(path, body)
            assert (response.status, response.json()) == (429, OVERLOADED), path
            assert response.headers["content-type"] == "application/json"
            assert "retry-after" not in response.headers
        # A body that cannot be read is refused before, and so are best_of's range and a stream's best_of.
        assert server.post("/generate", b"{").status == 400
        early = server.post("/generate", {"inputs": "a", "parameters": {"best_of": 3}})
        assert early.body.decode() == refusal("`best_of` must be > 0 and <= 2. Given: 3")
        for parameters in ({"best_of": 2}, {"decoder_input_details": True}):
            early = server.post("/generate_stream", {"inputs": "a", "parameters": parameters})
            assert early.events()[0]["error_type"] == "validation", parameters
        stream = server.post("/generate_stream", invalid)
        assert (stream.status, stream.events()) == (200, [OVERLOADED])
        message = b'data: {"error":{"message":"Model is overloaded","http_status_code":422}}\n\n'
        for path in ("/v1/chat/completions", "/v1/completions"):
            stream = server.post(path, CHAT | {"prompt": "a", "stream": True})
            assert (stream.status, stream.chunks) == (200, [message, b"data: [DONE]\n\n"]), path


def test_section_8_a_permit_for_each_sequence(running: dict[str, Server]) -> None:
    server = running["one"]
    idle(server)
    two = {"inputs": "a", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 1}}
    assert server.post("/generate", two).json() == OVERLOADED
    assert server.post("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 1}).json() == OVERLOADED
    assert server.post("/v1/completions", {"prompt": ["a"], "max_tokens": 1}).status == 200


def idle(server: Server) -> None:
    """Until nothing runs any more, and a place is free again."""
    deadline_s = time.monotonic() + 5
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    while server.post("/generate", body).status == 429 or samples(server)["tgi_batch_current_size"]:
        assert time.monotonic() < deadline_s, "places are not given back"
        time.sleep(POLL_S)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions"])
def test_section_8_hanging_up_cancels(server: Server, path: str) -> None:
    before = samples(server)
    body = {
        "inputs": "a",
        "parameters": {"max_new_tokens": 900, "ignore_eos": True},
        "messages": MESSAGES,
        "prompt": "a",
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": path == "/v1/chat/completions",
    }

    async def main() -> None:
        async with server.connected() as connection:
            connection.transport.write(request_bytes(path, body))
            await asyncio.sleep(0.1)

    started_s = time.monotonic()
    asyncio.run(main())
    key = 'tgi_request_failure{err="dropped"}'
    while samples(server).get(key, 0) == before.get(key, 0):
        assert time.monotonic() < started_s + 2, "900 tokens take longer than this"
        time.sleep(POLL_S)
    idle(server)
    after = samples(server)
    assert after[key] - before.get(key, 0) == 1
    # The small requests of idle() succeed; the cancelled one does not.
    succeeded = after["tgi_request_success"] - before.get("tgi_request_success", 0)
    assert (
        after["tgi_request_generated_tokens_sum"] - before.get("tgi_request_generated_tokens_sum", 0)
        == succeeded
    )


# Section 10: metrics.

SECONDS = [0.0001 * 1.5**k for k in range(1, 36)]
DURATIONS = (
    "tgi_request_duration",
    "tgi_request_validation_duration",
    "tgi_request_queue_duration",
    "tgi_request_inference_duration",
    "tgi_request_mean_time_per_token_duration",
)


def test_section_10_a_series_appears_with_its_first_sample() -> None:
    with servers(fresh=("--no-warm-up",)) as found:
        server = found["fresh"]
        names = {re.split("[{ ]", key)[0] for key in samples(server)}
        assert not {name for name in names if name.startswith("tgi_request")}
        assert "tgi_batch_max_total_tokens" in names, "set once, at warm-up"
        assert "tgi_batch_total_tokens" not in names, "described, never emitted"
        server.post("/generate", {"inputs": "a", "parameters": {"top_k": 0}})
        after = samples(server)
        assert after["tgi_request_count"] == 1
        assert after['tgi_request_failure{err="validation"}'] == 1
        assert "tgi_request_success" not in after
        assert "tgi_request_duration_count" not in after, "only successes are in the histograms"


def test_section_10_what_one_generation_leaves(server: Server) -> None:
    idle(server)
    before = samples(server)
    body = {"inputs": "one two three", "parameters": {"max_new_tokens": 5, "details": True}}
    prompt_tokens = int(server.post("/generate", body).headers["x-prompt-tokens"])
    idle_free = grown(before, samples(server))
    assert idle_free["tgi_request_count"] == idle_free["tgi_request_success"] == 1
    for name in DURATIONS:
        assert idle_free[f"{name}_count"] == 1, name
    assert idle_free["tgi_request_input_length_sum"] == prompt_tokens
    assert idle_free["tgi_request_generated_tokens_sum"] == 5
    assert idle_free["tgi_request_max_new_tokens_sum"] == 5
    # One prefill gives the first token, four decodes the rest.
    for kind, steps in (("prefill", 1), ("decode", 4)):
        label = f'{{method="{kind}"}}'
        assert idle_free[f"tgi_batch_inference_count{label}"] == steps
        assert idle_free[f"tgi_batch_inference_success{label}"] == steps
        for name in ("inference", "forward", "decode"):
            assert idle_free[f"tgi_batch_{name}_duration_count{label}"] == steps, name


def test_section_10_buckets(server: Server) -> None:
    server.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 3}})
    found = samples(server)

    def bounds(name: str) -> list[float]:
        pattern = re.compile(re.escape(name) + r'_bucket\{(?:.*,)?le="([^"]+)"(?:,.*)?\}')
        labels = [m[1] for key in found if (m := pattern.fullmatch(key))]
        assert labels[-1] == "+Inf", name
        assert found[next(k for k in found if k.startswith(f"{name}_bucket") and "+Inf" in k)] > 0
        return [float(label) for label in labels[:-1]]

    for name in DURATIONS:
        assert bounds(name) == pytest.approx(SECONDS), name
    for name in ("tgi_request_input_length", "tgi_request_generated_tokens", "tgi_request_max_new_tokens"):
        linear = bounds(name)
        assert len(linear) == 100, name
        width = linear[0]
        assert linear == pytest.approx([width * k for k in range(1, 101)]), name
    assert bounds("tgi_batch_next_size") == [float(k) for k in range(1, 1025)]
    methods = ("inference", "forward", "decode", "filter")
    for name in methods:
        prefix = f"tgi_batch_{name}_duration_bucket"
        for method in ("prefill", "decode"):
            labels = [k for k in found if k.startswith(prefix) and f'method="{method}"' in k]
            if labels:
                assert len(labels) == 36, (name, method)
    skipped = [k for k in found if k.startswith("tgi_request_skipped_tokens")]
    assert not any("_bucket" in k for k in skipped), "a summary, no buckets"
    assert {f"tgi_batch_{name}_duration_count" + '{method="decode"}' for name in methods[:3]} <= set(found)


def test_section_10_chat_counts_twice_and_completions_once_more_than_prompts(server: Server) -> None:
    for path, body, count, success in (
        ("/v1/chat/completions", CHAT, 2, 1),
        ("/v1/chat/completions", CHAT | {"stream": True}, 2, 1),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 1}, 4, 3),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": True}, 2, 1),
        ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 1}}, 1, 1),
    ):
        before = samples(server)
        assert server.post(path, body).status == 200
        found = grown(before, samples(server))
        assert (found["tgi_request_count"], found["tgi_request_success"]) == (count, success), (path, body)


def test_section_10_gauges_and_failures(running: dict[str, Server]) -> None:
    server = running["one"]
    idle(server)
    before = samples(server)

    with occupied(server):
        for _ in range(3):
            server.post("/generate", {"inputs": "a"})
        during = samples(server)
    key = 'tgi_request_failure{err="overloaded"}'
    assert during[key] - before.get(key, 0) == 3
    assert during["tgi_batch_current_size"] == 1
    assert during["tgi_queue_size"] == 0
    assert 0 < during["tgi_batch_current_max_tokens"] <= during["tgi_batch_max_total_tokens"]
    idle(server)


def test_section_10_joining_a_running_batch_is_a_concat_by_chunking(server: Server) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
    idle(server)
    before = samples(server)
    with occupied(server):
        for _ in range(3):
            assert server.post("/generate", body).status == 200
        found = grown(before, samples(server))
    assert found['tgi_batch_concat{reason="chunking"}'] == 3
    assert found['tgi_batch_concat_duration_count{method="decode"}'] == 3
    assert found['tgi_batch_inference_count{method="prefill"}'] == 4
    assert found["tgi_batch_next_size_count"] == 4
    assert found["tgi_batch_next_size_sum"] == 4, "one request each"


def test_section_10_types_are_said(server: Server) -> None:
    server.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 2}})
    text = server.get("/metrics").body.decode()
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    assert types["tgi_request_count"] == types["tgi_batch_inference_count"] == "counter"
    assert types["tgi_batch_current_size"] == types["tgi_batch_max_total_tokens"] == "gauge"
    assert types["tgi_request_duration"] == types["tgi_batch_forward_duration"] == "histogram"
    assert not any(name.endswith("_total") for name in types)
    series = {re.sub("_(bucket|sum|count)$", "", k.split("{")[0]) for k in samples(server)}
    assert {s for s in series if s not in types and f"{s}_count" not in types} == set()


def test_section_9_termination_lets_running_requests_end() -> None:
    with servers(ending=("--no-warm-up",)) as found:
        server = found["ending"]

        async def main() -> Response:
            body = {"inputs": "a", "parameters": {"max_new_tokens": 9, "details": True}}
            async with server.connected() as connection:
                connection.transport.write(request_bytes("/generate_stream", body))
                await connection.until(lambda: b'"index":1,' in connection.data)
                server.process.terminate()
                return await connection.response()

        last = asyncio.run(main()).events()[-1]
        assert last["details"]["generated_tokens"] == 9
        assert server.process.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


# Section 1: transport.


def test_section_1_connections_are_refused_until_the_server_can_serve() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start("--max-batch-prefill-tokens=4096", port=port)
    try:
        refused = 0
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                refused += 1
                time.sleep(POLL_S)
        assert refused > 0
        server = Server(process, port)
        assert server.get("/health").status == 200
        assert server.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1}}).status == 200
        assert listening(process).port == port
    finally:
        stop(process)


def test_section_1_a_chunked_upload_is_read_and_limited(server: Server) -> None:
    def chunked(*pieces: bytes) -> bytes:
        head = b"POST /generate HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return head + b"transfer-encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"

    data = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 1}}).encode()
    assert server.send(chunked(data[:7], data[7:])).status == 200
    response = server.send(chunked(b'{"inputs":"', *[b"a" * 100_000] * 20, b'"}'))
    assert (response.status, response.body) == (
        413,
        b"Failed to buffer the request body: length limit exceeded",
    )


def test_section_1_two_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    async def main() -> None:
        one = request_bytes("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 3}})
        two = request_bytes("/generate", {"inputs": "a", "parameters": {"top_k": 0}})
        async with server.connected() as connection:
            connection.transport.write(one + two)
            assert len((await connection.response()).events()) == 3
            assert (await connection.response()).status == 422

    asyncio.run(main())
