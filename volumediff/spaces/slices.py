"""Slices space: the axis through the slices becomes the first axis of the state,

z[.., s, ..] = A(x[slice s]) with one inner transform A within the slice plane.

Pseudo-3D networks treat d as the through-plane axis (kernels 1 x k x k, then k x 1 x 1); this
space brings any axis of a volume there. Slices stay independent of each other: mixing them is the
network's work, so that any number of slices is legal.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.config import name_of
from volumediff.image_codecs._base import ImageCodec
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["Slices"]


class Slices(StateSpace):
    """An inner space within slices, with the slice axis first.

    The state of a volume (d, h, w) sliced along w has the axes (w, d, h): the slice axis moves to
    the front, the others keep their order. Normalisation is fitted here; the inner space's shift
    and scale are not used.

    Arguments:
        inner: a space that leaves slices apart: voxel, wavelet with axes hw, or the latent of a
            planar autoencoder
        axis: the axis through the slices; w is inferior to superior, giving axial slices

    References:
        Zhu et al. (2023), Make-A-Volume: Leveraging Latent Diffusion Models for Cross-Modality 3D
        Brain MRI Synthesis, arXiv:2307.10094
    """

    def __init__(self, inner: StateSpace, axis: Literal["d", "h", "w"] = "w") -> None:
        super().__init__()
        if not _keeps_slices_apart(inner):
            raise ValueError(
                f"slices needs an inner space that leaves slices apart, got "
                f"{name_of(type(inner))} with stride {inner.stride}; use voxel, wavelet "
                "with axes: hw, or the latent of a planar autoencoder."
            )
        self.inner = inner
        self.binary = inner.binary
        self.keeps_values = inner.keeps_values
        self.axis = "dhw".index(axis) + 2

    @property
    def stride(self) -> Shape:
        through, *plane = self.inner.stride
        plane.insert(self.axis - 2, through)
        d, h, w = plane
        return d, h, w

    @property
    def exact(self) -> bool:
        return self.inner.exact

    @property
    def image_codec(self) -> ImageCodec | None:
        return self.inner.image_codec

    def encode_image(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        codec = self.image_codec
        return self.encode(x) if codec is None else codec(x.movedim(self.axis, 2))

    def channels(self, c: int) -> int:
        return self.inner.channels(c)

    def analysis(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        return self.inner.analysis(x.movedim(self.axis, 2))

    def synthesis(
        self, raw: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        if shape is not None:
            first, *plane = shape[self.axis - 2], *shape[: self.axis - 2], *shape[self.axis - 1 :]
            shape = (first, plane[0], plane[1])
        return self.inner.synthesis(raw, shape).movedim(2, self.axis)

    def noise(self, field: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        self._check_field(field)
        return self.inner.noise(field.movedim(self.axis, 2))

    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d2 h2 w2"]:
        return self.inner.mask(m.movedim(self.axis, 2))


def _keeps_slices_apart(inner: StateSpace) -> bool:
    """Whether a mask on one slice reaches the state of this slice only."""
    if inner.stride[0] != 1:
        return False
    probe = torch.zeros(1, 1, 5, 2 * inner.stride[1], 2 * inner.stride[2], device="cpu")
    probe[:, :, 2] = 1
    reached = inner.mask(probe).amax(dim=(0, 1, 3, 4))
    return reached.tolist() == [0, 0, 1, 0, 0]
