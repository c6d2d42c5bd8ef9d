r"""Autoencoder with a Gaussian latent: the encoder gives mean and log-variance of q(z | x),

.. math:: \mathrm{KL}(q \| N(0, 1)) = \tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2),

the decoder reads a sample in training and a latent is the mean. A small weight keeps latents
smooth and roughly scaled without costing detail; exact scaling is the latent space's shift and
scale.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Autoencoder, Generators
from volumediff.autoencoders._codec import NormName

__all__ = ["KL"]

# exp(-30) and exp(20) are far from what a latent of unit order needs, and finite in float32.
LOG_VARIANCE = (-30.0, 20.0)


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
        super().__init__(
            channels,
            2 * latent_channels,
            latent_channels=latent_channels,
            widths=widths,
            strides=strides,
            blocks=blocks,
            norm=norm,
            planar=planar,
            adversarial=adversarial,
        )
        self.weight = weight

    def code(self, features: Float[Tensor, "b f d h w"]) -> Float[Tensor, "b k d h w"]:
        return features.chunk(2, dim=1)[0]

    def restore(self, latent: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        return latent

    def bottleneck(
        self, features: Float[Tensor, "b f d h w"], generator: Generators
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""], dict[str, Tensor]]:
        mean, log_variance = features.float().chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        z = mean + torch.exp(0.5 * log_variance) * _normal(mean, generator)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return z.to(features.dtype), self.weight * kl, {"kl": kl}


def _normal(like: Tensor, generator: Generators) -> Tensor:
    """Normal numbers, drawn where the generator lives; one generator per sample if it is many."""
    if isinstance(generator, torch.Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return noise.to(like.device)
    if len(generator) != like.shape[0]:
        raise ValueError(
            f"expected {like.shape[0]} generators, one per sample, got {len(generator)}."
        )
    return torch.cat([_normal(like[i : i + 1], g) for i, g in enumerate(generator)])
