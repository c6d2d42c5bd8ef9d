"""Restores normal tissue on the way down, by intermediate maps of the chain itself."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import close, dilate
from volumediff.anomaly._level import read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Context, Hook
from volumediff.tunable import Tunable, tunable

__all__ = ["Harmonise"]


@dataclass(frozen=True)
class Harmonise(Editing):
    r"""Restores normal tissue on the way down, by intermediate maps of the chain itself.

    At the first step at or below each level, with the map a in [0, 1] of the volume x̂ that the
    prediction decodes to,

    .. math:: R = \min\big(1, (\mathrm{dilate}(\mathrm{close}(a)) + a) / 2\big), \qquad
              \hat z_0 \leftarrow E(R \hat x + (1 - R) x), \qquad
              z_t \leftarrow α_t \hat z_0 + σ_t (R_z \hat ε + (1 - R_z) ε),

    with the stored noise ε of the forward route and R_z the mask in state space: where nothing is
    put back (R = 1) the chain goes on unchanged, where all is (R = 0) it is again the forward
    process of the patient. The published code uses the stored noise everywhere, which restarts
    the chain. The intermediate maps join the ensemble; the method's map must lie in [0, 1].

    Arguments:
        levels: times at which to harmonise
        log_snrs: the same as log-SNRs; give one of the two
        dilate_mm: half-width of dilation and closing

    References:
        Bercea et al. (2024), Diffusion Models with Implicit Guidance for Medical Anomaly Detection
        (THOR), arXiv:2403.08464
    """

    paths: ClassVar[tuple[str, ...] | None] = ("gaussian",)
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    dilate_mm: float = 9.0

    def __post_init__(self) -> None:
        if not read_levels(self.levels, self.log_snrs):
            raise ValueError("harmonise: expected levels or log_snrs, got none.")

    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return context.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The guided model."""
        return context.denoise, context.condition

    def hook(self, context: MethodContext) -> Hook | None:
        """Harmonises once per level that the chain passes."""
        levels = read_levels(self.levels, self.log_snrs)
        pending = sorted(level.time(context.schedule) for level in levels)

        def harmonise(ctx: Context) -> tuple[Tensor, Tensor]:
            t = float(ctx.t[0])
            reached = [u for u in pending if t <= u + 1e-9]  # times are rounded in float64
            if not reached:
                return ctx.prediction.x0, ctx.z_t
            del pending[-len(reached) :]
            return self._blend(context, ctx, t)

        return harmonise

    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores

    def _blend(self, context: MethodContext, ctx: Context, t: float) -> tuple[Tensor, Tensor]:
        healthy = context.decode(ctx.prediction.x0)
        a = context.compare(healthy)
        size = {"radius_mm": self.dilate_mm, "spacing_mm": context.spacing_mm}
        r = ((dilate(close(a, **size), **size) + a) / 2).clamp(0, 1)
        context.maps.append(a)
        context.trace[f"harmonise/{t:.3f}/map"] = a
        context.trace[f"harmonise/{t:.3f}/mask"] = r
        x0 = context.encode(r * healthy + (1 - r) * context.x)
        m = context.model.space.mask(r)
        eps = m * ctx.prediction.eps + (1 - m) * context.noise(-1).to(x0)
        z_t = context.model.kernel.corrupt(x0, ctx.t, eps)
        return x0, z_t
