r"""The result of a segmentation: probabilities of the labels, their spread, and the label map.

With p_l the probabilities of the labels and p_0 = 1 - \sum_l p_l that of the background,

    y = argmax_l p_l,  h = -Σ_l p_l log p_l,

where overlapping labels that sum to more than one are scaled to sum to one in h. Members q_i of an
ensemble that disagree have the mutual information (Jensen-Shannon divergence)

    I = h(mean_i q_i) - mean_i h(q_i),

0 where all say the same, however unsure they are.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["Segmentation", "entropy_of", "label_map"]

Labels = Float[Tensor, "1 l d h w"]
Map = UInt8[Tensor, "1 1 d h w"]


def label_map(p: Float[Tensor, "n l d h w"], values: tuple[int, ...]) -> UInt8[Tensor, "n d h w"]:
    """The value of the most probable label; 0 where the background is at least as probable."""
    every = torch.cat([(1 - p.sum(dim=1, keepdim=True)).clamp_min(0), p], dim=1)
    named = torch.tensor([0, *values], dtype=torch.uint8, device=p.device)
    return named[every.argmax(dim=1)]


def entropy_of(shares: Float[Tensor, "n k d h w"]) -> Float[Tensor, "n 1 d h w"]:
    """Entropy of the classes in nats."""
    return -torch.special.xlogy(shares, shares).sum(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a method says about one volume.

    Arguments:
        values: label values, in the order of the channels
        probabilities: p_l of each label, without the background
        variance: of the memberships over the members, v_l; None for methods with one answer
        votes: share of the members whose label map has the label; None for one answer
        samples: label map of every member; None for one answer
        mutual_information: I in nats; None for one answer
        final: label map after post-processing; None takes the most probable labels
    """

    values: tuple[int, ...]
    probabilities: Labels
    variance: Labels | None = None
    votes: Labels | None = None
    samples: UInt8[Tensor, "n d h w"] | None = None
    mutual_information: Float[Tensor, "1 1 d h w"] | None = None
    final: Map | None = None

    @property
    def shares(self) -> Float[Tensor, "1 _ d h w"]:
        """p_0, p_1, ..., the background first, scaled to sum to one."""
        p = self.probabilities
        every = torch.cat([(1 - p.sum(dim=1, keepdim=True)).clamp_min(0), p], dim=1)
        return every / every.sum(dim=1, keepdim=True)

    @cached_property
    def labels(self) -> Map:
        """y, the value of the label at each voxel; 0 for the background."""
        if self.final is not None:
            return self.final
        return label_map(self.probabilities, self.values)[:, None]

    @property
    def entropy(self) -> Float[Tensor, "1 1 d h w"]:
        """h in nats, the background included."""
        return entropy_of(self.shares)
