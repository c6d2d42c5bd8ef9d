r"""Healthy volumes drawn from label maps: anatomy that one cohort lacks, in any contrast.

Of the structure l(p) of each voxel a volume is drawn as

.. math:: s = G_σ\left(μ_{l(p)} + δ_{l(p)}\, n(p)\right),

with means μ and deviations δ of a contrast, n white or correlated noise of unit variance, and a
Gaussian blur G that stands for partial volume. Before that the anatomy itself is varied: the
walls of the ventricles move out or in, and cortex at the border of the brain becomes fluid, as in
a brain that has shrunk; both are healthy. What lies outside of the brain is left out, or a rim of
it stays, as brain extraction leaves it.

What is bright in healthy FLAIR and looks like a lesion can be drawn too: tissue whose brightness
varies from place to place, a rim and caps around the ventricles, and fluid that its pulsation
lights up.

References:
    Billot et al. (2023), SynthSeg, Medical Image Analysis (Gaussians per structure)
    Gopinath et al. (2024), Synthetic data in generalizable, learning-based neuroimaging
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import max_pool3d

from volumediff import randomness
from volumediff.data._fields import exponential, gaussian, identity, smooth_noise
from volumediff.data.contrasts import Contrast
from volumediff.data.freesurfer import Structure

__all__ = ["Drawing"]

Spacing = tuple[float, float, float]

_WALL_MM = 6.0  # width of the layer around the ventricles that moves with their walls
_PATCH_MM = 15.0  # size of the places where cortex is thin, or brighter
_CAPS_MM = 2.5  # largest width of the bright rim of the ventricles
_PULSE_MM = 8.0  # size of the places where fluid is bright
_AROUND = "cerebrospinal fluid"  # structure around the brain, ventricles apart
_LAYER = 3  # most voxels of it that stay around the brain


@dataclass(frozen=True)
class Drawing:
    """How healthy volumes are drawn from label maps.

    Arguments:
        blur: smallest and largest standard deviation of the partial volume, in voxels
        grain: largest correlation length of the noise within structures, in voxels
        ventricles_mm: largest m, by which the walls of the ventricles move outwards or inwards;
            they leave the middle of the layer that moves, and get three quarters as far for m = 5
        thinning: largest share of the cortex' surface that becomes fluid
        rim: probability that some of what surrounds the brain stays
        regional: largest relative deviation of the brightness of the brain within 15 mm
        caps: largest relative brightening of white matter next to the ventricles, in places
        pulsation: probability that some fluid is as bright as tissue
    """

    blur: tuple[float, float] = (0.3, 0.9)
    grain: float = 1.0
    ventricles_mm: float = 4.0
    thinning: float = 0.5
    rim: float = 0.2
    regional: float = 0.0
    caps: float = 0.0
    pulsation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.blur[0] <= self.blur[1]:
            raise ValueError(f"blur: expected two ascending numbers from 0 on, got {self.blur}.")
        for name in ("grain", "ventricles_mm", "regional", "caps"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name}: expected a number of at least 0, got {getattr(self, name)}."
                )
        for name in ("thinning", "rim", "pulsation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: expected a number in [0, 1], got {getattr(self, name)}."
                )

    def __call__(
        self,
        indices: UInt8[Tensor, "1 d h w"],
        structures: Sequence[Structure | None],
        *,
        contrast: Contrast,
        spacing_mm: Spacing,
        key: int,
    ) -> tuple[Float[Tensor, "1 d h w"], Bool[Tensor, "1 d h w"]]:
        """Signal, 0 outside of the foreground, and the foreground.

        Arguments:
            indices: number of each voxel's structure in `structures`
            structures: the first is None, the background; further None are outside of the brain
            contrast: brightness of the structures
            spacing_mm: voxel size along d, h, w
            key: everything random is a function of it

        Raises:
            ValueError: there is no brain
        """
        tissue = [None if s is None else s.tissue for s in structures]
        if not any(tissue):
            raise ValueError("structures: expected some of the brain, got none.")
        indices = self._widened(indices, structures, spacing_mm, key)
        indices = self._thinned(indices, structures, spacing_mm, key)
        known = torch.tensor([s is not None for s in structures])
        fluid = torch.tensor([s is not None and s.name == _AROUND for s in structures])
        solid = (known & ~fluid)[indices.long()]
        # brain extraction leaves more or less of the fluid around the brain
        layer = int(randomness.uniform(key, "layer") * (_LAYER + 1))
        brain = solid | (known[indices.long()] & _dilated(solid, layer))
        named = [s for s in structures if s is not None]
        table = torch.zeros(len(structures), 2)
        table[known] = contrast(named, randomness.key(key, "contrast"))
        foreground = brain
        if randomness.uniform(key, "rim") < self.rim:
            outside = [i for i, s in enumerate(structures) if s is None and i]
            for i in outside:
                table[i, 0] = randomness.uniform(key, "outside", i)
                table[i, 1] = 0.05
            near = smooth_noise(tuple(brain.shape), (4.0, 4.0, 4.0), key, "near") > 0.5
            wide = _dilated(brain, 2)
            foreground = brain | (wide & near & (indices > 0))
        grain = self.grain * randomness.uniform(key, "grain")
        noise = smooth_noise(tuple(indices.shape), (grain,) * 3, key, "signal")
        chosen = indices.long()
        signal = table[:, 0][chosen] + table[:, 1][chosen] * noise
        signal = self._varied(signal, chosen, structures, spacing_mm, key)
        low, high = self.blur
        sigma = low + (high - low) * randomness.uniform(key, "blur")
        # normalised, so that the background does not darken the border
        weight = gaussian(foreground.float(), (sigma,) * 3)
        signal = gaussian(signal * foreground, (sigma,) * 3) / weight.clamp_min(1e-3)
        return signal.clamp_min(0) * foreground, foreground

    def _varied(
        self,
        signal: Float[Tensor, "1 d h w"],
        chosen: Tensor,
        structures: Sequence[Structure | None],
        spacing_mm: Spacing,
        key: int,
    ) -> Float[Tensor, "1 d h w"]:
        """The signal with what varies within structures of healthy brains."""
        shape = tuple(signal.shape)

        def patches(mm: float, name: str) -> Tensor:
            return smooth_noise(shape, tuple(mm / 2 / s for s in spacing_mm), key, name)

        if self.regional:
            size = self.regional * randomness.uniform(key, "regional")
            signal = signal * (1 + size * patches(_PATCH_MM, "region"))
        ventricles = torch.tensor([s is not None and "ventricle" in s.name for s in structures])
        if self.caps:
            white = torch.tensor([s is not None and s.tissue == "white" for s in structures])
            reach = 0.5 + randomness.uniform(key, "reach") * _CAPS_MM
            wide = gaussian(ventricles[chosen].float(), tuple(reach / s for s in spacing_mm))
            wide = (2 * wide).clamp(0, 1) * white[chosen]
            size = self.caps * randomness.uniform(key, "caps")
            # more in some places, as at the horns
            signal = signal * (1 + size * wide * torch.special.ndtr(patches(_PATCH_MM, "horn")))
        if randomness.uniform(key, "pulsation") < self.pulsation:
            fluid = torch.tensor([s is not None and s.tissue == "csf" for s in structures])
            level = signal[~fluid[chosen] & (chosen > 0)].median()
            share = ((patches(_PULSE_MM, "pulse") - 1) / 2).clamp(0, 1) * fluid[chosen]
            signal = torch.lerp(signal, level.expand_as(signal), share)
        return signal

    def _widened(
        self,
        indices: Tensor,
        structures: Sequence[Structure | None],
        spacing_mm: Spacing,
        key: int,
    ) -> Tensor:
        """Walls of the ventricles moved along the normal, the layer around them with them."""
        of = torch.tensor([s is not None and "ventricle" in s.name for s in structures])
        inside = of[indices.long()]
        move = self.ventricles_mm * (2 * randomness.uniform(key, "ventricles") - 1)
        if not move or not bool(inside.any()):
            return indices
        phi = gaussian(inside.float(), tuple(_WALL_MM / 2 / s for s in spacing_mm))[0]
        slopes = torch.stack(torch.gradient(phi, spacing=list(spacing_mm)))
        size = slopes.square().sum(0).amax().sqrt().clamp_min(1e-6)
        # x(p + u): to widen, each voxel takes what lies towards the ventricle
        velocity = move * slopes / size / torch.tensor(spacing_mm).view(3, 1, 1, 1)
        points = identity(tuple(indices.shape[1:])) + exponential(velocity)
        d, h, w = indices.shape[1:]
        places = [p.round().long().clamp(0, n - 1) for p, n in zip(points, (d, h, w), strict=True)]
        return indices[:, places[0], places[1], places[2]]

    def _thinned(
        self,
        indices: Tensor,
        structures: Sequence[Structure | None],
        spacing_mm: Spacing,
        key: int,
    ) -> Tensor:
        """Cortex next to fluid or to the outside turned into fluid, in some places."""
        share = self.thinning * randomness.uniform(key, "thinning")
        fluid = next((i for i, s in enumerate(structures) if s and s.tissue == "csf"), None)
        if not share or fluid is None:
            return indices
        cortex = torch.tensor([s is not None and "cortex" in s.name for s in structures])
        empty = torch.tensor([s is None or s.tissue == "csf" for s in structures])
        chosen = indices.long()
        surface = cortex[chosen] & _dilated(empty[chosen], 1)
        sigma = tuple(_PATCH_MM / 2 / s for s in spacing_mm)
        field = smooth_noise(tuple(indices.shape), sigma, key, "thin")
        values = field[surface]
        if not len(values):
            return indices
        count = max(round(share * len(values)), 1)
        level = values.topk(count).values[-1]
        return torch.where(surface & (field >= level), fluid, indices).to(torch.uint8)


def _dilated(mask: Bool[Tensor, "1 d h w"], voxels: int) -> Bool[Tensor, "1 d h w"]:
    size = 2 * voxels + 1
    return max_pool3d(mask[None].float(), size, stride=1, padding=voxels)[0] > 0
