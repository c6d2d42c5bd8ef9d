"""Model of healthy volumes given what kind of scan they are, p(x | modality)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from volumediff.recipes._classed import Classed

__all__ = ["ModalityConditional"]


@dataclass(frozen=True)
class ModalityConditional(Classed):
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
    values: tuple[str, ...]
    attribute: str = "modality"
    drop: float = 0.1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) < len(self.values):
            raise ValueError(f"expected different modalities, got {list(self.values)}.")
        super().__post_init__()

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True
