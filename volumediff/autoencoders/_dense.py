"""A codec with one latent vector per volume: its stride is the volume itself.

Between the strided convolutions and the latent, all features of a cell are one vector, and a
linear map is a convolution of size 1. A larger volume than the one that the cell was made for is
several cells; a smaller one is padded. The first part of the encoder and the last of the decoder
are convolutions, which may run in slabs.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._codec import Codec, NormName, decoder, encoder
from volumediff.networks._layers import Conv
from volumediff.shapes import Shape

__all__ = ["dense"]

HALVES = (2, 2, 2)


class Gather(nn.Module):
    """Cells of voxels -> channels."""

    def __init__(self, cell: Shape) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        p, q, r = self.cell
        b, c, d, h, w = x.shape
        cells = x.reshape(b, c, d // p, p, h // q, q, w // r, r)
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, d // p, h // q, w // r)


class Scatter(nn.Module):
    """Channels -> cells of voxels; the inverse of `Gather`."""

    def __init__(self, cell: Shape) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
        p, q, r = self.cell
        b, _, d, h, w = x.shape
        cells = x.reshape(b, -1, p, q, r, d, h, w)
        return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, d * p, h * q, w * r)


def dense(
    channels: int,
    features: int,
    *,
    latent_channels: int,
    shape: Shape,
    widths: tuple[int, ...],
    blocks: int,
    squeeze: int,
    norm: NormName = "group",
) -> Codec:
    """The codec of one vector per volume.

    Arguments:
        channels: channels c of the volumes
        features: length of the vector that the encoder makes
        latent_channels: length k of the vector that the decoder reads
        shape: sizes of the volumes
        widths: channels per level, finest first; every level has half the size of the one before
        blocks: residual blocks per level
        squeeze: channels that the coarsest level is reduced to before it becomes a vector
        norm: normalization, group or voxel
    """
    if not widths or min(latent_channels, squeeze) < 1:
        raise ValueError(
            f"expected widths, and latent_channels and squeeze of at least 1, got {widths}, "
            f"{latent_channels} and {squeeze}."
        )
    factor = 2 ** (len(widths) - 1)
    stride = tiling.padded_shape(shape, (factor, factor, factor))
    p, q, r = (n // factor for n in stride)
    common: dict[str, Any] = {
        "widths": widths,
        "strides": (HALVES,) * (len(widths) - 1),
        "blocks": blocks,
        "norm": norm,
        "planar": False,
    }
    vector = squeeze * p * q * r
    point = (1, 1, 1)
    down = encoder(channels, squeeze, **common)
    up = decoder(squeeze, channels, **common)
    return Codec(
        nn.Sequential(down, Gather((p, q, r)), Conv(vector, features, kernel=point)),
        nn.Sequential(Conv(latent_channels, vector, kernel=point), Scatter((p, q, r)), up),
        stride,
    )
