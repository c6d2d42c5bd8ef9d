r"""Random lesion shapes inside a foreground, of an exact volume.

A shape is the set of the N foreground voxels with the highest score, N = volume / voxel volume.
The score falls with the distance from a random centre c, so that the set is compact:

    blob:      −‖p − c‖ / R + ρ n(p),   n smooth noise of unit variance, R the radius of the ball
    ellipsoid: −(p − c)ᵀ Q (p − c),     Q a random rotation of random semi-axes
    cuboid:    −max_i |(R (p − c))_i| / a_i,   R a random rotation, a random semi-axes

The families have no shape in common: see `anomalies`.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._fields import gaussian, identity, smooth_noise

__all__ = ["blob", "cuboid", "ellipsoid"]

_ROUGHNESS = 0.35  # ρ: lobes and dents of about a third of the radius


def blob(
    foreground: Bool[Tensor, "1 d h w"],
    volume_ml: float,
    *,
    spacing_mm: tuple[float, float, float],
    key: int,
) -> Bool[Tensor, "1 d h w"]:
    """A lobed shape: a ball whose border is displaced by smooth noise."""
    n = _voxels(foreground, volume_ml, spacing_mm)
    radius = _radius_mm(volume_ml)
    offset = _offset_mm(foreground, radius, spacing_mm, key)
    sigma = tuple(radius / 2 / s for s in spacing_mm)
    noise = smooth_noise((1, *foreground.shape[1:]), sigma, key, "lobes")
    score = _ROUGHNESS * noise - offset.norm(dim=0, keepdim=True) / radius
    return _highest(score, foreground, n)


def ellipsoid(
    foreground: Bool[Tensor, "1 d h w"],
    volume_ml: float,
    *,
    spacing_mm: tuple[float, float, float],
    key: int,
) -> Bool[Tensor, "1 d h w"]:
    """An ellipsoid whose axes differ by up to a factor of two, in any direction."""
    n = _voxels(foreground, volume_ml, spacing_mm)
    along = _along_axes(foreground, volume_ml, spacing_mm, key)
    return _highest(-along.square().sum(0, keepdim=True), foreground, n)


def cuboid(
    foreground: Bool[Tensor, "1 d h w"],
    volume_ml: float,
    *,
    spacing_mm: tuple[float, float, float],
    key: int,
) -> Bool[Tensor, "1 d h w"]:
    """A box whose edges differ by up to a factor of two, in any direction."""
    n = _voxels(foreground, volume_ml, spacing_mm)
    along = _along_axes(foreground, volume_ml, spacing_mm, key)
    return _highest(-along.abs().amax(0, keepdim=True), foreground, n)


def _along_axes(
    foreground: Tensor, volume_ml: float, spacing_mm: tuple[float, float, float], key: int
) -> Float[Tensor, "3 d h w"]:
    """Offsets from a random centre along random axes, in units of random semi-axes."""
    offset = _offset_mm(foreground, _radius_mm(volume_ml), spacing_mm, key)
    rotation = torch.linalg.qr(randomness.normal((3, 3), key, "rotation")).Q
    semi = torch.tensor([0.7 + 0.7 * randomness.uniform(key, "axis", i) for i in range(3)])
    return torch.einsum("ij,jdhw->idhw", rotation, offset) / semi.view(3, 1, 1, 1)


def _radius_mm(volume_ml: float) -> float:
    return (3000 * volume_ml / (4 * math.pi)) ** (1 / 3)


def _voxels(foreground: Tensor, volume_ml: float, spacing_mm: tuple[float, ...]) -> int:
    n = max(1, round(1000 * volume_ml / math.prod(spacing_mm)))
    available = int(foreground.sum())
    if n > available:
        raise ValueError(
            f"a lesion of {volume_ml:.3g} ml has {n} voxels, but the foreground has {available}; "
            "use a smaller volume_ml."
        )
    return n


def _offset_mm(
    foreground: Tensor, radius: float, spacing_mm: tuple[float, ...], key: int
) -> Float[Tensor, "3 d h w"]:
    """Millimetres from a centre that has foreground around it."""
    spacing = torch.tensor(spacing_mm).view(3, 1, 1, 1)
    around = gaussian(foreground.float(), tuple(radius / 2 / s for s in spacing_mm))
    # Half of the foreground's voxels, those that lie deepest, may be centres.
    deep = around >= around[foreground].median()
    candidates = (foreground & deep)[0].nonzero()
    centre = candidates[int(randomness.uniform(key, "centre") * len(candidates))]
    return (identity(tuple(foreground.shape[1:])) - centre.view(3, 1, 1, 1)) * spacing


def _highest(score: Tensor, foreground: Tensor, n: int) -> Tensor:
    inside = score.masked_fill(~foreground, -math.inf)
    chosen = torch.zeros_like(foreground).flatten()
    chosen[inside.flatten().topk(n).indices] = True
    return chosen.view_as(foreground)
