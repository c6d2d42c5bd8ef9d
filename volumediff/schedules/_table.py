"""Schedules given by a table of step variances beta."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["check_betas", "interpolate"]


def check_betas(levels: int, first: float, last: float) -> None:
    """Raises a ValueError unless the table makes a strictly decreasing alpha."""
    if levels < 2:
        raise ValueError(f"expected levels >= 2, got {levels}.")
    if not (0 < first < 1 and 0 < last < 1):
        raise ValueError(f"expected beta_first and beta_last in (0, 1), got {first} and {last}.")


def interpolate(betas: Float[Tensor, "n"], t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """log(alpha_t), exact at t = (k + 1) / T and linear in t between.

    The table is made anew in every call: a kept one would tie the schedule to a device.
    """
    steps = torch.log1p(-betas) / 2
    table = torch.cat([steps.new_zeros(1), _running_sums(steps)])
    place = t * len(betas)
    below = place.floor().long().clamp(0, len(betas) - 1)
    return torch.lerp(table[below], table[below + 1], place - below)


def _running_sums(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """As `torch.cumsum`, of which there is no deterministic CUDA kernel; by doubling."""
    span = 1
    while span < len(x):
        x = torch.cat([x[:span], x[span:] + x[:-span]])
        span *= 2
    return x
