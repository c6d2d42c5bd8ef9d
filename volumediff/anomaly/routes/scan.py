"""One-step estimates E[z_0 | z_t] at several levels, one volume each."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Scan"]


@dataclass(frozen=True)
class Scan(Route):
    """One-step estimates E[z_0 | z_t] at several levels, one volume each.

    Arguments:
        levels: times t of the noisy states, in (0, 1]
        log_snrs: the same as log-SNRs; give one of the two
    """

    chain: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("scan: expected levels or log_snrs, got none.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("scan", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume per level, each with its own noise."""
        z_0 = context.encode(editing.start(context))
        for i, each in enumerate([level] if level else self.noise_levels()):
            t = each.time(context.schedule)
            z_t = context.noised(z_0, t, draw=i)
            prediction = context.denoise(z_t, context.times(t), context.condition)
            yield editing.finish(context, context.decode(prediction.x0))
