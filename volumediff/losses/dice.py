r"""Soft Dice loss with squares in the denominator, mean over the labels,

.. math:: 1 - \frac{1}{l} \sum_i \frac{2 \sum p_i m_i + s}{\sum p_i^2 + \sum m_i^2 + s},

so that the mean over any set of possible masks is not best answered by zero. Where there is no
mask, s wrong voxels cost half of the loss.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, needs_labels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["Dice", "soft_dice"]


@dataclass(frozen=True)
class Dice(LossTerm):
    """1 - Dice of the predicted clean masks, which squared errors of few voxels hardly see.

    The prediction is then no posterior mean any more where the weight is large.

    Arguments:
        smooth: s, in voxels

    References:
        Milletari et al. (2016), V-Net, arXiv:1606.04797, equation 3
    """

    clean: ClassVar[bool] = True
    leaves_out: ClassVar[bool] = True
    smooth: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.smooth > 0:
            raise ValueError(f"expected smooth above 0 voxels, got {self.smooth}.")

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        return needs_labels(recipe)

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        return 1 - soft_dice(context.shares, context.truth, smooth=self.smooth).mean(1)


def soft_dice(
    p: Float[Tensor, "b l d h w"], m: Float[Tensor, "b l d h w"], *, smooth: float
) -> Float[Tensor, "b l"]:
    """Dice of each label, with squares in the denominator."""
    overlap, size = (p * m).flatten(2).sum(2), (p.square() + m.square()).flatten(2).sum(2)
    return (2 * overlap + smooth) / (size + smooth)
