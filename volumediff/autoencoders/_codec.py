"""Encoder and decoder of the autoencoders, as plain sequences of the package's layers.

Encoder: convolution, per level residual blocks with a strided convolution between levels,
normalization, convolution to features. The decoder is its mirror. There is no attention, so that
nothing but the normalization is global, and any size is legal.
"""

from typing import Literal

from torch import nn

from volumediff.networks._layers import Conv, Down, NormAct, NormKind, ResidualBlock, Up
from volumediff.shapes import Shape

__all__ = ["NormName", "decoder", "encoder", "kernel_and_norm"]

NormName = Literal["group", "voxel"]


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
    for block in blocks:
        block.level = level
    return blocks
