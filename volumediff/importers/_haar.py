"""Haar coefficients of volumes whose arrays run against our axes.

Along a mirrored axis even and odd voxels change places: a band changes its sign for every such
axis that it is high along. A network on coefficients takes up the signs in its stem and head.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BANDS", "signed"]

BANDS = 8


def signed(
    stem: Float[Tensor, "o i _ _ _"],
    head: tuple[Float[Tensor, "o i _ _ _"], Float[Tensor, "o"]],
    mirrors: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of the stem, weight and bias of the head, with the signs of the bands.

    Arguments:
        stem, head: with kernels that are mirrored already
        mirrors: which axes are, of d, h, w
    """
    sign = _signs(mirrors).to(stem)
    weight, bias = head
    along_out = sign[:, None, None, None, None]
    return stem * sign[:, None, None, None], weight * along_out, bias * sign


def _signs(mirrors: tuple[bool, bool, bool]) -> Float[Tensor, "k"]:
    """The sign of each band, LLL first, the letters for d, h, w."""
    bands = itertools.product((False, True), repeat=3)  # whether it is high along d, h, w
    flips = (sum(h and m for h, m in zip(band, mirrors, strict=True)) for band in bands)
    return torch.tensor([(-1.0) ** n for n in flips])
