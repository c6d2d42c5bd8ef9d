"""Voxel space: the volume itself is diffused, whole or in crops; A(x) = x."""

from jaxtyping import Float
from torch import Tensor

from volumediff import tiling
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["Voxel"]


class Voxel(StateSpace):
    """The identity.

    References:
        Bieder et al. (2023), Memory-Efficient 3D Denoising Diffusion Models for Medical Image
        Processing (crops with coordinates), arXiv:2303.15288
    """

    stride = (1, 1, 1)
    exact = True
    keeps_values = True

    def channels(self, c: int) -> int:
        return c

    def analysis(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return x

    def synthesis(
        self, raw: Float[Tensor, "b c d h w"], shape: Shape | None = None
    ) -> Float[Tensor, "b c _ _ _"]:
        return raw if shape is None else tiling.crop(raw, shape)

    def noise(self, field: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return field

    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        return m
