r"""Cosine schedule: the signal falls like a cosine,

.. math:: \alpha_t = \cos\!\Big(\frac{t + o}{1 + o} \frac{\pi}{2}\Big) \Big/
          \cos\!\Big(\frac{o}{1 + o} \frac{\pi}{2}\Big).

The paper limits the variance of each of T steps to 0.999, which concerns only the last one. Here
the last 1/T of time is interpolated to that limit, so that t = (k + 1) / T has the paper's values.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._preserving import VariancePreserving

__all__ = ["Cosine"]


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """Cosine of the time, with an offset that keeps the first steps from being too small.

    Arguments:
        offset: o > 0
        levels: T, number of steps for which the last one's variance is limited
        largest_beta: that limit, in (0, 1); 0.999 in section 3.2 of the paper

    References:
        Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models,
        arXiv:2102.09672, eq. 17
    """

    offset: float = 0.008
    levels: int = 1000
    largest_beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2 or not 0 < self.offset < 1:
            raise ValueError(
                f"expected levels >= 2 and offset in (0, 1), got {self.levels} and {self.offset}."
            )
        if not 0 < self.largest_beta < 1:
            raise ValueError(f"expected largest_beta in (0, 1), got {self.largest_beta}.")

    def log_alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        limit = 1 - 1 / self.levels
        beyond = (t - limit).clamp(min=0) * self.levels
        return self._unlimited(t.clamp(max=limit)) + beyond * math.log1p(-self.largest_beta) / 2

    def _unlimited(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        scale = math.pi / 2 / (1 + self.offset)
        start = self.offset * scale
        # cos(a + u) / cos(a) = 1 - 2 sin^2(u/2) - tan(a) sin(u): accurate where u is small
        angle = t * scale
        drop = 2 * torch.sin(angle / 2).square() + math.tan(start) * torch.sin(angle)
        return torch.log1p(-drop)
