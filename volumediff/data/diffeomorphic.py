r"""Smooth invertible deformation of one volume onto another, whatever their contrasts.

The deformation is the exponential of a stationary velocity field, so that it folds nowhere and
its inverse is that of the field's negative:

.. math:: φ = \exp(v), \qquad m∘φ ≈ T(f), \qquad φ^{-1} = \exp(-v).

Intensities of the fixed volume f are first brought to those of the moving one m by the mean of m∘φ
over each of their bins, T(f) = E[m∘φ | f]: the correlation ratio then measures how alike the two
are, and a FLAIR is bent like a T1w. The velocity follows forces of demons that are robust,

.. math:: Δv = \frac{w\,r\,∇(m∘φ)}{|∇(m∘φ)|^2 + r^2 / κ^2}, \qquad r = T(f) - m∘φ, \qquad
          w = \frac{1}{(1 + r^2 / s^2)^2},

s being a multiple of the robust deviation of r: what is far from anything that healthy tissue
looks like, as a lesion is, has no say (Geman and McClure). The field is smoothed after every step,
from a coarse to a fine resolution. Forces have the gradient of m alone, which should be healthy.

References:
    Vercauteren et al. (2009), Diffeomorphic demons: efficient non-parametric image registration
    Guimond et al. (2001), Three-dimensional multimodal brain warping using the demons algorithm
        and adaptive intensity corrections
    Roche et al. (1998), The correlation ratio as a new similarity measure for multimodal image
        registration
    Geman and McClure (1987), Statistical methods for tomographic image reconstruction
"""

from dataclasses import dataclass
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data._fields import exponential, gaussian, warp

__all__ = ["Bending", "bent", "displacement_of", "log_jacobian", "matched", "velocity_mm"]

Spacing = tuple[float, float, float]
BINS = 32
FEW = 1.0  # voxels of the mean intensity that every bin starts with
RIM_MM = 8.0  # of background around the foreground that counts
MAD = 1.4826  # median absolute deviation to standard deviation, normal distribution
STEP_VOXELS = 0.5  # κ / 2: longest step of an iteration
FEWEST = 8  # voxels of an axis, below which a resolution is not used


@dataclass(frozen=True)
class Bending:
    """How freely a volume is bent.

    Arguments:
        smooth_mm: standard deviation of the Gaussian that smooths the velocity after every step:
            what is narrower than about this is not bent
        robust: residuals beyond so many robust deviations lose most of their say; a lesion has
            none. Infinite: all residuals count, as in plain demons
        levels_mm: resolutions, the coarsest first
        iterations: at each of them
    """

    smooth_mm: float = 6.0
    robust: float = 3.0
    levels_mm: tuple[float, ...] = (8.0, 4.0)
    iterations: tuple[int, ...] = (40, 40)

    def __post_init__(self) -> None:
        positive = (self.smooth_mm, self.robust, *self.levels_mm, *self.iterations)
        if not min(positive) > 0 or len(self.levels_mm) != len(self.iterations):
            raise ValueError(
                "expected positive smooth_mm, robust, levels_mm and as many iterations, got "
                f"{self.smooth_mm}, {self.robust}, {self.levels_mm} and {self.iterations}."
            )


def velocity_mm(
    moving: Float[Tensor, "d h w"],
    fixed: Float[Tensor, "d h w"],
    *,
    inside: Bool[Tensor, "d h w"],
    spacing_mm: Spacing,
    bending: Bending,
) -> Float[Tensor, "3 d h w"]:
    """v in millimetres along d, h, w, such that moving∘exp(v) is like fixed.

    Arguments:
        moving: the volume that is bent; a healthy one
        fixed: the volume that it is bent onto, of any contrast
        inside: foreground of `fixed`; voxels near it count, too, for they show its border
        spacing_mm: voxel size along d, h, w
        bending: how freely
    """
    m, f = (x.float().cpu()[None] for x in (moving, fixed))
    within = _near(inside.cpu(), spacing_mm)[None].float()
    velocity, scale = None, None
    for level, steps in zip(bending.levels_mm, bending.iterations, strict=True):
        size = tuple(
            min(n, max(1, ceil(n * s / level)))
            for n, s in zip(m.shape[1:], spacing_mm, strict=True)
        )
        if velocity is not None and size == tuple(velocity.shape[1:]):
            pass  # the volume is no finer than this
        elif velocity is not None or min(size) >= FEWEST or level == bending.levels_mm[-1]:
            velocity, scale = _onto_level(velocity, scale, size, m.shape[1:], spacing_mm)
        else:
            continue
        coarse = [F.adaptive_avg_pool3d(x[None], size)[0] for x in (m, f, within)]
        velocity = _descended(*coarse, velocity, spacing_mm=scale, bending=bending, steps=steps)
    assert velocity is not None, "the last level is always used"
    assert scale is not None, "it is set with the velocity"
    return _resized(velocity * _column(scale), tuple(m.shape[1:]))


def _near(inside: Tensor, spacing_mm: Spacing) -> Tensor:
    """The foreground with a rim of background."""
    near = inside[None, None].float()
    for axis, s in enumerate(spacing_mm):
        radius = [0, 0, 0]
        radius[axis] = round(RIM_MM / s)
        near = F.max_pool3d(near, [2 * r + 1 for r in radius], stride=1, padding=radius)
    return near[0, 0] > 0


def _onto_level(
    velocity: Tensor | None,
    scale: Spacing | None,
    size: tuple[int, ...],
    full: tuple[int, ...],
    spacing_mm: Spacing,
) -> tuple[Tensor, Spacing]:
    """The velocity in voxels of a resolution, and the size of these voxels."""
    d, h, w = (s * n / k for s, n, k in zip(spacing_mm, full, size, strict=True))
    if velocity is None or scale is None:
        return torch.zeros(3, *size), (d, h, w)
    return _resized(velocity * _column(scale), size) / _column((d, h, w)), (d, h, w)


def _descended(
    moving: Tensor,
    fixed: Tensor,
    within: Tensor,
    velocity: Tensor,
    *,
    spacing_mm: Spacing,
    bending: Bending,
    steps: int,
) -> Tensor:
    """The velocity after the steps of one resolution, in its voxels."""
    d, h, w = (bending.smooth_mm / s for s in spacing_mm)
    inside = within[0] > 0.5
    # Gradients per millimetre in the unit of the coarsest voxel, or thick slices would not count.
    unit = _column(spacing_mm) / min(spacing_mm)
    for _ in range(steps):
        bent = warp(moving, exponential(velocity))
        told, gain = _told(bent[0], fixed[0], inside)
        residual = torch.where(inside, fixed[0] - told, 0.0)
        slope = gain * torch.stack(torch.gradient(bent[0])) / unit
        weight = _robust(residual, inside, bending.robust)
        force = weight * residual * slope
        bound = slope.square().sum(0) + residual.square() / (2 * STEP_VOXELS) ** 2
        step = force / bound.clamp(min=1e-9) / unit
        velocity = gaussian(velocity + step, (d, h, w))
    return velocity


def _told(bent: Tensor, fixed: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """T(m∘φ), and the slope of T there: the mean of f over bins of m∘φ, linear in between."""
    low, high = float(bent.min()), float(bent.max())
    place = (bent - low) / max(high - low, 1e-6) * (BINS - 1)
    left = place.floor().clamp(0, BINS - 2).long()
    share = (place - left)[inside].double()
    first, values = left[inside], fixed[inside].double()
    total, count = torch.zeros(2, BINS, dtype=torch.float64)
    for bin_, weight in ((first, 1 - share), (first + 1, share)):
        total.index_add_(0, bin_, weight * values)
        count.index_add_(0, bin_, weight)
    middle = values.mean() if len(values) else 0.0
    means = ((total + FEW * middle) / (count + FEW)).float()
    told = torch.lerp(means[left], means[left + 1], place - left)
    return told, (means[left + 1] - means[left]) * (BINS - 1) / max(high - low, 1e-6)


def _robust(residual: Tensor, inside: Tensor, robust: float) -> Tensor:
    """Weights w, from 0 to 1."""
    if not bool(inside.any()) or robust == float("inf"):
        return torch.ones_like(residual)
    deviation = MAD * float(residual[inside].abs().median())
    return 1 / (1 + (residual / max(robust * deviation, 1e-6)).square()).square()


def _column(values: Spacing) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(3, 1, 1, 1)


def _resized(v: Float[Tensor, "3 d h w"], size: tuple[int, ...]) -> Tensor:
    return F.interpolate(v[None], size=size, mode="trilinear", align_corners=False)[0]


def log_jacobian(
    displacement_mm: Float[Tensor, "3 d h w"], *, spacing_mm: Spacing
) -> Float[Tensor, "1 d h w"]:
    """log det(1 + ∂u/∂p) of the map p + u(p): above 0 where it enlarges, in nats.

    Central differences; the determinant of an invertible map is above 0 and is held at 1e-3.
    """
    rows = []
    for axis in range(3):
        slopes = torch.gradient(displacement_mm[axis], spacing=spacing_mm)
        rows.append(torch.stack([s + (axis == k) for k, s in enumerate(slopes)], dim=-1))
    determinant = torch.linalg.det(torch.stack(rows, dim=-2).double())
    return determinant.clamp(min=1e-3).log().float()[None]


def displacement_of(
    velocity: Float[Tensor, "3 d h w"], *, spacing_mm: Spacing
) -> Float[Tensor, "3 d h w"]:
    """exp(v) - id in millimetres, of a velocity in millimetres."""
    unit = _column(spacing_mm)
    return exponential(velocity / unit) * unit


def bent(
    x: Float[Tensor, "c d h w"], velocity: Float[Tensor, "3 d h w"], *, spacing_mm: Spacing
) -> Float[Tensor, "c d h w"]:
    """x∘exp(v), by linear interpolation; the border value goes on outside.

    Arguments:
        velocity: in millimetres
    """
    return warp(x.float().cpu(), exponential(velocity / _column(spacing_mm)))


def matched(
    healthy: Float[Tensor, "d h w"], x: Float[Tensor, "d h w"], *, inside: Bool[Tensor, "d h w"]
) -> Float[Tensor, "d h w"]:
    """T(m): a volume with the intensities of another that lies on it, E[x | m] over the inside."""
    return torch.where(inside, _told(healthy, x, inside)[0], healthy)
