r"""Synthetic degradations of healthy volumes, for training without lesions.

    foreign_patch   (1 - a w) x + a w x_donor in a box (FPI)

These are what self-supervised methods learn from. They share no generator with `anomalies`, on
which checkpoints, thresholds and tables rest: what a method was trained on must not be what it is
chosen by or tested on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness

__all__ = ["Corruption", "ForeignPatch"]


@dataclass(frozen=True)
class Corruption(ABC):
    """A keyed change of a healthy volume, and how much of it is where."""

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The changed volume, and the amount in [0, 1], 0 where nothing was changed.

        Arguments:
            x: healthy volume, intensities in [-1, 1]
            foreground: where changes may be
            donor: key -> another volume of the same shape
            spacing_mm: voxel size along d, h, w
            key: everything random is a function of it
        """


@dataclass(frozen=True)
class ForeignPatch(Corruption):
    r"""A box of another volume, blended in at the same place,

    .. math:: x' = (1 - a)\, x + a\, x_{donor} \text{ in the box}.

    Arguments:
        side: smallest and largest half side of the box, as shares of the volume's
        factor: smallest and largest a

    References:
        Tan et al. (2020), Detecting Outliers with Foreign Patch Interpolation, arXiv:2011.04197
    """

    side: tuple[float, float] = (0.05, 0.2)
    factor: tuple[float, float] = (0.05, 0.95)

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the patch, and a in the box."""
        places = foreground[0].nonzero()
        centre = places[int(randomness.uniform(key, "centre") * len(places))].tolist()
        amount = torch.zeros_like(x[:1])
        window = []
        for axis, (middle, n) in enumerate(zip(centre, x.shape[1:], strict=True)):
            low, high = self.side
            half = max(n * (low + (high - low) * randomness.uniform(key, "side", axis)), 0.5)
            window.append(slice(max(round(middle - half), 0), max(round(middle + half), 1)))
        low, high = self.factor
        a = low + (high - low) * randomness.uniform(key, "factor")
        amount[:, window[0], window[1], window[2]] = a
        amount = amount * foreground
        return torch.lerp(x, donor(key).to(x), amount), amount
