r"""Reconstructions: what a trained autoencoder takes for the healthy version of a volume.

    single_pass    x̂ = D(E(x))
    elbo_gradient  the same, its map weighed by |∂L/∂x|
    restoration    x̂ = argmin_u L(u) + λ TV(x - u), by gradient descent
    critic         x̂ = G(E(x)), the map plus what the critic of a GAN sees
    resampled      x̂ = D(codes), unlikely codes drawn again

with L the bound of a variational autoencoder, minus its evidence, per voxel.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import smooth
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.needs.autoencoder import InOnePiece, Reconstructs
from volumediff.autoencoders import Reconstructor
from volumediff.autoencoders._variational import Variational
from volumediff.autoencoders.fanogan import FAnoGAN
from volumediff.autoencoders.token_prior import TokenPrior
from volumediff.component import Component, Requirement
from volumediff.features.grids import spread
from volumediff.randomness import generator

__all__ = [
    "CriticReconstruction",
    "ElboGradient",
    "Reconstruction",
    "ReconstructionView",
    "Resampled",
    "Restoration",
    "SinglePass",
    "total_variation",
]


@dataclass(frozen=True, eq=False)
class ReconstructionView:
    """One reconstruction of one volume.

    Arguments:
        model: the autoencoder
        example: the volume
        key: of all that is drawn
        trace: masks and intermediate maps, for inspection
    """

    model: Reconstructor
    example: Example
    key: int
    trace: dict[str, Tensor] = field(default_factory=dict)

    @property
    def x(self) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return self.example.x

    def smooth(self, a: Float[Tensor, "1 c d h w"], sigma_mm: float) -> Tensor:
        """A map, smoothed over the foreground."""
        place = {"spacing_mm": self.example.spacing_mm, "foreground": self.example.foreground}
        return smooth(a, sigma_mm=sigma_mm, **place)


@dataclass(frozen=True)
class Reconstruction(Component, ABC):
    """How the pseudo-healthy volume is made; `stochastic` says whether anything is drawn."""

    stochastic: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """The pseudo-healthy volume."""

    @abstractmethod
    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map of the method from the distance of volume and pseudo-healthy volume."""


def _gradient(of: str) -> tuple[Requirement, ...]:
    kind = "a variational autoencoder, whose evidence has a gradient"
    return Reconstructs(Variational, of, kind), InOnePiece(of)


def _slope(model: Variational, x: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "1 c d h w"]:
    """∂ (N L) / ∂x for the N voxels of a volume, so that its size does not depend on N."""
    with torch.enable_grad():
        u = x.detach().requires_grad_()
        total = model.total(model.bound(u)).sum() * x[0].numel()
        (slope,) = torch.autograd.grad(total, u)
    return slope


@dataclass(frozen=True)
class SinglePass(Reconstruction):
    """Once through the autoencoder.

    References:
        Baur et al. (2021), Autoencoders for unsupervised anomaly segmentation in brain MR images:
        a comparative study, arXiv:2004.03271
    """

    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """D(E(x))."""
        return view.model.reconstruct(view.x)

    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return a


@dataclass(frozen=True)
class ElboGradient(Reconstruction):
    r"""Once through the autoencoder; the map is weighed by what would raise the evidence,

    .. math:: a \leftarrow a \cdot G_\sigma \langle |\partial (N L) / \partial x| \rangle_c.

    The gradient sees the divergence of the posterior, too: what the latent finds unusual, even
    where it can be reconstructed.

    Arguments:
        sigma_mm: smoothing of the gradient, which is noisy voxel by voxel

    References:
        Zimmerer et al. (2018), arXiv:1812.05941, section 3; (2019), Unsupervised Anomaly
        Localization using Variational Auto-Encoders, arXiv:1907.02796
    """

    sigma_mm: float = 3.0

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Evidence that has a gradient."""
        return _gradient("reconstruction ElboGradient")

    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """D(E(x))."""
        return view.model.reconstruct(view.x)

    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map times the smoothed gradient."""
        slope = _slope(view.model, view.x).abs().mean(dim=1, keepdim=True)
        weight = view.smooth(slope, self.sigma_mm)
        view.trace["elbo_gradient/weight"] = weight
        return a * weight


@dataclass(frozen=True)
class Restoration(Reconstruction):
    r"""The most probable healthy volume, if lesions have a small total variation,

    .. math:: \hat x = \arg\min_u \; N L(u) + \lambda\, TV(x - u),

    by gradient descent from u = x. L stands for -log p(u), as a bound, and the variation for the
    likelihood of a lesion x - u.

    Arguments:
        steps: of the descent
        lr: step size, in intensities per unit of gradient
        tv: weight lambda; the published one makes healthy volumes change least

    References:
        Chen, You, Tezcan and Konukoglu (2020), Unsupervised lesion detection via image restoration
        with a normative prior, arXiv:2005.00031: 500 steps, lambda chosen on healthy volumes
    """

    steps: int = 500
    lr: float = 3e-3
    tv: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or self.tv < 0:
            raise ValueError(
                f"expected steps >= 1, lr > 0 and tv >= 0, got {self.steps}, {self.lr} and "
                f"{self.tv}."
            )

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Evidence that has a gradient."""
        return _gradient("reconstruction Restoration")

    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """The end of the descent."""
        u = view.x.clone()
        for _ in range(self.steps):
            slope = _slope(view.model, u)
            if self.tv:
                with torch.enable_grad():
                    v = u.detach().requires_grad_()
                    (rough,) = torch.autograd.grad(total_variation(view.x - v), v)
                slope = slope + self.tv * rough
            u = u - self.lr * slope
        return u

    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return a


def total_variation(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, ""]:
    """Sum of absolute differences between neighbours along every axis."""
    return sum(x.diff(dim=axis).abs().sum() for axis in (2, 3, 4))


@dataclass(frozen=True)
class CriticReconstruction(Reconstruction):
    r"""Through the encoder and the generator of a GAN; the critic's features join the map,

    .. math:: a \leftarrow a + \kappa\, U \langle (f(x) - f(\hat x))^2 \rangle,

    the mean over features, U the interpolation to voxels. As published, kappa is for the score of
    a volume, and the map is the residual alone: kappa = 0.

    Arguments:
        features: kappa

    References:
        Schlegl et al. (2019), f-AnoGAN, Medical Image Analysis 54: kappa = 1
    """

    features: float = 1.0

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A critic."""
        return (Reconstructs(FAnoGAN, "reconstruction Critic", "an autoencoder with a critic"),)

    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """G(E(x))."""
        return view.model.reconstruct(view.x)

    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map plus the difference of the features."""
        see = view.model.critic.features
        difference = (see(view.x) - see(healthy)).float().square().mean(dim=1, keepdim=True)
        d, h, w = view.x.shape[2:]
        seen = spread(difference, (d, h, w)) * view.example.foreground
        view.trace["critic/features"] = seen
        return a + self.features * seen


@dataclass(frozen=True)
class Resampled(Reconstruction):
    r"""Codes with p(s_i | s_<i) below a threshold are drawn again from the prior, and the map
    counts where that happened,

    .. math:: a \leftarrow a \cdot G_\sigma U [p(s_i | s_{<i}) < \theta].

    Several draws are an ensemble: `ensemble: {name: mean, seeds: 5}`.

    Arguments:
        threshold: theta
        sigma_mm: smoothing of the mask

    References:
        Pinaya et al. (2022), arXiv:2102.11650, section 2.4: theta = 0.005
    """

    stochastic: ClassVar[bool] = True
    threshold: float = 0.005
    sigma_mm: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: expected a probability in (0, 1), got {self.threshold}.")

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A prior of codes."""
        return (Reconstructs(TokenPrior, "reconstruction Resampled", "a prior of codes"),)

    def __call__(self, view: ReconstructionView) -> Float[Tensor, "1 c d h w"]:
        """The volume of the healthier codes."""
        d, h, w = view.x.shape[2:]
        tokens = view.model.tokens(view.x)
        surprise = view.model.surprise(tokens)
        where = (-surprise).exp() < self.threshold
        source = generator(view.key, "codes")
        healthy = view.model.redraw(tokens, where, generator=source)
        view.trace["resampled/surprise"] = view.model.on_grid(surprise, (d, h, w))
        view.trace["resampled/mask"] = view.model.on_grid(where.to(view.x), (d, h, w))
        return view.model.volume(healthy, (d, h, w))

    def weigh(
        self,
        view: ReconstructionView,
        healthy: Float[Tensor, "1 c d h w"],
        a: Float[Tensor, "1 1 d h w"],
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map where codes were drawn again."""
        return a * view.smooth(view.trace["resampled/mask"], self.sigma_mm)
