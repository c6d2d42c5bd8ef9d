r"""A volume given itself with a void of background, and the void as a volume,

.. math:: p\big(x\,|\,(1 - M)\, x - M,\; 2 M - 1\big),

with noise everywhere. Both conditions go through the state space as volumes do, so that a wavelet
network sees the borders of the void in its fine bands; `inpainting` shows a mask on the grid of
the state.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.data.intensity import BACKGROUND
from volumediff.recipes._void import VoidRecipe

__all__ = ["Voided"]


@dataclass(frozen=True)
class Voided(VoidRecipe):
    """The volume; the volume with a void, and the void as a volume of -1 and 1, are conditions.

    Arguments:
        region: what is hidden
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Durrer et al. (2025), fastWDM3D: Fast and Accurate 3D Healthy Tissue Inpainting,
        arXiv:2507.13146
    """

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c, c, 1) if self.atlas else (c, 1)

    def hints(
        self, x: Float[Tensor, "b c d h w"], m: Float[Tensor, "b 1 d h w"]
    ) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        """The void, and where it is."""
        return torch.lerp(x, torch.full_like(x, BACKGROUND), m), 2 * m - 1
