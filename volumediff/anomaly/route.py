r"""Routes: from a volume to a noisy state and back to pseudo-healthy volumes.

    diffuse    z_t = α_t z_0 + σ_t ε, then the sampler's reverse chain
    inversion  z_t by integrating the probability flow up to t, then back down with guidance
    scan       E[z_0 | z_t] at several t, no chain
    flow_scan  the same along the inversion, while the class changes more and more
    grid       diffuse, box by box
    shrink     diffuse, inside a mask that shrinks
    identity   D(E(x)): what the space alone loses

The level is a time t, or better a log-SNR: the same t is another corruption under another
schedule, the same log(α²/σ²) is the same one in every space of unit variance.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly._scene import Level, Scene, read_levels
from volumediff.anomaly.policy import Keep, Policy
from volumediff.samplers._base import InvertibleSampler, Sampler
from volumediff.tiling import Tile, tile_grid
from volumediff.tunable import Tunable, tunable

__all__ = ["Diffuse", "FlowScan", "Grid", "Identity", "Inversion", "Route", "Scan", "Shrink"]

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


def _needs_inverse(route: str, sampler: Sampler | None) -> None:
    _needs_sampler(route, sampler)
    if not isinstance(sampler, InvertibleSampler):
        raise ValueError(
            f"route {route}: expected a sampler that can be inverted, such as ddim or heun, "
            f"got {type(sampler).__name__.lower()}."
        )


@dataclass(frozen=True)
class Diffuse(Route):
    """Noise to a level and denoise.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
    """

    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)

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
        _needs_inverse("inversion", sampler)

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
        _needs_inverse("flow_scan", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """The guided volumes of t < t_e."""
        wanted = [level] if level else self.noise_levels()
        times = sorted(each.time(scene.schedule) for each in wanted)
        z, below, guided, curve = scene.encode(policy.start(scene)), 0.0, [], []
        for t in times:
            z = sampler.invert(
                scene.unguided,
                scene.model.kernel,
                z,
                torch.tensor([t, below], dtype=torch.float64),
                condition=scene.unguided_condition,
                iterations=self.iterations,
            )
            now = scene.times(t)
            healthy = scene.decode(scene.denoise(z, now, scene.condition).x0)
            null = scene.decode(scene.unguided(z, now, scene.unguided_condition).x0)
            inside = scene.foreground.expand_as(null)
            curve.append((healthy - null)[inside].double().square().mean())
            guided.append(healthy.cpu())
            below = t
        scene.trace["flow_scan/curve"] = torch.stack(curve)
        end = int(torch.stack(curve).argmax())
        for healthy in guided[: max(end, 1)]:
            yield policy.finish(scene, healthy.to(scene.x.device))


@dataclass(frozen=True)
class Grid(Route):
    r"""Boxes that cover the foreground, one after the other: each is noised and denoised while all
    around it is the patient's own; overlaps are averaged.

    .. math:: \hat x = \sum_b m_b\, \hat x_b \Big/ \sum_b m_b

    The published network is trained to denoise a box among clean voxels, in one step. Here a chain
    redraws the box, and its surroundings are the patient at the level of each step, which is what
    any network was trained on.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
        box_mm: side of the boxes; costs one chain per box
        overlap_mm: what neighbouring boxes share, at least

    References:
        Behrendt et al. (2023), Patched Diffusion Models for Unsupervised Anomaly Detection in
        Brain MRI, arXiv:2303.03758: boxes of 48 voxels of 2 mm
    """

    chain: ClassVar[bool] = False
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)
    box_mm: float = 96.0
    overlap_mm: float = 0.0

    def __post_init__(self) -> None:
        self.noise_levels()
        if not 0 <= self.overlap_mm < self.box_mm:
            raise ValueError(
                f"expected overlap_mm below box_mm, got {self.overlap_mm} and {self.box_mm}."
            )

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        _needs_sampler("grid", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume, the patient's own where there is no foreground."""
        t = (level or self.noise_levels()[0]).time(scene.schedule)
        z_t = scene.noised(scene.encode(scene.x), t)
        total, weight = torch.zeros_like(scene.x), torch.zeros_like(scene.x[:, :1])
        for box in self._boxes(scene):
            m = torch.zeros_like(weight)
            m[:, :, *box] = 1
            if not bool((scene.foreground & m.bool()).any()):
                continue
            total += m * _down(scene, z_t, t, policy=Keep(m), sampler=sampler)
            weight += m
        yield torch.where(weight > 0, total / weight.clamp(min=1), scene.x)

    def _boxes(self, scene: Scene) -> list[Tile]:
        d, h, w = scene.x.shape[2:]
        stride = scene.model.space.stride
        # multiples of the stride, so that boxes of a coarser state are boxes
        size, shared = (
            tuple(
                max(round(mm / (s * step)), least) * step
                for s, step in zip(scene.spacing_mm, stride, strict=True)
            )
            for mm, least in ((self.box_mm, 1), (self.overlap_mm, 0))
        )
        overlap = tuple(min(a, b - 1) for a, b in zip(shared, size, strict=True))
        return tile_grid((d, h, w), size, overlap=overlap)


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
        _needs_sampler("shrink", sampler)

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """The volume of the last pass."""
        t = (level or self.noise_levels()[0]).time(scene.schedule)
        z_t = scene.noised(scene.encode(scene.x), t)
        m, bar, healthy = scene.foreground, None, scene.x
        for i in range(self.passes):
            keep = Keep(m.to(scene.x.dtype))
            healthy = _down(scene, z_t, t, policy=keep, sampler=sampler)
            scene.trace[f"shrink/{i:02d}/mask"] = m
            a = scene.compare(healthy)
            if bar is None:
                bar = inside_quantile(a, self.quantile, foreground=scene.foreground)
            before, m = int(m.sum()), m & (a > bar)
            if int(m.sum()) > (1 - self.stop) * before or not bool(m.any()):
                break
        yield healthy


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
