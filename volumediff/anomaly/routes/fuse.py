"""Two chains: the patient's inverted one, and one that redraws inside the mask of a first pass."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._filters import inside_quantile, smooth
from volumediff.anomaly._level import Level
from volumediff.anomaly._redrawing import blended
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import needs_inverse
from volumediff.samplers._base import Sampler
from volumediff.samplers.ancestral import Ancestral
from volumediff.tunable import Tunable, tunable

__all__ = ["Fuse"]


@dataclass(frozen=True)
class Fuse(Route):
    r"""Two chains: the patient's inverted one, and one that redraws in the mask of a first pass.

    The volume is inverted to the level without guidance. From there u walks down as it came, by
    the method's sampler, and z by ancestral steps; after each step

    .. math:: z_s \leftarrow M_z z_s + (1 - M_z)\, u_s, \qquad
              M = [G_σ a_1 > Q_{1 - q}(G_σ a_1)],

    with the first pass's map a_1, such as a saliency, and its quantile in the foreground: no noise
    enters outside M, and what is inside is drawn given the patient's own path around it. The
    published code smooths the mask and not the map, which leaves little of scattered voxels.

    Arguments:
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two
        share: q, share of the foreground that is redrawn, in (0, 1)
        sigma_mm: σ of the map's smoothing
        iterations: fixed-point iterations per step of the way up; 0 is the published way

    References:
        Fontanella et al. (2023), Diffusion Models for Counterfactual Generation and Anomaly
        Detection in Brain Images (Dif-fuse), arXiv:2308.02062
    """

    chain: ClassVar[bool] = False
    two_pass: ClassVar[bool] = True
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)
    share: float = 0.1
    sigma_mm: float = 3.0
    iterations: int = 0

    def __post_init__(self) -> None:
        self.noise_levels()
        if not 0 < self.share < 1:
            raise ValueError(f"share: expected a share in (0, 1), got {self.share}.")

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Only deterministic samplers run upwards."""
        needs_inverse("fuse", sampler)

    def mask(self, context: MethodContext) -> Float[Tensor, "1 1 d h w"]:
        """What is redrawn."""
        inside = context.foreground
        a = smooth(
            context.prior_map,
            sigma_mm=self.sigma_mm,
            spacing_mm=context.spacing_mm,
            foreground=inside,
        )
        top = inside_quantile(a, 1 - self.share, foreground=inside)
        return ((a > top) & inside).to(context.x.dtype)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume."""
        kernel, draw = context.model.kernel, Ancestral(1)
        t = (level or self.noise_levels()[0]).time(context.schedule)
        times = sampler.times(context.schedule, start=t)
        own = {"condition": context.unguided_condition}
        u = sampler.invert(
            context.unguided,
            kernel,
            context.encode(context.x),
            times,
            iterations=self.iterations,
            **own,
        )
        m = self.mask(context)
        context.trace["fuse/mask"] = m.bool()
        z, m_z = u, context.model.space.mask(m)
        for i, ends in enumerate(pairwise(times)):
            move, fresh = torch.stack(ends), context.noise(i)
            u = sampler.sample(context.unguided, kernel, u, move, **own)
            z = draw.sample(
                context.denoise,
                kernel,
                z,
                move,
                condition=context.condition,
                noise=lambda _, fresh=fresh: fresh,
            )
            z = m_z * z + (1 - m_z) * u
        yield blended(context, context.decode(z), m)
