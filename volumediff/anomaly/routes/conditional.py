"""Healthy volumes drawn from pure noise, given the volume itself."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.needs.training import TrainedOn
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.component import Requirement
from volumediff.recipes.pseudo_healthy import PseudoHealthy
from volumediff.samplers._base import Sampler

__all__ = ["Conditional"]


@dataclass(frozen=True)
class Conditional(Route):
    r"""Draws a healthy volume given the volume,

    .. math:: \hat x \sim p(x\,|\,x'),

    or its mean E[x | x'] by one network call at t = 1, without a sampler. For models of
    the recipe `pseudo_healthy`.

    References:
        Lawry Aguila et al. (2025), arXiv:2506.10233, with a sampler; Liu et al. (2025), UNA,
        arXiv:2501.13370, in one call
    """

    chain: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A model that is conditioned on a volume with an anomaly."""
        return (TrainedOn(PseudoHealthy),)

    def noise_levels(self) -> list[Level]:
        """Noise alone."""
        return [Level(level=1.0)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do, or none."""

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume."""
        model = context.model
        hint = model.recipe.hint(context.x, context.foreground)
        condition = model.told(context.condition, (hint,))
        t = (level or self.noise_levels()[0]).time(context.schedule)
        z_t = model.kernel.prior(context.noise(-1).to(context.x))
        if sampler is None:
            z_0 = context.denoise(z_t, context.times(t), condition).x0
        else:
            z_0 = sampler.sample(
                context.denoise,
                model.kernel,
                z_t,
                sampler.times(context.schedule, start=t),
                condition=condition,
                noise=context.noise,
            )
        yield context.decode(z_0)
