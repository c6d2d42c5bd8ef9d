r"""What is diffused and under which condition: a prepared volume becomes a training target.

    healthy            p(x)            x the volume itself
    class_conditional  p(x | class)    the class from an attribute, dropped at times for guidance
    label_diffusion    p(m | x)        m the labels coded \pm 1, one channel per class, x the image

Recipes may add the atlas (healthy mean of the training split) as an image condition and scalars
(attributes such as age, standardised over the training split).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from volumediff.condition import HEALTHY
from volumediff.errors import DataError
from volumediff.randomness import uniform

__all__ = ["ClassConditional", "Healthy", "LabelDiffusion", "Recipe", "Target"]


@dataclass(frozen=True)
class Target:
    """One training sample before it is cropped.

    Arguments:
        x: what is diffused
        image: image condition in voxels
        label: class index
    """

    x: Float[Tensor, "c d h w"]
    image: Float[Tensor, "e d h w"] | None = None
    label: int | None = None


class Recipe(ABC):
    """Contract: channels, classes, and the target of one volume.

    Attributes `atlas` and `scalars` say whether the atlas is a condition and which attributes are.
    """

    atlas: bool
    scalars: tuple[str, ...]

    @property
    @abstractmethod
    def needs_labels(self) -> bool:
        """Whether every volume must come with a label map."""

    @property
    @abstractmethod
    def normalised(self) -> bool:
        """Whether the space's shift and scale are fitted to what is diffused."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes, not counting the null class; 0 without classes."""

    @abstractmethod
    def channels(self, c: int) -> int:
        """Channels of what is diffused, for volumes of c channels."""

    @abstractmethod
    def image_channels(self, c: int) -> int:
        """Channels of the image condition, for volumes of c channels."""

    @abstractmethod
    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        """Whether a volume without a marked lesion counts as healthy."""

    @abstractmethod
    def target(
        self,
        x: Float[Tensor, "c d h w"],
        label: UInt8[Tensor, "1 d h w"] | None,
        *,
        atlas: Float[Tensor, "c d h w"] | None,
        attributes: Mapping[str, str | float],
        key: int,
    ) -> Target:
        """The target of one volume; everything random comes from the key."""


@dataclass(frozen=True)
class Healthy(Recipe):
    """Unconditional model of healthy volumes.

    Arguments:
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    atlas: bool = False
    scalars: tuple[str, ...] = ()

    needs_labels = False
    normalised = True
    classes = 0

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> int:
        return c if self.atlas else 0

    def target(
        self,
        x: Float[Tensor, "c d h w"],
        label: UInt8[Tensor, "1 d h w"] | None,
        *,
        atlas: Float[Tensor, "c d h w"] | None,
        attributes: Mapping[str, str | float],
        key: int,
    ) -> Target:
        return Target(x, atlas if self.atlas else None)


@dataclass(frozen=True)
class ClassConditional(Recipe):
    """Model of volumes given a class, trained for classifier-free guidance.

    Arguments:
        attribute: attribute of the case (a column of participants.tsv) that holds the class
        values: its values in the order of the class index; the first is the healthy one
        drop: probability of the null class, Ho and Salimans (2022), arXiv:2207.12598
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    attribute: str
    values: tuple[str, ...]
    drop: float = 0.1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    needs_labels = False
    normalised = True

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

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return _word(attributes.get(self.attribute)) == self.values[0]

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> int:
        return c if self.atlas else 0

    def target(
        self,
        x: Float[Tensor, "c d h w"],
        label: UInt8[Tensor, "1 d h w"] | None,
        *,
        atlas: Float[Tensor, "c d h w"] | None,
        attributes: Mapping[str, str | float],
        key: int,
    ) -> Target:
        value = _word(attributes.get(self.attribute))
        if value not in self.values:
            raise DataError(
                f"attribute {self.attribute!r} is {value!r}: expected one of "
                f"{', '.join(self.values)}; correct participants.tsv or recipe.values."
            )
        index = HEALTHY + self.values.index(value)
        dropped = uniform(key, "drop") < self.drop
        return Target(x, atlas if self.atlas else None, self.classes if dropped else index)


@dataclass(frozen=True)
class LabelDiffusion(Recipe):
    """Model of label maps given the image: segmentation by sampling.

    Arguments:
        labels: label values that get a channel each; the background is where none is +1
        scalars: attributes that condition the model
        absent: code of a voxel without the label, below 1, which is the code of one with it

    References:
        Amit et al. (2021), SegDiff, arXiv:2112.00390
    """

    labels: tuple[int, ...] = (1,)
    scalars: tuple[str, ...] = ()
    absent: float = -1.0

    atlas = False
    needs_labels = True
    # Codes of +1 and -1 have unit second moment already, and the image shares the space.
    normalised = False
    classes = 0

    def __post_init__(self) -> None:
        wrong = [v for v in self.labels if not 1 <= v <= 255]
        if not self.labels or wrong or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                "expected labels that differ, each in 1..255 (the background has no channel of "
                f"its own), got {list(self.labels)}."
            )
        if not self.absent < 1:
            raise ValueError(f"expected absent below 1, got {self.absent}.")

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def channels(self, c: int) -> int:
        return len(self.labels)

    def image_channels(self, c: int) -> int:
        return c

    def target(
        self,
        x: Float[Tensor, "c d h w"],
        label: UInt8[Tensor, "1 d h w"] | None,
        *,
        atlas: Float[Tensor, "c d h w"] | None,
        attributes: Mapping[str, str | float],
        key: int,
    ) -> Target:
        if label is None:
            raise DataError("label diffusion needs a label map for every volume.")
        masks = torch.cat([(label == value).to(x.dtype) for value in self.labels])
        return Target((1 - self.absent) * masks + self.absent, x)


def _word(value: str | float | None) -> str:
    """An attribute as it stands in the table: tables of numbers are read as floats."""
    if value is None:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)
