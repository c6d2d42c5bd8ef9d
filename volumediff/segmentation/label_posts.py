"""What is done to a finished segmentation: small pieces, holes, another threshold.

threshold           a label needs a probability, in place of being the most probable one
largest_component   only the largest piece of each label stays
min_component       pieces of a label below a volume go
fill_holes          background that a label encloses becomes the label

All change the label map alone; probabilities stay as the members gave them.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from volumediff.component import Component
from volumediff.metrics.components import labelled

__all__ = [
    "FillHoles",
    "LabelPost",
    "LargestComponentLabelPost",
    "MinComponentLabelPost",
    "ThresholdLabelPost",
]

Map = UInt8[Tensor, "1 1 d h w"]


@dataclass(frozen=True)
class LabelPost(Component):
    """One step of post-processing."""

    @abstractmethod
    def __call__(
        self,
        labels: Map,
        *,
        values: tuple[int, ...],
        probabilities: Float[Tensor, "1 l d h w"],
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
        probabilities: Float[Tensor, "1 l d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        best, place = probabilities.max(dim=1, keepdim=True)
        named = torch.tensor(values, dtype=torch.uint8, device=labels.device)[place]
        return torch.where(best >= self.probability, named, torch.zeros_like(named))


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
        probabilities: Float[Tensor, "1 l d h w"],
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
        probabilities: Float[Tensor, "1 l d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Map:
        from scipy.ndimage import binary_fill_holes

        array = labels[0, 0].cpu().numpy().copy()
        for value in values:
            array[binary_fill_holes(array == value) & (array == 0)] = value
        return torch.from_numpy(array)[None, None].to(labels.device)
