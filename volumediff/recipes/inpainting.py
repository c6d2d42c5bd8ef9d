r"""A volume given what surrounds a void, p(x | (1 - M) x, M), with noise everywhere.

From t = 1 the region is redrawn from nothing but its surroundings.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.recipes._void import VoidRecipe

__all__ = ["Inpainting"]


@dataclass(frozen=True)
class Inpainting(VoidRecipe):
    """The volume; the volume with a void, and the mask of the void, are conditions.

    Arguments:
        region: what is hidden
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
        edges: radius in cycles per volume above which the network sees the frequencies of the
            whole volume, void included; None for nothing of the void. Whole volumes only: crops
            have other frequencies

    References:
        Liang et al. (2025), IterMask3D, arXiv:2504.04911, for the edges: a radius of 15
        Durrer et al. (2024), Denoising Diffusion Models for Inpainting of Healthy Brain Tissue,
        arXiv:2402.17307
    """

    shows_mask: ClassVar[bool] = True
    edges: float | None = None

    def __post_init__(self) -> None:
        if self.edges is not None and not self.edges > 0:
            raise ValueError(f"edges: expected a positive radius, got {self.edges}.")

    def image_channels(self, c: int) -> tuple[int, ...]:
        own = c if self.edges is None else 2 * c
        return (c, own) if self.atlas else (own,)

    def hints(
        self, x: Float[Tensor, "b c d h w"], m: Float[Tensor, "b 1 d h w"]
    ) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        """The void, and the edges where they are configured."""
        void = x * (1 - m)
        if self.edges is None:
            return (void,)
        return (torch.cat([void, high_frequencies(x, self.edges)], dim=1),)


def high_frequencies(x: Float[Tensor, "b c d h w"], cutoff: float) -> Float[Tensor, "b c d h w"]:
    """The volume without its spatial frequencies below a radius, in cycles per volume."""
    axes = [torch.fft.fftfreq(n, 1 / n, device=x.device) for n in x.shape[2:]]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    spectrum = torch.fft.fftn(x.float(), dim=(2, 3, 4))
    return torch.fft.ifftn(spectrum * (radius >= cutoff), dim=(2, 3, 4)).real.to(x.dtype)
