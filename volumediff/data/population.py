r"""Healthy subjects for demo and tests: the MNI152 template under random but healthy variation.

Subject i of a seed is the T1 template I with its grey and white matter maps g and w, seen through
a random invertible map φ (residual affine, large-scale shape, folding), with another contrast of
the tissues, a multiplicative bias field and Rician noise:

    s = (I + a_g g + a_w w + a_c c) ∘ φ · e^β,   c = 1 - g - w,
    y = √((s + σ n₁)² + (σ n₂)²),   x = 2 y / y₁ - 1.

y₁ is chosen per subject such that the brightest tissue (98th percentile of the foreground) lies at
x = 0.5: brighter lesions are not clipped at 1. Outside the foreground x = -1. All lengths are
millimetres, so that a subject is the same person on every grid.

The template is an average: it has no individual folding and is smooth. Results obtained on this
population say something about methods relative to each other, nothing about patients.

References:
    Fonov et al. (2009), Unbiased nonlinear average age-appropriate brain templates
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._fields import exponential, gaussian, identity, sample, smooth_noise
from volumediff.data.mni152 import mni152

__all__ = ["Population", "SimulatedSubject", "Variation"]

_LATTICE_MM = 4.0  # grid of the deformations: under half of the finest smoothness in use
_MARGIN_MM = 12.0  # kept around the template's brain for the deformations
_BRIGHT = 0.98  # quantile of the foreground that is put at x = 0.5


@dataclass(frozen=True)
class Variation:
    """How much healthy subjects differ.

    Arguments:
        rotation_degrees: standard deviation of the rotation about each axis, after registration
        scaling: standard deviation of the scale of each axis
        translation_mm: standard deviation of the shift along each axis
        shape_mm: standard deviation of the large-scale displacement along each axis, which is
            smooth over `shape_smoothness_mm`
        folding_mm: the same for the small scale
        contrast: standard deviation of the change of each tissue's intensity (white matter is .9)
        bias: standard deviation of the coefficients of the bias field, TorchIO's polynomial
        noise: σ of the Rician noise, drawn between half of this and this
    """

    rotation_degrees: float = 2.0
    scaling: float = 0.03
    translation_mm: float = 1.5
    shape_mm: float = 3.0
    shape_smoothness_mm: float = 22.0
    folding_mm: float = 1.2
    folding_smoothness_mm: float = 10.0
    contrast: float = 0.04
    bias: float = 0.08
    noise: float = 0.03


@dataclass(frozen=True, eq=False)
class SimulatedSubject:
    """One healthy subject.

    Arguments:
        x: T1-weighted intensities in [-1, 1], background -1
        gm: share of grey matter in each voxel, in [0, 1]
        wm: share of white matter
        foreground: the brain with its fluid
    """

    x: Float[Tensor, "1 d h w"]
    gm: Float[Tensor, "1 d h w"]
    wm: Float[Tensor, "1 d h w"]
    foreground: Bool[Tensor, "1 d h w"]


@dataclass(frozen=True, eq=False)
class Population:
    """A function from indices to subjects on one grid, centred on the brain.

    Arguments:
        seed: another seed is another population of the same kind
        shape: voxels along d, h, w (left to right, back to front, bottom to top)
        spacing_mm: voxel size along d, h, w
        variation: how much the subjects differ
    """

    seed: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    variation: Variation = Variation()

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.spacing_mm) <= 0:
            raise ValueError(
                f"expected a positive shape and spacing, got {self.shape} voxels of "
                f"{self.spacing_mm} mm; for a quick look use (48, 60, 48) and (3, 3, 3)."
            )

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to MNI millimetres (RAS), so that maps can be written as NIfTI."""
        spacing = np.asarray(self.spacing_mm, dtype=np.float64)
        corner = self._centre - spacing * (np.asarray(self.shape) - 1) / 2
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = corner
        return affine

    def subject(self, i: int) -> SimulatedSubject:
        """Subject i; depends on nothing but (seed, i), the grid and the variation."""
        key = randomness.key(self.seed, "subject", i)
        template, origin, step = self._template
        points = self._deformed(key)  # millimetres in the template
        t1, gm, wm, inside = sample(template, (points - origin) / step, border=False)[:, None]
        foreground = inside > 0.5
        gm, wm = gm.clamp(0, 1), wm.clamp(0, 1)
        shift = self.variation.contrast * randomness.normal((3,), key, "contrast")
        csf = (1 - gm - wm).clamp(0, 1)
        signal = (t1 + shift[0] * gm + shift[1] * wm + shift[2] * csf).clamp_min(0)
        signal = self._biased(signal, key)
        level = self.variation.noise * (0.5 + 0.5 * randomness.uniform(key, "noise level"))
        magnitude = _rician(signal, level, key)
        bright = _quantile(magnitude[foreground], _BRIGHT)
        x = (1.5 * magnitude / bright - 1).clamp(-1, 1)
        x = torch.where(foreground, x, -1.0)
        return SimulatedSubject(x, gm * foreground, wm * foreground, foreground)

    def displacement_mm(self, i: int) -> Float[Tensor, "3 d h w"]:
        """Where each voxel of subject i comes from in the template, relative to itself."""
        return self._deformed(randomness.key(self.seed, "subject", i)) - self._grid

    @cached_property
    def _centre(self) -> np.ndarray:
        """Middle of the brain's bounding box in MNI millimetres."""
        maps, corner = mni152()
        return corner + (np.asarray(maps.shape[1:]) - 1) / 2

    @cached_property
    def _grid(self) -> Tensor:
        """MNI millimetres of each voxel."""
        affine = torch.from_numpy(self.affine).float()
        spacing = torch.diagonal(affine)[:3].view(3, 1, 1, 1)
        return identity(self.shape) * spacing + affine[:3, 3].view(3, 1, 1, 1)

    @cached_property
    def _template(self) -> tuple[Tensor, Tensor, Tensor]:
        """T1, grey matter, white matter and the support; their origin and step in millimetres."""
        maps, corner = mni152()
        thin = tuple(max(1, int(s / 2)) for s in self.spacing_mm)
        # A Gaussian of this width passes what the target grid can hold, and no more.
        sigma = tuple(math.sqrt(max(s**2 - 1, 0.0)) / 2.355 for s in self.spacing_mm)
        # Zeros around the brain, which the Gaussian may smear into, in whole steps.
        margin = [step * math.ceil(3 * s / step) for s, step in zip(sigma, thin, strict=True)]
        x = torch.from_numpy(maps).float() / 255
        x = torch.cat([x, (x[:1] > 0).float()])
        d, h, w = margin
        x = gaussian(torch.nn.functional.pad(x, (w, w, h, h, d, d)), sigma, thin=thin)
        origin = torch.from_numpy(corner - np.asarray(margin)).float()
        return x, origin.view(3, 1, 1, 1), torch.tensor(thin).float().view(3, 1, 1, 1)

    def _deformed(self, key: int) -> Tensor:
        """φ at each voxel, in template millimetres."""
        v = self.variation
        shape = tuple(
            math.ceil((n + 2 * _MARGIN_MM) / _LATTICE_MM) + 1 for n in mni152()[0].shape[1:]
        )
        velocity = v.shape_mm * smooth_noise(
            (3, *shape), (v.shape_smoothness_mm / _LATTICE_MM,) * 3, key, "shape"
        ) + v.folding_mm * smooth_noise(
            (3, *shape), (v.folding_smoothness_mm / _LATTICE_MM,) * 3, key, "folding"
        )
        u = _LATTICE_MM * exponential(velocity / _LATTICE_MM)
        centre = torch.from_numpy(self._centre).float().view(3, 1, 1, 1)
        corner = centre - _LATTICE_MM * (torch.tensor(shape) - 1).view(3, 1, 1, 1) / 2
        points = self._grid + sample(u, (self._grid - corner) / _LATTICE_MM)
        linear = self._linear(key)
        shift = v.translation_mm * randomness.normal((3,), key, "translation")
        moved = torch.einsum("ij,jdhw->idhw", linear, points - centre)
        return moved + centre + shift.view(3, 1, 1, 1)

    def _linear(self, key: int) -> Tensor:
        """Rotation times scaling, exp(A) diag(e^s)."""
        v = self.variation
        a, b, c = math.radians(v.rotation_degrees) * randomness.normal((3,), key, "rotation")
        zero = torch.zeros(())
        skew = torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).view(3, 3)
        scales = torch.exp(v.scaling * randomness.normal((3,), key, "scaling"))
        return torch.linalg.matrix_exp(skew) @ torch.diag(scales)

    def _biased(self, signal: Tensor, key: int) -> Tensor:
        import torchio  # heavy import

        drawn = self.variation.bias * randomness.normal((20,), key, "bias")  # order 3 in 3D
        field = torchio.BiasField.generate_bias_field(signal, 3, drawn.tolist())
        return signal * torch.from_numpy(field).to(signal)


def _rician(signal: Tensor, sigma: float, key: int) -> Tensor:
    """Magnitude of a complex signal with independent noise in both parts."""
    real, imaginary = sigma * randomness.normal((2, *signal.shape), key, "noise")
    return torch.sqrt((signal + real) ** 2 + imaginary**2)


def _quantile(values: Tensor, q: float) -> Tensor:
    """One value of the sample; torch.quantile refuses more than 16 million."""
    if values.numel() == 0:
        return torch.ones(())
    return values.kthvalue(max(1, round(q * values.numel()))).values
