"""Factors of an ensemble of segmentations, beside the seed: what else is varied.

flips       mirrored volumes, mirrored back
times       noise levels, for predictors that look at noisy volumes
consensus   levels of agreement among readers, for runs that are told one
members     other runs, such as those of the other folds
heads       heads that were trained side by side, for probes

Every member of a method is one combination of a seed and a change of each factor.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import ClassVar

from torch import nn

from volumediff import randomness
from volumediff.component import Component, handed_in
from volumediff.segmentation.draw import Draw

__all__ = [
    "Consensus",
    "Flips",
    "Heads",
    "LabelEnsemble",
    "LentModel",
    "Members",
    "Times",
    "members",
]

AXES = "dhw"


@dataclass(frozen=True, eq=False)
class LentModel:
    """The model of another run.

    Arguments:
        digest: SHA-256 of its weights
        model: what its task trains, in evaluation mode
    """

    digest: str
    model: nn.Module = field(repr=False)


@dataclass(frozen=True)
class LabelEnsemble(Component):
    """One thing that is varied.

    Class attributes:
        agreement: whether members are told a level of agreement among readers
    """

    agreement: ClassVar[bool] = False

    @property
    def lent(self) -> tuple["LentModel", ...]:
        """Models that members may ask in place of the method's own."""
        return ()

    @abstractmethod
    def changes(self, draw: Draw) -> Sequence[Draw]:
        """The members that take the place of one; their numbers are not looked at."""


@dataclass(frozen=True)
class Flips(LabelEnsemble):
    """Every combination of mirrored axes, the plain volume included; the seed stays.

    Arguments:
        axes: some of the letters d, h, w

    References:
        Isensee et al. (2021), nnU-Net, Nature Methods 18: mirroring along all axes at test time
    """

    axes: str = AXES

    def __post_init__(self) -> None:
        if not self.axes or set(self.axes) - set(AXES) or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"expected some of the letters d, h, w, got {self.axes!r}.")

    def changes(self, draw: Draw) -> Sequence[Draw]:
        axes = sorted(AXES.index(letter) for letter in self.axes)
        every = [c for n in range(len(axes) + 1) for c in combinations(axes, n)]
        return [replace(draw, flips=flips) for flips in every]


@dataclass(frozen=True)
class Times(LabelEnsemble):
    """Several noise levels, each with noise of its own.

    Arguments:
        levels: times in [0, 1]

    References:
        Rosnati et al. (2023), TEDM, arXiv:2311.07421
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.levels or not all(0 <= t <= 1 for t in self.levels):
            raise ValueError(f"expected levels in [0, 1], at least one, got {list(self.levels)}.")

    def changes(self, draw: Draw) -> Sequence[Draw]:
        return [
            replace(draw, time=t, key=randomness.key(draw.key, "time", i))
            for i, t in enumerate(self.levels)
        ]


@dataclass(frozen=True)
class Consensus(LabelEnsemble):
    r"""Levels c / R of agreement among R readers: "at least c of them"; the mean is a soft map.

    Arguments:
        readers: R

    References:
        Amit et al. (2023), Annotator Consensus Prediction for Medical Image Segmentation with
        Diffusion Models, arXiv:2306.09004
    """

    agreement: ClassVar[bool] = True
    readers: int

    def __post_init__(self) -> None:
        if self.readers < 1:
            raise ValueError(f"expected readers >= 1, got {self.readers}.")

    def changes(self, draw: Draw) -> Sequence[Draw]:
        return [
            replace(draw, level=c / self.readers, key=randomness.key(draw.key, "consensus", c))
            for c in range(1, self.readers + 1)
        ]


@dataclass(frozen=True)
class Members(LabelEnsemble):
    """The run itself and other runs, which must tell the same labels apart on the same grid; all
    draw alike.

    Arguments:
        runs: folders of the other runs

    References:
        Isensee et al. (2021), nnU-Net, Nature Methods 18: the networks of five folds
    """

    runs: tuple[str, ...]
    models: tuple[LentModel, ...] = handed_in(())

    def __post_init__(self) -> None:
        if not self.runs or len(set(self.runs)) < len(self.runs):
            raise ValueError(
                f"expected runs that differ, at least one, got {list(self.runs)}; give the "
                "folders of the other runs, ensemble=[{name: members, runs: [RUN, RUN]}]."
            )

    @property
    def lent(self) -> tuple[LentModel, ...]:
        return self.models

    def changes(self, draw: Draw) -> Sequence[Draw]:
        return [replace(draw, member=i) for i in range(len(self.runs) + 1)]


@dataclass(frozen=True)
class Heads(LabelEnsemble):
    """Trained heads one by one, in place of their mean; the seed stays.

    Arguments:
        count: the first so many of them

    References:
        Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
        arXiv:2112.03126: the label that most of ten heads give
    """

    count: int = 10

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"expected count >= 1, got {self.count}.")

    def changes(self, draw: Draw) -> Sequence[Draw]:
        return [replace(draw, head=i) for i in range(self.count)]


def members(samples: int, factors: Sequence[LabelEnsemble], *, key: int) -> list[Draw]:
    """All members: sample i depends on (key, i) alone, whatever the number of samples.

    Arguments:
        samples: number of seeds
        factors: what is varied beside them
        key: of the volume
    """
    found = [Draw(i, randomness.key(key, "sample", i)) for i in range(samples)]
    for factor in factors:
        found = [change for draw in found for change in factor.changes(draw)]
    return [replace(draw, number=i) for i, draw in enumerate(found)]
