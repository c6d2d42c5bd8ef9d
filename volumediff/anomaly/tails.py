r"""Tails: from the map of a method to the probability of a value as high as that by chance.

With p = P(A ≥ a) the surprise of a voxel is -log p: 0 for the most usual value, without unit, and
comparable between methods. What A is drawn from is what the tails differ in: the maps of healthy
volumes, or the map of the volume itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import smooth
from volumediff.anomaly.method_input import Spacing
from volumediff.component import Component
from volumediff.metrics.detection import Histogram

__all__ = ["HealthyTail", "OwnRanks", "Tail"]

# Steps of the stored surprise: p is exact to half a per cent.
STEP = 0.005


@dataclass(frozen=True)
class Tail(Component, ABC):
    """The surprise -log P(A ≥ a) of every voxel of the foreground.

    `fitted` says whether it needs the maps of healthy volumes.

    Arguments:
        sigma_mm: Gaussian smoothing σ of the surprise over the foreground; 0 for none
    """

    fitted: ClassVar[bool] = False
    sigma_mm: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigma_mm >= 0:
            raise ValueError(f"sigma_mm: expected at least 0 mm, got {self.sigma_mm}.")

    @abstractmethod
    def fit(self, healthy: Histogram) -> dict[str, Tensor]:
        """What is needed of the maps of healthy volumes, pooled over voxels."""

    @abstractmethod
    def surprise(
        self, values: Float[Tensor, "n"], statistics: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        """-log p of the values of one volume, float64, from 0 on."""

    def __call__(
        self,
        a: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: Spacing,
        statistics: Mapping[str, Tensor],
    ) -> Float[Tensor, "n"]:
        """-log p of the voxels of the foreground, smoothed.

        Arguments:
            a: finished map of a method
            foreground: voxels that count
            spacing_mm: voxel size along d, h, w
            statistics: of `fit`
        """
        found = self.surprise(a[foreground], statistics)
        if self.sigma_mm == 0:
            return found
        whole = torch.zeros_like(a, dtype=torch.float64)
        whole[foreground] = found
        wide = smooth(whole, sigma_mm=self.sigma_mm, spacing_mm=spacing_mm, foreground=foreground)
        return wide[foreground]


@dataclass(frozen=True)
class HealthyTail(Tail):
    r"""Against the maps of healthy calibration volumes, pooled over voxels,

    .. math:: p(a) = \frac{1 + \#\{a_h \ge a\}}{1 + n},

    never zero (Phipson and Smyth, 2010). Values above all healthy ones have one and the same p, of
    1 / (1 + n). To the resolution of a histogram's bin; p is stored in steps of half a per cent.

    Arguments:
        sigma_mm: Gaussian smoothing σ of the surprise over the foreground; 0 for none

    References:
        Phipson and Smyth (2010), Permutation P-values should never be zero, arXiv:1603.05766
    """

    fitted: ClassVar[bool] = True

    def fit(self, healthy: Histogram) -> dict[str, Tensor]:
        """Lower edges of intervals, and the surprise in each.

        Raises:
            ValueError: no healthy voxels
        """
        n = int(healthy.healthy.sum())
        if n == 0:
            raise ValueError("tail healthy: expected healthy voxels, got none.")
        # p changes at the lower and, with no healthy values beyond, at the upper end of each bin
        keys = np.union1d(healthy.keys, healthy.keys + 1)
        least = np.searchsorted(healthy.keys, keys)
        above = np.append(np.cumsum(healthy.healthy[::-1])[::-1], 0)[least]
        ends = Histogram(keys, above, above).edges
        surprise = np.log1p(n) - np.log1p(above)
        first = np.flatnonzero(np.diff(np.floor(surprise / STEP), prepend=-1.0))
        return {
            "edges": torch.from_numpy(ends[first].copy()),
            "surprise": torch.from_numpy(surprise[first].copy()),
        }

    def surprise(
        self, values: Float[Tensor, "n"], statistics: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        """-log p; what is below all healthy values has p = 1."""
        edges, steps = (statistics[n].to(values.device) for n in ("edges", "surprise"))
        index = torch.bucketize(values.float().contiguous(), edges, right=True)
        return torch.cat([steps.new_zeros(1), steps])[index]


@dataclass(frozen=True)
class OwnRanks(Tail):
    r"""Within the volume itself, :math:`p(a) = \#\{a' \ge a\} / n` over its foreground.

    No rising transform of the map changes it, and no healthy volume is needed; the same share of
    every volume is surprising, healthy ones included.

    Arguments:
        sigma_mm: Gaussian smoothing σ of the surprise over the foreground; 0 for none
    """

    def fit(self, healthy: Histogram) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def surprise(
        self, values: Float[Tensor, "n"], statistics: Mapping[str, Tensor]
    ) -> Float[Tensor, "n"]:
        """-log p; equal values have equal p."""
        below = torch.searchsorted(values.sort().values, values.contiguous())
        n = values.numel()
        return -torch.log((n - below).double() / n)
