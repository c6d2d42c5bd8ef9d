"""Restoration of the volume, read as a degraded one (cold diffusion)."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.compatibility.chains import walks
from volumediff.config import name_of
from volumediff.samplers._base import Sampler

__all__ = ["Restore"]


@dataclass(frozen=True)
class Restore(Route):
    r"""The volume itself, read as a state of some severities t of a cold kernel, restored: a
    volume per severity, nothing is added to it.

    .. math:: z_t = E(x), \qquad \hat x = D(\hat z_0(z_t, t)) \quad\text{or, step by step,}\quad
              z_s = z_t - D_t(\hat z_0) + D_s(\hat z_0)

    without a sampler or with the ancestral one, whose step is the kernel's.

    Arguments:
        levels: the severities t, in (0, 1]

    References:
        Marimont et al. (2023), DISYRE, arXiv:2311.15453: one step from each of 4 or 5 severities,
        or several steps; Bansal et al. (2022), Cold Diffusion, arXiv:2208.09392, algorithm 2
    """

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...] | None] = ("cold",)
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("restore: expected levels, got none.")

    def noise_levels(self) -> list[Level]:
        """The severities."""
        return read_levels(self.levels, ())

    def check(self, sampler: Sampler | None) -> None:
        """A step must be the kernel's own."""
        if sampler is not None and not walks(sampler, "cold"):
            raise ValueError(
                "route restore: expected a sampler whose step is the kernel's own, ancestral with "
                f"variance 0, or none for single steps, got {name_of(type(sampler))}, which steps "
                "along Gaussian noise; a cold kernel has none."
            )

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume per severity."""
        z = context.encode(editing.start(context))
        for each in [level] if level else self.noise_levels():
            t = each.time(context.schedule)
            if sampler is None:
                z_0 = context.denoise(z, context.times(t), context.condition).x0
            else:
                z_0 = sampler.sample(
                    context.denoise,
                    context.model.kernel,
                    z,
                    sampler.times(context.schedule, start=t),
                    condition=context.condition,
                    noise=context.noise,
                )
            yield editing.finish(context, context.decode(z_0))
