"""Autoencoder with a quantised latent that computes what MONAI's VQVAE computes.

It has no normalisation: convolutions of 4 x 4 x 4 voxels change the grid by 2, and residual
blocks of rectified linear units stand between. For new runs `vq` is the lighter architecture.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._monai_codec import IntensityScale
from volumediff.autoencoders._quantised import Quantised
from volumediff.networks._block import Recomputable, place
from volumediff.networks._edges import conv_transposed
from volumediff.networks._layers import Conv, conv

__all__ = ["MonaiVQ"]

KERNEL, STRIDE, PADDING = (4, 4, 4), (2, 2, 2), (1, 1, 1)  # of every change of the grid


class MonaiVQ(Quantised):
    """Vector-quantised autoencoder that halves the grid at the beginning of every level.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent, the length of a code
        codes: size K of the codebook
        widths: channels per level, finest first; n levels have the stride 2^n
        inner: channels within the residual blocks of each level; None for those of the level
        blocks: residual blocks per level
        interval: the intensities inside for -1 and 1 outside; published weights know [0, 1]
        commitment: weight beta of the pull of latents towards their codes
        patience: training steps after which an unused code is moved
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    References:
        Tudosiu et al. (2022), Morphology-preserving Autoregressive 3D Generative Modelling of the
        Brain, arXiv:2209.03177; van den Oord et al. (2017), arXiv:1711.00937
    """

    def __init__(
        self,
        channels: int,
        *,
        latent_channels: int = 64,
        codes: int = 32,
        widths: tuple[int, ...] = (96, 96, 192),
        inner: tuple[int, ...] | None = None,
        blocks: int = 3,
        interval: tuple[float, float] = (-1.0, 1.0),
        commitment: float = 0.25,
        patience: int = 200,
        adversarial: float = 0.0,
    ) -> None:
        inner = widths if inner is None else inner
        if not widths or len(inner) != len(widths) or min(*widths, *inner) < 1 or blocks < 0:
            raise ValueError(
                f"expected a positive width and as many inner ones for each level, got widths "
                f"{tuple(widths)}, inner {tuple(inner)} and {blocks} blocks."
            )
        if not interval[0] < interval[1]:
            raise ValueError(f"interval must be two rising numbers, got {interval}.")
        super().__init__(
            channels,
            latent_channels,
            codec=_codec(channels, latent_channels, widths, inner, blocks, interval),
            codes=codes,
            commitment=commitment,
            patience=patience,
            adversarial=adversarial,
        )


def _codec(
    channels: int,
    latent_channels: int,
    widths: tuple[int, ...],
    inner: tuple[int, ...],
    blocks: int,
    interval: tuple[float, float],
) -> Codec:
    half, centre = (interval[1] - interval[0]) / 2, (interval[1] + interval[0]) / 2
    levels = range(len(widths))

    def residual(level: int) -> list[nn.Module]:
        made = [ReluBlock(widths[level], inner[level]) for _ in range(blocks)]
        place(level, *made)
        return made

    down: list[nn.Module] = [IntensityScale(half, centre)]
    for level in levels:
        down += [ReluHalving(widths[level - 1] if level else channels, widths[level])]
        down += residual(level)
    down += [Conv(widths[-1], latent_channels)]
    up: list[nn.Module] = [Conv(latent_channels, widths[-1])]
    for level in reversed(levels):
        up += residual(level)
        outer = widths[level - 1] if level else channels
        up += [Doubling(widths[level], outer, rectified=level > 0)]
    up += [IntensityScale(1 / half, -centre / half)]
    factor = 2 ** len(widths)
    return Codec(nn.Sequential(*down), nn.Sequential(*up), (factor, factor, factor))


def rectified(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
    """max(x, 0)."""
    return F.leaky_relu(x, negative_slope=0.0)


class ReluBlock(Recomputable):
    """relu(x + conv(relu(conv(x)))).

    Arguments:
        channels: of x
        inner: between the convolutions
    """

    halo = (2, 2, 2)
    global_axes = ""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, inner)
        self.conv2 = Conv(inner, channels)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return rectified(x + self.conv2(rectified(self.conv1(x))))


class ReluHalving(nn.Module):
    """Convolution to half the size of even axes, then max(x, 0).

    Arguments:
        in_channels, out_channels: numbers of channels
    """

    halo = (1, 1, 1)
    global_axes = ""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight, self.bias = _weights(out_channels, in_channels, out_channels)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        return rectified(conv(x, self.weight, self.bias, stride=STRIDE, padding=PADDING))


class Doubling(nn.Module):
    """Transposed convolution to twice the size.

    Arguments:
        in_channels, out_channels: numbers of channels
        rectified: whether max(x, 0) follows
    """

    halo = (1, 1, 1)
    global_axes = ""

    def __init__(self, in_channels: int, out_channels: int, *, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.weight, self.bias = _weights(in_channels, out_channels, out_channels)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        y = conv_transposed(x, self.weight, self.bias, stride=STRIDE, padding=PADDING)
        return rectified(y) if self.rectified else y


def _weights(first: int, second: int, out_channels: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A kernel of a change of the grid and its bias, at their start."""
    weight = nn.Parameter(torch.empty(first, second, *KERNEL))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight, nn.Parameter(torch.zeros(out_channels))
