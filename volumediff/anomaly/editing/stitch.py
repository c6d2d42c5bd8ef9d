"""Redraws what a first pass found suspicious and keeps the patient's own tissue elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import dilate
from volumediff.anomaly._redrawing import blended, check_visits, keeping, revisited
from volumediff.anomaly.editing._base import Editing
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Stitch"]


@dataclass(frozen=True)
class Stitch(Editing):
    r"""Redraws what a first pass found suspicious and keeps the patient's own tissue elsewhere.

    With the first pass's map a₁ and pseudo-healthy volume x₁, the mask is M = dilate(a₁ > θ). The
    chain starts from M x₁ + (1 - M) x, and after each prediction

    .. math:: \hat z_0 \leftarrow M_z \hat z_0 + (1 - M_z) z_0,

    M_z the mask in state space: outside M_z every further state is an exact draw from
    q(z_s | z_t, z_0) of the patient, and the end is z_0 itself. Each step is walked U times, going
    back by q(z_t | z_s), so that both parts agree. The map is weighed by a₁. Where the space
    loses something, the result is blended once more in the volume.

    Arguments:
        threshold: θ, in units of the first pass's map
        dilate_mm: half-width of the dilation
        resampling: U, visits of each step

    References:
        Bercea et al. (2023), Mask, Stitch, and Re-Sample, arXiv:2305.19643
        Lugmayr et al. (2022), RePaint, arXiv:2201.09865
    """

    two_pass: ClassVar[bool] = True
    refines: ClassVar[bool] = True
    threshold: float = 0.13
    dilate_mm: float = 2.0
    resampling: int = 5

    def __post_init__(self) -> None:
        check_visits(self.resampling)

    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume, with the suspicious part of the first pass's pseudo-healthy volume."""
        m = self._mask(context)
        context.trace["stitch/mask"] = m.bool()
        return m * context.prior_healthy + (1 - m) * context.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return revisited(times, self.resampling)

    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The guided model."""
        return context.denoise, context.condition

    def hook(self, context: MethodContext) -> Hook | None:
        """Puts the patient's own state back outside the mask."""
        return keeping(context, self._mask(context))

    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """Exact spaces keep the patient's own voxels by construction, others need a blend."""
        return blended(context, healthy, self._mask(context))

    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map times that of the first pass."""
        return scores * context.prior_map

    def _mask(self, context: MethodContext) -> Tensor:
        m = (context.prior_map > self.threshold).to(context.x.dtype)
        return dilate(m, radius_mm=self.dilate_mm, spacing_mm=context.spacing_mm)
