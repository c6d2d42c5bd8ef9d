"""Redrawing a region and keeping the patient's own state elsewhere."""

from itertools import pairwise

import torch
from torch import Tensor

from volumediff.anomaly._scene import Scene
from volumediff.samplers._base import Context, Hook

__all__ = ["blended", "check_visits", "keeping", "revisited"]


def check_visits(resampling: int) -> None:
    if resampling < 1:
        raise ValueError(f"resampling: expected at least 1, got {resampling}.")


def revisited(times: Tensor, visits: int) -> Tensor:
    """The grid with visits - 1 returns to the start of every step but the last."""
    grid = [times[:1]]
    for t, s in pairwise(times):
        again = visits - 1 if s > 0 else 0
        grid.append(torch.stack([s, *[t, s] * again]))
    return torch.cat(grid)


def keeping(scene: Scene, m: Tensor) -> Hook:
    """Puts the patient's own state back outside a mask of voxels."""
    m = scene.model.space.mask(m)
    own = (1 - m) * scene.encode(scene.x)

    def keep(ctx: Context) -> tuple[Tensor, Tensor]:
        return m * ctx.prediction.x0 + own, ctx.z_t

    return keep


def blended(scene: Scene, healthy: Tensor, m: Tensor) -> Tensor:
    """The patient's own voxels outside a mask; exact spaces have them already."""
    if scene.model.space.exact:
        return healthy
    return m * healthy + (1 - m) * scene.x
