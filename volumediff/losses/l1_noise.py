r"""Absolute error of the predicted noise, :math:`\overline{|\hat\epsilon - \epsilon|}`.

It is least at the median where the squared error is least at the mean.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["L1Noise"]


@dataclass(frozen=True)
class L1Noise(LossTerm):
    """Mean over the state, in units of the noise.

    References:
        Lin et al. (2024), Stable Diffusion Segmentation (SDSeg), arXiv:2406.18361, eq. 4
    """

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if "eps" in kernel.predicts:
            return None
        return "expected a kernel that predicts noise, such as gaussian."

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        eps = context.prediction.eps
        return mean_over_voxels((eps.float() - context.noise.float()).abs())
