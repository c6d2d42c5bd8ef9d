"""A smooth change of brightness."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import noise
from volumediff.data._draws import between, check_range
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import inside

__all__ = ["BiasField"]


@dataclass(frozen=True)
class BiasField(Corruption):
    r"""Brightness times a smooth factor, as receive coils make it,

    .. math:: x' + 1 = (x + 1)\, e^{σ n}, \qquad m = |x' - x| / 2.

    Arguments:
        sigma: smallest and largest standard deviation σ of the logarithm
        cell_mm: distance of the nodes between which n is interpolated
    """

    kind: ClassVar[str] = "bias_field"
    sigma: tuple[float, float] = (0.1, 0.4)
    cell_mm: float = 60.0

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma, 0.0, 10.0)
        if not self.cell_mm > 0:
            raise ValueError(f"cell_mm: expected a positive length, got {self.cell_mm}.")

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume under the field, and the size of the change in units of the range."""
        d, h, w = x.shape[1:]
        cell = max(round(self.cell_mm / min(spacing_mm)), 1)
        n = noise.CoarseNoise(cell)((1, d, h, w), key, "bias").to(x)
        factor = (between(self.sigma, key, "sigma") * n).exp()
        changed, _ = inside(x, (x + 1) * factor - 1, x[:1], foreground)
        return changed, (changed - x).abs().mean(0, keepdim=True) / 2
