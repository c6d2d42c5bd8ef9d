r"""From a scanner's numbers to about [-1, 1], and back.

Each rule finds two limits per channel and volume; then

.. math:: y = \operatorname{clip}\left(2\,\frac{x - \text{low}}{\text{high} - \text{low}} - 1,
          -1, 1\right)

inside the foreground and y = -1 outside. The inverse is the affine map without the clip: what was
clipped comes back as the limit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.foreground import Rule, foreground

__all__ = ["Intensity", "Percentile", "Window", "ZScore"]

BACKGROUND = -1.0


class Intensity(ABC):
    """How intensities are normalized: a foreground and two limits."""

    @abstractmethod
    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        """The foreground of one channel."""

    @abstractmethod
    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, float]:
        """The intensities that become -1 and 1; the second is larger."""

    def apply(
        self,
        x: Float[np.ndarray, "d h w"],
        mask: Bool[np.ndarray, "d h w"],
        *,
        limits: tuple[float, float],
    ) -> Float[np.ndarray, "d h w"]:
        """Normalized intensities, -1 outside the foreground."""
        low, high = limits
        y = np.clip(2 * (x - np.float32(low)) / np.float32(high - low) - 1, -1, 1)
        return np.where(mask, y, np.float32(BACKGROUND)).astype(np.float32)

    def invert(
        self, y: Float[np.ndarray, "d h w"], *, limits: tuple[float, float]
    ) -> Float[np.ndarray, "d h w"]:
        """Intensities in the file's own unit."""
        low, high = limits
        return (np.float32(low) + (y + 1) * np.float32((high - low) / 2)).astype(np.float32)


def _ordered(low: float, high: float) -> tuple[float, float]:
    """A constant foreground gets a width of one, so that it becomes -1 and not NaN."""
    return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True)
class Percentile(Intensity):
    """Limits are percentiles of the foreground; for MRI, whose numbers have no unit.

    Arguments:
        low, high: percentiles in [0, 100]; bright lesions fill a few voxels in a thousand, so
            the upper one clips one in a thousand
        foreground: rule of `volumediff.data.foreground`
    """

    low: float = 0.5
    high: float = 99.9
    foreground: Rule = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(
                f"Percentile takes 0 <= low < high <= 100, got {self.low, self.high}."
            )

    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        return foreground(x, self.foreground)

    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, float]:
        if not mask.any():
            return 0.0, 1.0
        low, high = np.percentile(x[mask].astype(np.float64), [self.low, self.high])
        return _ordered(float(low), float(high))


@dataclass(frozen=True)
class ZScore(Intensity):
    r"""Limits are :math:`\mu \pm k \sigma` of the foreground; for MRI.

    Arguments:
        deviations: k
        foreground: rule of `volumediff.data.foreground`
    """

    deviations: float = 3.0
    foreground: Rule = "auto"

    def __post_init__(self) -> None:
        if not self.deviations > 0:
            raise ValueError(f"ZScore takes deviations > 0, got {self.deviations}.")

    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        return foreground(x, self.foreground)

    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, float]:
        if not mask.any():
            return 0.0, 1.0
        inside = x[mask].astype(np.float64)
        half = self.deviations * float(inside.std())
        return _ordered(float(inside.mean()) - half, float(inside.mean()) + half)


@dataclass(frozen=True)
class Window(Intensity):
    """Fixed limits centre ± width/2 in HU, the same for every volume; for CT.

    Arguments:
        center: for example 40 (soft tissue), 35 (brain), -600 (lung)
        width: for example 400, 80, 1500
        foreground: rule of `volumediff.data.foreground`
    """

    center: float = 40.0
    width: float = 400.0
    foreground: Rule = "body"

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"Window takes width > 0, got {self.width}.")

    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        return foreground(x, self.foreground)

    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, float]:
        return self.center - self.width / 2, self.center + self.width / 2
