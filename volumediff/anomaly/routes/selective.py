"""Anomalies as noise that is already there: only what the network takes for noise is denoised."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level, read_levels
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.needs.training import MaskLoss
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.component import Requirement
from volumediff.samplers._base import Sampler
from volumediff.samplers._transfer import euler
from volumediff.tunable import Tunable, tunable

__all__ = ["Selective"]


@dataclass(frozen=True)
class Selective(Route):
    r"""Takes the volume itself for a noisy state, and denoises the part where noise is predicted,

    .. math:: M = \{p(M | z, t) > 1/2\}, \qquad
              z \leftarrow M\, (α_s \hat z_0 + σ_s \hat ε) + (1 - M)\, z,

    level after level, the last with s = 0. Nothing is added to the volume and nothing is drawn:
    what a network that was trained on noise in unknown cells takes for clean stays as it is, bit
    for bit in state space. Beside the method's map there is the deviation in state space,

    .. math:: a = U \frac{1}{k} \|z_0 - \hat z\|_1,

    with U the interpolation to voxels; the ensemble averages the two. For checkpoints of the
    recipe local_noise with a mask_loss.

    Arguments:
        levels: times t, walked from the highest to the lowest
        log_snrs: the same as log-SNRs; give one of the two

    References:
        Beizaee et al. (2025), MAD-AD, arXiv:2502.16943; there the steps of DDIM draw half of their
        noise
    """

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("selective: expected levels or log_snrs, got none.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("selective", sampler)

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A network that says where noise is."""
        return (MaskLoss("route selective"),)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume, and the map of its state's deviation."""
        z_0 = z = context.encode(editing.start(context))
        inside = context.model.space.mask(context.foreground.to(z)) > 0
        steps = [level] if level else self.noise_levels()
        times = sorted((each.time(context.schedule) for each in steps), reverse=True)
        denoised = torch.zeros_like(z[:, :1])
        for t, s in pairwise([*times, 0.0]):
            found = context.denoise(z, context.times(t), context.condition)
            assert found.noisy is not None, "checked before"
            m = (found.noisy > 0) & inside
            z = torch.where(m, euler(context.schedule, found, context.times(s)), z)
            denoised += m
        context.trace["selective/denoised"] = context.voxels(denoised / len(times))
        context.maps.append(context.voxels((z_0 - z).abs().mean(dim=1, keepdim=True)))
        yield editing.finish(context, context.decode(z))
