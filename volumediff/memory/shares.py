"""Tensors of which each process may hold a share."""

from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["whole_tensor"]


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor that is whole in every process; all of them take part where they hold shares."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
