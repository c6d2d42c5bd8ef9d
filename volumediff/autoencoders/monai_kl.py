"""Autoencoder with a Gaussian latent that computes what MONAI's published autoencoders compute.

Those are AutoencoderKL and AutoencoderKlMaisi. Sizes that the stride does not divide, which MONAI
cuts off, are padded by the last plane like everywhere here.
"""

from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Autoencoder, Generators
from volumediff.autoencoders._gaussian import mean, sample
from volumediff.autoencoders._monai_codec import Upsampling, published

__all__ = ["MonaiKL"]


class MonaiKL(Autoencoder):
    """Variational autoencoder of residual blocks, at stride 2 between levels.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent
        widths: channels per level, finest first, multiples of `groups`
        blocks: residual blocks per level, one number or one per level
        groups: channel groups of the group normalization
        attention_levels: levels whose blocks are followed by self-attention, 0 being the finest;
            the scores of all pairs of voxels are never stored, but they take their time
        encoder_attention, decoder_attention: self-attention on the latent grid, between two blocks
        upsampling: of the decoder, `nearest` in AutoencoderKL, `trilinear` in AutoencoderKlMaisi
        mirrored: axes d, h, w along which volumes run against those of the published weights
        interval: the intensities inside for -1 and 1 outside; published weights know [0, 1]
        weight: factor of the divergence, a mean over latent elements; see `kl`
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        Pinaya et al. (2022), arXiv:2209.07162; Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 4,
        widths: tuple[int, ...] = (64, 128, 256),
        blocks: int | tuple[int, ...] = 2,
        groups: int = 32,
        attention_levels: tuple[int, ...] = (),
        encoder_attention: bool = False,
        decoder_attention: bool = False,
        upsampling: Upsampling = "nearest",
        mirrored: tuple[bool, bool, bool] = (False, False, False),
        interval: tuple[float, float] = (-1.0, 1.0),
        weight: float = 1e-3,
        adversarial: float = 0.0,
    ) -> None:
        codec = published(
            channels,
            2 * latent_channels,
            latent_channels=latent_channels,
            widths=widths,
            blocks=(blocks,) * len(widths) if isinstance(blocks, int) else blocks,
            groups=groups,
            attention_levels=attention_levels,
            encoder_attention=encoder_attention,
            decoder_attention=decoder_attention,
            upsampling=upsampling,
            interval=interval,
            mirrored=mirrored,
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
