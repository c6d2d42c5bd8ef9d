r"""Contract of conditioners: how an image reaches the layers of a network,

.. math:: p = P(x), \qquad (h_i, c_{i+1}) = H_i(h_i, c_i, e), \qquad c_0 = p,

with x the image on the grid of the state, P the image branch, h_i the network's volume at one of a
few places, e the embedding of time and scalars, and c what is carried from place to place. P sees
neither state nor time: it runs once per volume, and a chain of any length reads its result.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._attention import Backend
from volumediff.networks._layers import Conv, NormKind, Triple

__all__ = ["MIDDLE", "STEM", "Body", "Conditioner", "Host", "Place", "Prepared"]

STEM, MIDDLE = "stem", "middle"
Place = int | Literal["stem", "middle"]
"""After the network's first convolution, after a level of its encoder (0 is the finest), or
between the two stages at its bottom."""
Prepared = tuple[Any, ...]
"""Volumes (b, c, d, h, w), in tuples of any depth."""


@dataclass(frozen=True)
class Body:
    """The layers of a network, as far as an image branch resembles them.

    Arguments:
        widths: channels per level, finest first
        blocks: residual blocks per level of the encoder
        norm, groups: see `volumediff.networks._layers.Norm`
        kernel: of the convolutions
        factor: down-sampling per level and axis
        conv: the convolution of the blocks
        plane: whether slices are apart but for the convolutions
        backend: of attention
    """

    widths: tuple[int, ...]
    blocks: int
    norm: NormKind = "group"
    groups: int = 32
    kernel: Triple = (3, 3, 3)
    factor: Triple = (2, 2, 2)
    conv: Callable[..., nn.Module] = Conv
    plane: bool = False
    backend: Backend = "auto"

    @property
    def last(self) -> int:
        """The coarsest level."""
        return len(self.widths) - 1


@dataclass(frozen=True)
class Host:
    """The network that a conditioner is a part of.

    Arguments:
        channels: of the state
        image_channels: of the image, in state space
        embedding: length of e
        body: its layers; None for a network that takes an image beside the state alone
    """

    channels: int
    image_channels: int
    embedding: int
    body: Body | None = None

    @property
    def layers(self) -> Body:
        """The layers of a network that has an image.

        Raises:
            ValueError: there is no image
        """
        assert self.body is not None, "asked of conditioners that are no input alone"
        if not self.image_channels:
            raise ValueError(
                "expected a network with an image condition, got one without; use concat, or a "
                "recipe with an image such as label_diffusion."
            )
        return self.body


class Conditioner(nn.Module):
    """An image branch, and what the network does with its result.

    A concrete class takes a `Host` as the keyword `host`; every other argument is configured.

    Attributes:
        inside: whether it acts within the network, beyond its input
        input_channels: channels that the network's input has more
        places: where `forward` acts
        anchors: whether the image branch alone predicts the clean state, see `anchor`
    """

    inside: ClassVar[bool] = True
    input_channels: int = 0
    places: frozenset[Place] = frozenset()
    anchors: bool = False

    @abstractmethod
    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        """What the network needs of an image, without time and state; the samples are the first
        axis of every volume."""

    @abstractmethod
    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        """The network's volume at one of the places, and what later places are given.

        Arguments:
            carried: what the place before gave, at first what was prepared
            e: embedding of time, class and scalars
        """

    def inputs(self, prepared: Prepared) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        """Volumes that are concatenated to the state."""
        return ()

    def anchor(self, prepared: Prepared) -> Float[Tensor, "b k d h w"] | None:
        """The clean state as the image branch alone predicts it; None where it does not."""
        return None
