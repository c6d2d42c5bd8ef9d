r"""From a scanner's numbers to about [-1, 1], and back.

Most rules find two limits per channel and volume; then

.. math:: y = \operatorname{clip}\left(2\,\frac{x - \text{low}}{\text{high} - \text{low}} - 1,
          -1, 1\right)

inside the foreground and y = -1 outside. The inverse is the affine map without the clip: what was
clipped comes back as the limit. `Histogram` finds more limits, and is linear between them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.foreground import Rule, foreground

__all__ = ["HistogramIntensity", "Intensity", "Percentile", "Window", "ZScore", "landmarks_of"]

BACKGROUND = -1.0


class Intensity(ABC):
    """How intensities are normalized: a foreground, and limits that make a volume's map.

    Attributes:
        hounsfield: whether the numbers of the file must be Hounsfield units
    """

    hounsfield: ClassVar[bool] = False

    @abstractmethod
    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        """The foreground of one channel."""

    @abstractmethod
    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, ...]:
        """The intensities that become -1 and 1, the first and the last, and those between that
        the rule has values for."""

    @abstractmethod
    def apply(
        self,
        x: Float[np.ndarray, "d h w"],
        mask: Bool[np.ndarray, "d h w"],
        *,
        limits: tuple[float, ...],
        channel: int = 0,
    ) -> Float[np.ndarray, "d h w"]:
        """Normalized intensities, -1 outside the foreground.

        Arguments:
            limits: of this volume
            channel: which of the case's; rules that are fitted know them apart
        """

    @abstractmethod
    def invert(
        self, y: Float[np.ndarray, "d h w"], *, limits: tuple[float, ...], channel: int = 0
    ) -> Float[np.ndarray, "d h w"]:
        """Intensities in the file's own unit."""

    def of_channels(self, numbers: Sequence[int]) -> "Intensity":
        """The rule for volumes that hold these channels alone, in this order."""
        return self

    @property
    def unitless(self) -> tuple[float, ...]:
        """Limits for volumes that no file stands behind: from 0 to 1, or in the rule's own unit
        where it has one, as CT does."""
        nothing = np.zeros((1, 1, 1), np.float32)
        return self.limits(nothing, nothing > 0)


class LinearIntensity(Intensity):
    """Two limits, and the line through them."""

    def apply(
        self,
        x: Float[np.ndarray, "d h w"],
        mask: Bool[np.ndarray, "d h w"],
        *,
        limits: tuple[float, ...],
        channel: int = 0,
    ) -> Float[np.ndarray, "d h w"]:
        low, high = limits
        y = np.clip(2 * (x - np.float32(low)) / np.float32(high - low) - 1, -1, 1)
        return np.where(mask, y, np.float32(BACKGROUND)).astype(np.float32)

    def invert(
        self, y: Float[np.ndarray, "d h w"], *, limits: tuple[float, ...], channel: int = 0
    ) -> Float[np.ndarray, "d h w"]:
        low, high = limits
        return (np.float32(low) + (y + 1) * np.float32((high - low) / 2)).astype(np.float32)


def _ordered(low: float, high: float) -> tuple[float, float]:
    """A constant foreground gets a width of one, so that it becomes -1 and not NaN."""
    return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True)
class Percentile(LinearIntensity):
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
class ZScore(LinearIntensity):
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
class Window(LinearIntensity):
    """Fixed limits centre ± width/2 in HU, the same for every volume; for CT.

    Arguments:
        center: for example 40 (soft tissue), 35 (brain), -600 (lung)
        width: for example 400, 80, 1500
        foreground: rule of `volumediff.data.foreground`
    """

    hounsfield: ClassVar[bool] = True

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


@dataclass(frozen=True)
class HistogramIntensity(Intensity):
    r"""Percentiles of the foreground go to the mean ones of the training set (Nyúl's landmarks).

    For MRI of several scanners, whose tone curves differ:

    .. math:: \ell_k = \frac{1}{N} \sum_{i=1}^{N}
              \left(2\,\frac{p_{ik} - p_{i1}}{p_{iK} - p_{i1}} - 1\right), \qquad
              p_k \mapsto \ell_k

    and linear between the percentiles p of a volume; beyond the first and the last it is -1 and 1.
    The map rises with the intensity, so that only the tone curve of the scanner is undone. What
    fills more of the foreground than there is between two percentiles shifts them: a large bright
    lesion comes out darker than it is. Fewer percentiles are safer and undo less.

    Arguments:
        percentiles: increasing, in [0, 100]; the first and the last become -1 and 1
        foreground: rule of `volumediff.data.foreground`
        landmarks: per channel one value in [-1, 1] for each percentile, as `landmarks_of` finds
            them; () as long as nothing is fitted

    References:
        Nyúl and Udupa (1999), On standardizing the MR image intensity scale, MRM 42:1072.
        Nyúl, Udupa and Zhang (2000), New variants of a method of MRI scale standardization,
        IEEE TMI 19:143.
    """

    percentiles: tuple[float, ...] = (0.5, *(10.0 * i for i in range(1, 10)), 99.9)
    foreground: Rule = "auto"
    landmarks: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        p = np.asarray(self.percentiles, np.float64)
        if len(p) < 2 or not 0 <= p[0] or not p[-1] <= 100 or not (np.diff(p) > 0).all():
            raise ValueError(
                "Histogram takes two or more increasing percentiles in [0, 100], got "
                f"{self.percentiles}."
            )
        for values in self.landmarks:
            ends = (values[0], values[-1]) if values else ()
            if len(values) != len(p) or ends != (-1, 1) or not (np.diff(values) >= 0).all():
                raise ValueError(
                    f"Histogram takes {len(p)} landmarks that rise from -1 to 1, got {values}."
                )

    def mask(self, x: Float[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
        return foreground(x, self.foreground)

    def limits(
        self, x: Float[np.ndarray, "d h w"], mask: Bool[np.ndarray, "d h w"]
    ) -> tuple[float, ...]:
        if not mask.any():
            return tuple(np.linspace(0.0, 1.0, len(self.percentiles)).tolist())
        return tuple(np.percentile(x[mask].astype(np.float64), self.percentiles).tolist())

    def apply(
        self,
        x: Float[np.ndarray, "d h w"],
        mask: Bool[np.ndarray, "d h w"],
        *,
        limits: tuple[float, ...],
        channel: int = 0,
    ) -> Float[np.ndarray, "d h w"]:
        y = np.full(x.shape, BACKGROUND, np.float32)
        y[mask] = _through(limits, self._landmarks(channel), x[mask])
        return y

    def invert(
        self, y: Float[np.ndarray, "d h w"], *, limits: tuple[float, ...], channel: int = 0
    ) -> Float[np.ndarray, "d h w"]:
        return _through(self._landmarks(channel), limits, y).astype(np.float32)

    def of_channels(self, numbers: Sequence[int]) -> "HistogramIntensity":
        return replace(self, landmarks=tuple(self._landmarks(i) for i in numbers))

    def _landmarks(self, channel: int) -> tuple[float, ...]:
        if not channel < len(self.landmarks):
            raise ValueError(
                f"Histogram has landmarks of {len(self.landmarks)} channels, got channel "
                f"{channel + 1}; give volumes with the channels of the training set."
            )
        return self.landmarks[channel]


def landmarks_of(limits: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """The landmarks of `Histogram` for one channel.

    Arguments:
        limits: of each training volume

    Raises:
        ValueError: a volume whose first and last percentile are equal
    """
    p = np.asarray(limits, np.float64)
    first, last = p[:, :1], p[:, -1:]
    if not (last > first).all():
        raise ValueError("expected foregrounds with more than one intensity.")
    values = (2 * (p - first) / (last - first) - 1).mean(0)
    return (-1.0, *values[1:-1].tolist(), 1.0)


def _through(
    points: Sequence[float], values: Sequence[float], x: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Linear between points, constant beyond; equal points have the mean of their values."""
    places, index = np.unique(points, return_inverse=True)
    means = np.bincount(index, values) / np.bincount(index)
    return np.interp(x, places, means)
