r"""Contrasts of healthy volumes that are drawn from label maps: a brightness for each structure.

A contrast gives mean and standard deviation of the signal of each structure, about 0 (dark) to 1
(bright); the volume's own limits are found afterwards, so that only their order and ratios count.
Left and right, and all structures of one name, have the same.

    any      every structure has a brightness of its own: no scanner makes it, and a network that
             has seen it relies on none (domain randomization)
    tissue   fluid, grey and white matter in the order that a sequence gives them
    mixed    one of several

References:
    Billot et al. (2023), SynthSeg: segmentation of brain MRI scans of any contrast and resolution
        without retraining, Medical Image Analysis
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._draws import between, check_range, check_weights, weighted
from volumediff.data.freesurfer import Structure

__all__ = ["AnyContrast", "Contrast", "MixedContrast", "TissueContrast"]

Pair = tuple[float, float]


class Contrast(ABC):
    """A brightness for each structure, drawn from a key."""

    @abstractmethod
    def __call__(self, structures: Sequence[Structure], key: int) -> Float[Tensor, "n 2"]:
        """Mean and standard deviation of the signal of each structure.

        Arguments:
            structures: of a label map; equal names get equal numbers
            key: everything random is a function of it
        """


@dataclass(frozen=True)
class AnyContrast(Contrast):
    """Every structure has a mean and a deviation of its own.

    Arguments:
        mean: smallest and largest mean
        deviation: smallest and largest standard deviation within a structure
    """

    mean: Pair = (0.1, 1.0)
    deviation: Pair = (0.01, 0.08)

    def __post_init__(self) -> None:
        check_range("mean", self.mean, 0.0, 1.0)
        check_range("deviation", self.deviation, 0.0, 1.0)

    def __call__(self, structures: Sequence[Structure], key: int) -> Float[Tensor, "n 2"]:
        """Independent for each name."""
        return torch.tensor(
            [
                (
                    between(self.mean, key, "mean", s.name),
                    between(self.deviation, key, "deviation", s.name),
                )
                for s in structures
            ]
        )


@dataclass(frozen=True)
class TissueContrast(Contrast):
    r"""Fluid, grey and white matter in a given order,

    .. math:: g = f + a (w - f),

    f fluid, w white and g grey matter: a < 1 puts grey matter between fluid and white matter (T1w,
    T2w), a > 1 beyond white matter (FLAIR). The default is T1w.

    Arguments:
        fluid: smallest and largest f
        white: smallest and largest w
        grey: smallest and largest a
        deep: share of the way from grey to white matter at which thalamus, pallidum and their
            neighbours lie
        spread: how far structures of one tissue differ from it, at most
        deviation: smallest and largest standard deviation within a structure
    """

    fluid: Pair = (0.05, 0.35)
    white: Pair = (0.7, 1.0)
    grey: Pair = (0.4, 0.8)
    deep: Pair = (0.2, 0.8)
    spread: float = 0.04
    deviation: Pair = (0.01, 0.06)

    def __post_init__(self) -> None:
        check_range("fluid", self.fluid, 0.0, 1.0)
        check_range("white", self.white, 0.0, 1.0)
        check_range("grey", self.grey, 0.0, 3.0)
        check_range("deep", self.deep, 0.0, 1.0)
        check_range("deviation", self.deviation, 0.0, 1.0)
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread: expected a number in [0, 1), got {self.spread}.")

    def __call__(self, structures: Sequence[Structure], key: int) -> Float[Tensor, "n 2"]:
        """A brightness for each tissue, and a little of its own for each structure."""
        fluid, white = between(self.fluid, key, "fluid"), between(self.white, key, "white")
        grey = fluid + between(self.grey, key, "grey") * (white - fluid)
        deep = grey + between(self.deep, key, "deep") * (white - grey)
        of = {"csf": fluid, "grey": grey, "deep": deep, "white": white}
        own = (-self.spread, self.spread)
        return torch.tensor(
            [
                (
                    max(of[s.tissue] + between(own, key, "own", s.name), 0.0),
                    between(self.deviation, key, "deviation", s.name),
                )
                for s in structures
            ]
        )


@dataclass(frozen=True)
class MixedContrast(Contrast):
    """One of several contrasts, by the key.

    Arguments:
        of: the contrasts
        weights: how often each is drawn, relative to each other; all equal if none are given
    """

    of: tuple[Contrast, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_weights(self.of, self.weights, "contrast")

    def __call__(self, structures: Sequence[Structure], key: int) -> Float[Tensor, "n 2"]:
        """What the drawn contrast gives."""
        drawn = weighted(self.of, self.weights, key, "contrast")
        return drawn(structures, randomness.key(key, "of"))
