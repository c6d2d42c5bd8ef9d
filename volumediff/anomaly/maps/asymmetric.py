"""Left-right asymmetry of another map: what one side has more of than the other."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import smooth
from volumediff.anomaly.maps._base import Map
from volumediff.data.mirror import mirrored

__all__ = ["Asymmetric"]


@dataclass(frozen=True)
class Asymmetric(Map):
    r"""What one side has more of than the other,

    .. math:: b(v) = \max(0, a(v) - G_σ a(v')),

    v' the place of v on the other side of the middle of the foreground along d, which runs from
    left to right. Errors of the model are alike on both sides, lesions seldom are; those on the
    midline are lost. For volumes whose midline is straight along d.

    Arguments:
        map: the map a
        sigma_mm: smoothing of the other side, since no brain is its own mirror image
    """

    map: Map
    sigma_mm: float = 3.0

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The excess over the other side."""
        a = self.map(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        other = smooth(a, sigma_mm=self.sigma_mm, spacing_mm=spacing_mm, foreground=foreground)
        return (a - mirrored(other, foreground)).clamp(min=0) * foreground
