"""The service on the virtual clock: token instants, energy book, refusals, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from loadgen import clock
from loadgen.errors import CapacityError, ConfigError
from loadgen.launch import Launch
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.physics.transformer import StepModel
from loadgen.server.service import Service, Ticket
from loadgen.types import Step


@dataclass
class Collector:
    """A sink that notes what it was told, and may do something at a token."""

    at: list[tuple[float, int, str | None]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    then: Callable[[int], None] = lambda index: None

    def token(self, index: int, finish_reason: str | None) -> None:
        self.at.append((clock.now(), index, finish_reason))
        self.then(index)

    def failed(self, message: str) -> None:
        self.failures.append(message)


def make(**kwargs: Any) -> Service:
    on_step = kwargs.pop("on_step", None)
    return Service(Launch(**kwargs), on_step=on_step)


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    clock.run_virtual(run())


def submit(service: Service, sink: Collector, id: int = 0, prompt: int = 1300, reply: int = 10) -> Ticket:
    ticket = service.submit(id, prompt, reply, reply, "length", sink)
    assert ticket is not None
    return ticket


def assert_book_closes(service: Service, steps: list[Step]) -> None:
    """No gaps, no overlap, and the parts are the board's energy."""
    board = service.boards[0]
    assert steps[0].start_s == board.start_s
    for a, b in pairwise(steps):
        assert b.start_s == pytest.approx(a.start_s + a.duration_s, abs=1e-9)
    assert steps[-1].start_s + steps[-1].duration_s == pytest.approx(board.end_s, abs=1e-9)
    assert sum(s.energy_j for s in steps) == pytest.approx(board.energy_j(board.end_s), rel=1e-9)


def test_tokens_come_out_when_the_model_says() -> None:
    steps: list[Step] = []

    async def main() -> None:
        service = make(on_step=steps.append)
        running = asyncio.ensure_future(service.run())
        await asyncio.sleep(1.0)
        sink = Collector()
        ticket = submit(service, sink, id=-3, prompt=100, reply=3)
        assert service.in_flight == 1
        await asyncio.sleep(2.0)
        model = StepModel(MODELS["llama-3.1-8b"], GPUS["h100-sxm"], DTYPES["bfloat16"])
        prefill_s = model.step(
            prefill_tokens=100, prefill_pairs=5050, prefill_span_tokens=100, emitting_rows=1
        ).duration_s
        decode_s = [
            model.step(decode_rows=1, decode_context_tokens=c, emitting_rows=1).duration_s for c in (100, 101)
        ]
        due = [1.0 + prefill_s, 1.0 + prefill_s + decode_s[0], 1.0 + prefill_s + sum(decode_s)]
        assert [t for t, _, _ in sink.at] == pytest.approx(due, rel=1e-12)
        assert [(i, r) for _, i, r in sink.at] == [(1, None), (2, None), (3, "length")]
        assert (ticket.submitted_s, ticket.scheduled_s) == (1.0, 1.0)
        assert (ticket.first_s, ticket.done_s) == pytest.approx((due[0], due[2]))
        assert (service.in_flight, service.batch_size, service.batch_tokens) == (0, 0, 0)
        ticket.cancel()  # ended: nothing happens
        service.close()
        service.close()
        await running
        with pytest.raises(RuntimeError, match="closed"):
            submit(service, sink)

    virtually(main)
    assert [s.sequences for s in steps] == [
        (), ((-3, 100, 0, 0),), ((-3, 0, 1, 100),), ((-3, 0, 1, 101),), ()
    ]  # fmt: skip
    assert (steps[0].start_s, steps[0].duration_s, steps[0].energy_j) == (0.0, 1.0, 120.0)
    assert steps[-1].start_s + steps[-1].duration_s == 3.0


def test_the_tokens_of_the_batch_include_a_prefix_from_the_cache() -> None:
    async def main() -> None:
        service = make()
        for _ in range(2):
            ticket = service.submit(1, 100, 10, 10, "length", Collector(), prompt_ids=bytes(800))
            await asyncio.sleep(0.005)
            # TGI reserves prompt + new - 1 slots, found in the cache or not.
            assert service.batch_tokens == 109
            await asyncio.sleep(5)
            assert service.batch_tokens == 0
        assert ticket is not None and ticket.cached_tokens == 99
        service.close()

    virtually(main)


def test_book_closes_under_traffic_with_cancellations() -> None:
    steps: list[Step] = []
    sinks = [Collector() for _ in range(150)]
    cancelled = set(range(0, 150, 7))
    tickets: list[Ticket] = []
    services: list[Service] = []

    async def main() -> None:
        service = make(on_step=steps.append)
        services.append(service)
        service.start()
        for i, sink in enumerate(sinks):
            await asyncio.sleep(0.05 if i % 30 else 3.0)
            tickets.append(submit(service, sink, id=i, prompt=200 + 37 * (i % 50), reply=1 + i % 60))
            if i in cancelled:
                asyncio.get_running_loop().call_later(0.1 * (i % 5), tickets[i].cancel)
        await asyncio.sleep(20)
        assert (service.in_flight, service.queue_size, service.batch_size) == (0, 0, 0)
        service.close()

    virtually(main)
    assert_book_closes(services[0], steps)
    for i, sink in enumerate(sinks):
        assert [index for _, index, _ in sink.at] == list(range(1, len(sink.at) + 1))
        if i not in cancelled:
            assert len(sink.at) == 1 + i % 60
            prompt = sum(row[1] for s in steps for row in s.sequences if row[0] == i)
            assert prompt == 200 + 37 * (i % 50)
    # Idle stretches draw the idle power, never more.
    assert all(s.energy_j == pytest.approx(120 * s.duration_s) for s in steps if not s.sequences)


def test_two_runs_are_identical() -> None:
    def run() -> list[Step]:
        steps: list[Step] = []

        async def main() -> None:
            service = make(on_step=steps.append)
            for i in range(50):
                submit(service, Collector(), id=i, reply=20 + i % 3)
                await asyncio.sleep(0.031)
            await asyncio.sleep(5)
            service.close()

        virtually(main)
        return steps

    assert run() == run()


def test_a_burst_shares_one_prefill() -> None:
    steps: list[Step] = []

    async def main() -> None:
        service = make(on_step=steps.append)
        for i in range(20):
            submit(service, Collector(), id=i, prompt=100, reply=1)
        await asyncio.sleep(1)
        service.close()

    virtually(main)
    assert [len(s.sequences) for s in steps] == [20, 0]


def test_refuses_beyond_the_concurrency_limit_until_one_ends() -> None:
    async def main() -> None:
        service = make(max_concurrent_requests=3)
        tickets = [submit(service, Collector(), id=i) for i in range(3)]
        refused = Collector()
        assert service.submit(9, 10, 5, 5, "length", refused) is None
        tickets[1].cancel()
        tickets[1].cancel()
        assert service.in_flight == 2
        assert service.submit(10, 10, 5, 5, "length", Collector()) is not None
        assert service.submit(11, 10, 5, 5, "length", refused) is None
        await asyncio.sleep(5)
        assert service.in_flight == 0
        assert not refused.at
        service.close()

    virtually(main)


def test_a_sink_that_raises_harms_only_itself() -> None:
    reported: list[dict[str, Any]] = []

    def explode(index: int) -> None:
        if index == 2:
            raise ConnectionResetError("gone")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        service = make()
        bad, good = Collector(then=explode), Collector()
        submit(service, bad, id=1)
        submit(service, good, id=2)
        await asyncio.sleep(5)
        assert (len(bad.at), len(good.at)) == (2, 10)
        assert (bad.failures, good.failures) == (["internal error"], [])
        assert service.in_flight == 0
        assert service.batch_size == 0
        service.close()

    virtually(main)
    assert [type(context["exception"]) for context in reported] == [ConnectionResetError]


def test_a_sink_may_cancel_another_and_submit_again() -> None:
    async def main() -> None:
        service = make(max_concurrent_requests=2)
        first, second, third = Collector(), Collector(), Collector()
        submit(service, first, id=1, reply=2)
        victim = submit(service, second, id=2, reply=9)

        def then(index: int) -> None:
            if index == 1:
                victim.cancel()
            else:
                submit(service, third, id=3)

        first.then = then
        await asyncio.sleep(5)
        assert (len(first.at), len(second.at), len(third.at)) == (2, 0, 10)
        service.close()

    virtually(main)


def test_close_in_the_middle_of_a_step_books_it_and_fails_the_rest() -> None:
    steps: list[Step] = []
    services: list[Service] = []

    async def main() -> None:
        service = make(on_step=steps.append)
        services.append(service)
        sink = Collector()
        submit(service, sink)
        await asyncio.sleep(0.001)
        service.close()
        assert sink.failures == ["the server is shutting down"]
        await asyncio.sleep(1)
        assert not sink.at

    virtually(main)
    assert len(steps) == 1
    assert_book_closes(services[0], steps)


def test_a_late_loop_neither_drifts_nor_stretches_steps() -> None:
    def run(lateness_s: float) -> tuple[Ticket, list[Step]]:
        steps: list[Step] = []
        tickets: list[Ticket] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, clock.VirtualLoop)

            def dawdle(index: int) -> None:
                loop.virtual_s += lateness_s

            service = make(on_step=steps.append)
            tickets.append(submit(service, Collector(then=dawdle)))
            await asyncio.sleep(5)
            service.close()

        virtually(main)
        return tickets[0], steps

    punctual, steps = run(0.0)
    late, late_steps = run(0.02)
    assert late.done_s == punctual.done_s
    assert late_steps[:-1] == steps[:-1]


def test_a_failing_step_log_stops_the_run() -> None:
    async def main() -> None:
        def full(step: Step) -> None:
            raise OSError("disk full")

        service = make(on_step=full)
        running = asyncio.ensure_future(service.run())
        sink = Collector()
        submit(service, sink)
        with pytest.raises(OSError, match="disk full"):
            await running
        assert sink.failures
        assert service.in_flight == 0

    virtually(main)


def test_board_counter_against_exact_energy() -> None:
    async def main() -> None:
        service = make()
        service.start()
        for i in range(40):
            submit(service, Collector(), id=i, reply=20)
            await asyncio.sleep(0.25)
        shown = service.boards[0].published(clock.now())
        assert shown.at_s == pytest.approx(10.0)
        assert 0 <= service.energy_j(10.0) - shown.energy_j < 2e-3
        assert 120 < shown.average_w < 700
        service.close()

    virtually(main)


def test_limits_are_those_tgi_derives() -> None:
    h100, a100 = make().limits, make(gpu="a100-sxm").limits
    assert (h100.max_batch_prefill_tokens, a100.max_batch_prefill_tokens) == (59_870, 20_755)
    assert h100.model_id == "meta-llama/Llama-3.1-8B-Instruct"
    assert h100.max_concurrent_requests == 128
    assert (h100.max_total_tokens, h100.max_input_tokens) == (131_072, 131_071)
    # Room: 90 % of the board less 16.06 GB of weights is an upper bound on the cache.
    ceiling = (0.9 * 81559 * 2**20 - 16.06e9) / 131_072
    assert 0.85 * ceiling < h100.max_batch_total_tokens < ceiling
    fp32 = make(dtype="float32").limits
    assert fp32.max_total_tokens == fp32.max_batch_total_tokens < 131_072


def test_configuration_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"server\.gpu: expected one of .*did you mean 'h100-sxm'"):
        make(gpu="h100-smx")
    with pytest.raises(ConfigError, match=r"server\.dtype"):
        make(dtype="fp9")
    monkeypatch.setitem(GPUS, "small", replace(GPUS["a100-sxm"], id="small", memory_bytes=17e9))
    with pytest.raises(
        CapacityError, match=r"weights 16\.1 GB .* = 18\.4 GB > 17\.0 GB; fits with --num-shard 2"
    ):
        make(gpu="small")
    with pytest.raises(RuntimeError, match="not been started"):
        _ = make().boards

    async def main() -> None:
        with pytest.raises(ValueError, match="needs 132024 tokens, max_total_tokens is 131072"):
            make().submit(1, 131_000, 100_000, 5, "length", Collector())

    virtually(main)
