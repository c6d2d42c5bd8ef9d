r"""Fusions: how the members of an ensemble become the probabilities of the labels.

mean               the mean membership
vote               the share of the members whose label map has the label
log_mean           the geometric mean of the class probabilities, scaled to sum to one
staple             agreement weighed by each member's estimated sensitivity and specificity
step_uncertainty   means of all steps of the chains, weighed by step and certainty

Members come one at a time; memory does not grow with their number, but for STAPLE, which keeps
their label maps, one byte per voxel each.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.component import Component

__all__ = [
    "Fusing",
    "LabelFusion",
    "LogMean",
    "Mean",
    "Staple",
    "StepUncertainty",
    "Vote",
    "every_class",
    "staple",
]

Memberships = Float[Tensor, "l d h w"]


def every_class(y: Float[Tensor, "*n l d h w"]) -> Float[Tensor, "*n _ d h w"]:
    """The memberships with that of the background, what is missing from one, in front."""
    rest = (1 - y.sum(dim=-4, keepdim=True)).clamp_min(0)
    return torch.cat([rest, y], dim=-4)


class Fusing(ABC):
    """A fusion under way. Extended by what a fusion keeps of the members that it has seen."""

    @abstractmethod
    def update(self, y: Memberships, weight: float) -> None:
        """Takes one member."""

    def estimate(self, y: Memberships, step: int, steps: int) -> None:
        """Takes what a member thought of at a step, for fusions that want it."""
        del y, step, steps  # most of them wait for the finished map

    @abstractmethod
    def result(self) -> Memberships:
        """Probabilities of the labels."""


@dataclass(frozen=True)
class LabelFusion(Component):
    """From members to probabilities.

    Class attributes:
        steps: whether it is told the estimates of every step
    """

    steps: ClassVar[bool] = False

    @abstractmethod
    def start(self) -> Fusing:
        """A fusion that has seen no member yet."""


@dataclass
class _Mean(Fusing):
    """Weighted mean, updated so that equal members give their value exactly."""

    total: float = 0.0
    mean: Tensor | None = None

    def update(self, y: Memberships, weight: float) -> None:
        self.total += weight
        if self.mean is None:
            self.mean = y.clone()
        else:
            self.mean += (y - self.mean) * (weight / self.total)

    def result(self) -> Memberships:
        assert self.mean is not None, "an ensemble has a member"
        return self.mean


@dataclass(frozen=True)
class Mean(LabelFusion):
    """The mean membership, each member with its weight."""

    def start(self) -> Fusing:
        return _Mean()


class _Vote(_Mean):
    def update(self, y: Memberships, weight: float) -> None:
        super().update(_one_hot(every_class(y)), weight)


@dataclass(frozen=True)
class Vote(LabelFusion):
    """The share of the members whose most probable label it is; ties go to the background."""

    def start(self) -> Fusing:
        return _Vote()


def _one_hot(every: Float[Tensor, "k d h w"]) -> Memberships:
    """Indicator of the largest class, without the background's."""
    best = every.argmax(dim=0)
    return torch.stack([best == i for i in range(1, len(every))]).to(every.dtype)


@dataclass
class _LogMean(Fusing):
    least: float
    inner: _Mean = field(default_factory=_Mean)

    def update(self, y: Memberships, weight: float) -> None:
        self.inner.update(every_class(y).clamp(min=self.least).log(), weight)

    def result(self) -> Memberships:
        return self.inner.result().softmax(dim=0)[1:]


@dataclass(frozen=True)
class LogMean(LabelFusion):
    r"""The normalised geometric mean, :math:`p_k \propto \exp \sum_i w_i \log y_{i,k}`.

    Arguments:
        least: probabilities below count as this much

    References:
        Zbinden et al. (2023), Stochastic Segmentation with Conditional Categorical Diffusion
        Models, arXiv:2303.08888
    """

    least: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.least < 1:
            raise ValueError(f"expected least in (0, 1), got {self.least}.")

    def start(self) -> Fusing:
        return _LogMean(self.least)


@dataclass
class _Staple(Fusing):
    rule: "Staple"
    maps: list[Tensor] = field(default_factory=list)
    labels: int = 0

    def update(self, y: Memberships, weight: float) -> None:
        self.labels = len(y)
        self.maps.append(every_class(y).argmax(dim=0).to(torch.uint8))

    def result(self) -> Memberships:
        maps = torch.stack(self.maps)
        found = [
            staple(maps == i, tolerance=self.rule.tolerance, iterations=self.rule.iterations)
            for i in range(1, self.labels + 1)
        ]
        p = torch.stack(found).float()
        return p / p.sum(dim=0, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Staple(LabelFusion):
    """Simultaneous truth and performance level estimation, label by label.

    Arguments:
        tolerance: change of the mean weight below which the iteration stops
        iterations: most of them

    References:
        Warfield et al. (2004), IEEE TMI 23(7), equations 9 to 20
    """

    tolerance: float = 1e-7
    iterations: int = 1000

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or self.iterations < 1:
            raise ValueError(
                f"expected tolerance >= 0 and iterations >= 1, got {self.tolerance} and "
                f"{self.iterations}."
            )

    def start(self) -> Fusing:
        return _Staple(self)


def staple(
    masks: Bool[Tensor, "n *shape"], *, tolerance: float = 1e-7, iterations: int = 1000
) -> Float[Tensor, "*shape"]:
    r"""Probability of each voxel, with the performance of every mask estimated along,

    .. math:: W = \frac{f \prod_j p_j^{D_j} (1 - p_j)^{1 - D_j}}
                       {f \prod_j p_j^{D_j} (1 - p_j)^{1 - D_j}
                        + (1 - f) \prod_j q_j^{1 - D_j} (1 - q_j)^{D_j}}, \quad
              p_j = \frac{\sum W D_j}{\sum W}, \quad
              q_j = \frac{\sum (1 - W) (1 - D_j)}{\sum (1 - W)},

    from p = q = .99999, with f the mean of all masks. Voxels on which all masks agree are kept as
    counts of equal patterns, so that time and memory are those of the patterns, 2^n at most.
    Masks that are all empty, or all full, give what they say. A single mask gives itself.

    Arguments:
        masks: of one label
        tolerance: change of the sum of p and q below which the iteration stops
        iterations: most of them

    Returns:
        float64 probabilities
    """
    n, flat = len(masks), masks.flatten(1)
    if n == 1 or not bool(flat.any()) or bool(flat.all()):
        return masks[0].double()
    patterns, place, counts = torch.unique(flat, dim=1, return_inverse=True, return_counts=True)
    d, counts = patterns.double(), counts.double()  # (n, patterns)
    f = float((d.sum(dim=0) * counts).sum() / (n * counts.sum()))
    p = q = torch.full((n, 1), 0.99999, dtype=torch.float64, device=masks.device)
    w = d.mean(dim=0)
    last = math.inf
    for _ in range(iterations):
        inside = f * (d * p + (1 - d) * (1 - p)).prod(dim=0)
        outside = (1 - f) * ((1 - d) * q + d * (1 - q)).prod(dim=0)
        total = inside + outside
        w = torch.where(total > 0, inside / total.clamp(min=1e-300), f)
        weight, rest = (w * counts).sum(), ((1 - w) * counts).sum()
        if float(weight) == 0 or float(rest) == 0:
            break
        p = ((w * counts * d).sum(dim=1, keepdim=True) / weight).clamp(0, 1)
        q = (((1 - w) * counts * (1 - d)).sum(dim=1, keepdim=True) / rest).clamp(0, 1)
        now = float(p.sum() + q.sum())
        if abs(now - last) <= tolerance:
            break
        last = now
    return w[place].view(masks.shape[1:])


@dataclass
class _StepUncertainty(Fusing):
    means: list[_Mean] = field(default_factory=list)

    def update(self, y: Memberships, weight: float) -> None:
        """Members count by their steps alone; the last is the finished map's."""

    def estimate(self, y: Memberships, step: int, steps: int) -> None:
        while len(self.means) < steps:
            self.means.append(_Mean())
        self.means[step].update(every_class(y), 1.0)

    def result(self) -> Memberships:
        steps = len(self.means)
        fused: Tensor | None = None
        for i, each in enumerate(self.means, start=1):
            p = each.result()
            u = -torch.special.xlogy(p, p)
            w = torch.exp(torch.sigmoid(torch.tensor(i / steps)).to(p) * (1 - u))
            fused = w * p if fused is None else fused + w * p
        assert fused is not None, "a chain has a step"
        return (fused / fused.sum(dim=0, keepdim=True))[1:]


@dataclass(frozen=True)
class StepUncertainty(LabelFusion):
    r"""Later and surer steps count for more,

    .. math:: P \propto \sum_i \exp\big(\sigma(i / S) (1 - u_i)\big)\, \bar p_i, \qquad
              u_i = -\bar p_i \log \bar p_i,

    with p̄_i the mean over the members at step i of S. The paper's formula is per class and not
    scaled; here classes, the background among them, are scaled to sum to one. Memory: S maps of
    all classes.

    References:
        Xing et al. (2023), Diff-UNet, arXiv:2303.10326, equations 5 and 6
    """

    steps: ClassVar[bool] = True

    def start(self) -> Fusing:
        return _StepUncertainty()
