"""Encoder and decoder of the autoencoders, as plain sequences of the package's layers.

Encoder: convolution, per level residual blocks with a strided convolution between levels,
normalization, convolution to features. The decoder is its mirror. There is no attention, so that
nothing but the normalization is global, and any size is legal.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._layers import Conv, NormAct, NormKind
from volumediff.networks._resample import Down, Up
from volumediff.shapes import Shape

__all__ = ["Codec", "NormName", "kernel_and_norm", "strided"]

NormName = Literal["group", "voxel"]


@dataclass(frozen=True)
class Codec:
    """Two networks that undo each other, as far as training gets them.

    Arguments:
        encoder: volume -> features on the latent grid
        decoder: latent -> volume
        stride: voxels of a latent voxel along d, h, w
        planar: whether slices along d are coded apart
    """

    encoder: nn.Module
    decoder: nn.Module
    stride: Shape
    planar: bool = False


def strided(
    channels: int,
    features: int,
    *,
    latent_channels: int,
    widths: tuple[int, ...],
    strides: tuple[Shape, ...],
    blocks: int,
    norm: NormName,
    planar: bool,
) -> Codec:
    """The codec with a strided convolution between levels.

    Arguments:
        channels: channels c of the volumes
        features: channels that the encoder makes
        latent_channels: channels k of the latent
        widths: channels per level, finest first
        strides: down-sampling between levels, per axis d, h, w, each 1 or 2
        blocks: residual blocks per level
        norm: group, or voxel for networks that must not depend on the size of the crop
        planar: slices along d are coded apart: kernels 1 x 3 x 3 and statistics per slice
    """
    if len(strides) != len(widths) - 1 or {n for s in strides for n in s} - {1, 2}:
        raise ValueError(
            f"strides must be one triple of 1 or 2 between each two of the {len(widths)} "
            f"widths, got {strides}."
        )
    if planar and any(s[0] != 1 for s in strides):
        raise ValueError(f"a planar autoencoder has strides (1, ., .), got {strides}.")
    common = {"widths": widths, "strides": strides, "blocks": blocks}
    common |= {"norm": norm, "planar": planar}
    d, h, w = (math.prod(s[axis] for s in strides) for axis in range(3))
    return Codec(
        encoder(channels, features, **common),
        decoder(latent_channels, channels, **common),
        (d, h, w),
        planar,
    )


def kernel_and_norm(norm: NormName, *, planar: bool) -> tuple[Shape, NormKind]:
    """Kernel size and normalization; planar layers keep slices apart, statistics included."""
    if not planar:
        return (3, 3, 3), norm
    return (1, 3, 3), "slice" if norm == "group" else "voxel"


def encoder(
    channels: int,
    features: int,
    *,
    widths: tuple[int, ...],
    strides: tuple[Shape, ...],
    blocks: int,
    norm: NormName,
    planar: bool,
) -> nn.Sequential:
    """Volume -> features on the latent grid."""
    kernel, kind = kernel_and_norm(norm, planar=planar)
    layers: list[nn.Module] = [Conv(channels, widths[0], kernel=kernel)]
    for level, width in enumerate(widths):
        if level:
            factor = strides[level - 1]
            # An axis that keeps its size needs no neighbours here, and slices may have none.
            d, h, w = (k if f > 1 else 1 for k, f in zip((3, 3, 3), factor, strict=True))
            layers.append(Down(widths[level - 1], width, factor=factor, kernel=(d, h, w)))
        layers += _blocks(blocks, width, level, kernel, kind)
    layers += [NormAct(widths[-1], norm=kind), Conv(widths[-1], features, kernel=kernel)]
    return nn.Sequential(*layers)


def decoder(
    latent_channels: int,
    channels: int,
    *,
    widths: tuple[int, ...],
    strides: tuple[Shape, ...],
    blocks: int,
    norm: NormName,
    planar: bool,
) -> nn.Sequential:
    """Latent -> volume."""
    kernel, kind = kernel_and_norm(norm, planar=planar)
    layers: list[nn.Module] = [Conv(latent_channels, widths[-1], kernel=kernel)]
    for level in reversed(range(len(widths))):
        width = widths[level]
        layers += _blocks(blocks, width, level, kernel, kind)
        if level:
            layers.append(Up(width, widths[level - 1], factor=strides[level - 1]))
    layers += [NormAct(widths[0], norm=kind), Conv(widths[0], channels, kernel=kernel)]
    return nn.Sequential(*layers)


def _blocks(
    number: int, width: int, level: int, kernel: Shape, norm: NormKind
) -> list[ResidualBlock]:
    """The residual blocks of a level."""
    blocks = [ResidualBlock(width, width, kernel=kernel, norm=norm) for _ in range(number)]
    place(level, *blocks)
    return blocks
