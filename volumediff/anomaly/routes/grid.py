"""Boxes that cover the foreground, noised and denoised one after the other."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.editing.inpaint import Inpaint
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import down, needs_sampler
from volumediff.anomaly.routes._region import Made
from volumediff.samplers._base import Sampler
from volumediff.tiling import Tile, tile_grid
from volumediff.tunable import Tunable, tunable

__all__ = ["GridRoute"]


@dataclass(frozen=True)
class GridRoute(Route):
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
        needs_sampler("grid", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume, the patient's own where there is no foreground."""
        t = (level or self.noise_levels()[0]).time(context.schedule)
        z_t = context.noised(context.encode(context.x), t)
        total, weight = torch.zeros_like(context.x), torch.zeros_like(context.x[:, :1])
        for box in self._boxes(context):
            m = torch.zeros_like(weight)
            m[:, :, *box] = 1
            if not bool((context.foreground & m.bool()).any()):
                continue
            total += m * down(context, z_t, t, editing=Inpaint(Made(m)), sampler=sampler)
            weight += m
        yield torch.where(weight > 0, total / weight.clamp(min=1), context.x)

    def _boxes(self, context: MethodContext) -> list[Tile]:
        d, h, w = context.x.shape[2:]
        stride = context.model.space.stride
        # multiples of the stride, so that boxes of a coarser state are boxes
        size, shared = (
            tuple(
                max(round(mm / (s * step)), least) * step
                for s, step in zip(context.spacing_mm, stride, strict=True)
            )
            for mm, least in ((self.box_mm, 1), (self.overlap_mm, 0))
        )
        overlap = tuple(min(a, b - 1) for a, b in zip(shared, size, strict=True))
        return tile_grid((d, h, w), size, overlap=overlap)
