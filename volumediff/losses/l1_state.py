r"""Absolute error of the predicted clean state, :math:`\overline{|\hat z_0 - z_0|}`.

It trains what a single step from pure noise answers: where the noise says nothing, the median of
all clean states given the image.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["L1State"]


@dataclass(frozen=True)
class L1State(LossTerm):
    """Mean over the state, which has unit variance per channel.

    References:
        Lin et al. (2024), Stable Diffusion Segmentation (SDSeg), arXiv:2406.18361, eq. 5
    """

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if kernel.classes is None and "x0" in kernel.predicts:
            return None
        return "expected a kernel of real numbers that predicts the clean state, such as gaussian."

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        x0 = context.prediction.x0
        return mean_over_voxels((x0.float() - context.z_0.float()).abs())
