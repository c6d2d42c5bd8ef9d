"""Redraws a region, given everything around it."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._redrawing import asked, blended, check_visits, keeping, revisited
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.selectors import FoundSelector, Selector
from volumediff.compatibility.methods import fills_voids
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Inpaint"]


@dataclass(frozen=True)
class Inpaint(Editing):
    r"""Redraws a region, knowing nothing of it but its surroundings.

    From t near 1 nothing of the lesion is left inside; outside, the volume is the patient's own.
    Unlike `stitch` the map is not weighed, and the level is free. Checkpoints of the recipe
    inpainting are conditioned on the region and its surroundings, others keep them in the chain.

    Arguments:
        selector: the region
        resampling: U, visits of each step; 1 for checkpoints of the recipe inpainting

    References:
        Durrer et al. (2024), Denoising Diffusion Models for Inpainting of Healthy Brain Tissue,
        arXiv:2402.17307; Lugmayr et al. (2022), RePaint, arXiv:2201.09865
    """

    selector: Selector = field(default_factory=FoundSelector)
    resampling: int = 1

    def __post_init__(self) -> None:
        check_visits(self.resampling)

    @property
    def two_pass(self) -> bool:
        """Whether a first pass finds the region."""
        return self.selector.two_pass

    @property
    def takes_region(self) -> bool:
        """Whether the caller says what to redraw."""
        return self.selector.takes_region

    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return context.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return revisited(times, self.resampling)

    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The denoiser as it redraws the region."""
        return asked(context, self.selector(context))

    def hook(self, context: MethodContext) -> Hook | None:
        """Puts the patient's own state back outside the region, unless it is a condition."""
        if fills_voids(context.model.recipe):
            return None
        return keeping(context, self.selector(context))

    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The volume with the region redrawn."""
        return blended(context, healthy, self.selector(context))

    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores
