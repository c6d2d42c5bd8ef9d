r"""Variational bound of one step, for kernels that learn its variance,

.. math:: L_t = KL\big(q(z_s | z_t, z_0) \,\|\, N(\mu_\theta, v_\theta)\big), \qquad
          s = t - 1 / T,

and, in the last step, where q has no spread, minus the log-probability of z_0's cell of width
2 / 255, as of images of 8 bits. In bits, mean over the state. Gradients stop at the mean: the
kernel's own loss trains that, the bound trains the variance alone.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels
from volumediff.recipes._base import Recipe
from volumediff.schedules._base import per_sample
from volumediff.spaces._base import StateSpace

__all__ = ["VariationalBound"]

HALF_CELL = 1 / 255


@dataclass(frozen=True)
class VariationalBound(LossTerm):
    """The bound beside the squared error, so that the variance is learnt (hybrid loss).

    With T = 1000 a weight of 1 is the papers' sum over all steps times 0.001.

    Arguments:
        levels: T, steps of the chain that the bound is about

    References:
        Nichol and Dhariwal (2021), Improved DDPM, arXiv:2102.09672, sec. 3.1; Ho et al. (2020),
        arXiv:2006.11239, eq. 13, for the last step
    """

    bounds: ClassVar[bool] = True
    levels: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 1:
            raise ValueError(f"expected levels >= 1, got {self.levels}.")

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if kernel.outputs(1) == 2:
            return None
        return (
            "expected a kernel that learns the variance of its steps; use kernel.variance=learned "
            "with kernel gaussian."
        )

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        kernel, t, z_0 = context.kernel, context.t, context.z_0.float()
        spread = context.prediction.spread
        assert spread is not None, "problem"
        x0 = context.prediction.x0.detach().float()
        s = (t - 1 / self.levels).clamp(min=0)
        last = s == 0
        # Any time will do where the other branch is taken; at s = 0 the posterior has no spread.
        inner = torch.where(last, t / 2, s)
        of_data, deviation = kernel.posterior(z_0, context.z_t, t, inner)
        of_model, _ = kernel.posterior(x0, context.z_t, t, inner)
        mine = kernel.deviation(spread.float(), t, inner)
        apart = (of_data - of_model).square()
        true = per_sample(deviation, apart)
        kl = torch.log(mine / true) + (true.square() + apart) / (2 * mine.square()) - 0.5
        found = torch.where(last.view(-1, 1, 1, 1, 1), self._last(context, x0, spread), kl)
        return mean_over_voxels(found) / math.log(2)

    def _last(self, context: LossContext, x0: Tensor, spread: Tensor) -> Tensor:
        """-log of the probability of the cells of z_0, around x0, with the variance of a step to
        half of t: that to 0 itself is not defined."""
        mine = context.kernel.deviation(spread.float(), context.t, context.t / 2)
        off = context.z_0.float() - x0
        high, low = (off + HALF_CELL) / mine, (off - HALF_CELL) / mine
        # log of a difference of distribution functions in the tail where both are small
        flip = off > 0
        high, low = torch.where(flip, -low, high), torch.where(flip, -high, low)
        upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        tiny = torch.finfo(upper.dtype).tiny
        return -(upper + torch.log((-torch.expm1(lower - upper)).clamp(min=tiny)))
