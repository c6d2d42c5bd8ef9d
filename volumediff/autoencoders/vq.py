"""Autoencoder with a quantised latent, of the layers of the package's other autoencoders."""

from volumediff.autoencoders._codec import NormName, strided
from volumediff.autoencoders._quantised import Quantised

__all__ = ["VQ"]


class VQ(Quantised):
    """Vector-quantised autoencoder.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent, the length of a code
        codes: size K of the codebook
        widths: channels per level, finest first
        strides: down-sampling between levels, per axis d, h, w
        blocks: residual blocks per level
        norm: normalization, group or voxel
        planar: slices along d are coded apart
        commitment: weight beta of the pull of latents towards their codes
        patience: training steps after which an unused code is moved
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        van den Oord et al. (2017), Neural Discrete Representation Learning, eq. 3,
        arXiv:1711.00937
    """

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 4,
        codes: int = 1024,
        widths: tuple[int, ...] = (32, 64, 128),
        strides: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2)),
        blocks: int = 2,
        norm: NormName = "group",
        planar: bool = False,
        commitment: float = 0.25,
        patience: int = 200,
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
        super().__init__(
            channels,
            latent_channels,
            codec=codec,
            codes=codes,
            commitment=commitment,
            patience=patience,
            adversarial=adversarial,
        )
