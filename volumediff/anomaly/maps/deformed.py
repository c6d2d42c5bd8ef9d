"""Another map, after the pseudo-healthy volume was deformably registered onto the volume."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._registration import bent_onto
from volumediff.anomaly.maps._base import Map

__all__ = ["Deformed"]


@dataclass(frozen=True)
class Deformed(Map):
    """Another map, after the pseudo-healthy volume was deformably registered onto the volume.

    That is a(x, x̂∘φ), φ smooth and of bounded length: anatomy that stands a little elsewhere is no
    anomaly. Lesions that displace, and shrinkage, are forgiven with it.

    Arguments:
        map: the map a
        limit_mm: longest displacement; about the size of what should be forgiven
        smooth_mm: standard deviation of the Gaussian that smooths the displacement
        iterations: of the demons, on each of two resolutions

    References:
        Bercea et al. (2023), Generalizing Unsupervised Anomaly Detection: Towards Unbiased
        Pathology Screening (MorphAEus), arXiv:2303.09601; there a network estimates φ
    """

    map: Map
    limit_mm: float = 4.0
    smooth_mm: float = 6.0
    iterations: int = 30

    def __post_init__(self) -> None:
        if not (self.limit_mm > 0 and self.smooth_mm > 0 and self.iterations > 0):
            raise ValueError(
                "expected positive limit_mm, smooth_mm and iterations, got "
                f"{self.limit_mm}, {self.smooth_mm} and {self.iterations}."
            )

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map of the bent volume."""
        bent = bent_onto(
            healthy,
            x,
            spacing_mm=spacing_mm,
            smooth_mm=self.smooth_mm,
            limit_mm=self.limit_mm,
            iterations=self.iterations,
        )
        return self.map(x, bent, foreground=foreground, spacing_mm=spacing_mm)
