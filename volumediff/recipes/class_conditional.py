"""Model of volumes given a class, p(x | class), for guidance without a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from volumediff.recipes._base import word
from volumediff.recipes._classed import Classed

__all__ = ["ClassConditional"]


@dataclass(frozen=True)
class ClassConditional(Classed):
    """The volume and its class, which is hidden at times.

    Arguments:
        attribute: attribute of the case (a column of participants.tsv) that holds the class
        values: its values in the order of the class index; the first is the healthy one
        drop: probability of the null class, Ho and Salimans (2022), arXiv:2207.12598
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    teaches: ClassVar[str] = "class_conditional"
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
        super().__post_init__()

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return word(attributes.get(self.attribute)) == self.values[0]
