"""A network's forward pass, recorded: its own code runs on stand-ins for volumes.

A `Lazy` has the shape and dtype of a volume and no voxels. The functions that layers compute
through record a node instead of computing, so that what is executed is always what the network's
`forward` says, whatever the network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volumediff.memory.slab_convolution import Convolution, TransposedConvolution
from volumediff.memory.slab_norm import NormAffine
from volumediff.memory.slabs import (
    Average,
    Concat,
    CropPlanes,
    EdgePad,
    LinearUpsampling,
    LocalNorm,
    NearestUpsampling,
    Operation,
    Pad,
    Pointwise,
    Whole,
    WithinPlanes,
)
from volumediff.networks._edges import conv_transposed, edge_padded
from volumediff.networks._layers import Triple, conv
from volumediff.networks._norm_act import NormKind, norm_act
from volumediff.networks._repeatable import linear_twice, mean_of_cells
from volumediff.networks._spectral_mixing import mixed

__all__ = ["Graph", "Node", "record"]

NUMBERS = count()
VOLUME_AXES = 5  # b, c, d, h, w


class Node:
    """A volume of the recorded pass.

    Arguments:
        shape: (b, c, d, h, w)
        dtype: of its voxels
        operation: how it is made; None for a volume that is given
        inputs: what it is made of
        source: its place among the given volumes
    """

    # No dataclass: its printed form would repeat every path through the network.
    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        operation: Operation | None = None,
        inputs: tuple["Node", ...] = (),
        source: int = -1,
    ) -> None:
        self.shape, self.dtype, self.operation = shape, dtype, operation
        self.inputs, self.source, self.number = inputs, source, next(NUMBERS)

    @property
    def depth(self) -> int:
        """Planes along d."""
        return self.shape[2]


@dataclass(eq=False, repr=False)
class Graph:
    """A recorded pass.

    Arguments:
        output: the last node
        sources: the given volumes, by `Node.source`
        nodes: all nodes that the output depends on, in the order in which they were recorded
        consumers: of each node, the nodes that it is an input of
    """

    output: Node
    sources: list[Tensor]
    nodes: list[Node]
    consumers: dict[Node, list[Node]]


def record(function: Callable[..., Tensor], x: Tensor, *arguments: Any) -> Graph:
    """The graph of function(x, *arguments), which is not computed.

    Arguments:
        arguments: volumes in tuples are recorded like x; what stands alone does not depend on
            the slab

    Raises:
        NotImplementedError: the function does something that no operation stands for
    """
    recorder = _Recorder(x.device)
    output = function(recorder.given(x), *map(recorder.argument, arguments))
    if not isinstance(output, Lazy):
        raise NotImplementedError("the network's output does not depend on its input")
    return recorder.graph(output.node)


class _Recorder:
    """The sources of one recording."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sources: list[Tensor] = []
        self.given_nodes: dict[int, Node] = {}

    def given(self, x: Tensor) -> "Lazy":
        """A stand-in for a volume that is at hand."""
        if id(x) not in self.given_nodes:
            self.given_nodes[id(x)] = Node(tuple(x.shape), x.dtype, source=len(self.sources))
            self.sources.append(x)
        return Lazy(self.given_nodes[id(x)], self)

    def argument(self, value: Any) -> Any:
        """Stand-ins for the volumes in a tuple of any depth; anything else as it is."""
        if not isinstance(value, tuple):
            return value
        return tuple(
            self.given(v) if isinstance(v, Tensor) and v.ndim == VOLUME_AXES else self.argument(v)
            for v in value
        )

    def graph(self, output: Node) -> Graph:
        """Everything that the output depends on."""
        found, stack = {output}, [output]
        while stack:
            for node in stack.pop().inputs:
                if node not in found:
                    found.add(node)
                    stack.append(node)
        nodes = sorted(found, key=lambda node: node.number)
        consumers: dict[Node, list[Node]] = {node: [] for node in nodes}
        for node in nodes:
            for given in node.inputs:
                consumers[given].append(node)
        return Graph(output, self.sources, nodes, consumers)


class Lazy(Tensor):
    """A stand-in for a volume; functions of it record a node."""

    node: Node
    recorder: _Recorder

    @staticmethod
    def __new__(cls: type["Lazy"], node: Node, recorder: _Recorder) -> "Lazy":
        made = Tensor._make_wrapper_subclass(
            cls, node.shape, dtype=node.dtype, device=recorder.device
        )
        made.node, made.recorder = node, recorder
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in RECORDED:
            return RECORDED[func](*args, **kwargs)
        if getattr(func, "needs_whole_volumes", False):
            return _whole(*args, **kwargs)
        name = getattr(func, "__qualname__", str(func))
        raise NotImplementedError(
            f"{name} on a volume cannot be cut into slabs: use the layers of the package, mark "
            "the module's forward with `whole`, or run the network with memory.slab=null and "
            "processes.domain=1"
        )

    __torch_dispatch__ = None

    def add(self, operation: Operation, shape: Sequence[int], *others: "Lazy") -> "Lazy":
        """Records a node of the same dtype."""
        inputs = (self.node, *(other.node for other in others))
        return Lazy(Node(tuple(shape), self.dtype, operation, inputs), self.recorder)


def _whole(module: nn.Module, x: Lazy, *arguments: Any) -> Lazy:
    volumes = [a for a in arguments if isinstance(a, Lazy)]
    small = arguments[len(volumes) :]
    if any(isinstance(a, Lazy) for a in small):
        raise NotImplementedError("whole volumes come before what else a module is given")
    # What looks along h and w alone needs no other planes, though all of each.
    within = getattr(module, "global_axes", "dhw") == "hw"
    kind = WithinPlanes if within and all(v.shape[2] == x.shape[2] for v in volumes) else Whole
    return x.add(kind(module, (*module.parameters(), *small)), x.shape, *volumes)


def _conv(
    x: Lazy, weight: Tensor, bias: Tensor | None, *, stride: Triple, padding: Triple
) -> Lazy:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = (x.shape[0], weight.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))
    small = (weight,) if bias is None else (weight, bias)
    return x.add(Convolution(stride, padding, small), shape)


def _norm_act(
    x: Lazy,
    scale: Tensor,
    shift: Tensor,
    *,
    kind: NormKind,
    groups: int,
    eps: float,
    fused: bool | None = None,
) -> Lazy:
    if kind == "group":
        # Slab by slab the statistics come first; what is left is one pass either way.
        return x.add(NormAffine(groups, eps, True, fused, (scale, shift)), x.shape)
    return x.add(LocalNorm(kind, groups, eps, fused, (scale, shift)), x.shape)


def _group_norm(x: Lazy, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Lazy:
    dtype = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (t.to(dtype).expand(x.shape[0], -1) for t in (weight, bias))
    return x.add(NormAffine(groups, eps, False, None, (scale, shift)), x.shape)


def _interpolate(
    x: Lazy,
    size: None = None,
    scale_factor: Sequence[float] | float | int | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    **unused: Any,
) -> Lazy:
    corners = bool(align_corners)
    scales = (scale_factor,) * 3 if isinstance(scale_factor, int | float) else scale_factor
    b, c, *sizes = x.shape
    if size is None and mode == "trilinear" and scales == (2.0, 2.0, 2.0) and not corners:
        return _linear_twice(x)
    if size is not None or mode != "nearest" or scales is None or any(s % 1 for s in scales):
        raise NotImplementedError(
            "slabs are interpolated by nearest neighbour and whole factors, or linearly by 2"
        )
    d, h, w = (int(s) for s in scales)
    grown = (n * f for n, f in zip(sizes, (d, h, w), strict=True))
    return x.add(NearestUpsampling((d, h, w)), (b, c, *grown))


def _linear_twice(x: Lazy) -> Lazy:
    b, c, *sizes = x.shape
    return x.add(LinearUpsampling(), (b, c, *(2 * n for n in sizes)))


def _mean_of_cells(x: Lazy, size: Sequence[int], *, ceil: bool) -> Lazy:
    d, h, w = size
    cells = (-(-n // s) if ceil else n // s for n, s in zip(x.shape[2:], size, strict=True))
    return x.add(Average((d, h, w), ceil), (*x.shape[:2], *cells))


def _average(
    x: Lazy,
    kernel_size: int | Triple,
    stride: Any = None,
    ceil_mode: bool = False,
    **unused: Any,
) -> Lazy:
    size = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
    steps = (stride,) * 3 if isinstance(stride, int) else tuple(stride or size)
    if steps != size or any(unused.values()):
        raise NotImplementedError("slabs are averaged over cells that do not overlap")
    return _mean_of_cells(x, size, ceil=ceil_mode)


def _pad(x: Lazy, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Lazy:
    ends = [*pad, *(0,) * (6 - len(pad))]
    if mode != "constant" or value or any(ends[::2]):
        raise NotImplementedError("slabs are padded by zeros after the last voxel")
    after = (ends[5], ends[3], ends[1])
    shape = (*x.shape[:2], *(n + e for n, e in zip(x.shape[2:], after, strict=True)))
    return x.add(Pad(after, x.shape[2]), shape)


def _edge_padded(x: Lazy, before: Triple, after: Triple) -> Lazy:
    sizes = (n + a + b for n, a, b in zip(x.shape[2:], before, after, strict=True))
    return x.add(EdgePad(before, after, x.shape[2]), (*x.shape[:2], *sizes))


def _conv_transposed(
    x: Lazy, weight: Tensor, bias: Tensor, *, stride: Triple, padding: Triple
) -> Lazy:
    ends = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    sizes = ((n - 1) * s + k - 2 * p for n, k, s, p in ends)
    operation = TransposedConvolution(stride, padding, (weight, bias))
    return x.add(operation, (x.shape[0], weight.shape[1], *sizes))


def _getitem(x: Lazy, index: Any) -> Lazy:
    parts = index if isinstance(index, tuple) else (index,)
    full = (*parts, *(slice(None),) * (x.ndim - len(parts)))
    plain = all(isinstance(p, slice) and not p.start and p.step in (None, 1) for p in full)
    if not plain or full[0].stop is not None or full[1].stop is not None:
        raise NotImplementedError("slabs are cropped to their first voxels along d, h and w")
    d, h, w = (len(range(*p.indices(n))) for p, n in zip(full[2:], x.shape[2:], strict=True))
    return x.add(CropPlanes(h, w), (*x.shape[:2], d, h, w))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Lazy:
    if dim != 1:
        raise NotImplementedError("slabs are concatenated along channels")
    recorder = next(t for t in tensors if isinstance(t, Lazy)).recorder
    first, *rest = (t if isinstance(t, Lazy) else recorder.given(t) for t in tensors)
    b, c, *sizes = first.shape
    return first.add(Concat(), (b, c + sum(r.shape[1] for r in rest), *sizes), *rest)


def _pointwise(function: Callable[..., Tensor], *, linear: bool) -> Callable[..., Lazy]:
    """Records function(x, y) of volumes, coefficients per sample and channel, and numbers."""

    def recorded(x: Tensor | float | int, y: Tensor | float | int) -> Lazy:
        recorder = next(t for t in (x, y) if isinstance(t, Lazy)).recorder
        # 0: a number, 1: a volume, 2: a coefficient
        kinds, volumes, small = [], [], []
        for operand in (x, y):
            is_tensor = isinstance(operand, Tensor) and operand.ndim > 0
            whole = is_tensor and (isinstance(operand, Lazy) or operand.shape[2:].numel() > 1)
            kinds.append(1 if whole else 2 if isinstance(operand, Tensor) else 0)
            if whole:
                given = operand if isinstance(operand, Lazy) else recorder.given(operand)
                volumes.append(given)
            elif isinstance(operand, Tensor):
                small.append(operand)
        numbers = [o for o, k in zip((x, y), kinds, strict=True) if k == 0]
        # Of the stand-ins their number alone: in place, one of them stands for the result, and
        # the graph would hold itself and all that it was given.
        wide = len(volumes)

        def apply(*tensors: Tensor) -> Tensor:
            parts = {1: iter(tensors[:wide]), 2: iter(tensors[wide:])}
            left, right = (next(parts[k]) if k else numbers[0] for k in kinds)
            return function(left, right)

        if {v.dtype for v in volumes} | {s.dtype for s in small} != {volumes[0].dtype}:
            raise NotImplementedError("slabs are combined in one dtype: cast before")
        # A product needs the values of both factors for its gradients; a number has none.
        operation = Pointwise(apply, tuple(small), linear=linear or bool(numbers))
        return volumes[0].add(operation, volumes[0].shape, *volumes[1:])

    return recorded


def _changing(recorded: Callable[..., Lazy]) -> Callable[..., Lazy]:
    """The in-place form: the stand-in stands for the result from now on."""

    def changed(x: Lazy, y: Tensor | float | int) -> Lazy:
        x.node = recorded(x, y).node
        return x

    return changed


def _silu(x: Lazy, inplace: bool = False) -> Lazy:
    return x.add(Pointwise(F.silu, linear=False), x.shape)


def _leaky_relu(x: Lazy, negative_slope: float = 0.01, inplace: bool = False) -> Lazy:
    bent = partial(F.leaky_relu, negative_slope=negative_slope)
    return x.add(Pointwise(bent, linear=False), x.shape)


def _mixed(x: Lazy, weight: Tensor, *, states: int) -> Lazy:
    joined = partial(mixed, states=states)
    return x.add(Pointwise(joined, (weight,), linear=False), x.shape)


def _sigmoid(x: Lazy) -> Lazy:
    return x.add(Pointwise(torch.sigmoid, linear=False), x.shape)


def _to(x: Lazy, dtype: Any, **unused: Any) -> Lazy:
    if not isinstance(dtype, torch.dtype):
        raise NotImplementedError("slabs are only cast, to a dtype")
    if dtype == x.dtype:
        return x
    cast = Pointwise(lambda slab: slab.to(dtype))
    return Lazy(Node(tuple(x.shape), dtype, cast, (x.node,)), x.recorder)


_add, _mul = _pointwise(torch.add, linear=True), _pointwise(torch.mul, linear=False)
_maximum = _pointwise(torch.maximum, linear=False)
_sub, _div = _pointwise(torch.sub, linear=True), _pointwise(torch.div, linear=False)

RECORDED: dict[Any, Callable[..., Any]] = {
    conv: _conv,
    norm_act: _norm_act,
    F.group_norm: _group_norm,
    F.interpolate: _interpolate,
    F.avg_pool3d: _average,
    mean_of_cells: _mean_of_cells,
    linear_twice: _linear_twice,
    F.pad: _pad,
    edge_padded: _edge_padded,
    conv_transposed: _conv_transposed,
    F.silu: _silu,
    F.leaky_relu: _leaky_relu,
    mixed: _mixed,
    torch.sigmoid: _sigmoid,
    torch.maximum: _maximum,
    torch.cat: _cat,
    Tensor.__getitem__: _getitem,
    Tensor.to: _to,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _mul),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _sub),
    **dict.fromkeys((torch.div, Tensor.div, Tensor.__truediv__), _div),
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), _changing(_add)),
    **dict.fromkeys((Tensor.mul_, Tensor.__imul__), _changing(_mul)),
    **dict.fromkeys((Tensor.div_, Tensor.__itruediv__), _changing(_div)),
}
# What may be asked of a stand-in without recording anything.
FACTS = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda")
    ),
}
