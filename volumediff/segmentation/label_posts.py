"""What is done to a finished segmentation: small pieces, holes, another threshold.

threshold           a label needs a probability, in place of being the most probable one
fitted_threshold    the same, label by label, at what gives the best Dice on validation volumes
largest_component   only the largest piece of each label stays
min_component       pieces of a label below a volume go
fill_holes          background that a label encloses becomes the label

All change the label map alone; probabilities stay as the members gave them.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from volumediff.component import Component
from volumediff.metrics.components import labelled
from volumediff.metrics.mask_dice import mean_dice

__all__ = [
    "FillHoles",
    "FittedThreshold",
    "LabelPost",
    "LargestComponentLabelPost",
    "MinComponentLabelPost",
    "ThresholdLabelPost",
]

Map = UInt8[Tensor, "1 1 d h w"]
Probabilities = Float[Tensor, "1 l d h w"]


@dataclass(frozen=True)
class LabelPost(Component):
    """One step of post-processing."""

    @property
    def needs_fit(self) -> bool:
        """Whether validation volumes have to be looked at before it can be used."""
        return False

    def fit(
        self, cases: Sequence[tuple[Probabilities, Map]], values: tuple[int, ...]
    ) -> "LabelPost":
        """The step with what validation volumes say.

        Arguments:
            cases: probabilities and true label map of each volume
            values: of the labels, in the order of the probabilities
        """
        return self

    @property
    def fitted(self) -> tuple[float, ...]:
        """The numbers that `fit` has found; they are kept in the run."""
        return ()

    def with_fitted(self, numbers: tuple[float, ...]) -> "LabelPost":
        """The step with numbers that `fit` has found before."""
        return self

    @abstractmethod
    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Probabilities,
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        """Another label map.

        Arguments:
            labels: so far
            values: of the labels, in the order of the probabilities
            probabilities: of each label
            spacing_mm: voxel size along d, h, w
        """


@dataclass(frozen=True)
class ThresholdLabelPost(LabelPost):
    """A voxel has the most probable label whose probability reaches the threshold.

    Arguments:
        probability: in (0, 1]; small ones find more, and more that is not there
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"expected probability in (0, 1], got {self.probability}.")

    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Probabilities,
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        best, place = probabilities.max(dim=1, keepdim=True)
        named = torch.tensor(values, dtype=torch.uint8, device=labels.device)[place]
        return torch.where(best >= self.probability, named, torch.zeros_like(named))


@dataclass(frozen=True)
class FittedThreshold(LabelPost):
    """A threshold for each label, where the mean Dice of the validation volumes is best.

    Volumes that have a label neither in truth nor above the threshold do not count for it. Among
    equally good thresholds the one nearest to 0.5 is taken. A voxel where several labels reach
    theirs has the most probable one.

    Arguments:
        levels: thresholds that are tried, in (0, 1]
        at: of each label in the order of the probabilities; None until it is fitted
    """

    levels: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 20))
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ValueError(f"expected levels in (0, 1], at least one, got {list(self.levels)}.")

    @property
    def needs_fit(self) -> bool:
        return self.at is None

    def fit(
        self, cases: Sequence[tuple[Probabilities, Map]], values: tuple[int, ...]
    ) -> "LabelPost":
        found = []
        for i, value in enumerate(values):
            each = {
                level: mean_dice((p[:, i : i + 1] >= level, truth == value) for p, truth in cases)
                for level in self.levels
            }
            found.append(max(self.levels, key=lambda level: (each[level], -abs(level - 0.5))))
        return replace(self, at=tuple(found))

    @property
    def fitted(self) -> tuple[float, ...]:
        return self.at or ()

    def with_fitted(self, numbers: tuple[float, ...]) -> "LabelPost":
        return replace(self, at=numbers)

    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Probabilities,
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        if self.at is None:
            raise ValueError("fitted_threshold: fit it on validation volumes first.")
        levels = torch.tensor(self.at).to(probabilities).view(1, -1, 1, 1, 1)
        reached = torch.where(probabilities >= levels, probabilities, 0.0)
        best, place = reached.max(dim=1, keepdim=True)
        named = torch.tensor(values, dtype=torch.uint8, device=labels.device)[place]
        return torch.where(best > 0, named, torch.zeros_like(named))


@dataclass(frozen=True)
class _Pieces(LabelPost):
    """Some of the pieces of each label stay; voxels touch by faces, edges and corners."""

    @abstractmethod
    def kept(self, sizes: Int[np.ndarray, "n"], voxel_ml: float) -> np.ndarray:
        """Which pieces stay, from their numbers of voxels; there is one at least."""

    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Probabilities,
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        array = labels[0, 0].cpu().numpy().copy()
        for value in values:
            pieces, count = labelled(array == value)
            if count == 0:
                continue
            sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
            stays = np.concatenate([[True], self.kept(sizes, math.prod(spacing_mm) / 1000)])
            array[~stays[pieces]] = 0
        return torch.from_numpy(array)[None, None].to(labels.device)


@dataclass(frozen=True)
class LargestComponentLabelPost(_Pieces):
    """Only the largest piece of each label stays; of equal ones the first."""

    def kept(self, sizes: Int[np.ndarray, "n"], voxel_ml: float) -> np.ndarray:
        stays = np.zeros(len(sizes), dtype=bool)
        stays[int(sizes.argmax())] = True
        return stays


@dataclass(frozen=True)
class MinComponentLabelPost(_Pieces):
    """Pieces of a label below a volume become background.

    Arguments:
        volume_ml: smallest volume that stays
    """

    volume_ml: float

    def __post_init__(self) -> None:
        if not self.volume_ml >= 0:
            raise ValueError(f"expected volume_ml >= 0, got {self.volume_ml}.")

    def kept(self, sizes: Int[np.ndarray, "n"], voxel_ml: float) -> np.ndarray:
        return sizes * voxel_ml >= self.volume_ml


@dataclass(frozen=True)
class FillHoles(LabelPost):
    """Background that a label encloses becomes this label; the first label first."""

    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Probabilities,
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        from scipy.ndimage import binary_fill_holes

        array = labels[0, 0].cpu().numpy().copy()
        for value in values:
            array[binary_fill_holes(array == value) & (array == 0)] = value
        return torch.from_numpy(array)[None, None].to(labels.device)
