"""Where results are written: arrays of a prepared volume, brought to the voxels of the input."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from volumediff.data.preprocessing_record import PreprocessingRecord

__all__ = ["ResultGrid"]


class ResultGrid(ABC):
    """The grid of an input, for arrays of its prepared volume; all results run along R, A, S."""

    record: PreprocessingRecord
    """How the volume was prepared; its native grid is that of the input."""

    @abstractmethod
    def image(
        self, array: Shaped[Tensor, "1 d h w"], *, beyond: float | None = None
    ) -> Float[np.ndarray, "1 od oh ow"]:
        """A map; where the prepared volume does not reach, its lowest value, at most 0.

        Arguments:
            array: the map on the prepared grid
            beyond: another value for where the prepared volume does not reach
        """

    @abstractmethod
    def channels(self, array: Float[Tensor, "c d h w"]) -> Float[np.ndarray, "c od oh ow"]:
        """Normalized channels in the unit of the input; beyond the volume, its background."""

    @abstractmethod
    def label(
        self, array: Bool[Tensor, "1 d h w"] | UInt8[Tensor, "1 d h w"]
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        """Labels, or a mask as 0 and 1."""

    @abstractmethod
    def mask(
        self, array: Bool[Tensor, "1 d h w"], *, volume_ml: float
    ) -> UInt8[np.ndarray, "1 od oh ow"]:
        """A mask of findings as 0 and 1; parts that resampling cut off are no findings.

        Arguments:
            array: the mask on the prepared grid
            volume_ml: smallest volume of a finding on the grid of the input, in millilitres
        """
