"""The oracle of attribution against games whose values are known, and against brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from analysis.attribution.shapley import StepGame, truth
from loadgen.physics.boards import GPUS
from loadgen.physics.formats import DTYPES
from loadgen.physics.models import MODELS
from loadgen.physics.transformer import StepModel
from loadgen.types import Step

MODEL = StepModel(MODELS["llama-3.1-8b"], GPUS["h100-sxm"], DTYPES["bfloat16"])
IDLE_W = 120.0
MIXED = ((7, 900, 0, 0), (1, 0, 1, 400), (2, 0, 1, 1500), (9, 300, 0, 64), (3, 0, 1, 90))


def cost_j(rows: tuple[tuple[int, int, int, int], ...]) -> float:
    """Of a step with these rows, each prompt ending in it."""
    fed, decoding = [r for r in rows if r[1]], [r for r in rows if not r[1]]
    cost = MODEL.step(
        prefill_tokens=sum(n for _, n, _, _ in fed),
        prefill_pairs=sum(n * c + n * (n + 1) // 2 for _, n, _, c in fed),
        prefill_span_tokens=sum(n + c for _, n, _, c in fed),
        decode_rows=len(decoding),
        decode_context_tokens=sum(r[3] for r in decoding),
        emitting_rows=len(rows),
    )
    return cost.duration_s * cost.power_w if rows else 0.0


def game(rows: tuple[tuple[int, int, int, int], ...]) -> StepGame:
    return StepGame(MODEL, rows, (True,) * len(rows), IDLE_W)


def step(start_s: float, rows: tuple[tuple[int, int, int, int], ...]) -> Step:
    cost = game(rows).total_j()
    return Step(start_s, 0.01, cost, rows)


def test_exact_values_are_the_mean_gain_over_all_orders() -> None:
    orders = list(permutations(range(len(MIXED))))
    gain = np.zeros(len(MIXED))
    for order in orders:
        for k, i in enumerate(order):
            before = tuple(MIXED[j] for j in order[:k])
            gain[i] += cost_j((*before, MIXED[i])) - cost_j(before)
    assert game(MIXED).exact().sum(axis=1) == pytest.approx(gain / len(orders), rel=1e-12)


def test_values_are_complete_symmetric_and_a_lone_row_pays_all() -> None:
    twins = ((1, 0, 1, 500), (2, 0, 1, 500), (3, 0, 1, 2000))
    value = game(twins).exact().sum(axis=1)
    assert value.sum() == pytest.approx(cost_j(twins), rel=1e-12)
    assert value[0] == pytest.approx(value[1], rel=1e-12)
    assert value[2] > value[0]
    assert game(twins[:1]).exact().sum() == pytest.approx(cost_j(twins[:1]), rel=1e-12)


@pytest.mark.parametrize("prompts", [0, 1, 2])
def test_sampled_values_agree_with_exact_ones_within_their_stated_error(prompts: int) -> None:
    rng = np.random.default_rng(4)
    rows = tuple((k, 0, 1, int(c)) for k, c in enumerate(rng.integers(50, 4000, 8 - prompts)))
    rows += tuple((90 + k, int(n), 0, 0) for k, n in enumerate(rng.integers(100, 2000, prompts)))
    exact = game(rows).exact()
    value, variance = game(rows).sampled(64, rng)
    assert value.sum() == pytest.approx(exact.sum(), rel=1e-9)
    off = np.abs(value.sum(axis=1) - exact.sum(axis=1))
    assert np.all(off < 5 * np.sqrt(variance) + 1e-9 * exact.sum())
    assert off.max() < 2e-3 * exact.sum()


def test_many_prompts_at_once_are_sampled_and_still_complete() -> None:
    rows = tuple((k, 100 + 50 * k, 0, 0) for k in range(12))
    value, variance = game(rows).sampled(4, np.random.default_rng(0))
    assert value.sum() == pytest.approx(cost_j(rows), rel=1e-9)
    assert np.all(variance > 0)


def test_the_truth_of_a_window_adds_up_and_splits_at_its_edges() -> None:
    steps = [step(0.0, MIXED), Step(0.01, 0.01, 1.2), step(0.02, MIXED[1:3])]
    whole = truth(steps, MODEL, IDLE_W, 0.0, 0.03)
    energy_j = sum(s.energy_j for s in steps if s.sequences)
    assert whole["total_j"].sum() == pytest.approx(energy_j, rel=1e-12)
    assert whole.attrs["idle_j"] == pytest.approx(1.2)
    assert whole.loc[1, "prefill_j"] == 0.0 and whole.loc[7, "decode_j"] == 0.0
    first, second = (truth(steps, MODEL, IDLE_W, a, b) for a, b in ((0.0, 0.025), (0.025, 0.03)))
    assert first["total_j"].add(second["total_j"], fill_value=0.0).to_numpy() == pytest.approx(
        whole["total_j"].to_numpy(), rel=1e-12
    )


def test_a_prompt_fed_in_two_parts_emits_only_with_the_last() -> None:
    """Otherwise the step would be dearer by the LM head, and would not be what was booked."""
    first = StepGame(MODEL, ((1, 100, 0, 0), (2, 0, 1, 50)), (False, True), IDLE_W).total_j()
    second = StepGame(MODEL, ((1, 80, 0, 100), (2, 0, 1, 51)), (True, True), IDLE_W).total_j()
    steps = [
        Step(0.0, 0.01, first, ((1, 100, 0, 0), (2, 0, 1, 50))),
        Step(0.01, 0.01, second, ((1, 80, 0, 100), (2, 0, 1, 51))),
    ]
    assert truth(steps, MODEL, IDLE_W, 0.0, 1.0)["total_j"].sum() == pytest.approx(first + second)


def test_a_step_that_cost_something_else_is_refused() -> None:
    wrong = Step(0.0, 0.01, 3.0 * game(MIXED).total_j(), MIXED)
    with pytest.raises(ValueError, match="by the model"):
        truth([wrong], MODEL, IDLE_W, 0.0, 1.0)
