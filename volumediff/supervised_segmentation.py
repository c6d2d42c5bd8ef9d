r"""Supervised segmentation: a network of the diffusion models, asked once, for labels,

.. math:: p = \operatorname{softmax} A^{-1} F(z_t, t), \qquad z = A(x), \qquad z_0 = z,

with A the state space: voxels, slices or wavelets, whose inverse gives logits in voxels. The time
is 0 and the volume clean, unless a network goes on that was trained to see noise: `levels` are
then the times at which it is asked.

Heads at coarser levels of the decoder are trained against labels that are averaged over the cells
of their grid, with half the weight per level (deep supervision).

References:
    Ronneberger et al. (2015), U-Net, arXiv:1505.04597; Isensee et al. (2021), nnU-Net, Nature
    Methods 18; Alshenoudy et al. (2023), Semi-supervised brain tumor segmentation using diffusion
    models; Rousseau et al. (2023), arXiv:2307.14066, for networks that go on from a diffusion run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.kernels._base import UNCONDITIONAL, Kernel
from volumediff.model import LabelProbabilities, full_coordinates, state_noise
from volumediff.networks._base import Network
from volumediff.noise import GaussianNoise, Noise
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["DiceCrossEntropy", "SupervisedSegmentation", "averaged", "level_weights"]

Classes = Float[Tensor, "b l d h w"]
Weight = Float[Tensor, "b 1 d h w"]
SMOOTH = 1e-5  # voxels added to both sides of the Dice ratio, as nnU-Net and MONAI do
UNIT_MM = (1.0, 1.0, 1.0)  # codes are read voxel by voxel


@dataclass(frozen=True)
class DiceCrossEntropy:
    r"""Soft Dice and cross entropy of each sample,

    .. math:: \ell = w_D \left(1 - \frac1{|L|} \sum_{l \in L}
              \frac{2 \sum p_l q_l + s}{\sum p_l + \sum q_l + s}\right)
              - w_C\, \frac{\sum_i \sum_l c_l\, q_{il} \log p_{il}}{\sum_i \sum_l c_l\, q_{il}}

    with q the shares of the classes in a voxel, one of them 1 where readers agree. Voxels that
    nobody has judged have a weight of 0 in all sums: q and p are 0 there. Of regions, L are unions
    of classes: their p and q are sums over the classes.

    Arguments:
        dice, cross_entropy: w_D and w_C
        background: whether L holds the background
        background_weight: c of the background; that of labels is 1
        regions: classes of every region, in place of single labels; the background is class 0

    References:
        Milletari et al. (2016), V-Net, arXiv:1606.04797; Isensee et al. (2021), nnU-Net
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    background: bool = False
    background_weight: float = 1.0
    regions: tuple[tuple[int, ...], ...] = ()

    def __call__(
        self, logits: Classes, shares: Classes, weight: Weight | None = None
    ) -> Float[Tensor, "b"]:
        """The loss of each sample; the background is class 0.

        Arguments:
            weight: of every voxel, in [0, 1]; None for 1 everywhere. A sample without any has
                loss 0
        """
        log_p = F.log_softmax(logits.float(), dim=1)
        q = shares.to(log_p)
        if weight is not None:
            weight = weight.to(log_p)
            q = q * weight
        loss = log_p.new_zeros(len(log_p))
        if self.dice:
            p = log_p.exp() if weight is None else log_p.exp() * weight
            p, t = self._counted(p).flatten(2), self._counted(q).flatten(2)
            ratio = (2 * (p * t).sum(2) + SMOOTH) / (p.sum(2) + t.sum(2) + SMOOTH)
            loss = loss + self.dice * (1 - ratio.mean(1))
        if self.cross_entropy:
            of_class = torch.ones_like(q[:1, :, :1, :1, :1])
            of_class[:, 0] = self.background_weight
            weighted = of_class * q
            total = weighted.flatten(1).sum(1).clamp(min=torch.finfo(q.dtype).tiny)
            loss = loss - self.cross_entropy * (weighted * log_p).flatten(1).sum(1) / total
        return loss

    def _counted(self, shares: Classes) -> Float[Tensor, "b k d h w"]:
        """What the Dice term is of: classes, or unions of them."""
        if not self.regions:
            return shares if self.background else shares[:, 1:]
        unions = [shares[:, list(region)].sum(1) for region in self.regions]
        return torch.stack([shares[:, 0], *unions] if self.background else unions, dim=1)


def level_weights(count: int) -> list[float]:
    """Weights of the finest level and of `count` coarser ones: halves, with sum 1."""
    halves = [0.5**level for level in range(count + 1)]
    return [half / sum(halves) for half in halves]


def averaged(shares: Float[Tensor, "b l d h w"], cell: Shape) -> Float[Tensor, "b l d2 h2 w2"]:
    """Mean shares of the classes in cells, cut off at the border: ceil(size / cell) per axis."""
    d, h, w = (min(n, m) for n, m in zip(cell, shares.shape[2:], strict=True))
    return F.avg_pool3d(shares, (d, h, w), (d, h, w), ceil_mode=True)


class SupervisedSegmentation(LabelProbabilities):
    """p(m | x), as a state space and a network.

    Arguments:
        space: volumes <-> states; exact, so that logits have a place in it
        network: state -> logits of the background and of the labels, in state space; has as many
            heads on coarser levels as `deep_supervision` says
        recipe: labels and their coding
        dtype: in which the network computes; logits and losses are wider
        criterion: of logits and shares
        deep_supervision: levels of the decoder below the finest that are trained as well
        levels: times at which the network is asked; 0 is the clean volume
        kernel: how states are corrupted, where a level is above 0
        noise_field: what they are corrupted with
    """

    diffuses: ClassVar[bool] = False

    def __init__(
        self,
        space: StateSpace,
        network: Network,
        recipe: Recipe,
        *,
        dtype: torch.dtype = torch.float32,
        criterion: DiceCrossEntropy = DiceCrossEntropy(),
        deep_supervision: int = 0,
        levels: tuple[float, ...] = (0.0,),
        kernel: Kernel | None = None,
        noise_field: Noise = GaussianNoise(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.space, self.network, self.recipe, self.dtype = space, network, recipe, dtype
        self.criterion, self.levels = criterion, levels
        self.kernel, self.noise_field = kernel, noise_field
        self.deep_supervision = deep_supervision
        if deep_supervision:
            network.deepen(deep_supervision)
        if kernel is None and any(levels):
            raise ValueError(f"expected a kernel for the levels {levels}, got none")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        first = next(chain(self.network.parameters(), self.space.buffers()), torch.empty(0))
        return first.device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.network

    @property
    def classes(self) -> int:
        """Labels and background."""
        return len(self.recipe.labels) + 1

    @property
    def labels(self) -> tuple[int, ...]:
        """Label values in the order of the classes, without the background."""
        return self.recipe.labels

    def probabilities(
        self, x: Float[Tensor, "b c d h w"], condition: Condition = UNCONDITIONAL
    ) -> Classes:
        """Of background and labels, in this order: what other models take as a law of labels.

        Arguments:
            condition: coordinates of crops, on the grid of this model's states

        Raises:
            ValueError: coordinates are on another grid
        """
        z, place = self.encode(x), condition.coordinates
        if place is not None and self.network.coordinates and place.shape[2:] != z.shape[2:]:
            raise ValueError(
                f"expected coordinates on the grid {tuple(z.shape[2:])} of the segmentation "
                f"network, got {tuple(place.shape[2:])}; train it with the same space, or whole "
                "volumes (crop=null)."
            )
        d, h, w = x.shape[2:]
        told = Condition(coordinates=place)
        p = self.memberships(z, (d, h, w), keys=[0] * len(z), condition=told)
        return torch.cat([(1 - p.sum(1, keepdim=True)).clamp(min=0), p], dim=1)

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The state of a volume."""
        return self.space.encode(x)

    def logits(
        self,
        z: Float[Tensor, "b k d2 h2 w2"],
        shape: Shape,
        *,
        keys: Sequence[int],
        levels: Sequence[float],
        condition: Condition = UNCONDITIONAL,
    ) -> list[Float[Tensor, "b l _ _ _"]]:
        """Logits of the background and the labels, finest level first; in evaluation that alone.

        Arguments:
            z: states of volumes
            shape: voxels of the volumes
            keys: one per sample, of its noise
            levels: one per sample, the time at which the network is asked
            condition: scalars and coordinates
        """
        t = torch.tensor(levels, dtype=torch.float64, device=z.device)
        z_t = self._corrupted(z, t, keys, shape) if any(levels) else z
        place = condition.coordinates
        if place is None and self.network.coordinates:
            place = full_coordinates(z).expand(len(z), -1, -1, -1, -1)
        told = Condition(
            scalars=None if condition.scalars is None else condition.scalars.to(z.dtype),
            coordinates=None if place is None else place.to(self.dtype),
        )
        out = self.network(z_t.to(self.dtype), t.to(z.dtype), told).to(z.dtype)
        k = self.space.channels(self.classes)
        found = []
        for level in range(out.shape[1] // k):
            a, b, c = self._factor(level)
            part = out[:, level * k : (level + 1) * k, ::a, ::b, ::c]
            found.append(self.space.synthesis(part, self._coarse(shape, level)))
        return found

    def shares(self, x: Float[Tensor, "b c d h w"]) -> Classes:
        """Shares of the background and of the labels in codes of the recipe."""
        labels = self.recipe.coding.decode(x, spacing_mm=UNIT_MM)
        background = (1 - labels.sum(dim=1, keepdim=True)).clamp(0, 1)
        return torch.cat([background, labels], dim=1)

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """One loss per sample.

        Arguments:
            batch: coded labels, and the volume as the last image; where `hidden` is 1, nothing is
                learnt
        """
        x = batch.images[-1]
        with torch.no_grad():
            z, q = self.encode(x), self.shares(batch.x)
        d, h, w = x.shape[2:]
        found = self.logits(
            z,
            (d, h, w),
            keys=batch.keys,
            levels=[self._drawn_level(key) for key in batch.keys],
            condition=batch.condition,
        )
        weights = level_weights(len(found) - 1)
        losses = [
            weight * self._level_loss(each, q, batch.hidden, self._cell(level))
            for level, (weight, each) in enumerate(zip(weights, found, strict=True))
        ]
        return torch.stack(losses).sum(0)

    def _level_loss(
        self,
        logits: Float[Tensor, "b l _ _ _"],
        q: Classes,
        hidden: Weight | None,
        cell: Shape,
    ) -> Float[Tensor, "b"]:
        """Of the heads of one level: a cell counts by what is judged of it, which is its label."""
        if hidden is None:
            return self.criterion(logits, averaged(q, cell))
        seen = averaged(1 - hidden.to(q), cell)
        known = averaged(q * (1 - hidden.to(q)), cell) / seen.clamp(min=torch.finfo(q.dtype).eps)
        return self.criterion(logits, known, seen)

    @torch.no_grad()
    def memberships(
        self,
        z: Float[Tensor, "b k d2 h2 w2"],
        shape: Shape,
        *,
        keys: Sequence[int],
        levels: Sequence[float] | None = None,
        condition: Condition = UNCONDITIONAL,
    ) -> Classes:
        """Probabilities of the labels, without the background: the mean over the levels.

        Arguments:
            levels: one per sample; None takes all of the model's own
        """
        asked = [[t] * len(z) for t in self.levels] if levels is None else [list(levels)]
        total = torch.zeros(())
        for each in asked:
            logits = self.logits(z, shape, keys=keys, levels=each, condition=condition)[0]
            total = total.to(logits) + logits.softmax(dim=1)[:, 1:]
        return total / len(asked)

    def _drawn_level(self, key: int) -> float:
        return self.levels[int(uniform(key, "level") * len(self.levels))]

    def _corrupted(
        self, z: Tensor, t: Float[Tensor, "b"], keys: Sequence[int], shape: Shape
    ) -> Tensor:
        assert self.kernel is not None, "checked when it was built"
        c = z.shape[1] // self.space.channels(1)
        size = (c, *shape)
        noise = state_noise(self.space, self.noise_field, keys, size, "loss", device=z.device)
        return self.kernel.corrupt(z, t, noise.to(z))

    def _factor(self, level: int) -> Shape:
        """State voxels of the finest grid per voxel of a level, along the axes of the state."""
        if not level:
            return 1, 1, 1
        a, b, c = self.network.anatomy.factor
        return a**level, b**level, c**level

    def _cell(self, level: int) -> Shape:
        """Voxels of the volume per voxel of a level's logits."""
        factors, cell = self._factor(level), [1, 1, 1]
        for factor, axis in zip(factors, self.space.axis_order, strict=True):
            cell[axis] = factor
        d, h, w = cell
        return d, h, w

    def _coarse(self, shape: Shape, level: int) -> Shape:
        d, h, w = (-(-n // f) for n, f in zip(shape, self._cell(level), strict=True))
        return d, h, w
