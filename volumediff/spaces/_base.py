r"""State spaces: an invertible map between volumes x and states z,

.. math:: z = (A(x) - \mu) / s, \qquad x = A^{-1}(s z + \mu),

with a transform A that the files of this folder define and one mean mu and one standard deviation
s per state channel, estimated from training volumes. States then have zero mean and unit variance
per channel, as the noise has.

Sizes that the stride does not divide are padded by repeating the last plane and cropped back.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.image_codecs._base import ImageCodec
from volumediff.shapes import Shape
from volumediff.spaces._statistics import channel_statistics

__all__ = ["StateSpace"]


class StateSpace(nn.Module, ABC):
    """A map between volumes and states of unit variance.

    The buffers `shift` (mu) and `scale` (s) hold one value per state channel; they are 0 and 1
    until `fit` and belong to the state dict. Where states are `binary`, bits that are coded as -1
    and 1, they stay so. Where `keeps_values`, states are the voxels themselves, at most in another
    order of the axes.
    """

    binary: bool = False
    keeps_values: bool = False
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))
        self.register_load_state_dict_pre_hook(_adopt_sizes)

    @property
    @abstractmethod
    def stride(self) -> Shape:
        """Voxels per state voxel along the axes d, h, w of the volume."""

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether `decode(encode(x))` is x up to rounding."""

    @abstractmethod
    def channels(self, c: int) -> int:
        """State channels k of a volume with c channels."""

    @abstractmethod
    def analysis(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The transform A, before normalisation."""

    @abstractmethod
    def synthesis(
        self, raw: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        """The inverse of A, cropped to `shape` if given."""

    @abstractmethod
    def noise(self, field: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """State noise from a noise field on the padded volume, by a map with orthonormal rows.

        White fields of unit variance give white noise of unit variance. The field has the `padded`
        shape: no linear map makes more independent numbers than it is given.

        Raises:
            ValueError: the stride does not divide the field
        """

    @abstractmethod
    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d2 h2 w2"]:
        """The largest mask value among the voxels that each state voxel depends on."""

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The state of a volume."""
        raw = self.analysis(x)
        return (raw - self._per_channel(self.shift, raw)) / self._per_channel(self.scale, raw)

    def decode(
        self, z: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        """The volume of a state, cropped to `shape` if given."""
        raw = z * self._per_channel(self.scale, z) + self._per_channel(self.shift, z)
        return self.synthesis(raw, shape)

    @property
    def image_codec(self) -> ImageCodec | None:
        """What image conditions go through, where that is not what is diffused goes through."""
        return None

    def image_channels(self, c: int) -> int:
        """Channels on the grid of states of an image condition with c channels."""
        codec = self.image_codec
        return self.channels(c) if codec is None else codec.channels(c)

    def encode_image(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """An image condition on the grid of states."""
        codec = self.image_codec
        return self.encode(x) if codec is None else codec(x)

    def padded(self, shape: Shape) -> Shape:
        """The size of a volume after padding to multiples of the stride."""
        return tiling.padded_shape(shape, self.stride)

    def grid(self, shape: Shape) -> Shape:
        """The size of the state of a volume; axes may be reordered."""
        d, h, w = self.mask(torch.empty((1, 1, *shape), device="meta")).shape[2:]
        return d, h, w

    @property
    def axis_order(self) -> Shape:
        """Axis of the volume that is axis i of the state."""
        # Sizes that tell the axes apart say where the space puts each of them.
        sizes = (2, 3, 5)
        d, h, w = (n * s for n, s in zip(sizes, self.stride, strict=True))
        first, second, third = (sizes.index(n) for n in self.grid((d, h, w)))
        return first, second, third

    @torch.no_grad()
    def fit(self, volumes: Iterable[Float[Tensor, "_ _ _ _ _"]]) -> None:
        """Sets shift and scale to mean and deviation of each raw state channel.

        A channel that is constant over all volumes keeps the scale 1.

        Raises:
            ValueError: states of bits, no volumes, values that are not finite, or nothing but
                constants
        """
        if self.binary:
            raise ValueError("fit: expected states with a scale, got bits, which are -1 and 1.")
        mean, std = channel_statistics(self.analysis(x) for x in volumes)
        self.shift = mean.to(self.shift)
        self.scale = std.to(self.scale)

    def _per_channel(self, values: Tensor, z: Tensor) -> Tensor:
        """Statistics for the channels of z: those of `fit`, or band by band their mean over the
        channels of the training volumes where z has another number, as image conditions may."""
        k = z.shape[1]
        if values.numel() not in (1, k):
            bands = self.channels(1)
            values = values.view(bands, -1).mean(1, keepdim=True).expand(bands, k // bands)
        return values.to(z.dtype).reshape(1, -1, 1, 1, 1)

    def _check_field(self, field: Tensor) -> None:
        d, h, w = field.shape[2:]
        if self.padded((d, h, w)) != (d, h, w):
            raise ValueError(
                f"expected a noise field whose sizes are multiples of {self.stride}, got "
                f"{(d, h, w)}; draw it on space.padded(shape)."
            )


def _adopt_sizes(space: StateSpace, state: dict[str, Any], prefix: str, *unused: object) -> None:
    """Gives the buffers the length that they have in the state dict: it depends on the data."""
    for name in ("shift", "scale"):
        buffer, stored = getattr(space, name), state.get(prefix + name)
        if stored is not None and stored.shape != buffer.shape:
            setattr(space, name, buffer.new_empty(stored.shape))
