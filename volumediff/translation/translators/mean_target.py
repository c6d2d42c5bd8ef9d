"""Baseline: the mean of the training targets, voxel by voxel, whatever the sources are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.translation.translators._base import TranslationPair
from volumediff.translation.translators._baseline import TranslationBaseline

__all__ = ["MeanTarget"]


@dataclass(frozen=True, repr=False)
class MeanTarget(TranslationBaseline):
    """The same volume for everybody: what every translator must beat.

    The volumes of the run must have one shape. They are averaged as they were prepared, so that
    the mean is sharp where they are aligned to a template.

    Arguments:
        mean: of the training targets, as `fit` finds it
    """

    mean: Float[Tensor, "t d h w"] | None = handed_in(None)

    def fit(self, pairs: Iterable[TranslationPair]) -> "MeanTarget":
        total, count = None, 0
        for pair in pairs:
            x = pair.targets.double()
            if total is not None and total.shape != x.shape:
                raise ValueError(
                    f"expected training volumes of one shape, got {tuple(total.shape[1:])} and "
                    f"{tuple(x.shape[1:])}; set data.preprocessing.shape, or use polynomial."
                )
            total = x if total is None else total + x
            count += 1
        if total is None:
            raise ValueError("expected at least one training volume, got none.")
        return replace(self, mean=(total / count).float())

    def draws(
        self,
        model: Model,
        sources: Float[Tensor, "1 s d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        key: int,
        condition: Condition,
    ) -> Iterator[Float[Tensor, "1 t d h w"]]:
        assert self.mean is not None, "fit comes first"
        if self.mean.shape[1:] != sources.shape[2:]:
            raise ValueError(
                f"expected a volume of {tuple(self.mean.shape[1:])} voxels, as the training "
                f"volumes have, got {tuple(sources.shape[2:])}; use polynomial."
            )
        yield self.mean[None].to(sources)

    def __repr__(self) -> str:
        return "MeanTarget()"
