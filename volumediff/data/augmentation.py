r"""Keyed augmentation with TorchIO: the same key gives the same volume, on any worker.

TorchIO's random transforms draw from torch's global generator. Here they draw inside a fork of it
that is seeded by the key, so that the augmentation of a sample depends on nothing else and the
global state stays as it was. Intensities lie in [-1, 1] with background -1, which is no signal:
transforms see (x + 1) / 2, so that padding is background, and the background stays background.
Labels, those of several readers too, and foregrounds move with the image, with nearest-neighbour
interpolation.

Changes of contrast, sharpness and resolution make volumes of other scanners out of those of one.
The contrast is a monotone curve from 0 to 1 through knots at equal distances, whose slopes are

.. math:: g_i ∝ e^{u_i}, \qquad u_i \sim U(-a, a).

References:
    Perez-Garcia et al. (2021), TorchIO, Computer Methods and Programs in Biomedicine
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.data.curves import curved

__all__ = ["Augmentation", "Augmented"]

_KNOTS = 6  # pieces of the curve of the contrast


@dataclass(frozen=True, eq=False)
class Augmented:
    """One augmented sample; what was not given stays None."""

    x: Float[Tensor, "c d h w"]
    label: UInt8[Tensor, "1 d h w"] | None
    foreground: Bool[Tensor, "1 d h w"] | None
    readers: UInt8[Tensor, "r d h w"] | None = None


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a healthy volume; zero or empty switches one off.

    Arguments:
        flip: axes that are mirrored with probability 1/2, 0 is left-right
        affine_degrees: largest rotation about each axis
        affine_scale: largest relative change of size
        affine_translation_mm: largest shift along each axis
        elastic_mm: largest displacement of the control points of a smooth deformation
        elastic_points: control points per axis
        bias: largest coefficient of the polynomial bias field of order 3
        gamma: largest |log γ|
        noise: largest standard deviation of the added noise
        contrast: a, largest |log| of the slopes of the random monotone curve
        blur_mm: largest standard deviation of a Gaussian blur
        thickness: largest factor by which the resolution along one axis is reduced
        spikes: largest intensity of spikes in k-space, relative to its largest entry
        often: probability of each change of intensity that is switched on
    """

    flip: tuple[int, ...] = (0,)
    affine_degrees: float = 0.0
    affine_scale: float = 0.0
    affine_translation_mm: float = 0.0
    elastic_mm: float = 0.0
    elastic_points: int = 7
    bias: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    contrast: float = 0.0
    blur_mm: float = 0.0
    thickness: float = 1.0
    spikes: float = 0.0
    often: float = 1.0

    def __post_init__(self) -> None:
        if not set(self.flip) <= {0, 1, 2}:
            raise ValueError(f"flip: expected axes out of 0, 1, 2, got {self.flip}.")
        if self.elastic_points < 4:
            raise ValueError(
                f"elastic_points: expected at least 4 control points, got {self.elastic_points}."
            )
        for name in ("affine_degrees", "affine_scale", "affine_translation_mm", "elastic_mm"):
            _non_negative(name, getattr(self, name))
        for name in ("bias", "gamma", "noise", "contrast", "blur_mm", "spikes"):
            _non_negative(name, getattr(self, name))
        if not self.thickness >= 1:
            raise ValueError(f"thickness: expected a factor of at least 1, got {self.thickness}.")
        if not 0 < self.often <= 1:
            raise ValueError(f"often: expected a probability above 0, got {self.often}.")
        if self.affine_scale >= 1:
            raise ValueError(f"affine_scale: expected less than 1, got {self.affine_scale}.")

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        key: int,
        *,
        spacing_mm: tuple[float, float, float],
        label: UInt8[Tensor, "1 d h w"] | None = None,
        foreground: Bool[Tensor, "1 d h w"] | None = None,
        readers: UInt8[Tensor, "r d h w"] | None = None,
    ) -> Augmented:
        """The sample under the changes that the key draws."""
        import torchio  # heavy import

        affine = np.diag([*spacing_mm, 1.0])
        images = {"x": torchio.ScalarImage(tensor=(x + 1) / 2, affine=affine)}
        maps = {"label": label, "foreground": foreground, "readers": readers}
        for name, map_ in maps.items():
            if map_ is not None:
                images[name] = torchio.LabelMap(tensor=map_.to(torch.uint8), affine=affine)
        subject = torchio.Subject(images)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also reseed the accelerators.
            torch.default_generator.manual_seed(key)
            for transform in self._spatial():
                subject = transform(subject)
            background = subject["x"].data <= 0
            for transform in self._intensity():
                subject = transform(subject)
        y = (2 * subject["x"].data.to(x) - 1).clamp(-1, 1).masked_fill(background, -1.0)
        return Augmented(
            y.contiguous(),
            None if label is None else subject["label"].data.to(torch.uint8).contiguous(),
            None if foreground is None else subject["foreground"].data.bool().contiguous(),
            None if readers is None else subject["readers"].data.to(torch.uint8).contiguous(),
        )

    @property
    def spatial(self) -> "Augmentation":
        """Its changes of shape alone."""
        return replace(
            self,
            bias=0.0,
            gamma=0.0,
            noise=0.0,
            contrast=0.0,
            blur_mm=0.0,
            thickness=1.0,
            spikes=0.0,
        )

    @property
    def intensities(self) -> "Augmentation":
        """Its changes of intensity alone."""
        return replace(
            self,
            flip=(),
            affine_degrees=0.0,
            affine_scale=0.0,
            affine_translation_mm=0.0,
            elastic_mm=0.0,
        )

    def _spatial(self) -> list:
        import torchio  # heavy import

        chosen = []
        if self.flip:
            chosen.append(torchio.RandomFlip(axes=self.flip, flip_probability=0.5))
        if self.affine_degrees or self.affine_scale or self.affine_translation_mm:
            chosen.append(
                torchio.RandomAffine(
                    scales=self.affine_scale,
                    degrees=self.affine_degrees,
                    translation=self.affine_translation_mm,
                    default_pad_value=0,
                )
            )
        if self.elastic_mm:
            chosen.append(
                torchio.RandomElasticDeformation(
                    num_control_points=self.elastic_points, max_displacement=self.elastic_mm
                )
            )
        return chosen

    def _intensity(self) -> list:
        import torchio  # heavy import

        chosen = []
        p = self.often
        if self.contrast:
            curve = partial(_recontrasted, most=self.contrast)
            # of images alone: it would draw for label maps as well
            chosen.append(torchio.Lambda(curve, types_to_apply=[torchio.INTENSITY], p=p))
        if self.bias:
            chosen.append(torchio.RandomBiasField(coefficients=self.bias, p=p))
        if self.gamma:
            chosen.append(torchio.RandomGamma(log_gamma=self.gamma, p=p))
        if self.blur_mm:
            chosen.append(torchio.RandomBlur(std=(0, self.blur_mm), p=p))
        if self.thickness > 1:
            chosen.append(torchio.RandomAnisotropy(downsampling=(1, self.thickness), p=p))
        if self.spikes:
            chosen.append(torchio.RandomSpike(intensity=(0, self.spikes), p=p))
        if self.noise:
            chosen.append(torchio.RandomNoise(std=(0, self.noise / 2), p=p))
        return chosen


def _recontrasted(s: Float[Tensor, "c d h w"], *, most: float) -> Float[Tensor, "c d h w"]:
    """A random monotone curve of the signal; what is above 1 stays as it is."""
    slopes = ((2 * torch.rand(_KNOTS) - 1) * most).exp()
    ends = torch.cat([torch.zeros(1), slopes.cumsum(0)]) / slopes.sum()
    return torch.where((s > 0) & (s < 1), curved(s.clamp(0, 1), ends), s)


def _non_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {value}.")
