"""Noise: what a volume is corrupted with, drawn for the full volume from a key.

The noise of a method must be the one that its checkpoint was trained with: other noise is not
recognised as noise and stays in the reconstruction.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from volumediff.model import Model

__all__ = ["Gaussian", "Noise"]


@dataclass(frozen=True)
class Noise(ABC):
    """A keyed source of state noise."""

    @abstractmethod
    def check(self, model: Model) -> None:
        """Raises ValueError, with the reason, where the checkpoint was trained on other noise."""

    @abstractmethod
    def __call__(
        self, model: Model, shape: tuple[int, ...], *, key: int
    ) -> Callable[[int], Tensor]:
        """Noise for one volume (c, d, h, w): -1, -2, ... forward, 0, 1, ... of the steps."""


@dataclass(frozen=True)
class Gaussian(Noise):
    """White Gaussian noise, the same field of the volume in every space."""

    def check(self, model: Model) -> None:
        """Only a Gaussian kernel was trained with it."""
        kernel = type(model.kernel).__name__.lower()
        if kernel != "gaussian":
            raise ValueError(
                f"noise gaussian: the checkpoint was trained with the {kernel} kernel; use a "
                "method for that noise, or a checkpoint with kernel gaussian."
            )

    def __call__(
        self, model: Model, shape: tuple[int, ...], *, key: int
    ) -> Callable[[int], Tensor]:
        """The model's own keyed noise."""
        return model.noise((key,), shape)
