"""Walks the probability flow up to a level without guidance, and down with it."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import down, needs_inverse
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Inversion"]


@dataclass(frozen=True)
class Inversion(Route):
    """Walks the probability flow up to a level without guidance, and down with it.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
        iterations: fixed-point iterations per step of the way up; 0 is the published way

    References:
        Song et al. (2021), Denoising Diffusion Implicit Models, arXiv:2010.02502, section 4.3
    """

    stochastic: ClassVar[bool] = False
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)
    iterations: int = 0

    def __post_init__(self) -> None:
        self.noise_levels()

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Only deterministic samplers run upwards."""
        needs_inverse("inversion", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume."""
        t = (level or self.noise_levels()[0]).time(context.schedule)
        z_t = sampler.invert(
            context.unguided,
            context.model.kernel,
            context.encode(editing.start(context)),
            sampler.times(context.schedule, start=t),
            condition=context.unguided_condition,
            iterations=self.iterations,
        )
        yield down(context, z_t, t, editing=editing, sampler=sampler)
