"""Anomalies as noise that is already there: what the network wants to change most is denoised."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly._scene import Level, Scene, read_levels
from volumediff.anomaly.policies._base import Policy
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Selective"]


@dataclass(frozen=True)
class Selective(Route):
    r"""Denoises the volume itself, level after level, and in each only the part that moves most,

    .. math:: \hat z_0 = \hat z_0(z, t), \qquad M = \{|\hat z_0 - z| > Q_q\}, \qquad
              z \leftarrow M \hat z_0 + (1 - M)\, z,

    with the distance averaged over state channels and its quantile in the foreground. Nothing is
    added to the volume: a network that was trained on noise in unknown cells (recipe local_noise
    without `tell`) leaves clean tissue alone and takes anomalies for noise.

    Arguments:
        levels: times t, walked from the highest to the lowest
        log_snrs: the same as log-SNRs; give one of the two
        quantile: q, share of the foreground that is kept in every step

    References:
        Beizaee et al. (2025), MAD-AD, arXiv:2502.16943, which predicts the mask beside the noise
    """

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    levels: tuple[float, ...] = tunable((), Tunable.TIME)
    log_snrs: tuple[float, ...] = tunable((), Tunable.LOG_SNR)
    quantile: float = 0.9

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("selective: expected levels or log_snrs, got none.")
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("selective", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume."""
        z = scene.encode(policy.start(scene))
        inside = scene.model.space.mask(scene.foreground.to(z)) > 0
        levels = [level] if level else self.noise_levels()
        for t in sorted((each.time(scene.schedule) for each in levels), reverse=True):
            x0 = scene.denoise(z, scene.times(t), scene.condition).x0
            moved = (x0 - z).abs().mean(dim=1, keepdim=True)
            bar = inside_quantile(moved, self.quantile, foreground=inside)
            z = torch.where((moved > bar) & inside, x0, z)
        yield policy.finish(scene, scene.decode(z))
