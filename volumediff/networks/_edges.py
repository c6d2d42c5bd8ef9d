"""Convolutions that repeat the outermost voxels instead of padding with zeros.

An axis with kernel k and stride s is padded by k - s voxels, the odd one before the first voxel,
so that the size is that of the input over s, or times s where a transposed convolution enlarges.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from volumediff.networks._layers import Triple, conv

__all__ = ["EdgeConv", "EdgeUp", "conv_transposed", "edge_padded"]


def edge_padded(
    x: Float[Tensor, "b c d h w"], before: Triple, after: Triple
) -> Float[Tensor, "b c d2 h2 w2"]:
    """The volume with its outermost voxels repeated so often before and after each axis.

    Gradients of the copies are summed in one order, which torch's own padding does not do on a
    GPU.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(edge_padded, (x,), x, before, after)
    for dim, (first, last) in enumerate(zip(before, after, strict=True), start=2):
        if first or last:
            low, high = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
            x = torch.cat([low] * first + [x] + [high] * last, dim=dim)
    return x


def conv_transposed(
    x: Float[Tensor, "b i d h w"],
    weight: Float[Tensor, "i o kd kh kw"],
    bias: Float[Tensor, "o"],
    *,
    stride: Triple,
    padding: Triple,
) -> Float[Tensor, "b o d2 h2 w2"]:
    """Transposed convolution, in the dtype of x: s (n - 1) + k - 2 p voxels of n along an axis."""
    if has_torch_function_unary(x):
        return handle_torch_function(
            conv_transposed, (x,), x, weight, bias, stride=stride, padding=padding
        )
    return F.conv_transpose3d(x, weight.to(x.dtype), bias.to(x.dtype), stride, padding)


class EdgeConv(nn.Module):
    """Convolution of an edge-padded volume.

    Arguments:
        in_channels, out_channels: numbers of channels
        kernel: size per axis d, h, w
        stride: step per axis
        zero: start as the zero map
    """

    global_axes = ""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: Triple = (3, 3, 3),
        stride: Triple = (1, 1, 1),
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = _ends(kernel, stride)
        self.halo = self.before
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        _start(self.weight, zero=zero)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        x = edge_padded(x, self.before, self.after)
        return conv(x, self.weight, self.bias, stride=self.stride, padding=(0, 0, 0))


class EdgeUp(nn.Module):
    """Transposed convolution of an edge-padded volume, to `factor` times its size.

    Arguments:
        in_channels, out_channels: numbers of channels
        factor: per axis
        kernel: size per axis, at least the factor
    """

    global_axes = ""

    def __init__(
        self, in_channels: int, out_channels: int, *, factor: Triple, kernel: Triple = (4, 4, 4)
    ) -> None:
        super().__init__()
        self.factor = factor
        self.before, self.after = _ends(kernel, factor)
        self.padding = (kernel[0] - 1, kernel[1] - 1, kernel[2] - 1)
        self.halo = self.before
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        _start(self.weight, zero=False)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        x = edge_padded(x, self.before, self.after)
        weight, bias = self.weight, self.bias
        return conv_transposed(x, weight, bias, stride=self.factor, padding=self.padding)


def _ends(kernel: Triple, stride: Triple) -> tuple[Triple, Triple]:
    """Voxels that are repeated before and after each axis."""
    d, h, w = (k - s for k, s in zip(kernel, stride, strict=True))
    if min(d, h, w) < 0:
        raise ValueError(f"kernels must be at least the steps {stride}, got {kernel}")
    return ((d + 1) // 2, (h + 1) // 2, (w + 1) // 2), (d // 2, h // 2, w // 2)


def _start(weight: nn.Parameter, *, zero: bool) -> None:
    if zero:
        nn.init.zeros_(weight)
    else:
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
