"""Contract of predictors: the image is prepared once, then any number of members are asked for."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from volumediff.component import Component
from volumediff.condition import Condition
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw

__all__ = ["Estimate", "Image", "Predictor"]

Estimate = Callable[[Float[Tensor, "n l d h w"], int, int], None]
"""Is told the memberships that step i of n steps thinks of, before the last ones are known."""


@dataclass(frozen=True, eq=False)
class Image:
    """A volume to be labelled.

    Arguments:
        x: as preprocessed for training
        foreground: voxels of the imaged object
        spacing_mm: voxel size along d, h, w
        condition: what else the network is conditioned on
    """

    x: Float[Tensor, "1 c d h w"]
    foreground: Bool[Tensor, "1 1 d h w"]
    spacing_mm: tuple[float, float, float]
    condition: Condition

    def flipped(self, axes: Sequence[int]) -> "Image":
        """The same volume with some of its axes 0 to 2 reversed."""
        dims = [axis + 2 for axis in axes]
        x, foreground = self.x.flip(dims), self.foreground.flip(dims)
        return Image(x, foreground, self.spacing_mm, self.condition)


@dataclass(frozen=True)
class Predictor(Component):
    """A way to ask a trained run for the labels of a volume.

    Class attributes:
        walks: whether it takes a sampler
        draws: whether members with other keys answer differently
    """

    walks: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raises ValueError, with the reason, for a model that it cannot ask."""

    def check_draws(self, model: nn.Module, draws: Sequence[Draw]) -> None:
        """Raises ValueError, with the reason, for members that the model has no answer for."""
        del model, draws  # those whose models have parts look at them

    def check_sampler(self, model: nn.Module, sampler: Sampler) -> None:
        """Raises ValueError, with the reason, for a sampler that cannot walk its states."""
        del model, sampler  # those that walk look at it

    @abstractmethod
    def labels(self, model: nn.Module) -> tuple[int, ...]:
        """The label values that the model tells apart, in the order of the memberships."""

    @abstractmethod
    def prepare(self, model: nn.Module, image: Image) -> Any:
        """What all members share, such as the encoded image; computed once per volume and flip."""

    @abstractmethod
    def memberships(
        self,
        model: nn.Module,
        prepared: Any,
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        """The answer of each member in [0, 1]; it depends on the member alone.

        Arguments:
            model: of the run
            prepared: what `prepare` gave
            draws: members that are asked for at once; their flips are undone by the caller
            sampler: of predictors that walk; None takes their own
            told: is called with what is thought of on the way, by predictors that walk
        """
