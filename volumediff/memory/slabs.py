r"""Operations that can be cut along d: which planes they need, and what they make of them.

An operation gives planes [lo, hi) of its output from a range of planes of each input,

.. math:: y[lo{:}hi] = f\big(x_1[a_1{:}b_1], x_2[a_2{:}b_2], \dots\big), \qquad
          (a_i, b_i) = \mathrm{needs}_i(lo, hi),

so that any part of a network that is built of them can be evaluated slab by slab, halos included,
with the same numbers as in one piece. The exception is a group norm, whose statistics are those of
the whole volume: it is given them (`Affine`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.networks._edges import conv_transposed, edge_padded
from volumediff.networks._layers import Triple, conv
from volumediff.networks._norm_act import norm_act
from volumediff.networks._norm_act_group import dense
from volumediff.networks._repeatable import linear_twice, mean_of_cells

__all__ = [
    "Average",
    "Concat",
    "Convolution",
    "CropPlanes",
    "EdgePad",
    "LinearUpsampling",
    "LocalNorm",
    "NearestUpsampling",
    "NormAffine",
    "Operation",
    "Pad",
    "Pointwise",
    "Range",
    "TransposedConvolution",
    "neutral",
    "scaled",
]

Range = tuple[int, int]
"""Planes lo, ..., hi - 1."""


class Operation(ABC):
    """A function of slabs.

    `small` tensors (weights, coefficients per sample and channel) do not depend on the range.
    `linear` operations do not need the values of their inputs to pass gradients on to them.
    """

    linear = True
    small: tuple[Tensor, ...] = ()

    @abstractmethod
    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        """The planes of each input, of the given depths, that the wanted output is made of."""

    @abstractmethod
    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        """The wanted planes, from those that it needs and from `small` or stand-ins for it."""


class _Planewise(Operation):
    """Output plane i needs plane i of every input."""

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        return [wanted] * len(depths)


@dataclass(eq=False, repr=False)
class Pointwise(_Planewise):
    """f(x_1, ..., s_1, ...) voxel by voxel; `small` has one value per sample and channel."""

    function: Callable[..., Tensor]
    small: tuple[Tensor, ...] = ()
    linear: bool = True

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return self.function(*slabs, *small)


class Concat(_Planewise):
    """Channels of all inputs, one after the other."""

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(slabs), dim=1)


@dataclass(eq=False, repr=False)
class CropPlanes(_Planewise):
    """The first voxels along h and w; along d the depth of the output says enough."""

    height: int
    width: int

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return _planes(_planes(slabs[0], 0, self.height, dim=3), 0, self.width, dim=4)


@dataclass(eq=False, repr=False)
class LocalNorm(_Planewise):
    """silu(s x̂ + b) with statistics of one slice or one voxel: nothing beyond the plane."""

    kind: str
    groups: int
    eps: float
    fused: bool | None
    small: tuple[Tensor, ...]
    linear = False

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        how = {"kind": self.kind, "groups": self.groups, "eps": self.eps, "fused": self.fused}
        return norm_act(slabs[0], *small, **how)


@dataclass(eq=False, repr=False)
class NormAffine(_Planewise):
    """silu(s x̂ + b) or s x̂ + b with statistics of the whole volume, as f(a x + c).

    `small` is (s, b). When called, it is given (a, c), which the executor forms of (s, b) and the
    statistics of its input, and the neutral statistics of `scaled`.
    """

    groups: int
    eps: float
    activated: bool
    small: tuple[Tensor, ...]
    linear = False

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (a, c, *neutral) = slabs, small
        if torch.is_grad_enabled():
            u = _Scaled.apply(x, a, c, *neutral)
            return F.silu(u) if self.activated else u
        u = scaled(x, a, c, *neutral)
        return F.silu(u, inplace=True) if self.activated else u


@dataclass(eq=False, repr=False)
class Convolution(Operation):
    """Cross-correlation with zero padding; `small` is the weight and perhaps the bias.

    Under autograd it gives some number with the right gradients: nothing that follows a
    convolution within a part of the graph reads its value, see `volumediff.memory.streaming`.
    """

    stride: Triple
    padding: Triple
    small: tuple[Tensor, ...]

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        first, last = self._unclipped(lo, hi)
        return [(max(first, 0), min(last, depths[0]))]

    def _unclipped(self, lo: int, hi: int) -> Range:
        step, pad, size = self.stride[0], self.padding[0], self.small[0].shape[2]
        return lo * step - pad, (hi - 1) * step - pad + size

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,) = slabs
        weight, bias = small[0], small[1] if len(small) > 1 else None
        first, last = self._unclipped(*wanted)
        before = max(-first, 0)
        after = last - first - before - x.shape[2]
        padding = self.padding
        padded = x.shape[2] + 2 * padding[0] - weight.shape[2]
        if before < padding[0] or padded // self.stride[0] + 1 != wanted[1] - wanted[0]:
            # Planes beyond the volume are zeros; those within it are in the slab already.
            x = F.pad(x, (0, 0, 0, 0, before, after)) if before or after else x
            padding = (0, *padding[1:])
        function = conv if not torch.is_grad_enabled() else _gradients_of_conv
        x = _dense(x)
        return function(x, weight, bias, stride=self.stride, padding=padding)


@dataclass(eq=False, repr=False)
class TransposedConvolution(Operation):
    """Transposed convolution; `small` is the weight and the bias."""

    stride: Triple
    padding: Triple
    small: tuple[Tensor, ...]
    linear = False

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        step, pad = self.stride[0], self.padding[0]
        return [(self._first(wanted[0]), min((wanted[1] - 1 + pad) // step + 1, depths[0]))]

    def _first(self, plane: int) -> int:
        """Input plane i reaches the output planes from i step - pad to i step - pad + size - 1."""
        step, pad, size = self.stride[0], self.padding[0], self.small[0].shape[2]
        return max(-((size - 1 - pad - plane) // step), 0)

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        padding = (0, *self.padding[1:])
        weight, bias = small
        y = conv_transposed(slabs[0], weight, bias, stride=self.stride, padding=padding)
        return _planes(y, lo + self.padding[0] - self._first(lo) * self.stride[0], hi - lo)


@dataclass(eq=False, repr=False)
class NearestUpsampling(Operation):
    """Nearest neighbour by whole factors: output voxel i is input voxel i // factor."""

    factor: Triple

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(lo // self.factor[0], (hi - 1) // self.factor[0] + 1)]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        y = F.interpolate(slabs[0], scale_factor=[float(f) for f in self.factor])
        return _planes(y, lo % self.factor[0], hi - lo)


@dataclass(eq=False, repr=False)
class LinearUpsampling(Operation):
    """Linear interpolation to twice the size: 3/4 of the nearest and 1/4 of the next voxel."""

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(max(lo // 2 - 1, 0), min((hi - 1) // 2 + 2, depths[0]))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        y = linear_twice(slabs[0])
        # The first plane that it was given; at the ends of the volume both clamp alike.
        return _planes(y, lo - 2 * max(lo // 2 - 1, 0), hi - lo)


@dataclass(eq=False, repr=False)
class Average(Operation):
    """Mean over cells of `size` voxels that do not overlap; `ceil` keeps incomplete ones."""

    size: Triple
    ceil: bool

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(lo * self.size[0], min(hi * self.size[0], depths[0]))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        depth, *plane = self.size
        # The last cell of an odd axis may have a single plane, which torch wants to be told.
        size = (min(depth, slabs[0].shape[2]), *plane)
        return mean_of_cells(slabs[0], size, ceil=self.ceil)


@dataclass(eq=False, repr=False)
class Pad(Operation):
    """Zeros after the last voxel of each axis of a volume of so many planes."""

    after: Triple
    depth: int

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        # A slab of zeros alone still needs some plane to take its other sizes from.
        return [(min(lo, self.depth - 1), min(hi, self.depth))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (lo, hi) = slabs, wanted
        used = max(0, min(hi, self.depth) - lo)
        y = F.pad(x, (0, self.after[2], 0, self.after[1], 0, hi - lo - used))
        return _planes(y, x.shape[2] - used, hi - lo)


@dataclass(eq=False, repr=False)
class EdgePad(Operation):
    """The outermost voxels of a volume of so many planes, repeated before and after each axis."""

    before: Triple
    after: Triple
    depth: int

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        ends = wanted[0], wanted[1] - 1
        first, last = (min(max(i - self.before[0], 0), self.depth - 1) for i in ends)
        return [(first, last + 1)]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (lo, hi) = slabs, wanted
        before = min(max(self.before[0] - lo, 0), hi - lo)
        after = min(max(hi - self.before[0] - self.depth, 0), hi - lo)
        y = edge_padded(x, (before, *self.before[1:]), (after, *self.after[1:]))
        # of copies alone there is one too many: the plane that they are copies of
        return _planes(y, 0, hi - lo)


def neutral(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and variance 1 of channels, given coefficients (b, c)."""
    return torch.zeros_like(like[0]), torch.ones_like(like[0])


def scaled(x: Tensor, a: Tensor, c: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """a x + c per sample and channel, in the dtype of x, computed in that of a and c.

    A batch norm in evaluation mode is just that, in one pass and without a wide copy of x.

    Arguments:
        mean, variance: 0 and 1, see `neutral`
    """
    rows = [
        F.batch_norm(_row(x, i), mean, variance, a[i], c[i], training=False, eps=0.0)
        for i in range(len(x))
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _row(x: Tensor, i: int) -> Tensor:
    """One sample, with the strides of a fresh tensor if it is dense: the kernels tell the layout
    by them, also by those of axes of size 1. Planes of a larger tensor are read as they lie."""
    row = x[i : i + 1]
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    return dense(row) if any(row.is_contiguous(memory_format=f) for f in layouts) else row


class _Scaled(torch.autograd.Function):
    """`scaled`, with the gradients of all coefficients in one pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, a: Tensor, c: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, a, mean, variance)
        return scaled(x, a, c, mean, variance)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, mean, variance = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        rows = [
            torch.ops.aten.native_batch_norm_backward(
                _row(grad, i),
                _row(x, i),
                a[i],
                mean,
                variance,
                None,
                None,
                False,
                0.0,
                wanted,
            )
            for i in range(len(x))
        ]
        if len(rows) == 1:
            of_x, of_a, of_c = rows[0]
            return of_x, of_a[None], of_c[None], None, None
        of_x, of_a, of_c = zip(*rows, strict=True)
        return (
            torch.cat(of_x) if wanted[0] else None,
            torch.stack(of_a),
            torch.stack(of_c),
            None,
            None,
        )


def _planes(x: Tensor, start: int, count: int, *, dim: int = 2) -> Tensor:
    """So many planes; all of them as they are, since even then the gradient would be copied."""
    return x if x.shape[dim] == count else x.narrow(dim, start, count)


def _dense(x: Tensor) -> Tensor:
    """x in a piece, as libraries of convolutions take it: their own copy would not be seen.

    Planes of a volume are that if its channels are last and it is one sample.
    """
    layouts = (torch.channels_last_3d, torch.contiguous_format)
    if any(x.is_contiguous(memory_format=layout) for layout in layouts):
        return x
    last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=layouts[0] if last else layouts[1])


def _gradients_of_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Triple, padding: Triple
) -> Tensor:
    """A stand-in for a convolution whose value nobody reads: one number, with its gradients."""
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = [len(x), len(weight), *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)]
    if any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)):
        return conv(x, weight, bias, stride=stride, padding=padding)
    return _ConvGradients.apply(x, weight, bias, shape, stride, padding)


class _ConvGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: list[int],
        stride: Triple,
        padding: Triple,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        ctx.bias = None if bias is None else bias.dtype
        # Any number does, of a tensor that is there.
        return weight[:1, 0, 0, 0, 0].to(x.dtype).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        gx, gw, gb = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight.to(x.dtype),
            None if ctx.bias is None else [len(weight)],
            stride,
            padding,
            (1, 1, 1),
            False,
            (0, 0, 0),
            1,
            (for_x, for_weight, for_bias and ctx.bias is not None),
        )
        gw = None if gw is None else gw.to(weight.dtype)
        gb = None if gb is None else gb.to(ctx.bias)
        return gx, gw, gb, None, None, None
