"""One-step estimates along the probability flow, up to where the class matters most."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import needs_inverse
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["FlowScan"]


@dataclass(frozen=True)
class FlowScan(Route):
    r"""One-step estimates along the probability flow, up to where the class matters most.

    The volume is encoded with the null class through times t_1 < t_2 < ...; at each of them

    .. math:: \hat x_g = D(\hat z_0(z_t, c)), \qquad \hat x_\varnothing =
              D(\hat z_0(z_t, \varnothing)), \qquad
              t_e = \arg\max_t \mathrm{mean}(\hat x_g - \hat x_\varnothing)^2,

    guided and not, and the volumes are the guided ones of t < t_e (the first one, if t_e is the
    first): beyond it the guided estimate is of another subject. They wait on the CPU. The curve of
    the mean is in the trace.

    Arguments:
        levels: the times t, in (0, 1]
        log_snrs: the same as log-SNRs; give one of the two
        iterations: fixed-point iterations per step of the way up; 0 is the published way

    References:
        Che et al. (2024), AnoFPDM, arXiv:2404.15683; all of t = 1 ... 600 of 1000 there
    """

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    iterations: int = 0

    def __post_init__(self) -> None:
        if len(self.noise_levels()) < 2:
            raise ValueError("flow_scan: expected two or more levels or log_snrs.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """Only deterministic samplers run upwards."""
        needs_inverse("flow_scan", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """The guided volumes of t < t_e."""
        wanted = [level] if level else self.noise_levels()
        times = sorted(each.time(context.schedule) for each in wanted)
        z, below, guided, curve = context.encode(editing.start(context)), 0.0, [], []
        for t in times:
            z = sampler.invert(
                context.unguided,
                context.model.kernel,
                z,
                torch.tensor([t, below], dtype=torch.float64),
                condition=context.unguided_condition,
                iterations=self.iterations,
            )
            now = context.times(t)
            healthy = context.decode(context.denoise(z, now, context.condition).x0)
            null = context.decode(context.unguided(z, now, context.unguided_condition).x0)
            inside = context.foreground.expand_as(null)
            curve.append((healthy - null)[inside].double().square().mean())
            guided.append(healthy.cpu())
            below = t
        context.trace["flow_scan/curve"] = torch.stack(curve)
        end = int(torch.stack(curve).argmax())
        for healthy in guided[: max(end, 1)]:
            yield editing.finish(context, healthy.to(context.x.device))
