"""Adds noise up to a level and denoises."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import down, needs_sampler
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Diffuse"]


@dataclass(frozen=True)
class Diffuse(Route):
    """Adds noise up to a level and denoises.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
    """

    paths: ClassVar[tuple[str, ...] | None] = ("gaussian", "discrete")
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)

    def __post_init__(self) -> None:
        self.noise_levels()

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        needs_sampler("diffuse", sampler)

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
        z_t = context.noised(context.encode(editing.start(context)), t)
        yield down(context, z_t, t, editing=editing, sampler=sampler)
