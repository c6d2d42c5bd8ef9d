"""Contract of segmentation methods: a trained run and a volume in, labels and their spread out.

The usual method is `composed`, made of parts in one YAML; another one is a class of this contract,
in this folder or `package.module:Class`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.segmentation.result import Segmentation

__all__ = ["Segmenter"]


class Segmenter(ABC):
    """A method that segments with the result of a trained run."""

    @property
    def needs_fit(self) -> bool:
        """Whether it has to see labelled validation volumes before it can be used."""
        return False

    def fit(self, cases: Sequence[tuple[Segmentation, UInt8[Tensor, "1 1 d h w"]]]) -> "Segmenter":
        """The method with what validation volumes say.

        Arguments:
            cases: what the method finds as it is, and the true label map
        """
        return self

    @property
    def fitted(self) -> tuple[tuple[float, ...], ...]:
        """The numbers that `fit` has found, part by part; they are kept in the run."""
        return ()

    def with_fitted(self, numbers: tuple[tuple[float, ...], ...]) -> "Segmenter":
        """The method with numbers that `fit` has found before."""
        return self

    @abstractmethod
    def check(self, model: nn.Module) -> None:
        """Raises ValueError, with the reason, for a model with which the method is meaningless."""

    @abstractmethod
    def segment(
        self,
        model: nn.Module,
        x: Float[Tensor, "1 c d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        spacing_mm: tuple[float, float, float],
        key: int,
        condition: Condition = Condition(),  # noqa: B008 - frozen and empty
    ) -> Segmentation:
        """Segments one volume; the same arguments give the same bits.

        Arguments:
            model: what the run's task trains, in evaluation mode
            x: the volume, as preprocessed for training
            foreground: voxels of the imaged object
            spacing_mm: voxel size along d, h, w
            key: of everything that is drawn
            condition: what else the network is conditioned on
        """
