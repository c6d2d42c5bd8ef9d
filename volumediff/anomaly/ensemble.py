r"""Ensembles: one map from several runs, over noise levels and seeds.

Every merge is a generalised mean, a = φ⁻¹(mean_i φ(a_i)), so that maps are summed one by one and
never kept.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Level, read_levels
from volumediff.tunable import Tunable, tunable

__all__ = ["Ensemble", "GeometricMean", "HarmonicMean", "Mean"]


@dataclass(frozen=True)
class Ensemble(ABC):
    """Runs of a row and how their maps are merged.

    Arguments:
        levels: noise levels t in (0, 1], instead of the route's own
        log_snrs: the same as log signal-to-noise ratios; give one of the two
        seeds: runs with fresh noise at each level
    """

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


@dataclass(frozen=True)
class Mean(Ensemble):
    """Arithmetic mean: abnormal where any run says so."""

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The map."""
        return a

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The mean."""
        return mean


TINY = 1e-6  # far below the 2^-11 of a map in half precision


@dataclass(frozen=True)
class GeometricMean(Ensemble):
    """Geometric mean, φ(a) = log a: runs whose maps have other units weigh the same.

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
    """Harmonic mean, φ(a) = 1 / a: abnormal only where all runs say so.

    Maps are bounded below by `TINY`, so that one run that finds nothing gives nearly 0, not 1/0.
    """

    def forward(self, a: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The reciprocal."""
        return 1 / a.clamp(min=TINY)

    def inverse(self, mean: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The reciprocal of the mean reciprocal; zero again where every map is zero."""
        a = 1 / mean
        return a * (a > 2 * TINY)
