"""Autoencoder with a quantised latent that computes what Medical Diffusion's VQ-GAN computes.

Its volumes lie with the slices along the last axis here, and along the first one there. For new
runs `vq` is the lighter architecture.
"""

from collections.abc import Sequence

from torch import nn

from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._quantised import Quantised
from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._edges import EdgeConv, EdgeUp
from volumediff.networks._layers import Conv, NormAct, Triple

__all__ = ["MedicalDiffusionVQ"]

EPS = 1e-6
POINT = (1, 1, 1)
CHANGE = (4, 4, 4)  # kernel of every change of the grid


class MedicalDiffusionVQ(Quantised):
    """Vector-quantised autoencoder with edge-padded convolutions, twice as wide on every level.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent, the length of a code
        codes: size K of the codebook
        width: channels of the first convolution
        downsample: voxels of a latent voxel along d, h, w, powers of two
        groups: channel groups of the group normalization
        commitment: weight beta of the pull of latents towards their codes
        patience: training steps after which an unused code is moved
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        Khader et al. (2022), Medical Diffusion, arXiv:2211.03364; Ge et al. (2022), Long Video
        Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer, arXiv:2204.03638
    """

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 8,
        codes: int = 16384,
        width: int = 16,
        downsample: tuple[int, int, int] = (4, 4, 4),
        groups: int = 32,
        commitment: float = 0.25,
        patience: int = 200,
        adversarial: float = 0.0,
    ) -> None:
        if max(downsample) < 2 or any(n < 1 or n & (n - 1) for n in downsample):
            raise ValueError(
                f"downsample must be powers of two, one of them above 1, got {tuple(downsample)}."
            )
        if width < 1 or groups < 1 or 2 * width % groups:
            raise ValueError(f"groups must divide twice the width {width}, got {groups}.")
        super().__init__(
            channels,
            latent_channels,
            codec=_codec(channels, latent_channels, width, downsample, groups),
            codes=codes,
            commitment=commitment,
            patience=patience,
            adversarial=adversarial,
        )


def _codec(
    channels: int, latent_channels: int, width: int, downsample: Triple, groups: int
) -> Codec:
    # A group may be a single channel.
    norm = {"groups": groups, "least": 1, "eps": EPS}
    factors = _factors(downsample)
    down: list[nn.Module] = [EdgeConv(channels, width)]
    for level, factor in enumerate(factors):
        inner, outer = width << level, width << (level + 1)
        down += [EdgeConv(inner, outer, kernel=CHANGE, stride=factor)]
        down += [ResidualBlock(outer, outer, conv=EdgeConv, **norm)]
        place(level + 1, down[-1])
    deepest = width << len(factors)
    down += [NormAct(deepest, **norm), Conv(deepest, latent_channels, kernel=POINT)]
    up: list[nn.Module] = [Conv(latent_channels, deepest, kernel=POINT), NormAct(deepest, **norm)]
    inner = deepest
    # The first change enlarges every axis that is enlarged at all, as the first one shrinks it.
    for level, factor in enumerate(factors):
        outer = width << (len(factors) - level)
        up += [EdgeUp(inner, outer, factor=factor)]
        up += [ResidualBlock(outer, outer, conv=EdgeConv, **norm) for _ in range(2)]
        place(len(factors) - level - 1, *up[-2:])
        inner = outer
    up += [EdgeConv(inner, channels)]
    return Codec(nn.Sequential(*down), nn.Sequential(*up), downsample)


def _factors(downsample: Sequence[int]) -> list[Triple]:
    """The change of the grid from level to level: an axis that needs none any more keeps its
    size."""
    changes = [n.bit_length() - 1 for n in downsample]
    d, h, w = ([2 if level < n else 1 for level in range(max(changes))] for n in changes)
    return list(zip(d, h, w, strict=True))
