r"""What the channels of a decoder mean, and how far they are from what they should be.

intensities  numbers, compared by their mean absolute difference
labels       scores :math:`a` of masks coded in [-1, 1], compared by a weighted cross entropy

With p the true share of a channel, (x + 1) / 2, and w the weight of a voxel inside a label (1
outside), for channels that are modelled apart

.. math:: L = \frac{\sum_v w\, p \log(1 + e^{-a}) + (1 - p) \log(1 + e^{a})}
                   {\sum_v w\, p + 1 - p},
          \qquad \hat x = 2\, \mathrm{sigmoid}(a - \log w) - 1,

and for channels that are the classes of a voxel, the first the background,

.. math:: L = -\frac{\sum_{v, k} w_k\, p_k \log \mathrm{softmax}(a)_k}{\sum_{v, k} w_k\, p_k},
          \qquad \hat x = 2\, \mathrm{softmax}(a - \log w) - 1.

Small labels weigh more in the loss, and no more in the result: the score that minimises a weighted
cross entropy is that of the plain one plus log w, which reading takes back.

References:
    Menon et al. (2021), Long-tail learning via logit adjustment, arXiv:2007.07314
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.networks._precision import wide

__all__ = ["ClassReadout", "IntensityReadout", "MaskReadout", "Readout"]


class Readout(ABC):
    """The reading of a decoder's channels.

    Attributes:
        term: name of the loss in the log
    """

    term: ClassVar[str]

    @abstractmethod
    def read(self, a: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the channels stand for."""

    @abstractmethod
    def loss(
        self, a: Float[Tensor, "b c d h w"], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, ""]:
        """The mean over the samples."""


@dataclass(frozen=True)
class IntensityReadout(Readout):
    """The volume itself."""

    term: ClassVar[str] = "l1"

    def read(self, a: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return a

    def loss(
        self, a: Float[Tensor, "b c d h w"], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, ""]:
        return (wide(a) - wide(x)).abs().mean()


@dataclass(frozen=True)
class MaskReadout(Readout):
    """Scores of masks, each apart from the others.

    Arguments:
        weight: w, of a voxel inside a mask
    """

    term: ClassVar[str] = "cross_entropy"
    weight: float = 1.0

    def read(self, a: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return 2 * torch.sigmoid(a - math.log(self.weight)) - 1

    def loss(
        self, a: Float[Tensor, "b c d h w"], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, ""]:
        a, p = a.float(), (x.float() + 1) / 2
        inside = self.weight * p
        wrong = inside * F.softplus(-a) + (1 - p) * F.softplus(a)
        return (wrong.flatten(1).sum(1) / (inside + 1 - p).flatten(1).sum(1)).mean()


@dataclass(frozen=True)
class ClassReadout(Readout):
    """Scores of the classes of a voxel, the background first.

    Arguments:
        weight: of a voxel of any other class
    """

    term: ClassVar[str] = "cross_entropy"
    weight: float = 1.0

    def read(self, a: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return 2 * torch.softmax(a - self._weights(a).log(), dim=1) - 1

    def loss(
        self, a: Float[Tensor, "b c d h w"], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, ""]:
        a, p = a.float(), (x.float() + 1) / 2
        weighed = self._weights(a) * p
        wrong = -weighed * torch.log_softmax(a, dim=1)
        return (wrong.flatten(1).sum(1) / weighed.flatten(1).sum(1)).mean()

    def _weights(self, a: Float[Tensor, "b c d h w"]) -> Float[Tensor, "1 c 1 1 1"]:
        weights = torch.full((1, a.shape[1], 1, 1, 1), self.weight, dtype=a.dtype, device=a.device)
        weights[:, 0] = 1.0
        return weights
