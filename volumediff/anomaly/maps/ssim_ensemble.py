"""Structural dissimilarity over windows of several widths."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._similarity import ssim
from volumediff.anomaly.maps._base import Map

__all__ = ["SSIMEnsemble"]


@dataclass(frozen=True)
class SSIMEnsemble(Map):
    r"""Structural dissimilarity over windows of several widths, the worst counting most,

    .. math:: a = 1 - \sum_i w_i S_i, \qquad w = \mathrm{softmax}(-S),

    with S_i the similarity at width i, voxel by voxel and channel by channel.

    Arguments:
        sigmas_mm: standard deviations of the windows; the published 0.3 to 1.7 are in voxels,
            of 2 mm

    References:
        Behrendt et al. (2024), Diffusion Models with Ensembled Structure-Based Anomaly Scoring for
        Unsupervised Anomaly Detection, arXiv:2403.14262
    """

    sigmas_mm: tuple[float, ...] = (0.6, 1.0, 1.4, 1.8, 2.2, 2.6, 3.0, 3.4)

    def __post_init__(self) -> None:
        if not self.sigmas_mm or min(self.sigmas_mm) <= 0:
            raise ValueError(f"sigmas_mm: expected positive widths, got {self.sigmas_mm}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """One minus the weighted similarity."""
        # Σ w S = Σ S exp(-S) / Σ exp(-S), summed width by width
        inside = {"spacing_mm": spacing_mm, "foreground": foreground}
        top, bottom = torch.zeros_like(x), torch.zeros_like(x)
        for sigma in self.sigmas_mm:
            near = ssim(x, healthy, sigma_mm=sigma, **inside)
            weight = torch.exp(-near)
            top, bottom = top.addcmul_(weight, near), bottom.add_(weight)
        return (1 - top / bottom).clamp(min=0).mean(dim=1, keepdim=True) * foreground
