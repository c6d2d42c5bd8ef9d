r"""Smooth invertible deformation of one volume onto another, whatever their contrasts.

The deformation is the exponential of a stationary velocity field, so that it folds nowhere and
its inverse is that of the field's negative:

.. math:: φ = \exp(v), \qquad T(m∘φ) ≈ f, \qquad φ^{-1} = \exp(-v).

Intensities of the moving volume m are first brought to those of the fixed one by T, the function
that predicts f from m∘φ best: the correlation ratio measures how alike the two are, and the atlas
of T1w is bent onto a FLAIR. The velocity follows forces of demons that are robust,

.. math:: Δv = \frac{w\,r\,∇T(m∘φ)}{|∇T(m∘φ)|^2 + r^2 / κ^2}, \qquad r = f - T(m∘φ), \qquad
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
BENDS = 1e-3  # weight of the squared second differences of T against the mean squared residual
RIM_MM = 8.0  # of background around the foreground that counts
MAD = 1.4826  # median absolute deviation to standard deviation, normal distribution
LEAST = 0.25  # of the deviation of f: the smallest s
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
        weight = _robust(residual, fixed[0], inside, bending.robust)
        force = weight * residual * slope
        bound = slope.square().sum(0) + residual.square() / (2 * STEP_VOXELS) ** 2
        step = force / bound.clamp(min=1e-9) / unit
        velocity = gaussian(velocity + step, (d, h, w))
    return velocity


def _told(bent: Tensor, fixed: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """T(m∘φ), and the slope of T there: the linear spline through which f is best predicted.

    Second differences are penalised: T is a line where intensities are rare, and the identity
    between equal volumes.
    """
    low, high = float(bent.min()), float(bent.max())
    place = (bent - low) / max(high - low, 1e-6) * (BINS - 1)
    left = place.floor().clamp(0, BINS - 2).long()
    share, first = (place - left)[inside].double(), left[inside]
    values = fixed[inside].double()
    normal = torch.zeros(BINS, BINS, dtype=torch.float64)
    right = torch.zeros(BINS, dtype=torch.float64)
    weights = (1 - share, share)
    for i, a in enumerate(weights):
        right.index_add_(0, first + i, a * values)
        for j, b in enumerate(weights):
            flat = (first + i) * BINS + first + j
            normal.view(-1).index_add_(0, flat, a * b)
    bends = torch.diff(torch.eye(BINS, dtype=torch.float64), n=2, dim=0)
    normal += BENDS * max(len(values), 1) * bends.T @ bends
    normal += 1e-9 * max(len(values), 1) * torch.eye(BINS, dtype=torch.float64)
    nodes = torch.linalg.solve(normal, right).float()
    told = torch.lerp(nodes[left], nodes[left + 1], place - left)
    return told, (nodes[left + 1] - nodes[left]) * (BINS - 1) / max(high - low, 1e-6)


def _robust(residual: Tensor, values: Tensor, inside: Tensor, robust: float) -> Tensor:
    """Weights w, from 0 to 1."""
    if not bool(inside.any()) or robust == float("inf"):
        return torch.ones_like(residual)
    deviation = robust * MAD * float(residual[inside].abs().median())
    least = LEAST * float(values[inside].std(correction=0))  # volumes without noise have edges
    return 1 / (1 + (residual / max(deviation, least, 1e-6)).square()).square()


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
