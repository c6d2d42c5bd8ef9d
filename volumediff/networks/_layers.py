r"""The layers that every network and autoencoder is made of.

A residual block is

.. math:: x \mapsto S x + C_2\, a\big(N_2(C_1\, a(N_1(x)))\,(1 + s) + b\big),
          \quad a = \mathrm{SiLU}

with convolutions C, normalisations N, FiLM coefficients (s, b) and a 1x1x1 shortcut S where the
number of channels changes.

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
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from volumediff.networks._norm_act import NormKind, as_images, as_stack, norm_act

__all__ = [
    "Conv",
    "Down",
    "Linear",
    "Nearest",
    "Norm",
    "NormAct",
    "NormKind",
    "PlaneConv",
    "Pool",
    "Recomputable",
    "ResidualBlock",
    "Triple",
    "Up",
    "conv",
    "place",
    "whole",
]

Triple = tuple[int, int, int]


def whole(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks the forward method of a module that needs whole volumes, such as attention.

    A slab-wise execution brings its input together and calls the method on plain tensors.
    """

    @functools.wraps(forward)
    def marked(self: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(marked, (x,), self, x, *args)
        return forward(self, x, *args)

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
    """

    global_axes = ""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__(in_features, out_features)
        if zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


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

    `fused` says whether Triton kernels compute it; a `MemoryPolicy` sets it.

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
        self.fused = False

    def forward(
        self, x: Float[Tensor, "b c d h w"], film: Float[Tensor, "b 2*c"] | None = None
    ) -> Float[Tensor, "b c d h w"]:
        # Coefficients stay in float32; in bfloat16 a small FiLM scale would be rounded away.
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = self.norm
        scale = norm.weight.to(dtype).expand(x.shape[0], -1)
        shift = norm.bias.to(dtype).expand(x.shape[0], -1)
        if film is not None:
            gain, offset = film.to(dtype).chunk(2, dim=1)
            scale, shift = scale * (1 + gain), torch.addcmul(offset, shift, 1 + gain)
        named = {"kind": norm.kind, "groups": norm.groups, "eps": norm.eps}
        return norm_act(x, scale, shift, **named, fused=self.fused)


class Recomputable(nn.Module):
    """A part of a network that a memory policy may run again in the backward pass.

    `level` is that of the network, 0 being the finest; see `place`.
    """

    level = 0


def place(level: int, *modules: nn.Module) -> None:
    """Says on which level of a network the recomputable parts of the modules stand."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, Recomputable):
                part.level = level


class ResidualBlock(Recomputable):
    """Two convolutions with pre-activation, conditioned by an embedding; starts as its shortcut.

    Arguments:
        in_channels, out_channels: numbers of channels
        embedding: length of the embedding vector; 0 for a block without conditioning
        mode: `film` scales and shifts the second normalisation, `additive` adds to its input
        kernel: of the convolutions, per axis
        norm, groups, least, eps: see `Norm`
        conv: the convolution, `Conv` or `PlaneConv`
        resample: `Pool` or `Nearest` before the first convolution and the shortcut, or None
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding: int = 0,
        mode: Literal["film", "additive"] = "film",
        kernel: Triple = (3, 3, 3),
        norm: NormKind = "group",
        groups: int = 32,
        least: int = 2,
        eps: float = 1e-5,
        conv: Callable[..., nn.Module] = Conv,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.act1 = NormAct(in_channels, norm=norm, groups=groups, least=least, eps=eps)
        self.resample = resample
        self.conv1 = conv(in_channels, out_channels, kernel=kernel)
        self.act2 = NormAct(out_channels, norm=norm, groups=groups, least=least, eps=eps)
        self.conv2 = conv(out_channels, out_channels, kernel=kernel, zero=True)
        self.halo = tuple(a + b for a, b in zip(self.conv1.halo, self.conv2.halo, strict=True))
        self.global_axes = self.act1.global_axes
        self.project: Linear | None = None
        if embedding:
            width = 2 * out_channels if mode == "film" else out_channels
            # FiLM starts as the identity; an added embedding starts as in the original U-Net.
            self.project = Linear(embedding, width, zero=mode == "film")
        self.shortcut: Conv | None = None
        if in_channels != out_channels:
            self.shortcut = Conv(in_channels, out_channels, kernel=(1, 1, 1))

    def forward(
        self,
        x: Float[Tensor, "b _ d h w"],
        e: Float[Tensor, "b n"] | None = None,
        size: tuple[int, ...] | None = None,
        skip: Float[Tensor, "b _ d h w"] | None = None,
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """The block on x, or on the channels of x and then those of the skip.

        Arguments:
            size: of the output, for a block that enlarges
        """
        if skip is not None:
            # In here, so that recomputation stores the two and not their concatenation.
            x = torch.cat((x, skip), dim=1)
        h = self.act1(x)
        if self.resample is not None:
            h = self.resample(h, size)
        # In place: no operation needs the result of a convolution in its backward pass.
        h = self.conv1(h)
        film = None
        if self.project is not None:
            film = self.project(e)
            if self.mode == "additive":
                h.add_(film.to(h.dtype)[:, :, None, None, None])
                film = None
        h = self.act2(h, film)
        h = self.conv2(h)
        # Only now, so that an enlarged x is not held meanwhile.
        if self.resample is not None:
            x = self.resample(x, size)
        return h.add_(x if self.shortcut is None else self.shortcut(x))


class Pool(nn.Module):
    """Mean over cells of 2 x 2 x 2 voxels, cut off at the end of an odd axis: ceil(size / 2)."""

    halo = (0, 0, 0)
    global_axes = ""

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """The means; `size` follows from x and is there for the sake of `Nearest`."""
        d, h, w = (min(2, n) for n in x.shape[2:])
        # torch 2.13 has no bfloat16 kernel for it on the CPU.
        narrow = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        wide = x.to(torch.float32) if narrow else x
        return F.avg_pool3d(wide, (d, h, w), (d, h, w), ceil_mode=True).to(x.dtype)


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
