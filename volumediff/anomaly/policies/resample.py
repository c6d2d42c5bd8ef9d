"""Redraws what a first pass finds less likely than it finds healthy volumes."""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import smooth
from volumediff.anomaly._redrawing import asked, blended, check_visits, keeping, revisited
from volumediff.anomaly._scene import MethodContext
from volumediff.anomaly.policies._base import Policy
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Resample"]


@dataclass(frozen=True)
class Resample(Policy):
    r"""Redraws what a first pass finds less likely than it finds healthy volumes,

    .. math:: M = [a_1 > θ], \qquad a \leftarrow a \cdot G_σ M,

    with θ the quantile of the first pass's maps of healthy calibration volumes, pooled over their
    foreground. States outside M stay the patient's own. A volume in which nothing exceeds θ has an
    empty map.

    Arguments:
        quantile: q, share of healthy voxels that stay below θ
        sigma_mm: σ of the mask's edge in the map
        threshold: θ itself; None for that of the calibration
        resampling: U, visits of each step

    References:
        Pinaya et al. (2022), Fast Unsupervised Brain Anomaly Detection and Segmentation with
        Diffusion Models, arXiv:2206.03461
    """

    two_pass: ClassVar[bool] = True
    quantile: float = 0.975
    sigma_mm: float = 2.0
    threshold: float | None = None
    resampling: int = 1

    def __post_init__(self) -> None:
        check_visits(self.resampling)
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    @property
    def healthy_quantile(self) -> float | None:
        return self.quantile if self.threshold is None else None

    def with_bar(self, threshold: float) -> "Resample":
        return replace(self, threshold=threshold)

    def start(self, scene: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return revisited(times, self.resampling)

    def asked(self, scene: MethodContext) -> tuple[Denoiser, Condition]:
        """The denoiser as it redraws the mask."""
        return asked(scene, self._mask(scene))

    def hook(self, scene: MethodContext) -> Hook | None:
        """Puts the patient's own state back outside the mask."""
        return keeping(scene, self._mask(scene))

    def finish(
        self, scene: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The volume with the mask redrawn."""
        return blended(scene, healthy, self._mask(scene))

    def weigh(
        self, scene: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map where the mask is."""
        return scores * smooth(
            self._mask(scene),
            sigma_mm=self.sigma_mm,
            spacing_mm=scene.spacing_mm,
            foreground=scene.foreground,
        )

    def _mask(self, scene: MethodContext) -> Tensor:
        if self.threshold is None:
            raise ValueError("policy resample: expected a calibration on healthy volumes.")
        m = ((scene.prior_map > self.threshold) & scene.foreground).to(scene.x.dtype)
        scene.trace["resample/mask"] = m.bool()
        return m
