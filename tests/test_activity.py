"""What requests did when, inferred: steps, chunks of prompts, tariffs against the games they share."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from made_runs import lattice, record, run_of
from simulated_runs import busy, l1, true_costs

from analysis.attribution import Attribution, shares
from analysis.attribution.activity import Activity, activity
from analysis.attribution.chunks import chunked
from analysis.attribution.slices import cut
from analysis.attribution.weights import row_terms, weights_of
from loadgen.launch import Launch, Launcher
from loadgen.server.deployment import Deployment
from loadgen.types import ServerSample

# Inferred steps


def test_the_steps_are_those_of_the_engine() -> None:
    run, steps = busy()
    did = activity(run)
    assert did.end_s == pytest.approx([s.start_s + s.duration_s for s in steps], abs=1e-9)
    assert did.start_s == pytest.approx([s.start_s for s in steps], abs=1e-9)
    rows = np.stack([did.step, did.request, did.prefill_tokens, did.decode_tokens, did.context_tokens])
    ids = did.requests["id"].to_numpy()
    seen = {(int(j), int(ids[int(i)]), n, d, c) for j, i, n, d, c in rows.T.tolist()}
    ran = {(j, id, n, d, c if d else 0) for j, s in enumerate(steps) for id, n, d, c in s.sequences}
    assert seen == ran


def test_a_chunk_of_several_tokens_is_spread_over_the_steps_of_others() -> None:
    fine = record(0, 0.0)
    coarse = record(
        1, 0.0, chunk_s=(fine.chunk_s[0], fine.chunk_s[5], fine.chunk_s[10]), chunk_tokens=(1, 5, 5)
    )
    did = activity(run_of([fine, coarse]))
    mine = did.request == 1
    assert len(did.end_s) == 11
    assert did.decode_tokens[mine] == pytest.approx([0.0, *[1.0] * 10])
    assert did.context_tokens[mine][1:] == pytest.approx(1200 + np.arange(10))


def test_jitter_below_a_quarter_of_a_step_leaves_the_steps_as_they_are() -> None:
    run, steps = busy()
    rng = np.random.default_rng(2)
    requests = run.requests.copy()
    requests["chunk_s"] = [
        tuple((np.array(c) + rng.uniform(0, 5e-4, len(c))).tolist()) for c in requests["chunk_s"]
    ]
    assert len(activity(replace(run, requests=requests)).end_s) == len(steps)


def test_replies_without_stamps_decode_all_their_tokens_between_first_and_last() -> None:
    bare = [record(k, 0.3 * k, chunk_s=(), chunk_tokens=(), done_s=0.3 * k + 2.0) for k in range(5)]
    did = activity(run_of(bare))
    tokens = np.bincount(did.request, did.decode_tokens)
    assert tokens == pytest.approx(np.full(5, 10.0))
    assert not did.stamped
    assert np.all(np.diff(did.end_s) > 0) and np.all(did.start_s <= did.end_s)
    whole = [record(0, 0.0, first_s=None, chunk_s=(), chunk_tokens=(), done_s=2.0)]
    assert activity(run_of(whole)).decode_tokens.sum() == pytest.approx(10.0)


def test_what_the_prefix_cache_had_is_not_computed() -> None:
    run = run_of(lattice(4, 1.0))
    samples = [
        ServerSample(t, prompt_tokens=p, cached_tokens=c) for t, p, c in ((-1, 50, 10), (6, 4850, 3610))
    ]
    metrics = pd.DataFrame([asdict(s) for s in samples])
    assert activity(run).prefill_tokens.sum() == 4 * 1200
    did = activity(replace(run, metrics=metrics))
    assert did.prefill_tokens.sum() == pytest.approx(4 * 1200 * 0.25)
    assert did.context_tokens.max() == 1200 + 9
    restarted = metrics.assign(cached_tokens=[10.0, 5.0])
    assert activity(replace(run, metrics=restarted)).prefill_tokens.sum() == 4 * 1200


# Tariffs against the games they share


def one_step(prompts: tuple[int, ...], decoding: int) -> Activity:
    n, p = len(prompts) + decoding, len(prompts)
    fed = np.array([*prompts, *[0] * decoding], dtype=np.float64)
    frame = pd.DataFrame({"id": range(n), "phase": "measure", "status": "ok", "seen": True})
    return Activity(
        frame,
        np.zeros(1),
        np.ones(1),
        np.zeros(n, dtype=np.int64),
        np.arange(n),
        fed,
        (fed == 0).astype(np.float64),
        np.where(np.arange(n) < p, 0.0, 100.0),
        True,
    )


@pytest.mark.parametrize(("prompts", "decoding"), [(0, 3), (0, 5), (1, 2), (1, 5), (2, 4), (3, 3), (2, 0)])
def test_fixed_and_eager_costs_are_shared_as_their_games_are(prompts: int, decoding: int) -> None:
    """Brute force over all orders: who is first pays the step, who makes it late pays that."""
    rows, captured = prompts + decoding, 3
    weights = replace(weights_of(busy()[0], 100.0), graph_rows=captured)  # type: ignore[type-var]
    charged = row_terms(one_step((900,) * prompts, decoding), weights)
    orders = list(permutations(range(rows)))
    first, late, before = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    for order in orders:
        first[order[0]] += 1
        for k, i in enumerate(order):
            fed = [j < prompts for j in order[: k + 1]]
            if any(fed) or fed.count(False) > captured:
                late[i] += 1
                break
        for k, i in enumerate(order):
            before[i] += not any(j < prompts for j in order[:k])
    assert charged[:, 0] == pytest.approx(first / len(orders))
    assert charged[:, 1] == pytest.approx(late / len(orders))
    # A decode row costs a token of its own kind before the first prompt, else one of the prompts'.
    alone = before[prompts:] / len(orders)
    assert charged[prompts:, 2] == pytest.approx(alone)
    assert charged[prompts:, 5] == pytest.approx(1.0 - alone)
    assert charged[:prompts, 4].sum() + charged[:prompts, 5].sum() == pytest.approx(900.0 * prompts)


def test_a_slice_of_several_forwards_charges_a_prompt_for_one_of_them() -> None:
    step = one_step((900,), 2)
    did = replace(step, decode_tokens=np.array([0.0, 5.0, 5.0]))
    weights = weights_of(busy()[0], 100.0)
    assert weights is not None
    charged = row_terms(did, weights)
    assert charged[:, 0].sum() == pytest.approx(5.0)
    assert charged[1, 0] == pytest.approx(5.0 * charged[0, 0])
    assert charged[:, 1].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_a_slice_that_read_less_than_idle_leaves_nobody_with_less_than_nothing() -> None:
    did = replace(one_step((900,), 1), start_s=np.array([0.2]), end_s=np.array([0.6]))
    pieces = cut(did, np.array([0.0, 1.0, 2.0]))
    powered = pieces.powered(np.array([[60.0, 130.0]]), np.array([120.0]), did.duration_s, np.array([7.0]))
    joules = powered.length_s * (powered.idle_w + powered.active_w)
    assert np.bincount(powered.slice, joules) == pytest.approx([60.0, 130.0])
    assert powered.idle_w.min() >= 0.0 and powered.active_w.min() >= 0.0
    assert powered.active_w.max() == 0.0
    full = pieces.powered(np.array([[160.0, 130.0]]), np.array([120.0]), did.duration_s, np.array([7.0]))
    assert float((full.active_w * full.length_s).sum()) == pytest.approx(40.0)


def test_time_at_rest_power_goes_to_steps_by_how_long_they_are_expected_to_take() -> None:
    two = one_step((900, 900), 0)
    did = replace(
        two, start_s=np.array([0.0, 0.5]), end_s=np.array([0.5, 1.0]), step=np.array([0, 1], dtype=np.int64)
    )
    pieces = cut(did, np.array([0.0, 1.0]))
    powered = pieces.powered(
        np.array([[200.0]]), np.array([100.0]), np.array([1.0, 3.0]), np.array([1.0, 1.0])
    )
    assert powered.idle_w * powered.length_s == pytest.approx([25.0, 75.0])
    assert powered.active_w * powered.length_s == pytest.approx([50.0, 50.0])


# Prompts in chunks


def chunking(budget_tokens: int) -> Deployment:
    return Deployment(Launch(launcher=Launcher(max_batch_prefill_tokens=budget_tokens)))


def test_prompts_in_chunks_are_found_by_the_durations_of_steps() -> None:
    run, steps = busy(chunking(512))
    ran = {(j, id): n for j, s in enumerate(steps) for id, n, _, _ in s.sequences if n}
    did = Attribution(run).did
    ends = np.searchsorted([s.start_s + s.duration_s for s in steps], did.end_s - 1e-9)
    fed = did.prefill_tokens > 0
    found = {
        (int(ends[s]), int(did.requests["id"].iloc[i])): n
        for s, i, n in zip(did.step[fed], did.request[fed], did.prefill_tokens[fed], strict=True)
    }
    # Steps of nobody but prompts show no token, so that their chunks are in the step that ended them.
    in_place = sum(min(tokens, found.get(place, 0.0)) for place, tokens in ran.items())
    assert in_place > 0.85 * sum(ran.values())
    whole = np.bincount(did.request, did.prefill_tokens)
    assert whole == pytest.approx(np.bincount(activity(run).request, activity(run).prefill_tokens))


def test_spreading_prompts_over_their_steps_halves_the_error() -> None:
    deployment = chunking(512)
    run, steps = busy(deployment)
    true = true_costs(run, steps, deployment)
    made = Attribution(run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shares, "by_durations", lambda did, weights: did)
        whole = Attribution(run)
    assert len(made.did.step) > len(whole.did.step) + 50
    assert l1(made.window(), true) < 0.5 * l1(whole.window(), true)


def test_prompts_of_a_server_that_does_not_cut_them_stay_whole() -> None:
    run, _ = busy()
    made = Attribution(run)
    assert len(made.did.step) == len(activity(run).step)


def test_a_prompt_fills_the_steps_before_its_last_and_none_from_before_it_was_sent() -> None:
    decoding = record(0, 0.0)
    late = record(
        1, 0.12, first_s=0.18, done_s=0.2, chunk_s=(0.18, 0.2), chunk_tokens=(1, 1), prompt_tokens=250
    )
    did = chunked(activity(run_of([decoding, late])), 101.0)
    mine = (did.request == 1) & (did.prefill_tokens > 0)
    order = np.argsort(did.step[mine])
    tokens, before = did.prefill_tokens[mine][order], did.context_tokens[mine][order]
    # Steps of one decode row have room for 100; the step before the first began when it was sent.
    assert tokens.tolist() == [100.0, 100.0, 50.0]
    assert before.tolist() == [0.0, 100.0, 200.0]
    again = chunked(activity(run_of([decoding, replace(late, sent_s=0.165)])), 101.0)
    mine = (again.request == 1) & (again.prefill_tokens > 0)
    assert again.prefill_tokens[mine].tolist() == [250.0]


def test_a_row_of_a_later_chunk_is_charged_for_the_pairs_with_the_earlier() -> None:
    weights = weights_of(busy()[0], 100.0)
    assert weights is not None
    one = replace(one_step((900,), 0))
    first = replace(one, prefill_tokens=np.array([500.0]))
    second = replace(one, prefill_tokens=np.array([400.0]), context_tokens=np.array([500.0]))
    pairs = [row_terms(part, weights)[0, 6] for part in (one, first, second)]
    assert pairs[0] == 900 * 901 / 2
    assert pairs[0] == pairs[1] + pairs[2]
