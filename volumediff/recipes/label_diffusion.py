"""Model of label maps given the image, p(m | x): segmentation by sampling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.codings._base import Coding
from volumediff.codings.signed import Signed
from volumediff.errors import DataError
from volumediff.raters import MajorityRater, Rater
from volumediff.recipes._base import Recipe, Subject, Target

__all__ = ["LabelDiffusion"]


@dataclass(frozen=True)
class LabelDiffusion(Recipe):
    """The labels of a volume in a code; the image is the condition.

    Arguments:
        labels: label values that are learnt; all others are background
        coding: what masks become
        raters: whose labels are learnt, where several readers have labelled
        scalars: attributes that condition the model
        ignored: label values of voxels that nobody has judged, such as `ignore` of nnU-Net: no
            loss looks there. Noisy states show background there, as whole volumes need a state

    References:
        Amit et al. (2021), SegDiff, arXiv:2112.00390
    """

    teaches: ClassVar[str] = "label_diffusion"
    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete", "rigid")
    needs_labels: ClassVar[bool] = True
    segments: ClassVar[bool] = True
    # Codes have about unit second moment already, and the image shares the space.
    normalised: ClassVar[bool] = False
    labels: tuple[int, ...] = (1,)
    coding: Coding = field(default_factory=Signed)
    raters: Rater = field(default_factory=MajorityRater)
    scalars: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()

    atlas = False

    def __post_init__(self) -> None:
        wrong = [v for v in self.labels if not 1 <= v <= 255]
        if not self.labels or wrong or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                "expected labels that differ, each in 1..255 (the background has no channel of "
                f"its own), got {list(self.labels)}."
            )
        self.coding.channels(len(self.labels))  # refuses another number of regions
        wrong = [v for v in self.ignored if not 1 <= v <= 255 or v in self.labels]
        if wrong:
            raise ValueError(
                f"ignored: expected values in 1..255 beside labels {list(self.labels)}, got "
                f"{list(self.ignored)}."
            )

    @property
    def marks(self) -> Literal["full"] | None:  # type: ignore[override]
        """Masks are what signed codes of 1 and -1 alone are."""
        return "full" if self.coding == Signed() else None

    @property
    def tells(self) -> bool:  # type: ignore[override]
        return self.raters.tells

    @property
    def needs_readers(self) -> bool:  # type: ignore[override]
        return self.raters.several

    @property
    def classes(self) -> int:
        return 0

    @property
    def codes(self) -> int | None:
        return self.coding.classes(len(self.labels))

    @property
    def grouped(self) -> bool:
        return self.coding.grouped

    @property
    def label_count(self) -> int:
        return len(self.labels)

    def shares(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b l d h w"]:
        return self.coding.shares(x)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def consensus_level(self, readers: int) -> float | None:
        return self.raters.consensus_level(readers)

    def channels(self, c: int) -> int:
        return self.coding.channels(len(self.labels))

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c,)

    def masks(self, label: UInt8[Tensor, "1 d h w"]) -> Bool[Tensor, "l d h w"]:
        """Where each label is."""
        return torch.cat([label == value for value in self.labels])

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        if subject.label is None:
            raise DataError("label diffusion needs a label map for every volume.")
        x, opinion = subject.x, self.raters.opinion(subject.label, subject.readers, key=key)
        coded = self.coding.encode(self.masks(opinion.label), spacing_mm=subject.spacing_mm)
        hidden = None
        if self.ignored:
            unknown = torch.isin(opinion.label, opinion.label.new_tensor(self.ignored))
            hidden = unknown.to(x.dtype)
        return Target(coded.to(x.dtype), (x,), scalar=opinion.level, hidden=hidden)
