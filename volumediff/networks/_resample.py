"""How networks change the grid: means, strides, interpolation and convolution."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._block import Recomputable
from volumediff.networks._layers import Conv, Triple, conv
from volumediff.networks._repeatable import linear_twice, mean_of_cells

__all__ = ["Down", "Linear2", "Nearest", "PaddedDown", "Pool", "Resampling", "Up", "UpConv"]

Resampling = Literal["block", "convolution"]
"""Between levels: a residual block that pools or repeats, or a strided convolution, `UpConv`."""


class Pool(nn.Module):
    """Mean over cells of 2 x 2 x 2 voxels, cut off at the end of an odd axis: ceil(size / 2)."""

    halo = (0, 0, 0)
    global_axes = ""

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """The means; `size` follows from x and is there for the sake of `Nearest`."""
        return mean_of_cells(x, [min(2, n) for n in x.shape[2:]], ceil=True)


class Nearest(nn.Module):
    """Nearest neighbour: output voxel i is input voxel i // factor.

    Arguments:
        factor: per axis
    """

    halo = (0, 0, 0)
    global_axes = ""

    def __init__(self, factor: Triple = (2, 2, 2)) -> None:
        super().__init__()
        self.factor = factor

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """Upsamples; `size` is at most factor times the size of x, and by default just that."""
        y = F.interpolate(x, scale_factor=[float(f) for f in self.factor])
        if size is None:
            return y
        return y[:, :, : size[0], : size[1], : size[2]]


class Linear2(nn.Module):
    """Linear interpolation to twice the size: 3/4 of the nearest and 1/4 of the next voxel."""

    halo = (1, 1, 1)
    global_axes = ""

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """Upsamples; `size` is at most twice the size of x, and by default just that."""
        y = linear_twice(x)
        if size is None:
            return y
        return y[:, :, : size[0], : size[1], : size[2]]


class Down(nn.Module):
    """Strided convolution to ceil(size / factor) per axis; output voxel i sits at input voxel 2i.

    Arguments:
        in_channels, out_channels: numbers of channels
        factor: 1 or 2 per axis
        kernel: of the convolution; above 1 where the factor is, or voxels would go unseen
        conv: the convolution, `Conv` or `PlaneConv`
    """

    global_axes = ""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: Triple = (2, 2, 2),
        kernel: Triple = (3, 3, 3),
        conv: Callable[..., nn.Module] = Conv,
    ) -> None:
        super().__init__()
        if any(
            f not in (1, 2) or (f == 2 and k == 1) for f, k in zip(factor, kernel, strict=True)
        ):
            raise ValueError(
                f"down-sampling takes factors 1 or 2, with a kernel above 1 where it is 2; "
                f"got factor {factor} and kernel {kernel}"
            )
        self.conv = conv(in_channels, out_channels, kernel=kernel, stride=factor)
        self.halo = self.conv.halo

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        return self.conv(x)


class PaddedDown(nn.Module):
    """Convolution with stride 2 after a plane of zeros at the end of each axis.

    Output voxel i sees the input voxels 2i to 2i + 2, and along a mirrored axis, as the same layer
    does on a mirrored volume, 2i - 1 to 2i + 1; sizes are even.

    Arguments:
        channels: number of channels
        mirrored: whether each axis is
    """

    halo = (2, 2, 2)
    global_axes = ""

    def __init__(
        self, channels: int, *, mirrored: tuple[bool, bool, bool] = (False, False, False)
    ) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=(2, 2, 2))
        d, h, w = (int(m) for m in mirrored)
        self.padding = (d, h, w)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d2 h2 w2"]:
        d, h, w = self.padding
        x = F.pad(x, (0, 1 - w, 0, 1 - h, 0, 1 - d))
        weight, bias = self.conv.weight, self.conv.bias
        return conv(x, weight, bias, stride=self.conv.stride, padding=self.padding)


class Up(nn.Module):
    """Projection to the new number of channels, then nearest neighbour to a given size.

    A pointwise projection commutes with the interpolation, so that it is computed on the small
    grid. Output voxel i is input voxel i // factor.

    Arguments:
        in_channels, out_channels: numbers of channels
        factor: per axis
    """

    halo = (0, 0, 0)
    global_axes = ""

    def __init__(self, in_channels: int, out_channels: int, *, factor: Triple = (2, 2, 2)) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, kernel=(1, 1, 1))
        self.nearest = Nearest(factor)

    def forward(
        self, x: Float[Tensor, "b i d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """Upsamples; see `Nearest` for the size."""
        return self.nearest(self.conv(x), size)


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
