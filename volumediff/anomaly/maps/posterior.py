"""Probability of an anomaly by a comparer that knows the residuals of this model."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.maps._base import Map
from volumediff.autoencoders import Reconstructor
from volumediff.comparison import VoxelPosterior
from volumediff.data.seen import Seen
from volumediff.model import Model

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior(Map):
    r"""Probability of an anomaly by a comparer that knows this model's residuals, and another map,

    .. math:: a = σ\big(f(\hat x - x, x)\big) + b(x, \hat x).

    Nothing is subtracted in a lossy space: f was trained on residuals that hold its losses.

    Arguments:
        comparer: f; of the run `run` of the row, never configured
        plus: the map b; None for none

    References:
        Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
        Supervised Segmentation for Brain MRIs, MIDL; there b = 1 - SSIM
    """

    relative: ClassVar[bool] = False
    comparer: VoxelPosterior | None
    plus: Map | None = None

    @property
    def supervision(self) -> str | None:
        """What the comparer was trained on."""
        return None if self.comparer is None else self.comparer.supervision

    @property
    def lent(self) -> dict[str, Seen]:
        """The comparer's weights."""
        return {} if self.comparer is None else {self.comparer.digest: self.comparer.seen}

    def check(self, model: Model | Reconstructor) -> None:
        """There must be a comparer."""
        if self.comparer is None:
            raise ValueError(
                "map.run: expected the run of a comparer that was trained for this run, got none; "
                "use map.run=RUN, see configs/comparers."
            )
        super().check(model)

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The probability, and the other map added to it."""
        assert self.comparer is not None, "check"
        a = self.comparer.probability(x, healthy) * foreground
        if self.plus is None:
            return a
        return a + self.plus(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
