"""Outputs at the coarser levels of a decoder, for losses that look at them as well.

A head is one pointwise convolution. Its output is repeated to the finest grid and stands in more
channels beside the network's own, finest level first: one tensor leaves the network, whatever way
it is executed, and every f-th voxel of it is the coarse output again.

References:
    Lee et al. (2015), Deeply-Supervised Nets, arXiv:1409.5185
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import Conv, Triple
from volumediff.networks._resample import Nearest

__all__ = ["SideHeads"]


class SideHeads(nn.Module):
    """Heads of the levels 1 to `count`, which are read in training alone.

    Arguments:
        widths: channels at the end of each level of the decoder, finest first
        out_channels: of the network, and of every head
        count: number of heads
        factor: down-sampling per level and axis

    Raises:
        ValueError: more heads than levels below the finest
    """

    def __init__(
        self, widths: Sequence[int], out_channels: int, *, count: int, factor: Triple
    ) -> None:
        super().__init__()
        if not 1 <= count < len(widths):
            raise ValueError(
                f"expected 1 to {len(widths) - 1} heads below the finest of {len(widths)} levels, "
                f"got {count}"
            )
        self.heads = nn.ModuleList(
            Conv(widths[level], out_channels, kernel=(1, 1, 1), zero=True)
            for level in range(1, count + 1)
        )
        self.enlarge = nn.ModuleList(
            Nearest((factor[0] ** level, factor[1] ** level, factor[2] ** level))
            for level in range(1, count + 1)
        )

    def read(self, level: int, h: Float[Tensor, "b c d h w"]) -> list[Tensor]:
        """The output at the end of a level, in a list that is empty where nothing looks."""
        if not self.training or not 1 <= level <= len(self.heads):
            return []
        return [self.heads[level - 1](h)]

    def beside(
        self, y: Float[Tensor, "b o d h w"], sides: Sequence[Tensor]
    ) -> Float[Tensor, "b o2 d h w"]:
        """The network's output and those of the heads, which come coarsest first."""
        if not sides:
            return y
        pairs = zip(self.enlarge, reversed(sides), strict=True)
        return torch.cat([y, *(up(side, y.shape[2:]) for up, side in pairs)], dim=1)
