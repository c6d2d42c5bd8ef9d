r"""Routes: from a volume to a noisy state and back to pseudo-healthy volumes.

    diffuse    z_t = α_t z_0 + σ_t ε, then the sampler's reverse chain
    inversion  z_t by integrating the probability flow up to t, then back down with guidance
    scan       E[z_0 | z_t] at several t, no chain
    identity   D(E(x)): what the space alone loses

The level is a time t, or better a log-SNR: the same t is another corruption under another
schedule, the same log(α²/σ²) is the same one in every space of unit variance.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Level, Scene, read_levels
from volumediff.anomaly.policy import Policy
from volumediff.samplers._base import InvertibleSampler, Sampler

__all__ = ["Diffuse", "Identity", "Inversion", "Route", "Scan"]

Volumes = Iterator[Float[Tensor, "1 c d h w"]]


@dataclass(frozen=True)
class Route(ABC):
    """Makes pseudo-healthy volumes of a scene.

    `chain` says whether a sampler walks down, so that a policy can act; `stochastic` whether noise
    enters; `corrupts` whether the volume is changed at all, so that the space's own loss is not
    the finding.
    """

    chain: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    corrupts: ClassVar[bool] = True

    @abstractmethod
    def noise_levels(self) -> list[Level]:
        """The noise levels, highest first or as configured."""

    @abstractmethod
    def check(self, sampler: Sampler | None) -> None:
        """Raises ValueError, with the reason, where the sampler cannot walk the route."""

    @abstractmethod
    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """Pseudo-healthy volumes; `level` replaces the route's own."""


def _needs_sampler(route: str, sampler: Sampler | None) -> None:
    if sampler is None:
        raise ValueError(f"route {route}: expected a sampler, got none; add for example ddim.")


@dataclass(frozen=True)
class Diffuse(Route):
    """Noise to a level and denoise.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
    """

    level: float | None = None
    log_snr: float | None = None

    def __post_init__(self) -> None:
        self.noise_levels()

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        _needs_sampler("diffuse", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume."""
        t = (level or self.noise_levels()[0]).time(scene.schedule)
        z_t = scene.noised(scene.encode(policy.start(scene)), t)
        yield _down(scene, z_t, t, policy=policy, sampler=sampler)


@dataclass(frozen=True)
class Inversion(Route):
    """Walk the probability flow up to a level without guidance, and down with it.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
        iterations: fixed-point iterations per step of the way up; 0 is the published way

    References:
        Song et al. (2021), Denoising Diffusion Implicit Models, arXiv:2010.02502, section 4.3
    """

    stochastic: ClassVar[bool] = False
    level: float | None = None
    log_snr: float | None = None
    iterations: int = 0

    def __post_init__(self) -> None:
        self.noise_levels()

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Only deterministic samplers run upwards."""
        _needs_sampler("inversion", sampler)
        if not isinstance(sampler, InvertibleSampler):
            raise ValueError(
                f"route inversion: expected a sampler that can be inverted, such as ddim or heun, "
                f"got {type(sampler).__name__.lower()}."
            )

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume."""
        t = (level or self.noise_levels()[0]).time(scene.schedule)
        z_t = sampler.invert(
            scene.unguided,
            scene.model.kernel,
            scene.encode(policy.start(scene)),
            sampler.times(scene.schedule, start=t),
            condition=scene.unguided_condition,
            iterations=self.iterations,
        )
        yield _down(scene, z_t, t, policy=policy, sampler=sampler)


@dataclass(frozen=True)
class Scan(Route):
    """One-step estimates E[z_0 | z_t] at several levels, one volume each.

    Arguments:
        levels: times t of the noisy states, in (0, 1]
        log_snrs: the same as log-SNRs; give one of the two
    """

    chain: ClassVar[bool] = False
    levels: tuple[float, ...] = ()
    log_snrs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("scan: expected levels or log_snrs, got none.")

    def noise_levels(self) -> list[Level]:
        """The levels."""
        return read_levels(self.levels, self.log_snrs)

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        _no_sampler("scan", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume per level, each with its own noise."""
        z_0 = scene.encode(policy.start(scene))
        for i, each in enumerate([level] if level else self.noise_levels()):
            t = each.time(scene.schedule)
            z_t = scene.noised(z_0, t, draw=i)
            prediction = scene.denoise(z_t, scene.times(t), scene.condition)
            yield policy.finish(scene, scene.decode(prediction.x0))


@dataclass(frozen=True)
class Identity(Route):
    """No noise at all: the reconstruction of the space, such as an autoencoder."""

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    corrupts: ClassVar[bool] = False

    def noise_levels(self) -> list[Level]:
        """None."""
        return []

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        _no_sampler("identity", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume."""
        yield policy.finish(scene, scene.decode(scene.encode(policy.start(scene))))


def _no_sampler(route: str, sampler: Sampler | None) -> None:
    if sampler is not None:
        raise ValueError(f"route {route}: has no reverse chain; leave the sampler out.")


def _down(
    scene: Scene, z_t: Tensor, t: float, *, policy: Policy, sampler: Sampler
) -> Float[Tensor, "1 c d h w"]:
    """The guided reverse chain from z_t, decoded."""
    z_0 = sampler.sample(
        scene.denoise,
        scene.model.kernel,
        z_t,
        policy.times(sampler.times(scene.schedule, start=t)),
        condition=scene.condition,
        noise=scene.noise,
        on_x0=policy.hook(scene),
    )
    return policy.finish(scene, scene.decode(z_0))
