"""Haar coefficients of volumes whose arrays run against our axes.

Along a mirrored axis even and odd voxels change places: a band changes its sign for every such
axis that it is high along.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BANDS", "signs"]

BANDS = 8


def signs(mirrors: tuple[bool, bool, bool]) -> Float[Tensor, "k"]:
    """The sign of each band, LLL first, the letters for d, h, w."""
    bands = itertools.product((False, True), repeat=3)  # whether it is high along d, h, w
    flips = (sum(h and m for h, m in zip(band, mirrors, strict=True)) for band in bands)
    return torch.tensor([(-1.0) ** n for n in flips])
