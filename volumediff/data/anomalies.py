r"""Synthetic lesions with exact masks for validation and tests, inserted in a healthy volume.

Each kind changes the volume inside a shape of weight w(p) ∈ [0, 1], zero outside:

    hyper, hypo     x ± c w
    texture         x + a w n, n smooth noise without mean in the shape: the local mean stays
    cavity          (1 − w) x + w x_fluid, as after a resection
    foreign_patch   (1 − w) x + w x_donor(p + o), tissue of another volume and another place
    reflection      (1 − w) x + w x(c + R (p − c)), tissue mirrored about the shape's own middle
    mass_effect     x∘exp(−v), v away from the shape: what surrounds it is pushed outwards
    atrophy         x∘exp(v): what surrounds it is pulled inwards

The mask holds the voxels that really changed, not the shape that was asked for: where the mean
absolute change of a neighbourhood of one voxel exceeds `TOLERANCE`; for the deformations, which
also move noise about, where the mean change does.

Three families draw shapes and strengths that have nothing in common. `TEST` makes lobed blobs with
a flat profile, the lesions of demo, tests and benchmarks. `VALIDATION` makes ellipsoids with a
peaked profile, other strengths and another grain; checkpoints, thresholds and smoothing widths are
chosen on it. `TRAINING` makes boxes with a sharp profile, for methods that learn from synthetic
lesions. Test lesions never come from the other two, nor choices from `TEST`, and neither of these
two is ever shown in training.

References:
    Meissen et al. (2022), On the Pitfalls of Using the Residual as Anomaly Score (source and sink)
    Tan et al. (2020), Detecting Outliers with Foreign Patch Interpolation
    Zimmerer et al. (2022), MOOD 2020, a public benchmark (reflection, among others)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._fields import exponential, gaussian, smooth_noise, warp
from volumediff.data.lesion_shapes import blob, cuboid, ellipsoid

__all__ = [
    "FAMILIES",
    "KINDS",
    "TEST",
    "TOLERANCE",
    "TRAINING",
    "VALIDATION",
    "GeneratorFamily",
    "insert",
]

TOLERANCE = 0.05  # of intensities in [-1, 1]; the noise of the population is about 0.04
_FLUID = 0.03  # quantile of the foreground taken for fluid


@dataclass(frozen=True)
class GeneratorFamily:
    """A generator of lesions; strengths are drawn uniformly between the two ends.

    Arguments:
        shape: function of `lesion_shapes` that draws the shape
        profile: function from a shape to its weight w
        volume_ml: size of the shape
        contrast: c of hyper and hypo, for intensities in [-1, 1]
        texture: standard deviation a of the texture
        grain_mm: correlation length of the texture
        push_mm: largest speed |v| of the deformations
    """

    shape: Callable[..., Tensor]
    profile: Callable[[Tensor, tuple[float, float, float]], Tensor]
    volume_ml: tuple[float, float]
    contrast: tuple[float, float]
    texture: tuple[float, float]
    grain_mm: float
    push_mm: tuple[float, float]


def _flat(shape: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """One inside, one half at the border."""
    smooth = gaussian(shape.float(), tuple(3 / s for s in spacing_mm))
    return shape * (2 * smooth - 0.5).clamp(0.5, 1)


def _peaked(shape: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """Highest in the middle, falling to about one half at the border."""
    smooth = shape * gaussian(shape.float(), tuple(6 / s for s in spacing_mm))
    return smooth / smooth.amax().clamp_min(1e-6)


def _sharp(shape: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """One everywhere inside."""
    return shape.float()


TEST = GeneratorFamily(blob, _flat, (4.0, 24.0), (0.3, 0.6), (0.15, 0.3), 3.0, (8.0, 14.0))
VALIDATION = GeneratorFamily(
    ellipsoid, _peaked, (2.0, 16.0), (0.4, 0.9), (0.2, 0.4), 5.0, (6.0, 10.0)
)
TRAINING = GeneratorFamily(cuboid, _sharp, (1.0, 20.0), (0.2, 0.8), (0.1, 0.5), 4.0, (5.0, 12.0))
FAMILIES = {"test": TEST, "validation": VALIDATION, "training": TRAINING}


@dataclass(frozen=True, eq=False)
class _Site:
    """Where and how a lesion is put: the arguments that the kinds share."""

    shape: Tensor
    weight: Tensor
    foreground: Tensor
    spacing_mm: tuple[float, float, float]
    family: GeneratorFamily
    donor: Tensor | None
    key: int

    def strength(self, ends: tuple[float, float]) -> float:
        return ends[0] + (ends[1] - ends[0]) * randomness.uniform(self.key, "strength")

    def voxels(self, length_mm: float) -> tuple[float, float, float]:
        d, h, w = (length_mm / s for s in self.spacing_mm)
        return d, h, w


def _hyper(x: Tensor, site: _Site) -> Tensor:
    return x + site.strength(site.family.contrast) * site.weight


def _hypo(x: Tensor, site: _Site) -> Tensor:
    return x - site.strength(site.family.contrast) * site.weight


def _texture(x: Tensor, site: _Site) -> Tensor:
    grain = site.voxels(site.family.grain_mm)
    noise = smooth_noise(tuple(x.shape), grain, site.key, "texture")
    # Only what is finer than four grains is texture; the rest would be a change of the mean.
    smooth = tuple(4 * s for s in grain)
    noise = noise - gaussian(noise * site.shape, smooth) / gaussian(
        site.shape.float(), smooth
    ).clamp_min(1e-3)
    noise = noise - (noise * site.weight).sum() / site.weight.sum()
    deviation = noise[site.shape.expand_as(noise)].square().mean().sqrt().clamp_min(1e-6)
    return x + site.strength(site.family.texture) * site.weight * noise / deviation


def _cavity(x: Tensor, site: _Site) -> Tensor:
    inside = x[site.foreground.expand_as(x)]
    fluid = inside.kthvalue(max(1, int(_FLUID * inside.numel()))).values
    noise = 0.03 * randomness.normal(tuple(x.shape), site.key, "fluid")
    return torch.lerp(x, (fluid + noise).clamp_min(-1), site.weight)


def _foreign_patch(x: Tensor, site: _Site) -> Tensor:
    if site.donor is None or site.donor.shape != x.shape:
        got = None if site.donor is None else tuple(site.donor.shape)
        raise ValueError(
            f"foreign_patch: expected a donor volume of shape {tuple(x.shape)}, got {got}; "
            "pass another subject as donor."
        )
    middle = site.shape[0].nonzero().float().mean(0).round().long()
    places = site.foreground[0].nonzero()
    best, patch = -1, site.donor
    for trial in range(8):  # the first patch that is all tissue, else the one with most
        place = places[int(randomness.uniform(site.key, "place", trial) * len(places))]
        move = (middle - place).tolist()
        tissue = int((site.foreground.roll(move, (1, 2, 3)) & site.shape).sum())
        if tissue > best:
            best, patch = tissue, site.donor.roll(move, (1, 2, 3))
    return torch.lerp(x, patch, site.weight)


def _reflection(x: Tensor, site: _Site) -> Tensor:
    """Along the axis that changes most: across a flat border of tissue nothing would be seen."""
    mirrored = [_mirrored(x, site.shape, axis) for axis in range(3)]
    changes = [float(((y - x) * site.weight).abs().sum()) for y in mirrored]
    return torch.lerp(x, mirrored[changes.index(max(changes))], site.weight)


def _mirrored(x: Tensor, shape: Tensor, axis: int) -> Tensor:
    """The planes that a shape spans along an axis, in reverse order."""
    places = shape[0].nonzero()[:, axis]
    first, last = int(places.min()), int(places.max())
    y = x.clone()
    y.narrow(axis + 1, first, last - first + 1).copy_(
        x.narrow(axis + 1, first, last - first + 1).flip(axis + 1)
    )
    return y


def _mass_effect(x: Tensor, site: _Site) -> Tensor:
    return _deformed(x, site, -site.strength(site.family.push_mm))


def _atrophy(x: Tensor, site: _Site) -> Tensor:
    return _deformed(x, site, site.strength(site.family.push_mm))


def _deformed(x: Tensor, site: _Site, push_mm: float) -> Tensor:
    u = exponential(_outward(site) * push_mm / torch.tensor(site.spacing_mm).view(3, 1, 1, 1))
    return torch.where((u != 0).any(0, keepdim=True), warp(x, u), x)


def _outward(site: _Site) -> Tensor:
    """Velocity away from the shape, largest magnitude 1, zero where the foreground ends."""
    phi = gaussian(site.shape.float(), site.voxels(6.0))[0]
    # Differences of a padded volume: an axis may have one voxel.
    padded = torch.nn.functional.pad(phi[None, None], [1] * 6, mode="replicate")[0, 0]
    core = slice(1, -1)
    slopes = (
        padded[2:, core, core] - padded[:-2, core, core],
        padded[core, 2:, core] - padded[core, :-2, core],
        padded[core, core, 2:] - padded[core, core, :-2],
    )
    outward = -torch.stack([g / s for g, s in zip(slopes, site.spacing_mm, strict=True)])
    inside = gaussian(site.foreground.float(), site.voxels(4.0))
    taper = ((inside - 0.6) / 0.4).clamp(0, 1) * site.foreground
    v = outward * taper
    return v / v.norm(dim=0).amax().clamp_min(1e-6)


_INTENSITY: dict[str, Callable[[Tensor, _Site], Tensor]] = {
    "hyper": _hyper,
    "hypo": _hypo,
    "texture": _texture,
    "cavity": _cavity,
    "foreign_patch": _foreign_patch,
    "reflection": _reflection,
}
_DEFORMATION: dict[str, Callable[[Tensor, _Site], Tensor]] = {
    "mass_effect": _mass_effect,
    "atrophy": _atrophy,
}
KINDS = (*_INTENSITY, *_DEFORMATION)


def insert(
    x: Float[Tensor, "c d h w"],
    foreground: Bool[Tensor, "1 d h w"],
    *,
    kind: str,
    key: int,
    spacing_mm: tuple[float, float, float],
    family: GeneratorFamily = TEST,
    shape: Bool[Tensor, "1 d h w"] | None = None,
    donor: Float[Tensor, "c d h w"] | None = None,
) -> tuple[Float[Tensor, "c d h w"], Bool[Tensor, "1 d h w"]]:
    """The volume with one lesion, and the mask of the voxels that changed.

    Arguments:
        x: healthy volume, intensities in [-1, 1]
        foreground: where lesions may be; nothing changes outside
        kind: one of `KINDS`
        key: everything random is a function of it
        spacing_mm: voxel size along d, h, w
        family: generator of shapes and strengths
        shape: a given shape, such as a real lesion's mask, instead of a random one
        donor: another volume of the same grid, for `foreign_patch`
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}.")
    if not bool(foreground.any()):
        raise ValueError("foreground: expected some voxels, got none; check the mask.")
    if shape is None:
        low, high = family.volume_ml
        volume = low * (high / low) ** randomness.uniform(key, "volume")
        shape = family.shape(foreground, volume, spacing_mm=spacing_mm, key=key)
    shape = shape & foreground
    if not bool(shape.any()):
        raise ValueError("shape: expected voxels inside the foreground, got none; move the shape.")
    weight = family.profile(shape, spacing_mm)
    site = _Site(shape, weight, foreground, spacing_mm, family, donor, key)
    change = _INTENSITY.get(kind) or _DEFORMATION[kind]
    changed = torch.where(foreground, change(x, site).clamp(-1, 1), x)
    difference = changed - x
    neighbourhood = (1.0, 1.0, 1.0)
    if kind in _DEFORMATION:
        size = gaussian(difference, neighbourhood).abs()
        support = difference != 0
    else:
        size = gaussian(difference.abs(), neighbourhood)
        support = shape.expand_as(x)
    return changed, ((size > TOLERANCE) & support).any(0, keepdim=True)
