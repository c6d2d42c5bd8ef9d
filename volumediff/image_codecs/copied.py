"""A copy of the encoder of an autoencoder of images, which goes on learning with the network."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._base import Autoencoder
from volumediff.image_codecs._base import ImageCodec
from volumediff.networks._streamable import Streamable

__all__ = ["Copied"]


class Copied(ImageCodec, Streamable):
    """The encoder with the weights of a trained autoencoder to begin with.

    Latents that are made to be decoded hold what a decoder needs, and not what tells one tissue
    from another; here the encoder learns what the labels ask for.

    Arguments:
        autoencoder: of images, with a latent of numbers; in a configuration, the folder of its run

    References:
        Lin et al. (2024), Stable Diffusion Segmentation for Biomedical Images with Single-Step
        Reverse Process (SDSeg), arXiv:2406.18361, sec. 2.2
    """

    trained: ClassVar[bool] = True

    def __init__(self, autoencoder: Autoencoder) -> None:
        if autoencoder.binary:
            raise ValueError(
                "image: expected an autoencoder with a latent of numbers for copied, got one of "
                "bits, which pass no gradient; use kl or vq."
            )
        kind = autoencoder
        super().__init__(
            kind.channels, kind.latent_channels, kind.stride, planar=autoencoder.planar
        )
        self.encoder: nn.Module = autoencoder.codec["encoder"]
        # From features to the latent, without weights: the mean of a Gaussian, for example.
        self._code = autoencoder.code

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self.encoder, "forward"),)

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        shape = tiling.padded_shape(x.shape[2:], self.stride)
        return self._code(self.encoder(tiling.pad(x, shape)))
