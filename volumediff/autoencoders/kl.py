"""Autoencoder with a Gaussian latent and the package's own codec, for any stride per axis.

A small weight of the divergence keeps latents smooth and roughly scaled without costing detail;
exact scaling is the latent space's shift and scale.
"""

from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Autoencoder, Generators
from volumediff.autoencoders._codec import NormName, strided
from volumediff.autoencoders._gaussian import mean, sample

__all__ = ["KL"]


class KL(Autoencoder):
    """Variational autoencoder with a weak prior.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent
        widths: channels per level, finest first
        strides: down-sampling between levels, per axis d, h, w
        blocks: residual blocks per level
        norm: normalization, group or voxel
        planar: slices along d are coded apart
        weight: factor of the divergence, a mean over latent elements. Published weights of 1e-7 to
            1e-6 multiply a sum over the latents of a crop, some 10^4 elements beside a mean over
            voxels: 1e-3 to 1e-2 per element, and here independent of the size of the crop
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models,
        arXiv:2112.10752
    """

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 4,
        widths: tuple[int, ...] = (32, 64, 128),
        strides: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2)),
        blocks: int = 2,
        norm: NormName = "group",
        planar: bool = False,
        weight: float = 1e-3,
        adversarial: float = 0.0,
    ) -> None:
        codec = strided(
            channels,
            2 * latent_channels,
            latent_channels=latent_channels,
            widths=widths,
            strides=strides,
            blocks=blocks,
            norm=norm,
            planar=planar,
        )
        super().__init__(channels, latent_channels, codec=codec, adversarial=adversarial)
        self.weight = weight

    def code(self, features: Float[Tensor, "b f d h w"]) -> Float[Tensor, "b k d h w"]:
        return mean(features)

    def restore(self, latent: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return latent

    def bottleneck(
        self, features: Float[Tensor, "b f d h w"], generator: Generators
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""], dict[str, Tensor]]:
        z, kl = sample(features, generator)
        return z, self.weight * kl, {"kl": kl}
