"""The latents of an autoencoder of images, whose weights stay what they are."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._base import Autoencoder
from volumediff.image_codecs._base import ImageCodec

__all__ = ["Frozen"]


class Frozen(ImageCodec):
    """The encoder of a trained autoencoder.

    Arguments:
        autoencoder: of images; in a configuration, the folder of its run

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models,
        arXiv:2112.10752, sec. 3.3
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        kind = autoencoder
        super().__init__(
            kind.channels, kind.latent_channels, kind.stride, planar=autoencoder.planar
        )
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    @property
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        return (self.autoencoder,)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        return self.autoencoder.encode(x)
