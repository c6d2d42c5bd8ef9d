r"""A worklist that is read in the order of volume scores: how soon positive cases are read.

Of a list of n volumes with p positive ones, read from the highest score down, with ties in random
order (all figures are expectations over it),

    recall(b) = E |positives among the first k| / p,     k = b n, linear between whole volumes,
    delay     = E mean position of the positives / ((n + 1) / 2),

so that a delay of 1 is a list in random order, and (p + 1) / (n + 1) the smallest there is: the
time to a positive case relative to that without the scores.

`turnaround` simulates the list of a day: volumes arrive, one reader takes the next one whenever
the last one is done, either the one that has waited longest or the one with the highest score.
What is being read is finished. As long as every reading takes equally long, the mean wait of all
volumes is the same in any order (conservation law of queues, Kleinrock 1965): positives gain what
negatives lose.

References:
    Finck et al. (2021), Automated pathology detection and patient triage in routinely acquired
    head computed tomography scans, Investigative Radiology 56(9):571-578
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from volumediff.randomness import key

__all__ = ["Turnaround", "delay", "recall_at", "turnaround"]


def recall_at(scores: Sequence[float], positive: Sequence[bool], *, budget: float) -> float:
    """Expected share of the positives in the part of the list that is read; nan without both.

    Arguments:
        scores: of the volumes; the highest are read first
        positive: whether there is something to find
        budget: share of the list that is read, in (0, 1]

    Raises:
        ValueError: a budget outside of (0, 1]
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget: expected a share in (0, 1], got {budget}.")
    s, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if y.all() or not y.any():
        return float("nan")
    room = budget * len(s)
    read = 0.0
    for value in np.unique(s)[::-1]:
        tied = s == value
        count = int(tied.sum())
        read += float(y[tied].sum()) * min(1.0, max(0.0, room) / count)
        room -= count
    return read / int(y.sum())


def delay(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Expected position of the positives relative to a random order; nan without both."""
    s, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    if y.all() or not y.any():
        return float("nan")
    above = (s[None] > s[y][:, None]).sum(1)
    tied = (s[None] == s[y][:, None]).sum(1) - 1
    return float(np.mean(1 + above + tied / 2) / ((len(s) + 1) / 2))


@dataclass(frozen=True)
class Turnaround:
    """Minutes from arrival to the start of the reading, means over volumes and repetitions.

    Arguments:
        positive, negative: waits in the order of the scores
        positive_fifo, negative_fifo: waits in the order of arrival
    """

    positive: float
    negative: float
    positive_fifo: float
    negative_fifo: float


def turnaround(
    scores: Sequence[float],
    positive: Sequence[bool],
    *,
    minutes: float = 10.0,
    load: float = 0.9,
    repetitions: int = 100,
    seed: int = 0,
) -> Turnaround:
    """Waits on a list that fills while it is read: volumes in random order, a Poisson stream.

    Arguments:
        scores: of the volumes
        positive: whether there is something to find
        minutes: of one reading
        load: reading time per time between arrivals, above 0; above 1 the list only grows
        repetitions: orders and arrivals that are drawn
        seed: key of the draws

    Raises:
        ValueError: no time, or no load
    """
    if minutes <= 0 or load <= 0:
        raise ValueError(f"expected minutes and load above 0, got {minutes} and {load}.")
    s, y = np.asarray(scores, dtype=float), np.asarray(positive, dtype=bool)
    rng = np.random.default_rng(key(seed, "worklist"))
    waits: dict[tuple[bool, bool], list[float]] = {}
    for _ in range(repetitions):
        order = rng.permutation(len(s))
        arrivals = np.cumsum(rng.exponential(minutes / load, size=len(s)))
        for sorted_by_score in (True, False):
            rank = -s[order] if sorted_by_score else np.arange(len(s), dtype=float)
            waited = _waits(arrivals, rank, minutes)
            for sick in (True, False):
                chosen = waited[y[order] == sick].tolist()
                waits.setdefault((sorted_by_score, sick), []).extend(chosen)
    mean = {which: float(np.mean(w)) if w else float("nan") for which, w in waits.items()}
    return Turnaround(*(mean[a, b] for a in (True, False) for b in (True, False)))


def _waits(
    arrivals: Float[np.ndarray, "n"], rank: Float[np.ndarray, "n"], minutes: float
) -> Float[np.ndarray, "n"]:
    """Wait of each volume before one reader who takes the lowest rank that is there."""
    import heapq

    waits, there, free, upcoming = np.zeros(len(arrivals)), [], 0.0, 0
    for _ in range(len(arrivals)):
        if not there:
            free = max(free, float(arrivals[upcoming]))
        while upcoming < len(arrivals) and arrivals[upcoming] <= free:
            heapq.heappush(there, (float(rank[upcoming]), upcoming))
            upcoming += 1
        _, chosen = heapq.heappop(there)
        waits[chosen] = free - arrivals[chosen]
        free += minutes
    return waits
