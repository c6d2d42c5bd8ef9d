"""Numbers and choices that are drawn from ranges and weights of a configuration."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from volumediff import randomness

__all__ = ["between", "check_range", "check_weights", "weighted"]

Option = TypeVar("Option")


def between(ends: tuple[float, float], *parts: int | str) -> float:
    """A uniform number between two ends, drawn from the key."""
    return ends[0] + (ends[1] - ends[0]) * randomness.uniform(*parts)


def check_range(name: str, ends: tuple[float, float], low: float, high: float) -> None:
    """Raises ValueError unless low <= ends[0] <= ends[1] <= high."""
    if not low <= ends[0] <= ends[1] <= high:
        raise ValueError(f"{name}: expected two numbers in [{low:g}, {high:g}], got {ends}.")


def weighted(options: Sequence[Option], weights: Sequence[float], *parts: int | str) -> Option:
    """One of several options, drawn from the key; all are as likely without weights."""
    ends = list(accumulate(weights or [1.0] * len(options)))
    place = randomness.uniform(*parts) * ends[-1]
    pairs = zip(options, ends, strict=True)
    return next((option for option, end in pairs if place < end), options[-1])


def check_weights(of: Sequence[object], weights: Sequence[float], noun: str) -> None:
    """Raises ValueError unless there are options, and a positive weight for each or none at all.

    Arguments:
        of: the options
        weights: of the options
        noun: what an option is
    """
    if not of:
        raise ValueError(f"of: expected at least one {noun}, got none.")
    if weights and len(weights) != len(of):
        raise ValueError(
            f"weights: expected one for each of {len(of)} {noun}s, got {len(weights)}."
        )
    if weights and not min(weights) > 0:
        raise ValueError(f"weights: expected positive numbers, got {weights}.")
