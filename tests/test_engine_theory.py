"""The engine against queueing theory. Every tolerance is a number of standard errors of the simulation.

Waits in a queue are correlated, so the error of their mean is taken from the
means of consecutive batches long against the busy periods.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, factorial

import numpy as np
import pytest
from engines import MODEL, ConstantSteps, Floats, alike, latencies_s, sequence, simulate, tgi, waits_s

from loadgen.server.engine import Engine, Policy, drive
from loadgen.server.tgi_policy import UnchunkedTgiPolicy
from loadgen.server.vllm_policy import VllmPolicy

SIGMAS = 4.0


def poisson_gaps_s(rate: float, n: int, seed: int) -> Floats:
    """Exponential gaps, scaled so that their mean is exact: rate errors would swamp the others."""
    gaps = np.random.default_rng(seed).exponential(1.0, n)
    return np.asarray(gaps * (n / gaps.sum() / rate), dtype=np.float64)


def error_of_mean(samples: Floats, batches: int = 40) -> float:
    means = samples[: len(samples) // batches * batches].reshape(batches, -1).mean(axis=1)
    return float(means.std(ddof=1) / batches**0.5)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_at_a_time_is_the_md1_queue(load: float) -> None:
    # KV for one request: Poisson arrivals, constant service s, W = lambda s^2 / (2 (1 - rho))
    # (Pollaczek-Khinchine).
    (alone,) = simulate(tgi(blocks=1302), alike(np.zeros(1), 1300, 3)).everyone
    service_s = latencies_s([alone])[0]
    rate = load / service_s
    run = simulate(tgi(blocks=1302), alike(poisson_gaps_s(rate, 20_000, int(load * 10)), 1300, 3))
    waits = waits_s(run.everyone)
    expected_s = rate * service_s**2 / (2 * (1 - load))
    error_s = error_of_mean(waits)
    assert error_s < 0.1 * expected_s
    assert abs(waits.mean() - expected_s) < SIGMAS * error_s
    assert run.busy_s == pytest.approx(20_000 * service_s, rel=1e-9)


def prefill_s(prompts: int) -> float:
    return MODEL.step(
        prefill_tokens=1300 * prompts,
        prefill_pairs=prompts * 1300 * 1301 // 2,
        prefill_span_tokens=1300 * prompts,
        emitting_rows=prompts,
    ).duration_s


def batch_queue_latency_s(rate: float, most: int = 45) -> float:
    """Mean latency of the queue whose server takes everything waiting at once, b of them in prefill_s(b).

    The batch that follows b is max(1, A), A Poisson with mean rate x prefill_s(b): a Markov chain,
    solved for its stationary law. Arrivals during a service wait half of it on average, those
    after an idle time nothing; all take their own batch's service. Independent of the engine.
    """
    services = [prefill_s(b) for b in range(most + 1)]
    transition = np.zeros((most + 1, most + 1))
    for b in range(1, most + 1):
        mean = rate * services[b]
        law = np.array([exp(-mean) * mean**k / factorial(k) for k in range(most + 1)])
        law[most] += 1 - law.sum()
        transition[b, 1:] = law[1:]
        transition[b, 1] += law[0]
    law = np.full(most + 1, 0.0)
    law[1] = 1.0
    for _ in range(2000):
        law = law @ transition
    assert law[most] < 1e-9
    spent = served = 0.0
    for b in range(1, most + 1):
        mean = rate * services[b]
        nobody = exp(-mean)
        next_batch = transition[b].copy()
        next_batch[1] -= nobody
        spent += law[b] * mean * services[b] / 2
        spent += law[b] * sum(p * k * services[k] for k, p in enumerate(next_batch))
        spent += law[b] * nobody * services[1]
        served += law[b] * (mean + nobody)
    return spent / served


def inoue_bound_s(rate: float) -> float:
    """min(phi0, phi1) of Inoue 2021 (Perf. Eval., arXiv 1912.06322) for service alpha b + tau0."""
    alpha = prefill_s(3) - prefill_s(2)
    tau0 = prefill_s(2) - 2 * alpha
    spare = 1 - rate * alpha
    phi0 = (alpha + tau0) / (2 * spare) * (1 + 2 * rate * tau0 + (1 - rate * tau0) / (1 + rate * alpha))
    phi1 = 1.5 * tau0 / spare + alpha / 2 * (rate * alpha + 2) / (1 - (rate * alpha) ** 2)
    return min(phi0, phi1)


@pytest.mark.parametrize("rate", [2.0, 10.0, 18.0])
def test_batched_prefill_is_the_batch_service_queue(rate: float) -> None:
    run = simulate(tgi(), alike(poisson_gaps_s(rate, 20_000, 5), 1300, 1))
    latencies = latencies_s(run.everyone)
    error_s = error_of_mean(latencies)
    exact_s = batch_queue_latency_s(rate)
    assert error_s < 0.05 * exact_s
    assert abs(latencies.mean() - exact_s) < SIGMAS * error_s
    # Inoue's closed form bounds it, the service being linear in the batch but for the smallest.
    assert prefill_s(1) == pytest.approx(2 * prefill_s(2) - prefill_s(3), rel=1e-3)
    assert exact_s <= inoue_bound_s(rate) * (1 + 1e-3)
    assert latencies.mean() <= inoue_bound_s(rate) + SIGMAS * error_s


def test_littles_law_on_the_running_batch() -> None:
    arrivals = alike(np.random.default_rng(3).exponential(1 / 12, 1500), 1300, 50)
    steps = list(drive(tgi(), arrivals, leap=False))
    inside_s = sum((s.done_s or 0.0) - (s.scheduled_s or 0.0) for _, s in arrivals)
    integral = sum(w.duration_s * len(w.rows) for w in steps)
    assert inside_s == pytest.approx(integral, rel=1e-9)
    assert all(b.start_s >= a.start_s + a.duration_s for a, b in pairwise(steps))


def erlang_c(servers: int, load: float) -> float:
    """Probability of waiting in M/M/c with offered load ``load`` Erlang (Erlang 1917)."""
    last = load**servers / factorial(servers) * servers / (servers - load)
    return last / (sum(load**k / factorial(k) for k in range(servers)) + last)


def vllm_slots(slots: int) -> Policy:
    return VllmPolicy(1000, slots)


def tgi_slots(slots: int) -> Policy:
    policy = UnchunkedTgiPolicy(1000, slots, waiting_served_ratio=0.0)
    policy.stretch_tokens = 10**9
    return policy


@pytest.mark.parametrize("make", [vllm_slots, tgi_slots])
@pytest.mark.parametrize(("slots", "load"), [(1, 0.6), (4, 3.2)])
def test_slots_are_the_mmc_queue(make: Callable[[int], Policy], slots: int, load: float) -> None:
    # Steps of constant length and geometric replies: service is exponential up to the step's length.
    mean_steps = 50_000
    step_s = 1.0 / mean_steps
    n = 20_000
    engine = Engine(ConstantSteps(step_s), make(slots), 10**9, prefix_caching=False)
    rng = np.random.default_rng(slots)
    replies = rng.geometric(step_s, n)
    # The realised mean service sets the load, as the realised rate does.
    rate = load / (replies.mean() * step_s)
    arrivals = np.cumsum(poisson_gaps_s(rate, n, slots + 10)).tolist()
    run = simulate(engine, [(t, sequence(i, 1, int(replies[i]))) for i, t in enumerate(arrivals)])
    waits = waits_s(run.everyone)
    waiting = erlang_c(slots, load)
    expected_s = waiting / (slots - load)
    error_s = error_of_mean(waits)
    # A request waits for the end of a step, and unchunked prefills stall the others one step each.
    steps_s = 2 * step_s * (1 + load / (slots - load) ** 2)
    assert error_s < 0.12 * expected_s
    assert abs(waits.mean() - expected_s) < SIGMAS * error_s + steps_s
    waited = (waits > 2 * step_s).astype(float)
    assert abs(waited.mean() - waiting) < SIGMAS * error_of_mean(waited) + steps_s


def test_stability_is_decided_by_marginal_work() -> None:
    # With memory for all, batching amortises all fixed costs: stable below lambda (tau_p + o s') = 1,
    # tau_p a prompt's share of a prefill, s' a row's share of a decode step.
    prompt, reply = 1300, 250
    tau_s = (prefill_s(40) - prefill_s(20)) / 20

    def decode_s(rows: int) -> float:
        context = rows * (prompt + reply // 2)
        return MODEL.step(decode_rows=rows, decode_context_tokens=context, emitting_rows=rows).duration_s

    # Few enough rows for the products to be memory bound, as they are at 0.8.
    row_s = (decode_s(200) - decode_s(100)) / 100
    critical = 1 / (tau_s + (reply - 1) * row_s)
    n = 12_000

    def in_system(load: float) -> tuple[int, int]:
        """How many are there at the half and at the last arrival."""
        run = simulate(tgi(blocks=10**8), alike(poisson_gaps_s(load * critical, n, 8), prompt, reply))
        done = np.array([s.done_s for s in run.everyone])
        arrived = np.array([s.submitted_s for s in run.everyone])
        half, last = arrived[n // 2 - 1], arrived[-1]
        return n // 2 - int((done <= half).sum()), n - int((done <= last).sum())

    noise = SIGMAS * (n / 2) ** 0.5
    half, last = in_system(0.8)
    assert abs(last - half) < noise
    half, last = in_system(1.25)
    assert last - half > (1 - 1 / 1.25) * n / 2 - noise


def test_an_overloaded_queue_grows_by_what_it_cannot_serve() -> None:
    (alone,) = simulate(tgi(blocks=1302), alike(np.zeros(1), 1300, 3)).everyone
    service_s = latencies_s([alone])[0]
    n, load = 5000, 1.25
    run = simulate(tgi(blocks=1302), alike(poisson_gaps_s(load / service_s, n, 4), 1300, 3))
    waits = waits_s(run.everyone)
    drift_s = n * service_s * (1 - 1 / load)
    # The last arrival's wait is the backlog: work in less time passed, but for the first idle times.
    assert abs(waits[-1] - drift_s) < SIGMAS * n**0.5 * service_s / load
    assert run.busy_s == pytest.approx(n * service_s, rel=1e-9)
