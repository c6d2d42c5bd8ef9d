"""Texture of another place where smooth noise is high."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import foreground_voxel, inside, length_mm
from volumediff.noise import Simplex

__all__ = ["TexturePatch"]

# Side of the cells that the noise is computed in, as a share of its wavelength: linear
# interpolation between them is then as good as the noise for where to cut it.
_CELL = 0.2


@dataclass(frozen=True)
class TexturePatch(Corruption):
    r"""Another place of another volume, its contrast and brightness changed, where simplex noise
    has its highest values,

    .. math:: x' = (1 - β)\, x + β\, (g\, y + o) \text{ in } M, \qquad m = β.

    Arguments:
        share: smallest and largest share of the foreground that changes
        wavelength: smallest and largest wavelength of the noise, as shares of the longest side
        opacity: smallest and largest β
        gain: smallest and largest contrast g
        offset: smallest and largest brightness o

    References:
        Zavrtanik et al. (2021), DRAEM, arXiv:2108.07610: Perlin noise above a threshold, textures
        of a data set of photographs with an opacity of 0.2 to 1
    """

    kind: ClassVar[str] = "texture_patch"
    share: tuple[float, float] = (0.005, 0.1)
    wavelength: tuple[float, float] = (0.125, 0.5)
    opacity: tuple[float, float] = (0.2, 1.0)
    gain: tuple[float, float] = (0.5, 1.5)
    offset: tuple[float, float] = (-0.4, 0.4)

    def __post_init__(self) -> None:
        check_range("share", self.share, 0.0, 1.0)
        check_range("wavelength", self.wavelength, 0.01, 10.0)
        check_range("opacity", self.opacity, 0.0, 1.0)
        check_range("gain", self.gain, 0.0, 10.0)
        check_range("offset", self.offset, -2.0, 2.0)

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the texture, and its opacity where it is."""
        to, source = (foreground_voxel(foreground, key, name) for name in ("to", "source"))
        move = [a - b for a, b in zip(to, source, strict=True)]
        flips = [axis for axis in (1, 2, 3) if randomness.uniform(key, "flip", axis) < 0.5]
        y = donor(key).to(x).roll(move, (1, 2, 3)).flip(flips)
        y = between(self.gain, key, "gain") * y + between(self.offset, key, "offset")
        opacity = between(self.opacity, key, "opacity")
        amount = opacity * self._mask(foreground, spacing_mm, key).to(x)
        return inside(x, torch.lerp(x, y.clamp(-1, 1), amount), amount, foreground)

    def _mask(self, foreground: Tensor, spacing_mm: tuple[float, ...], key: int) -> Tensor:
        d, h, w = foreground.shape[1:]
        low, high = self.wavelength
        period = length_mm((d, h, w), spacing_mm)
        period *= low * (high / low) ** randomness.uniform(key, "wavelength")
        # in steps of equal length along all axes, each of them at least a voxel
        step = max(_CELL * period, *spacing_mm)
        sides = (n * mm for n, mm in zip((d, h, w), spacing_mm, strict=True))
        thin = [max(math.ceil(side / step), 1) for side in sides]
        field = Simplex(1, wavelength=period / step)((1, *thin), key, "mask")
        field = interpolate(field[None], (d, h, w), mode="trilinear", align_corners=False)[0]
        values = field.to(foreground.device)[foreground]
        count = max(round(between(self.share, key, "share") * len(values)), 1)
        level = values.kthvalue(len(values) - count + 1).values
        return (field.to(foreground.device) >= level) & foreground
