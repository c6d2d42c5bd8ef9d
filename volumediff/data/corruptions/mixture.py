"""One of several corruptions, drawn by the key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._draws import check_weights, weighted
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
        check_weights(self.of, self.weights, "corruption")

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
        drawn = weighted(self.of, self.weights, key, "mixture")
        # of its own key, so that a mixture may be in a mixture
        inner = randomness.key(key, "of")
        return drawn(x, foreground, donor=donor, spacing_mm=spacing_mm, key=inner)
