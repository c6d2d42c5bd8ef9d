"""A correction of low rank of every kernel and matrix."""

import math

from torch import Tensor, nn

from volumediff.adapters._base import Adapter

__all__ = ["LoRA"]


class LoRA(Adapter):
    r"""W + (α / r) B A, with A of shape (r, i d h w), B of shape (o, r), and B = 0 at the start.

    For a kernel it is the convolution A with r outputs followed by the pointwise convolution B.
    The rank is reduced to min(o, i d h w) where that is smaller.

    Arguments:
        rank: r, of every correction
        alpha: α; None takes the rank, so that the factor is 1

    Raises:
        ValueError: a rank below 1, or an α that is not above 0

    References:
        Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685
    """

    def __init__(self, rank: int = 8, alpha: float | None = None) -> None:
        if rank < 1:
            raise ValueError(f"expected a rank of at least 1, got {rank}")
        if alpha is not None and not 0 < alpha < math.inf:
            raise ValueError(f"expected alpha above 0, got {alpha:g}")
        self.rank = rank
        self.alpha = alpha

    def correction(self, weight: Tensor) -> nn.Module:
        factor = 1.0 if self.alpha is None else self.alpha / self.rank
        return _LowRank(weight, rank=self.rank, factor=factor)


class _LowRank(nn.Module):
    """W ↦ W + factor · B A."""

    def __init__(self, weight: Tensor, *, rank: int, factor: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.factor = factor
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        # The law of the layers themselves: variance 1 / (3 fan_in).
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        # The sum has the layout of its first operand, which a convolution takes over.
        return weight.add((self.up @ self.down).view(weight.shape), alpha=self.factor)
