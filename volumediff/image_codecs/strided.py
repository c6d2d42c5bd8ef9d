"""A small encoder with one convolution per halving, trained from nothing with the network."""

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._codec import NormName, encoder
from volumediff.image_codecs._base import ImageCodec
from volumediff.networks._streamable import Streamable
from volumediff.shapes import Shape

__all__ = ["Strided"]


class Strided(ImageCodec, Streamable):
    """An encoder whose last level is the grid of states.

    Arguments:
        inputs: channels c of the images
        stride: voxels of a state's cell along d, h, w, powers of two
        planar: whether slices along d are coded apart
        features: channels k of the condition
        widths: channels per level, finest first: one more than the stride has halvings; a single
            number is the width of the finest, which doubles with every halving
        blocks: residual blocks per level
        norm: normalization, group or voxel
    """

    trained: ClassVar[bool] = True

    def __init__(
        self,
        inputs: int,
        stride: Shape,
        *,
        planar: bool = False,
        features: int = 8,
        widths: int | tuple[int, ...] = 16,
        blocks: int = 1,
        norm: NormName = "voxel",
    ) -> None:
        super().__init__(inputs, features, stride, planar=planar)
        steps = halvings(stride)
        if isinstance(widths, int):
            widths = tuple(widths * 2**i for i in range(len(steps) + 1))
        if len(widths) != len(steps) + 1:
            raise ValueError(
                f"image.widths: expected {len(steps) + 1} widths for the stride {list(stride)} of "
                f"the states, one per level, got {list(widths)}."
            )
        self.encoder = encoder(
            inputs, features, widths=widths, strides=steps, blocks=blocks, norm=norm, planar=planar
        )

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self.encoder, "forward"),)

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        return self.encoder(tiling.pad(x, tiling.padded_shape(x.shape[2:], self.stride)))


def halvings(stride: Shape) -> tuple[Shape, ...]:
    """Strides of 1 or 2 per axis whose product is the stride, as early as possible.

    Raises:
        ValueError: a stride that is no power of two
    """
    levels = [int(math.log2(s)) for s in stride]
    if any(2**n != s for n, s in zip(levels, stride, strict=True)):
        raise ValueError(f"expected strides that are powers of two, got {list(stride)}.")
    steps: list[Shape] = []
    for i in range(max(levels)):
        d, h, w = (2 if i < n else 1 for n in levels)
        steps.append((d, h, w))
    return tuple(steps)
