"""Whole volumes with a class that an attribute of the case names, hidden at times."""

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe, Subject, Target, class_among, shown, word

__all__ = ["Classed"]


class Classed(Recipe):
    """The volume and its class.

    Sub-classes have the fields `attribute`, `values` in the order of the class index, and `drop`,
    the probability of the null class.
    """

    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete")
    whole: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    attribute: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"expected drop in [0, 1), got {self.drop}.")

    @property
    def classes(self) -> int:
        return len(self.values)

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c,) if self.atlas else ()

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
