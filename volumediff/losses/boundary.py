r"""Boundary loss: errors near the surface of labels count more, the more the cleaner the state,

.. math:: \frac{1}{n} \sum_v w_v \lVert e_v \rVert^2, \qquad
          w_v = \Big(1 - \frac{d_v}{\max_u d_u}\Big)^{(\gamma (1 - t))^\gamma},

with e the error of what the network predicts (eps, v, ...) in voxels and d the distance to the
surface of the label. At t = 1 all weights are 1, at t = 0 they fall off fastest. Labels of less
than a share of the voxels, such as those that are not there, have weight 1 everywhere.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, mean_over_voxels, needs_labels
from volumediff.recipes._base import Recipe
from volumediff.schedules._base import per_sample
from volumediff.spaces._base import StateSpace

__all__ = ["Boundary"]


@dataclass(frozen=True)
class Boundary(LossTerm):
    """Squared errors weighted by the distance from the surface.

    Distances come with the samples, from the whole label map before a crop is taken. As in the
    released code the largest distance of the sample scales them, so that around small labels the
    weights fall off slowly.

    Arguments:
        gamma: steepness, at least 0
        least: share of the voxels that a label must have
        weight: of the term

    References:
        Bozorgpour et al. (2023), DermoSegDiff, arXiv:2308.02959, equation 5
    """

    gamma: float = 0.2
    least: float = 0.01
    weight: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or not 0 <= self.least <= 1:
            raise ValueError(
                "expected gamma of at least 0 and least in [0, 1], got "
                f"{self.gamma} and {self.least}."
            )

    @property
    def distances(self) -> bool:
        return True

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if kernel.path != "gaussian":
            return "expected the kernel gaussian, whose errors are squared; leave the loss out."
        if not space.exact:
            return (
                "expected voxels or wavelets, where errors have a place, got latents; leave the "
                "loss out."
            )
        if recipe.label_count != recipe.channels(1):
            return "expected one channel per label; use recipe.coding=signed."
        return needs_labels(recipe)

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        distance = context.distance_mm
        assert distance is not None, "samples bring it, see distances"
        k = context.z_0.shape[1]
        target = context.kernel.target(context.z_0, context.t, context.noise)
        shape = tuple(context.x.shape[2:])
        # decode is affine, so that the difference is the error in voxels
        made, true = (
            context.space.decode(z.float(), shape) for z in (context.output[:, :k], target)
        )
        weights = self.weights(distance.float(), context.truth, context.t)
        return mean_over_voxels(weights * (made - true).square())

    def weights(
        self,
        distance: Float[Tensor, "b l d h w"],
        truth: Float[Tensor, "b l d h w"],
        t: Float[Tensor, "b"],
    ) -> Float[Tensor, "b l d h w"]:
        """w of every voxel and label, in [0, 1]."""
        farthest = distance.amax((2, 3, 4), keepdim=True)
        near = 1 - distance / torch.where(farthest > 0, farthest, 1.0)
        power = per_sample((self.gamma * (1 - t)).clamp(min=0) ** self.gamma, near)
        enough = (truth > 0.5).flatten(2).double().mean(2) >= self.least
        return torch.where(enough[..., None, None, None], near**power, 1.0)
