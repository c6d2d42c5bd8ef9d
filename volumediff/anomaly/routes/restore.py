"""The volume itself, read as a degraded one, restored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Level, Scene, read_levels
from volumediff.anomaly.policies._base import Policy
from volumediff.anomaly.routes._base import Route
from volumediff.config import name_of
from volumediff.kernels._base import Kernel
from volumediff.kernels.cold import Cold
from volumediff.samplers._base import Sampler
from volumediff.samplers.ancestral import Ancestral

__all__ = ["Restore"]

Volumes = Iterator[Float[Tensor, "1 c d h w"]]


@dataclass(frozen=True)
class Restore(Route):
    r"""The volume itself, read as a state of some severities t of a cold kernel, restored: a
    volume per severity, nothing is added to it.

    .. math:: z_t = E(x), \qquad \hat x = D(\hat z_0(z_t, t)) \quad\text{or, step by step,}\quad
              z_s = z_t - D_t(\hat z_0) + D_s(\hat z_0)

    without a sampler or with the ancestral one, whose step is the kernel's.

    Arguments:
        levels: the severities t, in (0, 1]

    References:
        Marimont et al. (2023), DISYRE, arXiv:2311.15453: one step from each of 4 or 5 severities,
        or several steps; Bansal et al. (2022), Cold Diffusion, arXiv:2208.09392, algorithm 2
    """

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    kernel: ClassVar[type[Kernel] | None] = Cold
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.noise_levels():
            raise ValueError("restore: expected levels, got none.")

    def noise_levels(self) -> list[Level]:
        """The severities."""
        return read_levels(self.levels, ())

    def check(self, sampler: Sampler | None) -> None:
        """A step must be the kernel's own."""
        if sampler is not None and not isinstance(sampler, Ancestral):
            raise ValueError(
                "route restore: expected the sampler ancestral, or none for single steps, got "
                f"{name_of(type(sampler))}, which steps along Gaussian noise; a cold kernel has "
                "none."
            )
        if isinstance(sampler, Ancestral) and sampler.variance:
            raise ValueError(
                f"route restore: expected a sampler with variance 0, got {sampler.variance}; a "
                "cold kernel draws no noise."
            )

    def __call__(
        self, scene: Scene, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume per severity."""
        z = scene.encode(policy.start(scene))
        for each in [level] if level else self.noise_levels():
            t = each.time(scene.schedule)
            if sampler is None:
                z_0 = scene.denoise(z, scene.times(t), scene.condition).x0
            else:
                z_0 = sampler.sample(
                    scene.denoise,
                    scene.model.kernel,
                    z,
                    sampler.times(scene.schedule, start=t),
                    condition=scene.condition,
                    noise=scene.noise,
                )
            yield policy.finish(scene, scene.decode(z_0))
