r"""The layers that every network and autoencoder is made of.

Master weights stay in float32 and are cast to the dtype of the input, layer by layer: a bfloat16
input gives bfloat16 activations without autocast. Statistics are accumulated in float32 inside the
normalisation, which makes no float32 copy of its input.

Every layer says how far it looks (`halo`, in input voxels to each side, per axis) and over which
axes its statistics run (`global_axes`). Layers compute through a small vocabulary of functions
(`conv`, `norm_act`, nearest neighbours, sums, concatenation, ...) that a slab-wise execution knows
how to cut; what needs whole volumes says so with `whole`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from volumediff.networks._norm_act import NormKind, as_images, as_stack, norm_act

__all__ = [
    "Conv",
    "Linear",
    "Norm",
    "NormAct",
    "NormKind",
    "PlaneConv",
    "Triple",
    "conv",
    "whole",
]

Triple = tuple[int, int, int]


def whole(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks the forward method of a module that needs whole volumes, such as attention.

    A slab-wise execution brings its input together and calls the method on plain tensors, or, for
    a module whose `global_axes` are h and w alone, on whole planes. Other volumes come right after
    the first; the result has the shape and dtype of the first. A module that can make some planes
    of it without the others sets `by_planes`, and its method takes them as `planes`.
    """

    @functools.wraps(forward)
    def marked(self: nn.Module, x: Tensor, *args: Any, **planes: tuple[int, int]) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(marked, (x,), self, x, *args)
        return forward(self, x, *args, **planes)

    marked.needs_whole_volumes = True
    return marked


def conv(
    x: Float[Tensor, "b i d h w"],
    weight: Float[Tensor, "o i kd kh kw"],
    bias: Float[Tensor, "o"] | None,
    *,
    stride: Triple,
    padding: Triple,
) -> Float[Tensor, "b o d2 h2 w2"]:
    """Convolution with zero padding, in the dtype of x; weights are cast here, layer by layer."""
    if has_torch_function_unary(x):
        return handle_torch_function(conv, (x,), x, weight, bias, stride=stride, padding=padding)
    # torch 2.13 on the CPU: the backward pass of a bfloat16 channels-last convolution gives
    # wrong weight gradients, NaN, or a crash on volumes smaller than the kernel along an axis.
    small = any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    if small and x.dtype == torch.bfloat16 and x.device.type == "cpu":
        wide = None if bias is None else bias.float()
        y = F.conv3d(x.float().contiguous(), weight.float().contiguous(), wide, stride, padding)
        return y.to(x.dtype)
    cast = None if bias is None else bias.to(x.dtype)
    return F.conv3d(x, weight.to(x.dtype), cast, stride, padding)


class Linear(nn.Linear):
    """y = W x + b in the dtype of x.

    Arguments:
        zero: start with W = 0 and b = 0
        bias: whether there is a b
    """

    global_axes = ""

    def __init__(
        self, in_features: int, out_features: int, *, zero: bool = False, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        if zero:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv(nn.Module):
    """Convolution with odd kernels and zero padding, output size ceil(size / stride) per axis.

    Arguments:
        in_channels, out_channels: numbers of channels
        kernel: odd size per axis d, h, w
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
        if any(k % 2 == 0 or k < 1 for k in kernel):
            raise ValueError(f"kernel sizes must be odd and positive, got {kernel}")
        self.stride = stride
        self.halo = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if zero:
            nn.init.zeros_(self.weight)
        else:
            # The uniform law of torch.nn.Conv3d: variance 1 / (3 fan_in).
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        return conv(x, self.weight, self.bias, stride=self.stride, padding=self.halo)


class PlaneConv(nn.Module):
    """Convolution within the plane, 1 x k x k, then along the through-plane axis, k x 1 x 1.

    The second starts as the identity, so that the layer starts as a 2D layer on each slice.

    Arguments:
        kernel: (k_d, k_h, k_w), split into (1, k_h, k_w) and (k_d, 1, 1)
        stride: step per axis; 1 through the plane
        through_plane: False leaves the second convolution out: the 2D layer, with equal names

    References:
        Zhu et al. (2023), Make-A-Volume, arXiv:2307.10094
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
        through_plane: bool = True,
    ) -> None:
        super().__init__()
        if stride[0] != 1:
            raise ValueError(f"the through-plane stride of a plane convolution is 1, got {stride}")
        depth, height, width = kernel
        self.in_plane = Conv(
            in_channels, out_channels, kernel=(1, height, width), stride=stride, zero=zero
        )
        self.stride = stride
        self.halo = self.in_plane.halo
        self.through_plane: Conv | None = None
        if through_plane and depth > 1:
            self.through_plane = Conv(out_channels, out_channels, kernel=(depth, 1, 1), zero=True)
            nn.init.dirac_(self.through_plane.weight)
            self.halo = (depth // 2, height // 2, width // 2)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d h2 w2"]:
        x = self.in_plane(x)
        return x if self.through_plane is None else self.through_plane(x)


class Norm(nn.Module):
    """Normalisation to mean 0 and variance 1, then a learned scale and shift per channel.

    group: statistics over a group of channels and the whole volume. A crop has other statistics
        than the volume that it was cut from.
    slice: over a group of channels and one slice; a stack of slices is a batch of images.
    voxel: over the channels of one voxel. The layer has no spatial extent, so that a network
        trained on crops computes the same function on the whole volume.

    Arguments:
        channels: number of channels
        kind: what is normalised together
        groups: number of channel groups, reduced to a divisor of `channels` that leaves at least
            `least` channels per group; voxel normalisation always takes all channels together
        least: fewest channels of a group; a single one forgets what is added to its channel
        eps: added to the variance

    References:
        Wu, He (2018), Group Normalization, arXiv:1803.08494
    """

    halo = (0, 0, 0)

    def __init__(
        self,
        channels: int,
        *,
        kind: NormKind = "group",
        groups: int = 32,
        least: int = 2,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.kind = kind
        # gcd keeps a divisor; a group of one channel and one voxel would be normalised to zero.
        self.groups = 1 if kind == "voxel" else math.gcd(groups, max(1, channels // least))
        if channels % self.groups:
            self.groups = math.gcd(self.groups, channels)
        self.global_axes = {"group": "dhw", "slice": "hw", "voxel": ""}[kind]
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.kind == "group":
            return F.group_norm(x, self.groups, weight, bias, self.eps)
        if self.kind == "slice":
            y = F.group_norm(as_images(x), self.groups, weight, bias, self.eps)
            return as_stack(y, x.shape[2])
        # A view when channels are last in memory.
        y = F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, self.eps)
        return y.movedim(-1, 1)


class NormAct(nn.Module):
    """silu(norm(x) (1 + s) + b), with FiLM coefficients (s, b) per sample and channel.

    `fused` says whether Triton kernels compute it, see `norm_act`; a `MemoryPolicy` sets it.

    References:
        Perez et al. (2018), FiLM, arXiv:1709.07871
    """

    halo = (0, 0, 0)

    def __init__(
        self,
        channels: int,
        *,
        norm: NormKind = "group",
        groups: int = 32,
        least: int = 2,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = Norm(channels, kind=norm, groups=groups, least=least, eps=eps)
        self.global_axes = self.norm.global_axes
        self.fused: bool | None = None

    def forward(
        self, x: Float[Tensor, "b c d h w"], film: Float[Tensor, "b 2*c"] | None = None
    ) -> Float[Tensor, "b c d h w"]:
        # Coefficients stay in float32; in bfloat16 a small FiLM scale would be rounded away.
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = self.norm
        # With an axis to expand, the gradient of a single sample is not summed over it.
        scale = norm.weight.to(dtype)[None].expand(x.shape[0], -1)
        shift = norm.bias.to(dtype)[None].expand(x.shape[0], -1)
        if film is not None:
            gain, offset = film.to(dtype).chunk(2, dim=1)
            gain = 1 + gain
            scale, shift = scale * gain, torch.addcmul(offset, shift, gain)
        named = {"kind": norm.kind, "groups": norm.groups, "eps": norm.eps}
        return norm_act(x, scale, shift, **named, fused=self.fused)
