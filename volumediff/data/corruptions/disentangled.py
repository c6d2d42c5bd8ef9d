"""Shape, texture and intensity of an anomaly, drawn independently of each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data._fields import gaussian
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import (
    Box,
    box,
    foreground_voxel,
    foreign,
    inside,
    length_mm,
    offsets_mm,
)

__all__ = ["Disentangled"]

_SOFT = 0.3  # width of the border of the shape, as a share of the half side
_FLAT = 2e-3  # range of intensities below which a patch has no texture; 1e-3 of [0, 1] there


@dataclass(frozen=True)
class Disentangled(Corruption):
    r"""A turned box s with soft borders, the texture y of another place in the range of the
    intensities of x, and an offset b of some of these intensities,

    .. math:: x' = x'' ± b\, s\, q(x'), \qquad x'' = (1 - a s)\, x + a s\, y,

    where q is 1 for intensities in the drawn ones of equal bins, smoothed by one voxel. A bin is
    drawn with the probability of its share of the shape; all are if none was. The amount is the
    largest of a s and b s q / 2.

    Arguments:
        side: smallest and largest half side, as shares of the longest side of the volume
        factor: smallest and largest a
        bias: smallest and largest b, for intensities in [-1, 1]
        levels: number of bins
        chance: of texture, and of intensity; both are changed if neither was drawn

    References:
        Marimont et al. (2024), Ensembled Cold-Diffusion Restorations for Unsupervised Anomaly
        Detection (DISYRE v2), arXiv:2407.06635; its shapes are read from files
    """

    kind: ClassVar[str] = "disentangled"
    side: tuple[float, float] = (0.05, 0.2)
    factor: tuple[float, float] = (0.05, 0.95)
    bias: tuple[float, float] = (0.1, 1.0)
    levels: int = 8
    chance: float = 0.6

    def __post_init__(self) -> None:
        check_range("side", self.side, 0.0, 1.0)
        check_range("factor", self.factor, 0.0, 1.0)
        check_range("bias", self.bias, 0.0, 2.0)
        if self.levels < 1 or not 0 <= self.chance <= 1:
            raise ValueError(
                f"expected levels >= 1 and chance in [0, 1], got {self.levels} and {self.chance}."
            )

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the anomaly, and the larger of the two amounts."""
        centre = foreground_voxel(foreground, key, "centre")
        window, s = self._shape(x, centre, spacing_mm, key)
        part = (slice(None), *window)
        s = s * foreground[part]
        textured, biased = (
            randomness.uniform(key, name) < self.chance for name in ("textured", "biased")
        )
        if not textured and not biased:
            textured = biased = True
        changed, amount = x[part], torch.zeros_like(s)
        if textured:
            place = foreground_voxel(foreground, key, "source")
            patch = foreign(donor(key), x, window, place, 1.0)
            a = between(self.factor, key, "factor")
            changed = torch.lerp(changed, in_range(patch, changed, s > 0), a * s)
            amount = a * s
        if biased:
            b = between(self.bias, key, "bias")
            sign = 1 if randomness.uniform(key, "sign") < 0.5 else -1
            weight = s * drawn_levels(changed, s > 0, self.levels, key)
            changed = changed + sign * b * weight
            amount = torch.maximum(amount, b / 2 * weight.amax(0, keepdim=True))
        whole, where = x.clone(), torch.zeros_like(x[:1])
        whole[part], where[part] = changed, amount
        return inside(x, whole, where, foreground)

    def _shape(
        self, x: Tensor, centre: tuple[int, int, int], spacing_mm: tuple[float, ...], key: int
    ) -> tuple[Box, Float[Tensor, "1 _ _ _"]]:
        d, h, w = x.shape[1:]
        longest = length_mm((d, h, w), spacing_mm)
        sides = [
            max(longest * between(self.side, key, "side", i), max(spacing_mm)) for i in range(3)
        ]
        reach = torch.tensor(sides).norm().item() * (1 + _SOFT)
        window = box((d, h, w), centre, [reach / mm + 1 for mm in spacing_mm])
        turn = torch.linalg.qr(randomness.normal((3, 3), key, "turn")).Q.to(x)
        along = torch.einsum("ij,jdhw->idhw", turn, offsets_mm(window, centre, spacing_mm, x))
        half = torch.tensor(sides).to(x).view(3, 1, 1, 1)
        s = ((1 - along.abs() / half) / _SOFT + 0.5).clamp(0, 1)
        return window, s.prod(0, keepdim=True)


def in_range(
    y: Float[Tensor, "c _ _ _"], x: Float[Tensor, "c _ _ _"], shape: Bool[Tensor, "1 _ _ _"]
) -> Float[Tensor, "c _ _ _"]:
    """y, in each channel stretched from its range in the shape to that of x there."""
    low, high = (
        torch.stack([f(v[shape.expand_as(v)].view(len(v), -1), dim=1) for v in (y, x)])
        for f in (torch.amin, torch.amax)
    )
    low, high = low[..., None, None, None], high[..., None, None, None]
    return (y - low[0]) / (high[0] - low[0] + _FLAT) * (high[1] - low[1]) + low[1]


def drawn_levels(
    x: Float[Tensor, "c _ _ _"], shape: Bool[Tensor, "1 _ _ _"], levels: int, key: int
) -> Float[Tensor, "c _ _ _"]:
    """1 where an intensity is in a drawn one of equal bins of [-1, 1], smoothed by one voxel."""
    q = ((x + 1) / 2 * levels).floor().clamp(0, levels - 1).long()
    share = torch.bincount(q[shape.expand_as(q)], minlength=levels).double().cpu()
    draws = torch.rand(levels, dtype=torch.float64, generator=randomness.generator(key, "levels"))
    drawn = draws < share / share.sum()
    drawn = (drawn if bool(drawn.any()) else ~drawn).to(x)
    return gaussian(drawn[q], (1.0, 1.0, 1.0))
