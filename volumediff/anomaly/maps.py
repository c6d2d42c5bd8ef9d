r"""Maps: how far a volume x is from its pseudo-healthy version x̂, voxel by voxel.

Higher means more abnormal; channels are averaged; the map is zero outside the foreground.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._features import (
    Features,
    autoencoder_features,
    feature_problem,
    network_features,
    spread,
)
from volumediff.anomaly._filters import inside_quantile, smooth
from volumediff.anomaly._registration import bent_onto
from volumediff.anomaly._similarity import ssim
from volumediff.autoencoders import Reconstructor
from volumediff.comparison import VoxelPosterior
from volumediff.condition import Condition
from volumediff.model import Model

__all__ = [
    "L1",
    "L2",
    "SSIM",
    "Asymmetric",
    "Deformed",
    "Learned",
    "Map",
    "Perceptual",
    "Product",
    "SSIMEnsemble",
    "Saturated",
]


@dataclass(frozen=True)
class Map(ABC):
    """A distance between a volume and its pseudo-healthy version.

    Attributes:
        relative: whether what a lossy space alone makes of the volume is subtracted
        supervision: what it was trained on, where it was trained
    """

    relative: ClassVar[bool] = True

    @property
    def supervision(self) -> str | None:
        """What it was trained on; None where it was not trained."""
        return None

    @property
    def lent(self) -> tuple[str, ...]:
        """SHA-256 of the weights of other runs that it works with."""
        return ()

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map a(x, x̂) ≥ 0, zero outside the foreground."""

    @property
    def parts(self) -> "tuple[Map, ...]":
        """Maps that this one is made of: those among its fields."""
        values = [getattr(self, f.name) for f in fields(self)]
        flat = [v for each in values for v in (each if isinstance(each, tuple) else (each,))]
        return tuple(v for v in flat if isinstance(v, Map))

    def check(self, model: Model | Reconstructor) -> None:
        """Raises ValueError, with the reason, for a model with which the map is meaningless."""
        for part in self.parts:
            part.check(model)

    def bound(self, model: Model | Reconstructor, condition: Condition) -> "Map":
        """The map with what it, or a map that it is made of, takes from a model."""
        changes: dict[str, Map | tuple[Map, ...]] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Map):
                changes[f.name] = value.bound(model, condition)
            elif isinstance(value, tuple) and any(isinstance(v, Map) for v in value):
                changes[f.name] = tuple(v.bound(model, condition) for v in value)
        return replace(self, **changes) if changes else self


@dataclass(frozen=True)
class L1(Map):
    """Absolute residual, a = mean_c |x - x̂|."""

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The absolute residual."""
        return (x - healthy).abs().mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class L2(Map):
    """Squared residual, a = mean_c (x - x̂)²."""

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The squared residual."""
        return (x - healthy).square().mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class SSIM(Map):
    r"""Structural dissimilarity, a = max(0, 1 - SSIM), with Gaussian windows of the foreground.

    .. math::
        SSIM = \frac{(2 μ_x μ_{x̂} + c_1)(2 σ_{x x̂} + c_2)}
                    {(μ_x^2 + μ_{x̂}^2 + c_1)(σ_x^2 + σ_{x̂}^2 + c_2)}

    The means are local and one-sided at the rim, so that neither background nor padding enters.
    Intensities are shifted from [-1, 1] to [0, 2], as SSIM compares means as ratios.

    Arguments:
        sigma_mm: standard deviation of the window; the usual 11-voxel window has 1.5 voxels

    References:
        Wang et al. (2004), Image quality assessment, eq. 13, K1 = 0.01, K2 = 0.03
    """

    sigma_mm: float = 1.5

    def __post_init__(self) -> None:
        if not self.sigma_mm > 0:
            raise ValueError(f"sigma_mm: expected a positive width, got {self.sigma_mm}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """One minus the local structural similarity."""
        inside = {"spacing_mm": spacing_mm, "foreground": foreground}
        near = ssim(x, healthy, sigma_mm=self.sigma_mm, **inside)
        return (1 - near).clamp(min=0).mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class SSIMEnsemble(Map):
    r"""Structural dissimilarity over windows of several widths, the worst counting most,

    .. math:: a = 1 - \sum_i w_i S_i, \qquad w = \mathrm{softmax}(-S),

    with S_i the similarity at width i, voxel by voxel and channel by channel.

    Arguments:
        sigmas_mm: standard deviations of the windows; the published 0.3 to 1.7 are in voxels,
            of 2 mm

    References:
        Behrendt et al. (2024), Diffusion Models with Ensembled Structure-Based Anomaly Scoring for
        Unsupervised Anomaly Detection, arXiv:2403.14262
    """

    sigmas_mm: tuple[float, ...] = (0.6, 1.0, 1.4, 1.8, 2.2, 2.6, 3.0, 3.4)

    def __post_init__(self) -> None:
        if not self.sigmas_mm or min(self.sigmas_mm) <= 0:
            raise ValueError(f"sigmas_mm: expected positive widths, got {self.sigmas_mm}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """One minus the weighted similarity."""
        # Σ w S = Σ S exp(-S) / Σ exp(-S), summed width by width
        inside = {"spacing_mm": spacing_mm, "foreground": foreground}
        top, bottom = torch.zeros_like(x), torch.zeros_like(x)
        for sigma in self.sigmas_mm:
            near = ssim(x, healthy, sigma_mm=sigma, **inside)
            weight = torch.exp(-near)
            top, bottom = top.addcmul_(weight, near), bottom.add_(weight)
        return (1 - top / bottom).clamp(min=0).mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class Perceptual(Map):
    r"""Distance of the features that the trained model's own encoder has of x and of x̂,

    .. math:: a = \frac{1}{L} \sum_l U\Big(1 - \frac{f_l(x) \cdot f_l(\hat x)}
              {|f_l(x)|\,|f_l(\hat x)|}\Big)

    over the levels l of the encoder, U the interpolation to voxels; `l2` has the mean squared
    difference instead of the cosine. It stands for LPIPS, whose weights come from photographs.
    Features reach beyond the foreground, unlike the other maps.

    Arguments:
        of: the denoiser, or the autoencoder of a latent space
        distance: how two feature vectors are compared
        level: time at which the denoiser is asked, for a state without noise; low, as the
            volumes have little
        features: taken from the model, never configured
    """

    of: Literal["network", "autoencoder"] = "network"
    distance: Literal["cosine", "l2"] = "cosine"
    level: float = 0.1
    features: Features | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"level: expected a time in (0, 1], got {self.level}.")

    def check(self, model: Model | Reconstructor) -> None:
        """The model must have such features."""
        problem = feature_problem(model, self.of)
        if problem:
            raise ValueError(f"map perceptual: {problem}")

    def bound(self, model: Model | Reconstructor, condition: Condition) -> "Perceptual":
        """The map with the features of a model."""
        result = replace(self)
        made = (
            autoencoder_features(model)
            if self.of == "autoencoder"
            else network_features(model, condition, self.level)
        )
        object.__setattr__(result, "features", made)
        return result

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The mean distance over the levels.

        Raises:
            ValueError: the map is not bound to a model
        """
        if self.features is None:
            raise ValueError("map perceptual: expected a model, got none; it compares features.")
        d, h, w = x.shape[2:]
        pairs = list(zip(self.features(x), self.features(healthy), strict=True))
        total = torch.zeros_like(x[:, :1])
        for f, g in pairs:
            f, g = f.float(), g.float()
            if self.distance == "cosine":
                near = torch.nn.functional.cosine_similarity(f, g, dim=1)[:, None]
                a = (1 - near).clamp(min=0)
            else:
                a = (f - g).square().mean(1, keepdim=True)
            total += spread(a, (d, h, w))
        return total / len(pairs) * foreground


@dataclass(frozen=True)
class Learned(Map):
    r"""Probability of an anomaly by a comparer that knows this model's residuals, and another map,

    .. math:: a = σ\big(f(\hat x - x, x)\big) + b(x, \hat x).

    Nothing is subtracted in a lossy space: f was trained on residuals that hold its losses.

    Arguments:
        comparer: f; of the run `run` of the row, never configured
        plus: the map b; None for none

    References:
        Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
        Supervised Segmentation for Brain MRIs, MIDL; there b = 1 - SSIM
    """

    relative: ClassVar[bool] = False
    comparer: VoxelPosterior | None
    plus: Map | None = None

    @property
    def supervision(self) -> str | None:
        """What the comparer was trained on."""
        return None if self.comparer is None else self.comparer.supervision

    @property
    def lent(self) -> tuple[str, ...]:
        """The comparer's weights."""
        return () if self.comparer is None else (self.comparer.digest,)

    def check(self, model: Model | Reconstructor) -> None:
        """There must be a comparer."""
        if self.comparer is None:
            raise ValueError(
                "map.run: expected the run of a comparer that was trained for this run, got none; "
                "use map.run=RUN, see configs/comparers."
            )
        super().check(model)

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The probability, and the other map added to it."""
        assert self.comparer is not None, "check"
        a = self.comparer.probability(x, healthy) * foreground
        if self.plus is None:
            return a
        return a + self.plus(x, healthy, foreground=foreground, spacing_mm=spacing_mm)


@dataclass(frozen=True)
class Asymmetric(Map):
    r"""What one side has more of than the other,

    .. math:: b(v) = \max(0, a(v) - G_σ a(v')),

    v' the place of v on the other side of the middle of the foreground along d, which runs from
    left to right. Errors of the model are alike on both sides, lesions seldom are; those on the
    midline are lost. For volumes whose midline is straight along d.

    Arguments:
        map: the map a
        sigma_mm: smoothing of the other side, since no brain is its own mirror image
    """

    map: Map
    sigma_mm: float = 3.0

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The excess over the other side."""
        a = self.map(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        other = smooth(a, sigma_mm=self.sigma_mm, spacing_mm=spacing_mm, foreground=foreground)
        return (a - mirrored(other, foreground)).clamp(min=0) * foreground


def mirrored(
    a: Float[Tensor, "b c d h w"], foreground: Bool[Tensor, "b 1 d h w"]
) -> Float[Tensor, "b c d h w"]:
    """The volume reflected along d about the middle of the foreground; zero from beyond."""
    result = torch.zeros_like(a)
    for i, inside in enumerate(foreground):
        planes = inside.any(dim=(0, 2, 3)).nonzero().flatten()
        if len(planes):
            low, high = int(planes[0]), int(planes[-1]) + 1
            result[i, :, low:high] = a[i, :, low:high].flip(1)
    return result


@dataclass(frozen=True)
class Product(Map):
    """Product of maps, a = Π_i a_i: abnormal where all of them say so.

    Arguments:
        maps: the factors
    """

    maps: tuple[Map, ...]

    def __post_init__(self) -> None:
        if not self.maps:
            raise ValueError("maps: expected at least one map, got none.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The product of the factors."""
        factors = [m(x, healthy, foreground=foreground, spacing_mm=spacing_mm) for m in self.maps]
        return math.prod(factors[1:], start=factors[0])


@dataclass(frozen=True)
class Saturated(Map):
    """A map relative to its own quantile in the foreground, a = min(a / Q_q(a), 1).

    Arguments:
        map: the map
        quantile: share q of the foreground that lies below the value that becomes 1
    """

    map: Map
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile: expected a share in (0, 1], got {self.quantile}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map in units of its quantile, at most 1."""
        a = self.map(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        for i, (volume, inside) in enumerate(zip(a, foreground, strict=True)):
            top = inside_quantile(volume, self.quantile, foreground=inside)
            # a map that is zero up to the quantile has no unit: everything above it is 1
            a[i] = (volume / top).clamp(max=1) if top > 0 else (volume > 0).to(a.dtype)
        return a


@dataclass(frozen=True)
class Deformed(Map):
    """A map of what is left after the pseudo-healthy volume was bent onto the volume,

    a(x, x̂∘φ), φ smooth and of bounded length: anatomy that stands a little elsewhere is no
    anomaly. Lesions that displace, and shrinkage, are forgiven with it.

    Arguments:
        map: the map a
        limit_mm: longest displacement; about the size of what should be forgiven
        smooth_mm: standard deviation of the Gaussian that smooths the displacement
        iterations: of the demons, on each of two resolutions

    References:
        Bercea et al. (2023), Generalizing Unsupervised Anomaly Detection: Towards Unbiased
        Pathology Screening (MorphAEus), arXiv:2303.09601; there a network estimates φ
    """

    map: Map
    limit_mm: float = 4.0
    smooth_mm: float = 6.0
    iterations: int = 30

    def __post_init__(self) -> None:
        if not (self.limit_mm > 0 and self.smooth_mm > 0 and self.iterations > 0):
            raise ValueError(
                "expected positive limit_mm, smooth_mm and iterations, got "
                f"{self.limit_mm}, {self.smooth_mm} and {self.iterations}."
            )

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map of the bent volume."""
        bent = bent_onto(
            healthy,
            x,
            spacing_mm=spacing_mm,
            smooth_mm=self.smooth_mm,
            limit_mm=self.limit_mm,
            iterations=self.iterations,
        )
        return self.map(x, bent, foreground=foreground, spacing_mm=spacing_mm)
