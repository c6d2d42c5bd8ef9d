"""The Kullback-Leibler divergence between the model's reverse steps and the volume's own."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["KLRoute"]


@dataclass(frozen=True)
class KLRoute(Route):
    r"""The divergence between the model's reverse steps and the volume's own, as a map,

    .. math:: a_t = U \frac{\| μ_q - μ_θ \|^2}{2 \tilde σ_t^2}
              = U \frac{1}{2} \Big(\frac{α_s^2}{σ_s^2} - \frac{α_t^2}{σ_t^2}\Big)
              \| z_0 - \hat z_0(z_t) \|^2,

    the Kullback-Leibler divergence of q(z_s | z_t, z_0) and p(z_s | z_t), with the sum over
    channels, s = t - 1/T, and U the interpolation to voxels; one map per level. The method's own
    map is not used.

    Arguments:
        levels: times t, in (0, 1]
        log_snrs: the same as log-SNRs; give one of the two
        steps: T

    References:
        Pinaya et al. (2022), Fast Unsupervised Brain Anomaly Detection and Segmentation with
        Diffusion Models, arXiv:2206.03461; Kingma et al. (2021), arXiv:2107.00630, eq. 13, for the
        second form
    """

    chain: ClassVar[bool] = False
    own_map: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    steps: int = 1000

    def __post_init__(self) -> None:
        if not self.noise_levels() or self.steps < 1:
            raise ValueError("kl: expected levels or log_snrs, and steps >= 1.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("kl", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """No volume; one map per level, each with its own noise."""
        z_0 = context.encode(context.x)
        for i, each in enumerate([level] if level else self.noise_levels()):
            t = each.time(context.schedule)
            z_t = context.noised(z_0, t, draw=i)
            x0 = context.denoise(z_t, context.times(t), context.condition).x0
            error = (z_0 - x0).square().sum(dim=1, keepdim=True)
            context.maps.append(context.voxels(self._weight(context, t) * error))
        yield from ()

    def _weight(self, context: MethodContext, t: float) -> float:
        # s = 0 has no noise to divide by; the last transition is as long as the one before it
        s = max(t - 1 / self.steps, t / 2)
        alpha, sigma = context.schedule(torch.tensor([s, t], dtype=torch.float64))
        snr = (alpha / sigma).square()
        return float(snr[0] - snr[1]) / 2
