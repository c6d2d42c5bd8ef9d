"""One of several corruptions, drawn by the key."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data.corruptions._base import Corruption

__all__ = ["Mixture"]


@dataclass(frozen=True)
class Mixture(Corruption):
    """One of several corruptions, by the key.

    Arguments:
        of: the corruptions
        weights: how often each is drawn, relative to each other; all equal if none are given
    """

    kind: ClassVar[str] = "mixture"
    of: tuple[Corruption, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of: expected at least one corruption, got none.")
        if self.weights and len(self.weights) != len(self.of):
            raise ValueError(
                f"weights: expected one for each of {len(self.of)} corruptions, got "
                f"{len(self.weights)}."
            )
        if self.weights and not min(self.weights) > 0:
            raise ValueError(f"weights: expected positive numbers, got {self.weights}.")

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """What the drawn corruption gives."""
        ends = list(accumulate(self.weights or [1.0] * len(self.of)))
        place = randomness.uniform(key, "mixture") * ends[-1]
        pairs = zip(self.of, ends, strict=True)
        drawn = next((c for c, end in pairs if place < end), self.of[-1])
        # of its own key, so that a mixture may be in a mixture
        inner = randomness.key(key, "of")
        return drawn(x, foreground, donor=donor, spacing_mm=spacing_mm, key=inner)
