"""Redraws what a first pass found less likely than healthy volumes."""

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import smooth
from volumediff.anomaly._redrawing import asked, blended, check_visits, keeping, revisited
from volumediff.anomaly.editing._base import Editing
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Resample"]


@dataclass(frozen=True)
class Resample(Editing):
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

    def with_first_threshold(self, threshold: float) -> "Resample":
        return replace(self, threshold=threshold)

    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return context.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return revisited(times, self.resampling)

    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The denoiser as it redraws the mask."""
        return asked(context, self._mask(context))

    def hook(self, context: MethodContext) -> Hook | None:
        """Puts the patient's own state back outside the mask."""
        return keeping(context, self._mask(context))

    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The volume with the mask redrawn."""
        return blended(context, healthy, self._mask(context))

    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map where the mask is."""
        return scores * smooth(
            self._mask(context),
            sigma_mm=self.sigma_mm,
            spacing_mm=context.spacing_mm,
            foreground=context.foreground,
        )

    def _mask(self, context: MethodContext) -> Tensor:
        if self.threshold is None:
            raise ValueError(
                "editing resample: expected a calibration on healthy volumes, got none; fit one."
            )
        m = ((context.prior_map > self.threshold) & context.foreground).to(context.x.dtype)
        context.trace["resample/mask"] = m.bool()
        return m
