"""Volume scores: one number per volume from its map, for triage."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Excess", "Max", "Mean", "Score", "TopFraction"]


@dataclass(frozen=True)
class Score(ABC):
    """A number from a map; higher means more abnormal."""

    @abstractmethod
    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> float:
        """The score of the foreground."""


@dataclass(frozen=True)
class Mean(Score):
    """Mean over the foreground; dilutes small lesions."""

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> float:
        """The mean."""
        return float(scores[foreground].double().mean())


@dataclass(frozen=True)
class Max(Score):
    """Largest value in the foreground; one voxel decides."""

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> float:
        """The maximum."""
        return float(scores[foreground].max())


@dataclass(frozen=True)
class Excess(Score):
    """Mass of the map above a value, per voxel of the foreground: mean of max(0, a - θ).

    Arguments:
        value: θ, in units of the map
    """

    value: float = 0.0

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> float:
        """The mean excess."""
        return float((scores[foreground].double() - self.value).clamp(min=0).mean())


@dataclass(frozen=True)
class TopFraction(Score):
    """Mean of the highest values in the foreground.

    Arguments:
        fraction: share of the foreground, in (0, 1]; 0.001 of a brain is about 1.4 ml
    """

    fraction: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a share in (0, 1], got {self.fraction}.")

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
    ) -> float:
        """The mean of the top."""
        values = scores[foreground]
        top = values.topk(max(math.ceil(self.fraction * values.numel()), 1)).values
        return float(top.double().mean())
