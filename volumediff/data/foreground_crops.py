r"""Foreground oversampling: a share of the training crops is centred on a labelled voxel.

A crop at a random place of a large volume seldom holds a small structure. With probability s a
label among those that the volume has is drawn, then one of its voxels, and the crop is centred
there, or as near to it as the border allows; all others lie anywhere.

References:
    Isensee et al. (2021), nnU-Net, Nature Methods 18, section "Patch sampling": s = 1/3
"""

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from volumediff.randomness import uniform

__all__ = ["ForegroundCrops"]


@dataclass(frozen=True)
class ForegroundCrops:
    """Which crops are centred on a label, and where.

    Arguments:
        share: s, probability of a sample to be centred
        labels: label values that count
    """

    share: float
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"expected a share of crops in [0, 1], got {self.share:g}.")

    def centre(self, label: UInt8[Tensor, "1 d h w"], key: int) -> tuple[int, int, int] | None:
        """The voxel that the crop of a sample is centred on; None lies anywhere."""
        if uniform(key, "foreground") >= self.share:
            return None
        present = [v for v in self.labels if bool((label == v).any())]
        if not present:
            return None
        value = present[int(uniform(key, "foreground", "label") * len(present))]
        places = torch.nonzero(label[0] == value)
        d, h, w = places[int(uniform(key, "foreground", "voxel") * len(places))].tolist()
        return d, h, w
