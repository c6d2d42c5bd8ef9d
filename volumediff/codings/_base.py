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
        grouped: whether there is one channel per class, the background included, of which every
            voxel has one
    """

    grouped: ClassVar[bool] = False

    @abstractmethod
    def channels(self, labels: int) -> int:
        """Channels for so many labels."""

    def classes(self, labels: int) -> int | None:
        """K of the discrete kernels that can flip clean codes, which are -1 and 1 alone; None
        where codes are others."""
        return None

    def unions(self, labels: int) -> tuple[tuple[int, ...], ...]:
        """The labels, counted from 1, of the region that each of the shares is about; a label
        each, where there are no regions."""
        return tuple((i,) for i in range(1, labels + 1))

    @abstractmethod
    def shares(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n l d h w"]:
        """Memberships for losses: differentiable everywhere, with no label looking at another.

        At clean codes above 1/2 inside of a label, or of the region that is its channel, and
        below outside; they may leave [0, 1].
        """

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
