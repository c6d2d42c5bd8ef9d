"""Contract of maps: how far a volume is from its pseudo-healthy version."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.autoencoders import Reconstructor
from volumediff.condition import Condition
from volumediff.data.seen import Seen
from volumediff.model import Model

__all__ = ["Map"]


@dataclass(frozen=True)
class Map(ABC):
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

    @property
    def lent(self) -> dict[str, Seen]:
        """SHA-256 of the weights of other runs that it works with -> what they saw."""
        return {}

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

    @property
    def parts(self) -> "tuple[Map, ...]":
        """Maps that this one is made of: those among its fields."""
        values = [getattr(self, f.name) for f in fields(self)]
        flat = [v for each in values for v in (each if isinstance(each, tuple) else (each,))]
        return tuple(v for v in flat if isinstance(v, Map))

    def check(self, model: Model | Reconstructor) -> None:
        """Raises ValueError, with the reason, for a model with which the map is meaningless."""
        for part in self.parts:
            part.check(model)

    def bound(self, model: Model | Reconstructor, condition: Condition) -> "Map":
        """The map with what it, or a map that it is made of, takes from a model."""
        changes: dict[str, Map | tuple[Map, ...]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Map):
                changes[f.name] = value.bound(model, condition)
            elif isinstance(value, tuple) and any(isinstance(v, Map) for v in value):
                changes[f.name] = tuple(v.bound(model, condition) for v in value)
        return replace(self, **changes) if changes else self
