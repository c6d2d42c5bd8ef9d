"""Contract of translators: source channels in, draws of the target channels out.

A translator may ask the run's network, or learn from pairs of the run's training volumes alone, as
baselines do.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.condition import Condition
from volumediff.model import Model

__all__ = ["TranslationPair", "Translator"]


@dataclass(frozen=True, eq=False)
class TranslationPair:
    """A training volume, taken apart.

    Arguments:
        sources: channels that are given, in [-1, 1]
        targets: channels that are to be drawn, in [-1, 1]
        foreground: voxels of the imaged object
    """

    sources: Float[Tensor, "s d h w"]
    targets: Float[Tensor, "t d h w"]
    foreground: Bool[Tensor, "1 d h w"]


class Translator(ABC):
    """A method that makes target channels of source channels.

    Attributes:
        learns: whether it has to see the run's training volumes first
    """

    learns: ClassVar[bool] = False

    def fit(self, pairs: Iterable[TranslationPair]) -> "Translator":
        """The translator with what it has learned; one that learns nothing is itself.

        Arguments:
            pairs: training volumes, each looked at once

        Raises:
            ValueError: the volumes do not suit it, or there are none
        """
        return self

    @abstractmethod
    def check(self, model: Model) -> None:
        """Raises ValueError, with the reason, for a model that it cannot ask."""

    @abstractmethod
    def draws(
        self,
        model: Model,
        sources: Float[Tensor, "1 s d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        key: int,
        condition: Condition,
    ) -> Iterator[Float[Tensor, "1 t d h w"]]:
        """One or more target volumes, in about [-1, 1]; the same arguments give the same bits.

        Arguments:
            model: of the run, in evaluation mode
            sources: as prepared for training
            foreground: voxels of the imaged object
            key: of everything that is drawn
            condition: what else the network is conditioned on
        """
