"""Contract of recipes: a prepared volume becomes a training target.

Recipes may add the atlas (healthy mean of the training split) as an image condition and scalars
(attributes such as age, standardised over the training split).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.codings._base import Coding
from volumediff.data.corruptions import Corruption
from volumediff.data.regions import Region

__all__ = ["Recipe", "Subject", "Target", "class_among", "shown", "word"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A prepared, augmented volume as recipes see it.

    Arguments:
        x: intensities in [-1, 1]
        label: label map, if the case has one
        foreground: where the imaged object is; None for recipes that do not ask for it
        attributes: of the case
        spacing_mm: voxel size along d, h, w
        donor: gives another volume of the split; every call with the same key gives the same one
        readers: label maps of several readers; the label is their consensus
    """

    x: Float[Tensor, "c d h w"]
    label: UInt8[Tensor, "1 d h w"] | None = None
    foreground: Bool[Tensor, "1 d h w"] | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    donor: Callable[[int], Tensor] | None = None
    readers: UInt8[Tensor, "r d h w"] | None = None

    def corrupted(
        self, corruption: Corruption, key: int
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume after a synthetic degradation, and the amount of it in [0, 1]."""
        assert self.foreground is not None, "needs_foreground"
        assert self.donor is not None, "needs_foreground"
        return corruption(
            self.x, self.foreground, donor=self.donor, spacing_mm=self.spacing_mm, key=key
        )

    def region(self, region: Region, key: int) -> Float[Tensor, "1 d h w"]:
        """A random region, 1 inside."""
        assert self.foreground is not None, "needs_foreground"
        return region(self.foreground, spacing_mm=self.spacing_mm, key=key).to(self.x.dtype)


@dataclass(frozen=True, eq=False)
class Target:
    """One training sample before it is cropped; see `volumediff.batch.Batch`.

    Arguments:
        x: what is diffused
        images: image conditions in voxels, the atlas first
        label: class index
        mask: the network is shown it as a channel in state space
        region: 1 where there is noise; the state outside is clean, and the loss is inside
        end: volume at the noisy end of a cold kernel, in place of noise
        scalar: a number that the network is told beside the attributes of the case
        hidden: 1 where the loss does not look; noise is there as elsewhere
    """

    x: Float[Tensor, "c d h w"]
    images: tuple[Float[Tensor, "_ d h w"], ...] = ()
    label: int | None = None
    mask: Float[Tensor, "1 d h w"] | None = None
    region: Float[Tensor, "1 d h w"] | None = None
    end: Float[Tensor, "c d h w"] | None = None
    scalar: float | None = None
    hidden: Float[Tensor, "1 d h w"] | None = None


class Recipe(ABC):
    """Channels, classes, and the target of one volume.

    Attributes:
        atlas: whether the atlas is a condition
        scalars: attributes that are conditions
        labels: label values that are modelled
        ignored: label values of voxels that nobody has judged: the loss does not look there
        needs_readers: whether some volumes must have been labelled by several readers
        tells: whether targets bring a scalar of their own, which comes after the attributes
        reference: whether the network is conditioned on the clean state through a bottleneck
        teaches: what a network learns, as methods ask for it; a subclass teaches the same
        paths: paths of the kernels that the targets are for
        compares: whether its classes, where it has any, tell the healthy from others, the first
            being healthy
        samples: whether a chain from t = 1 draws from what is modelled
        whole: whether noise is everywhere in the state of the volume itself; localization methods
            that name no recipe need such a model
        fixed: whether target and condition depend on the volume alone, so that latents may be
            computed once
        needs_labels: whether every volume must come with a label map
        needs_foreground: whether the target is made with foreground and donor
        normalised: whether the space's shift and scale are fitted to what is diffused
        classes: number of classes, not counting the null class; 0 without classes
        local: whether noise is in a region alone
        shows_mask: whether the network is shown a mask, one channel in state space
        mask_loss: weight of the cross entropy of a mask of noise that the network predicts beside
            the kernel's quantity; 0 for networks without this channel
        exact: whether the target is no volume, so that it needs a space that loses nothing
        corruption: what volumes are changed with, for recipes that do
        drop: probability with which a class is hidden
        paired: whether a condition is the volume itself with an anomaly, so that maps of noisy
            states say nothing, and checkpoints are not selected by them
        segments: whether what is modelled are the labels of an image
        coding: how they are coded; None where no labels are
        marks: what a mask in the target stands for: anomalies that were put there (self) or labels
            (full); None where the target marks nothing
    """

    atlas: bool
    scalars: tuple[str, ...]
    reference: bool = False
    mask_loss: float = 0.0
    teaches: ClassVar[str] = ""
    paths: ClassVar[tuple[str, ...]] = ("gaussian",)
    compares: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    fixed: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_foreground: ClassVar[bool] = False
    normalised: ClassVar[bool] = True
    local: ClassVar[bool] = False
    shows_mask: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    paired: ClassVar[bool] = False
    segments: ClassVar[bool] = False
    labels: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    coding: Coding | None = None
    tells: bool = False
    needs_readers: bool = False
    marks: Literal["self", "full"] | None = None
    corruption: Corruption | None = None
    drop: float = 0.0

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes, not counting the null class; 0 without classes."""

    @property
    def scalar_count(self) -> int:
        """Scalars that the network is told."""
        return len(self.scalars) + self.tells

    def consensus_level(self, readers: int) -> float | None:
        """The scalar of a target that stands for the consensus of so many readers; None for
        recipes that tell none."""
        return None

    @property
    def codes(self) -> int | None:
        """Classes of each variable of what is diffused, where it is coded in -1 and 1 as discrete
        kernels take it; None where it is not."""
        return None

    @property
    def grouped(self) -> bool:
        """Whether such a variable has one channel per class, and not one in all."""
        return False

    @property
    def label_count(self) -> int | None:
        """Masks in what is diffused; None where there are none."""
        return 1 if self.marks == "self" else None

    def shares(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b l d h w"]:
        """Memberships in the masks that are diffused: differentiable, and not cut to [0, 1]."""
        return (x + 1) / 2

    def numbered(self, names: Sequence[str] | None) -> "Recipe":
        """The recipe with numbers of channels in place of their names, for recipes that take some.

        Arguments:
            names: of the channels of the volumes, in their order

        Raises:
            ValueError: a name that is not among them
        """
        return self

    def problem(self, c: int) -> str | None:
        """Why volumes of c channels make no target; None where they do."""
        return None

    def diffused(self, c: int) -> tuple[int, ...]:
        """Numbers of the channels that are in what is diffused, for volumes of c channels."""
        return tuple(range(c))

    @abstractmethod
    def channels(self, c: int) -> int:
        """Channels of what is diffused, for volumes of c channels."""

    @abstractmethod
    def image_channels(self, c: int) -> tuple[int, ...]:
        """Channels of each image condition, for volumes of c channels."""

    @abstractmethod
    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        """Whether a volume without a marked lesion counts as healthy."""

    def class_of(self, attributes: Mapping[str, str | float]) -> int | None:
        """The class that attributes name; None where they name none.

        Raises:
            ValueError: they name another value than the recipe has
        """
        return None

    @abstractmethod
    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        """The target of one volume; everything random comes from the key."""


def shown(
    recipe: Recipe, atlas: Float[Tensor, "c d h w"] | None
) -> tuple[Float[Tensor, "c d h w"], ...]:
    """The atlas as an image condition, where the recipe asks for it."""
    if not recipe.atlas:
        return ()
    assert atlas is not None, "it is measured before training"
    return (atlas,)


def class_among(values: tuple[str, ...], attribute: str, value: str | float) -> int:
    """The index of a value.

    Raises:
        ValueError: it is none of them
    """
    if word(value) not in values:
        raise ValueError(
            f"attribute {attribute!r} is {word(value)!r}: expected one of {', '.join(values)}"
        )
    return values.index(word(value))


def word(value: str | float | None) -> str:
    """An attribute as it stands in the table: tables of numbers are read as floats."""
    if value is None:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)
