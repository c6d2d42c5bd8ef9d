"""Contract of pretexts: a loss of every volume that no label is needed for.

The encoder is the half of a segmentation or diffusion network on the way to its deepest features;
a pretext holds what is learnt beside it and thrown away afterwards. The loss of a sample follows
from the sample, its key and the weights: it depends neither on its batch nor on other processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Gather", "Pretext", "VolumeEncoder"]

Gather = Callable[[Tensor], Tensor]
"""The rows that all processes have, in the order of the samples."""


class VolumeEncoder(nn.Module, ABC):
    """A network as pretexts see it."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b n"]:
        """The mean of the deepest features over each volume, at least in float32."""

    @abstractmethod
    def restored(
        self, x: Float[Tensor, "b c d h w"], hidden: Float[Tensor, "b 1 d h w"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error of the whole network where cells of its volume are hidden.

        Arguments:
            x: volumes
            hidden: 1 where the network does not see the volume and is asked for it
        """


class Pretext(nn.Module, ABC):
    """Something to learn from volumes alone.

    Class attributes:
        decodes: whether it trains the decoder as well
    """

    decodes: ClassVar[bool] = False

    @abstractmethod
    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        """The loss of each volume.

        Arguments:
            encoder: what is trained
            x: volumes in [-1, 1], the background -1
            keys: one per volume, of all that is drawn for it
        """

    def begin(self, encoder: VolumeEncoder) -> None:
        """Makes what depends on the encoder's weights, before the first step."""

    def stepped(self, encoder: VolumeEncoder, share: float, gather: Gather) -> None:
        """Follows an update of the weights.

        Arguments:
            share: of the training that is done, in [0, 1]
            gather: of what the processes have seen since the last update
        """
