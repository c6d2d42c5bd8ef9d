"""Redraws what a first pass found most abnormal, knowing nothing of it but its surroundings."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import dilate, inside_quantile
from volumediff.anomaly._scene import Scene
from volumediff.anomaly.policies._masked import Masked
from volumediff.anomaly.policies._stitching import check_visits

__all__ = ["Inpaint"]


@dataclass(frozen=True)
class Inpaint(Masked):
    r"""Redraws what a first pass found most abnormal, knowing nothing of it but its surroundings.

    The mask is M = dilate(a₁ > Q_q(a₁)) with the first pass's map a₁ and its quantile in the
    foreground. From t near 1 nothing of the lesion is left inside; outside every state is a draw
    of the patient's own. Unlike `stitch` the map is not weighed, and the level is free.

    Arguments:
        quantile: q, share of the foreground that is kept
        dilate_mm: half-width of the dilation
        resampling: U, visits of each step

    References:
        Lugmayr et al. (2022), RePaint, arXiv:2201.09865; Durrer et al. (2024), Denoising Diffusion
        Models for Inpainting of Healthy Brain Tissue, arXiv:2402.17307, trains on voids instead
    """

    two_pass: ClassVar[bool] = True
    quantile: float = 0.98
    dilate_mm: float = 2.0
    resampling: int = 1

    def __post_init__(self) -> None:
        check_visits(self.resampling)
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The most abnormal part, dilated."""
        top = inside_quantile(scene.prior_map, self.quantile, foreground=scene.foreground)
        m = ((scene.prior_map > top) & scene.foreground).to(scene.x.dtype)
        m = dilate(m, radius_mm=self.dilate_mm, spacing_mm=scene.spacing_mm)
        scene.trace["inpaint/mask"] = m.bool()
        return m
