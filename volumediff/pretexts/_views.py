r"""Views: keyed crops of a volume with other intensities, which show the same and look different.

With s = (x + 1) / 2 the signal, which is 0 in the background,

.. math:: s \mapsto g\, s^\gamma + n, \qquad \log \gamma \sim U(-a, a), \quad
          \log g \sim U(-a, a), \quad n \sim N(0, \sigma^2) \text{ where } s > 0,

after flips, and before one cuboid is erased.

References:
    Chen et al. (2020), SimCLR, arXiv:2002.05709, section 3; Taleb et al. (2020), 3D
    Self-Supervised Methods for Medical Imaging, arXiv:2006.03829
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.randomness import normal, uniform

__all__ = ["Views"]


@dataclass(frozen=True)
class Views:
    """How views are drawn.

    Arguments:
        share: length of a crop along each axis, as a share of the volume's
        change: a, largest |log| of gain and exponent of the signal
        noise: σ
        erased: length of the erased cuboid along each axis, as a share of the crop's
        flips: whether axes are mirrored
    """

    share: float = 0.75
    change: float = 0.4
    noise: float = 0.05
    erased: float = 0.25
    flips: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.erased < 1:
            raise ValueError(
                f"expected share in (0, 1] and erased in [0, 1), got {self.share:g} and "
                f"{self.erased:g}."
            )
        if min(self.change, self.noise) < 0:
            raise ValueError(
                f"expected change and noise of at least 0, got {self.change:g} and {self.noise:g}."
            )

    def start(self, x: Float[Tensor, "c d h w"], *parts: int | str) -> tuple[int, ...]:
        """The first voxel of a crop, drawn from the key."""
        sizes = x.shape[1:]
        ends = [n - m + 1 for n, m in zip(sizes, self._crop(x), strict=True)]
        return tuple(int(uniform(*parts, "place", i) * n) for i, n in enumerate(ends))

    def view(
        self, x: Float[Tensor, "c d h w"], start: tuple[int, ...], *parts: int | str
    ) -> Float[Tensor, "c d2 h2 w2"]:
        """The crop that begins at a voxel, changed as the key says."""
        size = self._crop(x)
        s = (
            x[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))] + 1
        ) / 2
        if self.flips:
            s = s.flip([i + 1 for i in range(3) if uniform(*parts, "flip", i) < 0.5])
        inside = s > 0
        gamma, gain = (self._factor(*parts, name) for name in ("gamma", "gain"))
        s = gain * s.clamp(min=0) ** gamma
        if self.noise:
            s = s + self.noise * normal(tuple(s.shape), *parts, "noise").to(s)
        s = torch.where(inside, s, 0.0).clamp(0, 1)
        if self.erased:
            s[self._cuboid(size, *parts)] = 0
        return 2 * s - 1

    def _crop(self, x: Tensor) -> tuple[int, ...]:
        return tuple(max(1, round(self.share * n)) for n in x.shape[1:])

    def _factor(self, *parts: int | str) -> float:
        return float(torch.tensor(self.change * (2 * uniform(*parts) - 1)).exp())

    def _cuboid(self, size: tuple[int, ...], *parts: int | str) -> tuple[slice, ...]:
        found = [slice(None)]
        for i, n in enumerate(size):
            length = round(self.erased * n)
            first = int(uniform(*parts, "erased", i) * (n - length + 1))
            found.append(slice(first, first + length))
        return tuple(found)
