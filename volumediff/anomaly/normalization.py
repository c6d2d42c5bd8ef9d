r"""Normalizations: maps in units of what they are on healthy volumes.

Residuals of healthy anatomy are not equal everywhere: cortex and skull base are hard to predict,
white matter is easy. A normalization divides that out, z = (a - μ) / s, with μ and s of healthy
calibration volumes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile, smooth
from volumediff.anomaly.method_input import Spacing
from volumediff.component import Component
from volumediff.tunable import Tunable, tunable

__all__ = [
    "ByIntensity",
    "Normalization",
    "OwnMedian",
    "PresumedHealthy",
    "Raw",
    "Residual",
    "Statistics",
    "Voxelwise",
]

Statistics = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Residual:
    """A map before normalization, with the volume it belongs to.

    Arguments:
        map: the map a
        x: the volume
        foreground: voxels that count
        spacing_mm: voxel size along d, h, w
        errors: mean of the map of each run
        members: of the methods that a fusion combines
    """

    map: Float[Tensor, "1 1 d h w"]
    x: Float[Tensor, "1 c d h w"]
    foreground: Bool[Tensor, "1 1 d h w"]
    spacing_mm: Spacing
    errors: Float[Tensor, "n"] | None = None
    members: tuple["Residual", ...] = ()


@dataclass(frozen=True)
class Normalization(Component, ABC):
    """Healthy statistics of a map, and the map in units of them.

    `fitted` says whether it needs healthy volumes, `recentred` whether the volume's own values
    decide what is usual, so that a map that is higher everywhere is not more abnormal.
    """

    fitted: ClassVar[bool] = True
    recentred: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, residual: Residual) -> Residual:
        """The residual as the statistics are taken of it."""

    @abstractmethod
    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """Statistics of prepared residuals of healthy volumes."""

    @abstractmethod
    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The normalized map of a prepared residual, zero outside the foreground."""


@dataclass(frozen=True)
class Raw(Normalization):
    """No normalization: the map in its own unit."""

    fitted: ClassVar[bool] = False

    def prepare(self, residual: Residual) -> Residual:
        """The residual as it is."""
        return residual

    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return residual.map


@dataclass(frozen=True)
class OwnMedian(Normalization):
    r"""The map in units of its own spread in the volume, without any healthy volume,

    .. math:: z = \frac{a - m}{1.4826\, \operatorname{med}|a - m|}, \qquad
              m = \operatorname{med}(a)

    over the foreground; 1.4826 makes the unit the deviation of a normal distribution. What is less
    than half of the foreground moves neither by much. A map of which more than half is one value
    has no spread, and is divided by 1.

    References:
        Rousseeuw and Croux (1993), Alternatives to the Median Absolute Deviation, JASA 88:1273
    """

    fitted: ClassVar[bool] = False
    recentred: ClassVar[bool] = True

    def prepare(self, residual: Residual) -> Residual:
        """The residual as it is."""
        return residual

    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The deviation from the volume's own median."""
        a, inside = residual.map, residual.foreground
        middle = inside_quantile(a, 0.5, foreground=inside)
        spread = 1.4826 * inside_quantile((a - middle).abs(), 0.5, foreground=inside)
        return (a - middle) / (spread if spread > 0 else 1.0) * inside


@dataclass(frozen=True)
class PresumedHealthy(Normalization):
    r"""Another normalization, recentred and rescaled on the part of the volume presumed healthy.

    Volumes of another scanner deviate everywhere. With z in units of the healthy volumes, the
    lowest share q of the volume's own values is presumed healthy, a normal distribution cut at its
    quantile c = Φ⁻¹(q), whose mean and deviation without the cut are

    .. math:: s = \frac{\operatorname{std}(z | H)}{\sqrt{1 - c λ - λ^2}}, \qquad
              μ = \operatorname{mean}(z | H) + λ s, \qquad λ = φ(c) / q,

    and the map is (z - μ) / s. A lesion of more than 1 - q of the foreground is partly taken for
    healthy.

    Arguments:
        inner: the normalization by healthy volumes
        share: q, in (0, 1)
    """

    recentred: ClassVar[bool] = True
    inner: Normalization = field(default_factory=lambda: ByIntensity())
    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a share in (0, 1), got {self.share}.")
        if not self.inner.fitted:
            raise ValueError(
                "inner: expected a normalization by healthy volumes, such as by_intensity, got "
                f"{type(self.inner).__name__}; use own_median for the map of the volume alone."
            )

    def prepare(self, residual: Residual) -> Residual:
        """As the inner normalization wants it."""
        return self.inner.prepare(residual)

    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """The statistics of the inner normalization."""
        return self.inner.fit(residuals)

    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The deviation from the volume's presumed-healthy part."""
        z, inside = self.inner(residual, statistics), residual.foreground
        values = z[inside].double()
        count = max(round(self.share * values.numel()), 1)
        low = values.sort().values[:count]
        normal = NormalDist()
        cut = normal.inv_cdf(self.share)
        ratio = normal.pdf(cut) / self.share
        s = float(low.std(correction=0)) / math.sqrt(1 - cut * ratio - ratio**2)
        mean = float(low.mean()) + ratio * s
        return ((z - mean) / (s if s > 0 else 1.0)).to(z.dtype) * inside


@dataclass(frozen=True)
class Voxelwise(Normalization):
    r"""Deviation from the healthy map at the same place, for aligned volumes on one grid.

    .. math:: z = (G_σ a - μ) / (s + δ\, \mathrm{median}(s))

    with the mean μ and deviation s of the smoothed healthy maps at each voxel, s² pooled over a
    neighbourhood, since ten volumes say little about one voxel. Voxels that fewer than two
    healthy volumes have in their foreground take the medians of μ and s. Without alignment use
    `by_intensity`.

    Arguments:
        sigma_mm: smoothing σ of the map before anything else
        pool_mm: standard deviation of the neighbourhood over which s² is pooled
        floor: share δ of the median deviation that is added to s
    """

    sigma_mm: float = tunable(3.0, Tunable.WIDTH)
    pool_mm: float = 3.0
    floor: float = 0.1

    def prepare(self, residual: Residual) -> Residual:
        """The residual, smoothed."""
        return _smoothed(residual, self.sigma_mm)

    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """Mean and deviation at every voxel of the common grid."""
        first = residuals[0].map
        count, sums, squares = (torch.zeros_like(first, dtype=torch.float64) for _ in range(3))
        for r in residuals:
            _same_grid(tuple(r.map.shape), tuple(first.shape))
            a = r.map.double()
            count += r.foreground
            sums += a
            squares += a.square()
        n = count.clamp(min=1)
        mean = sums / n
        variance = (squares / n - mean.square()).clamp(min=0) * n / (n - 1).clamp(min=1)
        known = count > 1
        if not bool(known.any()):
            raise ValueError(
                "calibration voxelwise: expected at least two healthy volumes with a common "
                f"foreground, got {len(residuals)}; add volumes, or use by_intensity."
            )
        variance = smooth(
            variance, sigma_mm=self.pool_mm, spacing_mm=residuals[0].spacing_mm, foreground=known
        )
        std = variance.sqrt()
        middle = inside_quantile(std, 0.5, foreground=known)
        std = torch.where(known, std, middle)
        mean = torch.where(known, mean, inside_quantile(mean, 0.5, foreground=known))
        return {"mean": mean.float(), "unit": _unit(std, middle, mean, self.floor)}

    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The deviation in healthy units."""
        mean, unit = (statistics[n].to(residual.map.device) for n in ("mean", "unit"))
        _same_grid(tuple(residual.map.shape), tuple(mean.shape))
        return (residual.map - mean) / unit * residual.foreground


def _smoothed(r: Residual, sigma_mm: float) -> Residual:
    a = smooth(r.map, sigma_mm=sigma_mm, spacing_mm=r.spacing_mm, foreground=r.foreground)
    return replace(r, map=a)


def _unit(std: Tensor, middle: float, mean: Tensor, floor: float) -> Tensor:
    # healthy maps that are equal up to rounding have no deviation: the unit is that of the map
    varies = middle > 1e-6 * float(mean.abs().max())
    return (std + (floor * middle if varies else 1.0)).float()


def _same_grid(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(
            f"calibration voxelwise: expected a map of shape {expected[2:]} as in the other "
            f"volumes, got {shape[2:]}; bring volumes to one grid, or use by_intensity."
        )


@dataclass(frozen=True)
class ByIntensity(Normalization):
    r"""Deviation from the healthy map at the same intensity, for volumes that are not aligned.

    .. math:: z = (G_σ a - μ_j) / (s_j + δ\, \mathrm{median}(s))

    where j is the bin of the voxel's own intensity (mean over channels). Bins hold equal shares
    of the healthy foreground, so that they follow the tissues; brighter than healthy falls into
    the last bin.

    Arguments:
        sigma_mm: smoothing σ of the map before anything else
        bins: number of intensity bins
        floor: share δ of the median deviation that is added to s
    """

    sigma_mm: float = tunable(3.0, Tunable.WIDTH)
    bins: int = 16
    floor: float = 0.1

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ValueError(f"bins: expected a positive number of bins, got {self.bins}.")

    def prepare(self, residual: Residual) -> Residual:
        """The residual, smoothed."""
        return _smoothed(residual, self.sigma_mm)

    def fit(self, residuals: Sequence[Residual]) -> dict[str, Tensor]:
        """Edges of the bins, mean and deviation in each."""
        edges = self._edges(residuals)
        count, sums, squares = (torch.zeros(self.bins, dtype=torch.float64) for _ in range(3))
        for r in residuals:
            a = r.map[r.foreground].double().cpu()
            j = self._bin(r, edges)[r.foreground].cpu()
            count += torch.bincount(j, minlength=self.bins)
            sums += torch.bincount(j, weights=a, minlength=self.bins)
            squares += torch.bincount(j, weights=a.square(), minlength=self.bins)
        n = count.clamp(min=1)
        mean = sums / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        middle = float(std[count > 0].median())
        unit = _unit(std, middle, mean, self.floor)
        return {"edges": edges, "mean": mean.float(), "unit": unit}

    def __call__(self, residual: Residual, statistics: Statistics) -> Float[Tensor, "1 1 d h w"]:
        """The deviation in healthy units."""
        a = residual.map
        j = self._bin(residual, statistics["edges"])
        mean, unit = (statistics[n].to(a.device)[j] for n in ("mean", "unit"))
        return (a - mean) / unit * residual.foreground

    def _edges(self, residuals: Sequence[Residual]) -> Tensor:
        # quantiles of the pooled intensities, from at most about 10^5 voxels per volume
        samples = []
        for r in residuals:
            v = r.x.mean(dim=1, keepdim=True)[r.foreground]
            samples.append(v[:: max(v.numel() // 100_000, 1)].float().cpu())
        v = torch.cat(samples).numpy()
        if v.size == 0:
            raise ValueError("calibration by_intensity: expected a foreground, got none.")
        levels = np.linspace(0, 1, self.bins + 1)[1:-1]
        return torch.from_numpy(np.quantile(v, levels).astype(np.float32))

    def _bin(self, r: Residual, edges: Tensor) -> Tensor:
        v = r.x.mean(dim=1, keepdim=True).float().contiguous()
        return torch.bucketize(v, edges.to(v.device), right=True)
