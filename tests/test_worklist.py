"""A worklist in the order of scores: brute force over orders, laws of queues."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest

from volumediff.metrics.worklist import delay, recall_at, turnaround


def brute_force(scores, positive, budget):
    """Means over all orders that the scores allow; recall linear between whole volumes."""
    recalls, positions = [], []
    n = len(scores)
    for order in permutations(range(n)):
        if any(scores[a] < scores[b] for a, b in pairwise(order)):
            continue
        read = np.cumsum([0] + [positive[i] for i in order])
        recalls.append(np.interp(budget * n, range(n + 1), read) / sum(positive))
        positions.append(np.mean([k for k, i in enumerate(order, start=1) if positive[i]]))
    return np.mean(recalls), np.mean(positions) / ((n + 1) / 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [0.1, 0.33, 0.5, 1.0])
def test_all_orders_that_the_scores_allow(seed, budget):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=6).astype(float).tolist()
    positive = [True, False, *(rng.random(4) < 0.5).tolist()]
    recall, position = brute_force(scores, positive, budget)
    assert recall_at(scores, positive, budget=budget) == pytest.approx(recall)
    assert delay(scores, positive) == pytest.approx(position)


def test_ends_of_the_scales():
    positive = [True] * 3 + [False] * 7
    right, wrong = [1.0] * 3 + [0.0] * 7, [0.0] * 3 + [1.0] * 7
    assert recall_at(right, positive, budget=0.3) == 1
    assert recall_at(wrong, positive, budget=0.7) == 0
    assert recall_at([5.0] * 10, positive, budget=0.3) == pytest.approx(0.3)
    assert delay(right, positive) == pytest.approx(4 / 11)
    assert delay([5.0] * 10, positive) == 1
    assert delay(wrong, positive) == pytest.approx(2 - 4 / 11)
    for same in ([True] * 3, [False] * 3):
        assert math.isnan(recall_at([1.0, 2.0, 3.0], same, budget=0.5))
        assert math.isnan(delay([1.0, 2.0, 3.0], same))
    with pytest.raises(ValueError, match="budget: expected a share"):
        recall_at(right, positive, budget=0.0)


def test_the_mean_wait_of_all_is_the_same_in_any_order():
    rng = np.random.default_rng(0)
    positive = rng.random(40) < 0.3
    scores = rng.normal(size=40) + 2 * positive
    got = turnaround(scores.tolist(), positive.tolist(), load=1.2, repetitions=30)
    share = positive.mean()
    assert share * got.positive + (1 - share) * got.negative == pytest.approx(
        share * got.positive_fifo + (1 - share) * got.negative_fifo
    )
    assert got.positive < 0.6 * got.positive_fifo
    assert got == turnaround(scores.tolist(), positive.tolist(), load=1.2, repetitions=30)
    constant = turnaround([1.0] * 40, positive.tolist(), load=1.2, repetitions=5)
    assert constant.positive == pytest.approx(constant.positive_fifo)  # ties: first come


def test_waits_are_those_of_the_formula():
    # M/D/1 in the order of arrival: mean wait = rho D / (2 (1 - rho)) (Pollaczek-Khinchine)
    flags = [True, False] * 4000
    got = turnaround([0.0] * 8000, flags, minutes=10.0, load=0.5, repetitions=5)
    assert got.positive_fifo == pytest.approx(0.5 * 10 / (2 * 0.5), rel=0.1)
    with pytest.raises(ValueError, match="expected minutes and load above 0"):
        turnaround([1.0], [True], load=0.0)
