r"""Ensembles: one map from several runs, over noise levels and seeds.

Every merge is a generalised mean, a = φ⁻¹(mean_i φ(a_i)), so that maps are summed one by one and
never kept. `Mahalanobis` also keeps the pseudo-healthy volumes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._level import Level, read_levels
from volumediff.component import Component
from volumediff.tunable import Tunable, tunable

__all__ = ["Ensemble", "GeometricMean", "HarmonicMean", "Mahalanobis", "MeanEnsemble"]


@dataclass(frozen=True)
class Ensemble(Component, ABC):
    """Runs of a method and how their maps are merged.

    `weighs` says whether the merged map is weighed by `distance`, for which the pseudo-healthy
    volumes of all runs are kept.

    Arguments:
        levels: noise levels t in (0, 1], instead of the route's own
        log_snrs: the same as log signal-to-noise ratios; give one of the two
        seeds: runs with fresh noise at each level
    """

    weighs: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    seeds: int = 1

    def __post_init__(self) -> None:
        read_levels(self.levels, self.log_snrs)
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}.")

    def members(self) -> list[tuple[Level | None, int]]:
        """Level, or None for the route's own, and seed of each run."""
        levels: list[Level | None] = [*read_levels(self.levels, self.log_snrs)]
        return [(level, seed) for level in levels or [None] for seed in range(self.seeds)]

    @abstractmethod
    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """φ: what is averaged."""

    @abstractmethod
    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """φ⁻¹: from the average back to a map."""

    def distance(
        self,
        x: Float[Tensor, "1 c d h w"],
        volumes: Float[Tensor, "n c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The weight of the merged map, of ensembles that weigh; one everywhere."""
        return torch.ones_like(x[:, :1])


@dataclass(frozen=True)
class MeanEnsemble(Ensemble):
    """Arithmetic mean of the runs' maps: abnormal where any run says so."""

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The map."""
        return a

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The mean."""
        return mean


TINY = 1e-6  # far below the 2^-11 of a map in half precision


@dataclass(frozen=True)
class GeometricMean(Ensemble):
    """Geometric mean of the runs' maps, φ(a) = log a.

    Runs whose maps have other units weigh the same.

    A factor on the map of one run is a factor on the result. Maps are bounded below by `TINY`.
    """

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The logarithm."""
        return a.clamp(min=TINY).log()

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The exponential; zero again where every map is zero."""
        a = mean.exp()
        return a * (a > 1.01 * TINY)


@dataclass(frozen=True)
class HarmonicMean(Ensemble):
    """Harmonic mean of the runs' maps, φ(a) = 1 / a: abnormal only where all runs say so.

    Maps are bounded below by `TINY`, so that one run that finds nothing gives nearly 0, not 1/0.
    """

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The reciprocal."""
        return 1 / a.clamp(min=TINY)

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The reciprocal of the mean reciprocal; zero again where every map is zero."""
        a = 1 / mean
        return a * (a > 2 * TINY)


@dataclass(frozen=True)
class Mahalanobis(Ensemble):
    r"""Arithmetic mean, times how far x is from the distribution of its own reconstructions,

    .. math:: D_v = \sqrt{|(Σ^{-1} δ)_v \cdot δ_v|}, \qquad δ = x - \bar x, \quad
              Σ = \frac{1}{n-1} \sum_i (\hat x_i - \bar x)(\hat x_i - \bar x)^T + λ I,

    over all voxels v and channels of the foreground of one slice, slice by slice along w. What the
    reconstructions do not agree on counts less, and what varies together is counted once. Σ has
    rank n - 1 beside λ I, so that it is inverted in n dimensions (Woodbury) and never formed.

    The published map has D scaled to [0, 1] per volume, which changes no order within it; here it
    keeps its unit. Published is 1 - SSIM of the mean reconstruction as map; here the map of every
    run is averaged. All n pseudo-healthy volumes are kept.

    Arguments:
        levels, log_snrs: see `Ensemble`
        seeds: runs with fresh noise at each level; n is the number of all of them
        ridge: λ

    References:
        Behrendt et al. (2024), Leveraging the Mahalanobis Distance to enhance Unsupervised Brain
        MRI Anomaly Detection, arXiv:2407.12474
    """

    weighs: ClassVar[bool] = True
    seeds: int = 10
    ridge: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.members()) < 2 or not self.ridge > 0:
            raise ValueError(
                f"expected at least 2 runs and ridge > 0, got {len(self.members())} and "
                f"{self.ridge}."
            )

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The map."""
        return a

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The mean."""
        return mean

    def distance(
        self,
        x: Float[Tensor, "1 c d h w"],
        volumes: Float[Tensor, "n c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """D, zero outside the foreground; channels of a voxel are summed."""
        n = len(volumes)
        rest = (volumes - volumes.mean(0)) * foreground
        delta = (x - volumes.mean(0)) * foreground
        r, d = rest.movedim(-1, 0).flatten(2).double(), delta.movedim(-1, 0).flatten(1).double()
        # Σ⁻¹ δ = (δ - Rᵀ (λ (n-1) I + R Rᵀ)⁻¹ R δ) / λ, with the rows of R the reconstructions
        inner = r @ r.mT + self.ridge * (n - 1) * torch.eye(n, dtype=r.dtype, device=r.device)
        explained = torch.linalg.solve(inner, r @ d[:, :, None])
        solved = (d - (r.mT @ explained)[:, :, 0]) / self.ridge
        each = (solved * d).view(x.shape[-1], *x.shape[:-1]).movedim(0, -1)
        return each.sum(1, keepdim=True).abs().sqrt().to(x.dtype)
