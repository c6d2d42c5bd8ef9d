"""Probability of an anomaly, by a residual segmentation network trained for this model."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.maps._base import Map
from volumediff.component import borrowed, presentation
from volumediff.residual_segmentation import SEGMENTER, VoxelPosterior

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior(Map):
    r"""Probability of an anomaly by a residual segmentation network, and another map,

    .. math:: a = σ\big(f(\hat x - x, x)\big) + b(x, \hat x).

    Nothing is subtracted in a lossy space: f was trained on residuals that hold its losses.

    Arguments:
        plus: the map b; None for none
        run: folder of the residual_segmenter's run
        residual_segmenter: f; handed in, never configured

    References:
        Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
        Supervised Segmentation for Brain MRIs, MIDL; there b = 1 - SSIM
    """

    relative: ClassVar[bool] = False
    plus: Map | None = None
    run: str | None = presentation(None)
    residual_segmenter: VoxelPosterior | None = borrowed(SEGMENTER)

    @property
    def supervision(self) -> str | None:
        """What the residual segmenter was trained on."""
        return None if self.residual_segmenter is None else self.residual_segmenter.supervision

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The probability, and the other map added to it."""
        assert self.residual_segmenter is not None, "check"
        a = self.residual_segmenter.probability(x, healthy) * foreground
        if self.plus is None:
            return a
        return a + self.plus(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
