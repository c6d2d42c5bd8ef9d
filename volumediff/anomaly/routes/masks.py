"""Random regions, redrawn one set after the other."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.editing.inpaint import Inpaint
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import down, needs_sampler
from volumediff.anomaly.routes._region import Made
from volumediff.data.regions import Cells, Region
from volumediff.randomness import key
from volumediff.samplers._base import Sampler
from volumediff.tunable import Tunable, tunable

__all__ = ["Masks"]


@dataclass(frozen=True)
class Masks(Route):
    r"""Random regions, each redrawn given what surrounds it, averaged where they were hidden,

    .. math:: \hat x = \sum_i m_i\, \hat x_i \Big/ \sum_i m_i,

    the patient's own where no region was. With checkpoints of the recipe inpainting, t = 1 and one
    step, it is a masked autoencoder.

    Arguments:
        region: how regions are drawn
        count: number of regions; each costs a chain
        level: time t of the noisy state, in (0, 1]
        log_snr: the same as log-SNR; give one of the two

    References:
        He et al. (2022), Masked Autoencoders, arXiv:2111.06377; Lang et al. (2023), 3D Masked
        Autoencoders for Anomaly Detection, arXiv:2305.01899
    """

    chain: ClassVar[bool] = False
    region: Region = field(default_factory=Cells)
    count: int = 8
    level: float | None = tunable(None, Tunable.TIME)
    log_snr: float | None = tunable(None, Tunable.LOG_SNR)

    def __post_init__(self) -> None:
        self.noise_levels()
        if self.count < 1:
            raise ValueError(f"count: expected at least 1 region, got {self.count}.")

    def noise_levels(self) -> list[Level]:
        """The level."""
        return [Level(self.level, self.log_snr)]

    def check(self, sampler: Sampler | None) -> None:
        """Any sampler will do."""
        needs_sampler("masks", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume."""
        t = (level or self.noise_levels()[0]).time(context.schedule)
        z_t = context.noised(context.encode(context.x), t)
        total, weight = torch.zeros_like(context.x), torch.zeros_like(context.x[:, :1])
        for i in range(self.count):
            m = self.region(
                context.foreground[0],
                spacing_mm=context.spacing_mm,
                key=key(context.key, "mask", i),
            )
            m = m[None].to(context.x.dtype)
            total += m * down(context, z_t, t, editing=Inpaint(Made(m)), sampler=sampler)
            weight += m
        yield torch.where(weight > 0, total / weight.clamp(min=1), context.x)
