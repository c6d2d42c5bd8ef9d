r"""Autoencoder with a latent of bits, drawn in training and thresholded afterwards,

.. math:: b \sim 2\,\mathrm{Bernoulli}(p) - 1, \quad p = \mathrm{sigmoid}(f), \qquad
          \frac{\partial b}{\partial f} := \frac{\partial (2 p - 1)}{\partial f}, \qquad
          \text{penalty} = w\, \overline{p (1 - p)}.

The encoder's features f are logits; gradients pass straight through the draw, which keeps the
decoder from relying on bits that the encoder is unsure of. A latent is the likelier value of each
bit, -1 or 1: discrete noise then applies to it as it is.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Autoencoder, Generators
from volumediff.autoencoders._codec import NormName, strided
from volumediff.autoencoders._gaussian import normal

__all__ = ["Binary"]


class Binary(Autoencoder):
    """Autoencoder whose latent voxels are so many bits.

    Arguments:
        channels: channels c of the volumes
        latent_channels: bits of a latent voxel; published are 128 for 8 x 8 pixels of 4 channels,
            half a bit per number
        widths: channels per level, finest first
        strides: down-sampling between levels, per axis d, h, w
        blocks: residual blocks per level
        norm: normalization, group or voxel
        planar: slices along d are coded apart
        weight: w, of the variance of the bits; published code has it at 0
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        Wang et al. (2023), Binary Latent Diffusion, arXiv:2304.04820, eq. 2 and 3; Wolleb et al.
        (2024), Binary Noise for Binary Tasks, arXiv:2403.11667
    """

    binary: ClassVar[bool] = True

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 32,
        widths: tuple[int, ...] = (32, 64, 128),
        strides: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2)),
        blocks: int = 2,
        norm: NormName = "group",
        planar: bool = False,
        weight: float = 0.0,
        adversarial: float = 0.0,
    ) -> None:
        codec = strided(
            channels,
            latent_channels,
            latent_channels=latent_channels,
            widths=widths,
            strides=strides,
            blocks=blocks,
            norm=norm,
            planar=planar,
        )
        super().__init__(channels, latent_channels, codec=codec, adversarial=adversarial)
        self.weight = weight

    def code(self, features: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return _bits(features > 0, features)

    def restore(self, latent: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return _straight_through(latent, latent > 0)

    def bottleneck(
        self, features: Float[Tensor, "b k d h w"], generator: Generators
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""], dict[str, Tensor]]:
        p = torch.sigmoid(features.float())
        # Φ(n) < p, and so with probability p
        drawn = normal(p, generator) < torch.special.ndtri(p.detach())
        doubt = (p * (1 - p)).mean()
        mean = (2 * p - 1).to(features.dtype)
        return _straight_through(mean, drawn), self.weight * doubt, {"doubt": doubt}


def _bits(up: Tensor, like: Tensor) -> Tensor:
    """1 where true, -1 elsewhere."""
    return torch.where(up, 1.0, -1.0).to(like.dtype)


def _straight_through(z: Tensor, up: Tensor) -> Tensor:
    """Bits with the gradient of z; z - z is exactly 0."""
    return _bits(up, z) + (z - z.detach())
