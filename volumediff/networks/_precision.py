"""Precision of what is summed over many voxels, such as losses, where networks compute in half."""

import torch
from torch import Tensor

__all__ = ["wide"]


def wide(x: Tensor) -> Tensor:
    """x in float32, or wider if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
