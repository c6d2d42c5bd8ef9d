"""How published networks change the grid: padded strides, interpolation and convolution."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import Conv, Nearest, Recomputable, conv

__all__ = ["Linear2", "PaddedDown", "Resampling", "UpConv"]

Resampling = Literal["block", "convolution"]
"""Between levels: a residual block that pools or repeats, or a strided convolution, `UpConv`."""


class Linear2(nn.Module):
    """Linear interpolation to twice the size: 3/4 of the nearest and 1/4 of the next voxel."""

    halo = (1, 1, 1)
    global_axes = ""

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """Upsamples; `size` is at most twice the size of x, and by default just that."""
        y = F.interpolate(x, scale_factor=2.0, mode="trilinear")
        if size is None:
            return y
        return y[:, :, : size[0], : size[1], : size[2]]


class PaddedDown(nn.Module):
    """Convolution with stride 2 after a plane of zeros at the end of each axis.

    Output voxel i sees the input voxels 2i to 2i + 2; sizes are even.
    """

    halo = (2, 2, 2)
    global_axes = ""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=(2, 2, 2))

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
        x = F.pad(x, (0, 1, 0, 1, 0, 1))
        weight, bias = self.conv.weight, self.conv.bias
        return conv(x, weight, bias, stride=self.conv.stride, padding=(0, 0, 0))


class UpConv(Recomputable):
    """Interpolation, then a convolution on the fine grid.

    Arguments:
        channels: number of channels
        enlarge: `Nearest` by default, or `Linear2`
    """

    halo = (1, 1, 1)
    global_axes = ""

    def __init__(self, channels: int, *, enlarge: nn.Module | None = None) -> None:
        super().__init__()
        self.enlarge = Nearest() if enlarge is None else enlarge
        self.conv = Conv(channels, channels)

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        return self.conv(self.enlarge(x, size))
