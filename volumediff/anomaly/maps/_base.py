"""Contract of maps: how far a volume is from its pseudo-healthy version."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.autoencoders import Reconstructor
from volumediff.component import Component
from volumediff.condition import Condition
from volumediff.model import Model

__all__ = ["Map"]


@dataclass(frozen=True)
class Map(Component, ABC):
    """A distance between a volume and its pseudo-healthy version.

    Attributes:
        relative: whether what a lossy space alone makes of the volume is subtracted
        supervision: what it was trained on, where it was trained
    """

    relative: ClassVar[bool] = True

    @property
    def supervision(self) -> str | None:
        """What it was trained on; None where it was not trained."""
        return None

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map a(x, x̂) ≥ 0, zero outside the foreground."""

    def with_model(self, model: Model | Reconstructor, condition: Condition) -> "Map":
        """The map with what it, or a map that it is made of, takes from a model."""
        changes: dict[str, Map | tuple[Map, ...]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Map):
                changes[f.name] = value.with_model(model, condition)
            elif isinstance(value, tuple) and any(isinstance(v, Map) for v in value):
                changes[f.name] = tuple(v.with_model(model, condition) for v in value)
        return replace(self, **changes) if changes else self
