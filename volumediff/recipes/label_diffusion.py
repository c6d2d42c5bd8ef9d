"""Model of label maps given the image, p(m | x): segmentation by sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.recipes._base import Recipe, Subject, Target

__all__ = ["LabelDiffusion"]


@dataclass(frozen=True)
class LabelDiffusion(Recipe):
    r"""The labels coded \pm 1, one channel per class; the image is the condition.

    Arguments:
        labels: label values that get a channel each; the background is where none is +1
        scalars: attributes that condition the model
        absent: code of a voxel without the label, below 1, which is the code of one with it

    References:
        Amit et al. (2021), SegDiff, arXiv:2112.00390
    """

    teaches: ClassVar[str] = "label_diffusion"
    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete")
    needs_labels: ClassVar[bool] = True
    segments: ClassVar[bool] = True
    # Codes of +1 and -1 have unit second moment already, and the image shares the space.
    normalised: ClassVar[bool] = False
    labels: tuple[int, ...] = (1,)
    scalars: tuple[str, ...] = ()
    absent: float = -1.0

    atlas = False

    def __post_init__(self) -> None:
        wrong = [v for v in self.labels if not 1 <= v <= 255]
        if not self.labels or wrong or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                "expected labels that differ, each in 1..255 (the background has no channel of "
                f"its own), got {list(self.labels)}."
            )
        if not self.absent < 1:
            raise ValueError(f"expected absent below 1, got {self.absent}.")

    @property
    def marks(self) -> Literal["full"] | None:  # type: ignore[override]
        """Masks are what codes of 1 and -1 alone are."""
        return "full" if self.absent == -1 else None

    @property
    def classes(self) -> int:
        return 0

    @property
    def codes(self) -> int | None:
        return 2 if self.absent == -1 else None

    @property
    def label_count(self) -> int:
        return len(self.labels)

    def shares(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b l d h w"]:
        return (x - self.absent) / (1 - self.absent)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def channels(self, c: int) -> int:
        return len(self.labels)

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c,)

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        if subject.label is None:
            raise DataError("label diffusion needs a label map for every volume.")
        x = subject.x
        masks = torch.cat([(subject.label == value).to(x.dtype) for value in self.labels])
        return Target((1 - self.absent) * masks + self.absent, (x,))
