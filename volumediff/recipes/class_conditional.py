"""Model of volumes given a class, p(x | class), for guidance without a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe, Subject, Target, class_among, shown, word

__all__ = ["ClassConditional"]


@dataclass(frozen=True)
class ClassConditional(Recipe):
    """The volume and its class, which is hidden at times.

    Arguments:
        attribute: attribute of the case (a column of participants.tsv) that holds the class
        values: its values in the order of the class index; the first is the healthy one
        drop: probability of the null class, Ho and Salimans (2022), arXiv:2207.12598
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    teaches: ClassVar[str] = "class_conditional"
    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete")
    whole: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    attribute: str
    values: tuple[str, ...]
    drop: float = 0.1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(
                f"expected at least two values, healthy first, got {list(self.values)}."
            )
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
        return word(attributes.get(self.attribute)) == self.values[0]

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
