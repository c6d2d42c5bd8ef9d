r"""Contract of image codecs: an image comes out on the grid of states,

.. math:: c = (G(x) - \mu) / s,

with an encoder G that the files of this folder define and one mean and one standard deviation per
channel, fitted before training: conditions then begin with unit variance, as states and noise
have it. Sizes that the stride does not divide are padded by repeating the last plane.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.shapes import Shape
from volumediff.spaces._statistics import channel_statistics

__all__ = ["ImageCodec"]


class ImageCodec(nn.Module, ABC):
    """A map from images to conditions.

    Arguments:
        inputs: channels c of the images
        features: channels k of the conditions
        stride: voxels of a cell along d, h, w
        planar: whether slices along d are coded apart

    Attributes:
        trained: whether it learns with the network; all of its parameters do then, and none else
    """

    trained: ClassVar[bool] = False
    shift: Tensor
    scale: Tensor

    def __init__(self, inputs: int, features: int, stride: Shape, *, planar: bool) -> None:
        super().__init__()
        self.inputs, self.features, self.stride, self.planar = inputs, features, stride, planar
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @abstractmethod
    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The features G(x), before normalisation."""

    @property
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Modules whose weights are another run's, and stay what they are."""
        return ()

    def channels(self, c: int) -> int:
        """Channels k of the condition of an image with c channels.

        Raises:
            ValueError: it is for another number of channels
        """
        if c != self.inputs:
            raise ValueError(
                f"image: the codec of images takes {self.inputs} channels, got {c}; use an "
                "autoencoder that was trained on these images, or the trained encoder strided."
            )
        return self.features

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The condition."""
        raw = self.encode(x)
        shift, scale = (a.to(raw.dtype).view(1, -1, 1, 1, 1) for a in (self.shift, self.scale))
        return (raw - shift) / scale

    @torch.no_grad()
    def fit(self, images: Iterable[Float[Tensor, "_ c _ _ _"]]) -> None:
        """Sets mean and deviation from training images.

        Raises:
            ValueError: no images, values that are not finite, or nothing but constants
        """
        mean, std = channel_statistics(self.encode(x) for x in images)
        self.shift, self.scale = mean.to(self.shift), std.to(self.scale)
