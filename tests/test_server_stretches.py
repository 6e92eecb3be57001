"""Long replies run in stretches of 1,024 tokens, and may end sooner than planned."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from served import Response, Served, ask, exact, post, request_bytes

from loadgen import clock
from loadgen.launch import Launch, Launcher
from loadgen.server.desk import Desk, Job
from loadgen.server.limits import Limits
from loadgen.server.reply import ReplyPlan
from loadgen.server.service import Service
from loadgen.server.stream import EventStream, StreamSink
from loadgen.server.tgi.chat import ChatDialect
from loadgen.server.tgi.completions import CompletionDialect
from loadgen.server.tgi.generate import TgiDialect, generate_body
from loadgen.server.tgi.openai import Envelope, OpenAiBody
from loadgen.server.tgi.validation import GenerateBody, Parameters, Work, plan, validate

SMALL = Launcher(max_total_tokens=4096)


def limits(**launcher: Any) -> Limits:
    return Service(Launch(launcher=Launcher(**launcher))).limits


def work(prompt_tokens: int, max_new_tokens: int | None, found: Limits, **more: Any) -> Work:
    inputs = "a " * prompt_tokens
    parameters = Parameters(max_new_tokens=max_new_tokens, truncate=prompt_tokens, **more)
    return validate(GenerateBody(inputs, parameters), found)


@pytest.mark.parametrize(
    ("prompt", "asked", "longest"),
    [
        (100, 600, 600),
        (100, 1024, 1024),
        (100, 1025, 2048),  # the stretch after the first is again 1,024 long
        (100, 1500, 2048),
        (100, 5000, 3072),  # 100 + 4 x 1024 > 4096: ends with the third
        (1024, 5000, 3072),
        (1025, 5000, 2048),
        (3072, 5000, 1024),
        (100, None, 3996),  # all that fits, the last stretch being what is left
        (4095, None, 1),
    ],
)
def test_how_long_a_reply_can_be(prompt: int, asked: int | None, longest: int) -> None:
    found = work(prompt, asked, limits(max_total_tokens=4096))
    assert (found.prompt_tokens, found.longest_tokens) == (prompt, longest)
    assert found.stretch_tokens == min(asked or 4096 - prompt, 1024)


def test_who_ignores_the_end_marker_gets_exactly_what_was_asked_for_where_it_fits() -> None:
    found = limits(max_total_tokens=4096)
    for asked, tokens in ((600, 600), (1500, 1500), (5000, 3072), (None, 3996)):
        job = plan(0, 1, work(100, asked, found, ignore_eos=True))
        assert (job.plan.tokens, job.plan.finish_reason) == (tokens, "length")


def streamed(asked: int) -> tuple[Response, list[float]]:
    """The response, and the gaps between the reads of its tokens."""

    async def call(server: Served) -> tuple[Response, list[float]]:
        connection = server.connect()
        connection.transport.write(request_bytes("/generate_stream", exact(asked, details=True)))
        await connection.until(lambda: connection.data.endswith(b"0\r\n\r\n"))
        instants = [at for at, data in connection.reads if b'"index"' in data]
        return await connection.response(), [b - a for a, b in pairwise(instants)]

    found: tuple[Response, list[float]] = ask(call, launcher=Launcher(prefix_caching=False))
    return found


def test_each_stretch_begins_with_a_prefill_of_all_before() -> None:
    response, gaps_s = streamed(2100)
    events = response.events()
    assert [e["index"] for e in events] == list(range(1, 2101))
    assert events[-1]["details"]["generated_tokens"] == 2100
    usual_s = sorted(gaps_s)[len(gaps_s) // 2]
    assert [i for i, gap_s in enumerate(gaps_s, 1) if gap_s > 1.5 * usual_s] == [1024, 2048]
    assert gaps_s[2047] > gaps_s[1023], "the second prefill is longer"


def test_a_reply_whose_next_stretch_does_not_fit_ends_with_length() -> None:
    response = post("/generate", exact(5000, details=True))
    assert response.json()["details"]["generated_tokens"] == 5000

    async def call(server: Served) -> None:
        for path in ("/generate", "/generate_stream"):
            answer = await server.post(path, exact(5000, details=True))
            last = answer.json() if path == "/generate" else answer.events()[-1]
            assert last["details"]["finish_reason"] == "length"
            assert last["details"]["generated_tokens"] == 3072
            assert len(last["generated_text"].split()) == 3072

    ask(call, launcher=SMALL)


# The engine may end a reply sooner than its plan says: everything said then is about what came.

CUT = 3


def planned() -> ReplyPlan:
    return ReplyPlan(7, 6, "eos_token", [10, 20, 30, 40, 50])


def asked(**more: Any) -> Work:
    return validate(GenerateBody("a b", Parameters(max_new_tokens=9, details=True, **more)), limits())


class Written:
    """Stands for a connection."""

    def __init__(self) -> None:
        self.data = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.data += data


@pytest.mark.parametrize("kind", ["tgi", "chat", "completion"])
def test_a_stream_that_is_cut_says_so(kind: str) -> None:
    async def main() -> list[dict[str, Any]]:
        reply, request, envelope = planned(), asked(), Envelope(1, "m")
        dialect: Any = {
            "tgi": lambda: TgiDialect(reply, request),
            "chat": lambda: ChatDialect(
                reply, request, OpenAiBody([], stream=True, include_usage=True), envelope
            ),
            "completion": lambda: CompletionDialect(0, reply, request, envelope),
        }[kind]()
        connection: Any = Written()
        sink = StreamSink(EventStream(connection, chunked=False), dialect)
        sink.plan = reply
        sink.token(1, None)
        sink.token(2, None)
        sink.token(CUT, "length")
        return [json.loads(block[6:]) for block in connection.data.decode().split("\n\n") if block]

    events = clock.run_virtual(main())
    if kind == "tgi":
        last = events[-1]
        assert (last["index"], last["token"]["special"]) == (CUT, False)
        assert last["generated_text"] == "".join(e["token"]["text"] for e in events)
        assert last["details"]["finish_reason"] == "length"
        assert last["details"]["generated_tokens"] == CUT == len(events)
        return
    contents = [e for e in events if e["choices"]]
    assert len(contents) == CUT
    assert contents[-1]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == CUT


def test_a_whole_reply_that_is_cut_says_so() -> None:
    async def main() -> None:
        service = Service(Launch())
        desk = Desk(service)
        reply, request = planned(), asked(top_n_tokens=1)
        job = Job(reply, 2, 9, None)
        waiting = asyncio.ensure_future(desk.whole([job]))
        await asyncio.sleep(0)
        (ticket,) = service._tickets.values()
        ticket.sink.token(CUT, "length")
        await waiting
        body = generate_body(reply, [], request)
        assert len(body["generated_text"].split()) == CUT
        assert body["details"]["finish_reason"] == "length"
        assert body["details"]["generated_tokens"] == CUT
        assert len(body["details"]["tokens"]) == len(body["details"]["top_tokens"]) == CUT
        service.close()

    clock.run_virtual(main())
