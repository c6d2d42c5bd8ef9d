"""Baselines that learn nothing: every table must be read against them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from volumediff.anomaly._filters import smooth
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.tunable import Tunable, tunable

__all__ = ["Baseline", "IntensityBaseline", "Prevalence", "Smoothing"]


@dataclass(frozen=True, kw_only=True)
class Baseline(Method, ABC):
    """A method that needs no model."""

    section: ClassVar[str | None] = "baseline"

    @abstractmethod
    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The map of a volume, before normalization."""


@dataclass(frozen=True, kw_only=True)
class IntensityBaseline(Baseline):
    """The intensity itself as the map, a = (1 + sign · mean_c x) / 2.

    Bright voxels are abnormal, or dark ones.

    Preprocessing has normalized intensities already, so that they are not equalised once more; the
    order of the voxels of a volume would be the same.

    Arguments:
        sign: 1 for bright lesions (FLAIR), -1 for dark ones

    References:
        Meissen et al. (2021), Challenging Current Semi-Supervised Anomaly Segmentation Methods for
        Brain MRI, arXiv:2109.06023
    """

    sign: Literal[1, -1] = 1

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The intensities in the foreground."""
        a = (1 + self.sign * example.x.mean(dim=1, keepdim=True)) / 2
        return RawLocalization(a * example.foreground, None)


@dataclass(frozen=True, kw_only=True)
class Smoothing(Baseline):
    """Residual of the volume and its Gaussian mean, a = mean_c |x - G_σ x|: no learning at all.

    Arguments:
        sigma_mm: standard deviation σ; tune on validation among 1, 2, 4, 8 mm
    """

    sigma_mm: float = tunable(4.0, Tunable.PARAMETER)

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The residual; the pseudo-healthy volume is the smoothed one, background untouched."""
        healthy = smooth(
            example.x,
            sigma_mm=self.sigma_mm,
            spacing_mm=example.spacing_mm,
            foreground=example.foreground,
        )
        healthy = torch.where(example.foreground, healthy, example.x)
        return RawLocalization((example.x - healthy).abs().mean(dim=1, keepdim=True), healthy)


@dataclass(frozen=True, kw_only=True)
class Prevalence(Baseline):
    """A constant map, whose AP is the share of lesion voxels: the floor of every table."""

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """One in the foreground."""
        return RawLocalization(example.foreground.to(example.x.dtype), None)
