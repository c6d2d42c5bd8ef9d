"""Model of healthy volumes given what kind of scan they are, p(x | modality)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe, Subject, Target, class_among, shown, word

__all__ = ["ModalityConditional"]


@dataclass(frozen=True)
class ModalityConditional(Recipe):
    """The volume and its modality, such as a contrast of MRI, which is hidden at times.

    Unlike the classes of `class_conditional` these say nothing about health: methods for models
    of healthy volumes take such a checkpoint, conditioned on its first modality.

    Arguments:
        attribute: attribute of the case (a column of participants.tsv) that names the modality
        values: the modalities; the first is that of the volumes in which anomalies are localized
        drop: probability of no modality, Ho and Salimans (2022), arXiv:2207.12598
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    compares: ClassVar[bool] = False
    teaches: ClassVar[str] = "healthy"
    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete")
    whole: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    values: tuple[str, ...]
    attribute: str = "modality"
    drop: float = 0.1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"expected different modalities, got {list(self.values)}.")
        if not 0 <= self.drop < 1:
            raise ValueError(f"expected drop in [0, 1), got {self.drop}.")

    @property
    def classes(self) -> int:
        return len(self.values)

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c,) if self.atlas else ()

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def class_of(self, attributes: Mapping[str, str | float]) -> int | None:
        value = attributes.get(self.attribute)
        return None if value is None else class_among(self.values, self.attribute, value)

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        value = subject.attributes.get(self.attribute)
        try:
            index = class_among(self.values, self.attribute, word(value))
        except ValueError as error:
            raise DataError(f"{error}; correct participants.tsv or recipe.values.") from None
        dropped = uniform(key, "drop") < self.drop
        return Target(subject.x, shown(self, atlas), self.classes if dropped else index)
