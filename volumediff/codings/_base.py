r"""Contract of codings: masks of l labels in, channels of about unit second moment out, and back.

Masks are exclusive: a voxel has one label or none. Reading back gives memberships
:math:`y_1 \dots y_l` in [0, 1] with :math:`\sum_i y_i \le 1`; what is missing from one is the
background's. Clean codes come back as the masks that they were made of.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Coding"]


@dataclass(frozen=True)
class Coding(ABC):
    """A map between masks and channels.

    Class attributes:
        binary: whether clean codes are -1 and 1 alone, so that discrete kernels can flip them
        exclusive: whether channels are the classes of a voxel, the background first, one of them
            1: what a softmax stands for
    """

    binary: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False

    @abstractmethod
    def channels(self, labels: int) -> int:
        """Channels for so many labels."""

    @abstractmethod
    def encode(
        self, masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "c d h w"]:
        """The float32 code of exclusive masks.

        Arguments:
            masks: where each label is
            spacing_mm: voxel size along d, h, w
        """

    @abstractmethod
    def decode(
        self, x: Float[Tensor, "n c d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "n l d h w"]:
        """Memberships of the labels from codes, clean or in between."""
