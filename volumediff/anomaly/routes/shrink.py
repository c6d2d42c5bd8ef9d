"""A mask that shrinks from the whole foreground to what no redrawing explains,"""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.editing.inpaint import Inpaint
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import down, needs_sampler
from volumediff.anomaly.routes._region import Made
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Shrink"]


@dataclass(frozen=True)
class Shrink(Route):
    r"""A mask that shrinks from the whole foreground to what no redrawing explains,

    .. math:: \hat x_i &= \text{the chain, which redraws } M_i \text{ and keeps the rest}, \\
              M_{i+1} &= M_i \cap \{a(x, \hat x_i) > θ\},

    until the mask loses less than a share `stop` of itself. θ is a quantile of the first pass's
    map. The volume is the last one: the patient's own outside the last mask.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
        quantile: of the first map, which gives θ
        passes: most passes
        stop: share of the mask

    References:
        Liang et al. (2025), IterMask3D, arXiv:2504.04911: a network that is trained on masks and
        on the high frequencies of what they hide, and θ where a curve fitted to the subject's
        own percentiles bends; here a chain of any network, and a fixed quantile
    """

    chain: ClassVar[bool] = False
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)
    quantile: float = 0.8
    passes: int = 10
    stop: float = 0.01

    def __post_init__(self) -> None:
        self.noise_levels()
        if not 0 < self.quantile < 1 or self.passes < 1 or not 0 <= self.stop < 1:
            raise ValueError(
                "expected quantile in (0, 1), passes >= 1 and stop in [0, 1), got "
                f"{self.quantile}, {self.passes} and {self.stop}."
            )

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        needs_sampler("shrink", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """The volume of the last pass."""
        t = (level or self.noise_levels()[0]).time(context.schedule)
        z_t = context.noised(context.encode(context.x), t)
        m, first_threshold, healthy = context.foreground, None, context.x
        for i in range(self.passes):
            keep = Inpaint(Made(m.to(context.x.dtype)))
            healthy = down(context, z_t, t, editing=keep, sampler=sampler)
            context.trace[f"shrink/{i:02d}/mask"] = m
            a = context.compare(healthy)
            if first_threshold is None:
                first_threshold = inside_quantile(a, self.quantile, foreground=context.foreground)
            before, m = int(m.sum()), m & (a > first_threshold)
            if int(m.sum()) > (1 - self.stop) * before or not bool(m.any()):
                break
        yield healthy
