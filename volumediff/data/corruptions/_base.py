"""Contract of corruptions: a keyed change of a healthy volume."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Corruption"]


@dataclass(frozen=True)
class Corruption(ABC):
    """A keyed change of a healthy volume, and how much of it is where.

    Class attributes:
        kind: family of the change; methods name the kind that they are about
        distracts: whether it also changes what is no anomaly, or is none that can be seen, where
            the amount stays 0
    """

    kind: ClassVar[str] = ""
    distracts: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The changed volume, and the amount in [0, 1], 0 where no anomaly is.

        Arguments:
            x: healthy volume, intensities in [-1, 1]
            foreground: where changes may be
            donor: key -> another volume of the same shape
            spacing_mm: voxel size along d, h, w
            key: everything random is a function of it

        Raises:
            ValueError: there is no foreground
        """
