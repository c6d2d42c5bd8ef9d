"""Encoder and decoder of MONAI's autoencoders, as plain sequences of the package's layers.

Unlike the package's own codec: a level begins with the change of its width, the grid is halved
after a plane of zeros at the end of each axis, the last normalisation has no activation, between
encoder, latent and decoder there are pointwise convolutions, and intensities have an interval of
their own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._codec import Codec
from volumediff.networks._attention import Attention
from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._layers import Conv, Norm
from volumediff.networks._resample import Linear2, Nearest, PaddedDown, UpConv

__all__ = ["Upsampling", "published"]

Upsampling = Literal["nearest", "trilinear"]
"""Before the convolutions of the decoder: nearest in AutoencoderKL, trilinear in MAISI's."""

EPS = 1e-6  # of every normalisation in MONAI's networks
POINT = (1, 1, 1)


class IntensityScale(nn.Module):
    """y = factor x + offset, of intensities."""

    halo = (0, 0, 0)
    global_axes = ""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return x * self.factor + self.offset


def published(
    channels: int,
    features: int,
    *,
    latent_channels: int,
    widths: Sequence[int],
    blocks: Sequence[int],
    groups: int,
    attention_levels: Sequence[int],
    encoder_attention: bool,
    decoder_attention: bool,
    upsampling: Upsampling,
    interval: tuple[float, float],
    mirrored: tuple[bool, bool, bool],
) -> Codec:
    """MONAI's codec.

    Arguments:
        channels: channels c of the volumes
        features: channels that the encoder makes
        latent_channels: channels k of the latent
        widths: channels per level, finest first, multiples of the groups
        blocks: residual blocks per level
        groups: channel groups of every normalisation
        attention_levels: levels whose blocks are followed by attention, 0 being the finest
        encoder_attention, decoder_attention: a block, attention and a block on the latent grid
        upsampling: of the decoder
        interval: what -1 and 1 are inside
        mirrored: axes along which the codec is the published one on mirrored volumes
    """
    if not widths or min(blocks) < 1 or len(blocks) != len(widths):
        raise ValueError(
            f"expected at least one level, and a positive number of blocks for each, got widths "
            f"{tuple(widths)} and blocks {tuple(blocks)}."
        )
    if groups < 1 or any(width % groups for width in widths):
        raise ValueError(f"groups must divide all widths {tuple(widths)}, got {groups}.")
    low, high = interval
    if not low < high:
        raise ValueError(f"interval must be two rising numbers, got {interval}.")
    if not set(attention_levels) <= set(range(len(widths))):
        raise ValueError(
            f"attention_levels {tuple(attention_levels)} must be levels of the autoencoder, "
            f"0 (finest) to {len(widths) - 1}."
        )
    half, centre = (high - low) / 2, (high + low) / 2
    # A group may be a single channel.
    norm = {"groups": groups, "least": 1, "eps": EPS}
    block = partial(ResidualBlock, **norm)
    last = widths[-1]

    def middle() -> list[nn.Module]:
        made = [block(last, last), attention(last), block(last, last)]
        place(len(widths) - 1, *made)
        return made

    def attention(width: int) -> Attention:
        return Attention(width, head_size=width, **norm)

    def level(i: int, inner: int) -> list[nn.Module]:
        outer = widths[i]
        made: list[nn.Module] = []
        for k in range(blocks[i]):
            made += [block(outer if k else inner, outer)]
            made += [attention(outer)] if i in attention_levels else []
        place(i, *made)
        return made

    down: list[nn.Module] = [IntensityScale(half, centre), Conv(channels, widths[0])]
    width = widths[0]
    for i, outer in enumerate(widths):
        down += [PaddedDown(width, mirrored=mirrored)] if i else []
        down += level(i, width)
        width = outer
    down += middle() if encoder_attention else []
    down += [Norm(last, **norm), Conv(last, latent_channels)]
    down += [Conv(latent_channels, features, kernel=POINT)]

    up: list[nn.Module] = [Conv(latent_channels, latent_channels, kernel=POINT)]
    up += [Conv(latent_channels, last)]
    up += middle() if decoder_attention else []
    for i in reversed(range(len(widths))):
        up += level(i, width)
        width = widths[i]
        enlarge = Nearest() if upsampling == "nearest" else Linear2()
        up += [UpConv(width, enlarge=enlarge)] if i else []
        place(i, up[-1])
    up += [Norm(width, **norm), Conv(width, channels)]
    up += [IntensityScale(1 / half, -centre / half)]
    factor = 2 ** (len(widths) - 1)
    return Codec(nn.Sequential(*down), nn.Sequential(*up), (factor, factor, factor))
