r"""Redrawing a region M, as a checkpoint was trained to know what surrounds it.

inpainting    the network is conditioned on what surrounds M, and on M; noise is everywhere
local_noise   the network sees the patient's clean state outside M
any other     after each prediction z_0 is the patient's own outside M, so that every further
              state there is a draw from q(z_s | z_t, z_0) of the patient (RePaint)
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.compatibility.methods import fills_voids
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.samplers._base import Context, Hook

__all__ = ["asked", "blended", "check_visits", "keeping", "revisited"]


def asked(context: MethodContext, m: Float[Tensor, "1 1 d h w"]) -> tuple[Denoiser, Condition]:
    """The denoiser that redraws a region, and its condition."""
    model, recipe = context.model, context.model.recipe
    if fills_voids(recipe):
        shown = m if recipe.shows_mask else None
        told = model.told(context.condition, recipe.hints(context.x, m), shown)
        return context.denoise, told
    if not recipe.local:
        return context.denoise, context.condition
    inside, z_0 = model.space.mask(m), context.encode(context.x)

    def among_clean(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        return context.denoise(torch.lerp(z_0, z_t, inside), t, condition)

    return among_clean, model.told(context.condition, (), m if recipe.shows_mask else None)


def keeping(context: MethodContext, m: Float[Tensor, "1 1 d h w"]) -> Hook:
    """Puts the patient's own state back outside a mask of voxels."""
    m = context.model.space.mask(m)
    own = (1 - m) * context.encode(context.x)

    def keep(ctx: Context) -> tuple[Tensor, Tensor]:
        return m * ctx.prediction.x0 + own, ctx.z_t

    return keep


def blended(context: MethodContext, healthy: Tensor, m: Tensor) -> Tensor:
    """The patient's own voxels outside a mask; states that were kept there have them already."""
    if context.model.space.exact and not fills_voids(context.model.recipe):
        return healthy
    return m * healthy + (1 - m) * context.x


def check_visits(resampling: int) -> None:
    """Raises ValueError for less than one visit of each step."""
    if resampling < 1:
        raise ValueError(f"resampling: expected at least 1, got {resampling}.")


def revisited(times: Tensor, visits: int) -> Tensor:
    """The grid with visits - 1 returns to the start of every step but the last."""
    grid = [times[:1]]
    for t, s in pairwise(times):
        again = visits - 1 if s > 0 else 0
        grid.append(torch.stack([s, *[t, s] * again]))
    return torch.cat(grid)
