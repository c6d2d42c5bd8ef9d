"""Tensors of the pretend device, and what every operation on them is checked for.

A `CudaTensor` has its numbers in host memory, where torch's C++ sees a tensor of the CPU; Python
sees one of cuda:0. Every operation passes through `run`, below autograd, so that backward passes
are seen as well. What C++ makes for a tensor of the device (`zeros_like`, a cast) belongs to the
device, although C++ says cpu; transfers come from the Python methods alone.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pretend_cuda import contracts
from pretend_cuda.nondeterministic import is_nondeterministic
from pretend_cuda.record import CPU, CUDA, Device

__all__ = ["CudaTensor", "Dispatch", "computed", "moved", "placed"]

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
# Indices may be on the CPU.
READS = {aten.index.Tensor, aten._unsafe_index.Tensor}
WRITES = {
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
# The host needs to know how large the result is, or what it says.
WAITING = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
    aten._local_scalar_dense.default,
}
# Products and convolutions that tensor cores may compute with TF32 numbers.
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}
# In half precision the CPU has no such kernel, a wrong or slow one, or other dtypes of statistics.
WIDE = CONVOLUTIONS | {
    aten.native_layer_norm.default,
    aten.native_layer_norm_backward.default,
    aten.avg_pool3d.default,
    aten.avg_pool3d_backward.default,
}
_thread = threading.local()


class CudaTensor(Tensor):
    """A tensor that says it is on cuda:0."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor) -> "CudaTensor":
        with no_dispatch():
            return Tensor._make_subclass(cls, data, data.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = Device.active
        assert device is not None, "tensors of the pretend device need it"
        return run(device, func, args, dict(kwargs or {}))

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def get_device(self) -> int:
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def pin_memory(self, *args: Any) -> Tensor:
        raise RuntimeError("cannot pin a CUDA tensor; only dense CPU tensors can be pinned")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def record_stream(self, stream: Any) -> None:
        if Device.active is not None:
            Device.active.order.keep_for(self, stream)

    def share_memory_(self) -> "CudaTensor":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("a tensor of the pretend device is not pickled")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return moved(self, *args, **kwargs)


class Dispatch(TorchDispatchMode):
    """Brings operations to `run` that make something on the device or have to do with it."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self._was_here = False  # the last operation that had tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = kwargs.get("device")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        here = any(isinstance(t, CudaTensor) for t in tensors)
        if tensors:
            self._was_here = here
        elif self._was_here and given == CPU and _made_by_autograd():
            # A gradient of zeros, for a tensor of the device: C++ asks for one of the CPU.
            given = kwargs["device"] = CUDA
        concerned = (
            here
            or (given is not None and torch.device(given).type == "cuda")
            or bool(kwargs.get("pin_memory"))
            or func is aten.is_pinned.default
            or (self.device.streams and self._pinned(args, kwargs))
        )
        return run(self.device, func, args, kwargs) if concerned else func(*args, **kwargs)

    def _pinned(self, args: Any, kwargs: Any) -> bool:
        pinned = self.device.order.pinned
        if not pinned:
            return False
        tensors = [t for t in tree_leaves((args, kwargs)) if type(t) in (Tensor, nn.Parameter)]
        return any(t.untyped_storage() in pinned for t in tensors)


def _made_by_autograd() -> bool:
    """Whether the engine itself calls, not the backward method of a Python function."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.endswith(("torch/_dynamo/eval_frame.py", "torch/_compile.py")):
        frame = frame.f_back
    return frame.f_code.co_name == "_engine_run_backward"


def placed(x: Any) -> Any:
    """A result of C++ as a tensor of the device."""
    return CudaTensor(x) if type(x) in (Tensor, nn.Parameter) else x


def run(device: Device, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation that has to do with the device."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = [t for t in tensors if isinstance(t, CudaTensor)]
    if func is aten.is_pinned.default:
        return tensors[0].untyped_storage() in device.order.pinned
    target = _target(here, kwargs)
    pinned = kwargs.pop("pin_memory", None)
    if here:
        _check_devices(func, args, tensors, here)
        contracts.check(func, args, {k: v for k, v in kwargs.items() if k != "device"})
        _note(device, func, args, kwargs)
    if "device" in kwargs and kwargs["device"] is not None:
        kwargs["device"] = CPU if target == CUDA else kwargs["device"]
    if func in COPIES:
        _transfer(device, func, args, kwargs, target)
    elif device.streams:
        _order(device, func, args, kwargs, tensors, target)
    made = computed(func, args, kwargs)
    if device.graph is not None:
        device.graph.record(func, args, kwargs, made)
    if func is aten.copy_.default:
        return args[0]
    if target == CUDA:
        made = tree_map(placed, made)
        if device.streams and not _is_view(func):
            for fresh in tree_leaves(made):
                if isinstance(fresh, CudaTensor):
                    device.order.allocate(fresh)
                    device.order.touch(fresh, write=True)
    elif pinned:
        device.order.pinned.add(made.untyped_storage())
    return made


def _target(here: Sequence[Tensor], kwargs: dict[str, Any]) -> torch.device:
    """Where the result is. C++ takes every tensor for one of the CPU, and says so."""
    given = kwargs.get("device")
    if given is not None and torch.device(given).type != "cpu":
        kind = torch.device(given).type
        return CUDA if kind == "cuda" else torch.device(given)
    if given is not None and getattr(_thread, "leaves", False):
        return CPU
    return CUDA if here else CPU


def _check_devices(func: Any, args: Any, tensors: list[Tensor], here: list[Tensor]) -> None:
    """As in native/TensorIterator.cpp and the generated wrappers of every CUDA operation."""
    if func in COPIES:
        return
    on_host = [t for t in tensors if not isinstance(t, CudaTensor)]
    if func in READS | WRITES:
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor "
                f"(cpu) [{func}]"
            )
        on_host = [t for t in args[2:3] if isinstance(t, Tensor) and not isinstance(t, CudaTensor)]
    elif func is aten.cat.default or func is aten.stack.default:
        on_host = [t for t in on_host if t.numel()]
        if not on_host:
            return
    # A number of the CPU may be an operand.
    strange = [t for t in on_host if t.dim() > 0 or func in (aten.cat.default, aten.stack.default)]
    if strange:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! [{func}, {[tuple(t.shape) for t in here]} and "
            f"{[tuple(t.shape) for t in strange]}]"
        )


def _note(device: Device, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Waits, nondeterministic kernels and rounded numbers."""
    name = func.overloadpacket.__name__
    if func in WAITING or (func in READS | WRITES and _waits_for_indices(args)):
        device.wait(name)
    if is_nondeterministic(func, args, {k: v for k, v in kwargs.items() if k != "device"}):
        device.not_deterministic(name)
    if func in PRODUCTS | CONVOLUTIONS:
        device.multiplies(name, args[0].dtype, convolves=func in CONVOLUTIONS)


def _waits_for_indices(args: Any) -> bool:
    """Masks are counted first, indices copied there (native/TensorAdvancedIndexing.cpp)."""
    given = [t for t in args[1] if isinstance(t, Tensor)]
    return any(
        t.dtype in (torch.bool, torch.uint8) or not isinstance(t, CudaTensor) for t in given
    )


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result, by the CPU's kernel, or by that of float32 where half precision needs it."""
    wanted = args[0].dtype if args and isinstance(args[0], Tensor) else None
    with no_dispatch():
        if func not in WIDE or wanted not in (torch.bfloat16, torch.float16):
            return func(*args, **kwargs)
        made = func(*tree_map(_widened, args), **tree_map(_widened, kwargs))
        if func is aten.native_layer_norm.default:
            return made[0].to(wanted), *made[1:]
        return tree_map(lambda t: t.to(wanted) if isinstance(t, Tensor) else t, made)


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def _is_view(func: Any) -> bool:
    given = [r.alias_info for r in func._schema.returns]
    return bool(given) and all(a is not None and not a.is_write for a in given)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> set[int]:
    """Identities of the arguments that the operation writes to."""
    writes = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
    named = {a.name for a, w in zip(func._schema.arguments, writes, strict=True) if w}
    by_place = zip(args, writes, strict=False)
    given = [t for t, w in by_place if w] + [t for n, t in kwargs.items() if n in named]
    return {id(t) for t in tree_leaves(given)}


def _order(
    device: Device,
    func: Any,
    args: Any,
    kwargs: dict[str, Any],
    tensors: list[Tensor],
    target: torch.device,
) -> None:
    """What an operation other than a transfer means for streams and clocks."""
    if _is_view(func):
        return
    size = max((t.numel() * t.element_size() for t in tensors), default=0)
    by_host = target != CUDA
    if by_host:
        device.order.host_works(0)
    else:
        device.order.launch(size)
    written = _written(func, args, kwargs)
    for t in tensors:
        device.order.touch(t, write=id(t) in written, by_host=not isinstance(t, CudaTensor))


def _transfer(
    device: Device, func: Any, args: Any, kwargs: dict[str, Any], target: torch.device
) -> None:
    """Copies, as native/cuda/Copy.cu makes them.

    What is not dense or changes its dtype passes through a temporary in pageable memory, which the
    host fills or reads at once (`copy_requires_temporaries`). The host waits for every transfer
    that is not `non_blocking` or has pageable memory at its other end:
    https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html
    """
    if func is aten.copy_.default:
        to, source = args[0], args[1]
        asynchronous = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    else:
        to, source = None, args[0]
        asynchronous = bool(kwargs.get("non_blocking"))
    arrives = isinstance(to, CudaTensor) if to is not None else target == CUDA
    leaves = isinstance(source, CudaTensor)
    order, streams = device.order, device.streams
    size = source.numel() * source.element_size()
    if arrives and leaves:
        if streams:
            order.launch(size)
            order.touch(source, write=False)
            if to is not None:
                order.touch(to, write=True)
        return
    if not arrives and not leaves:
        if streams:
            order.host_works(size)
            order.touch(source, write=False, by_host=True)
            if to is not None:
                order.touch(to, write=True, by_host=True)
        return
    device.moved["to device" if arrives else "to host"] += size
    on_host = source if arrives else to
    is_pinned = on_host is not None and on_host.untyped_storage() in order.pinned
    direct = is_pinned and not _needs_temporary(source, to, kwargs)
    if streams:
        if arrives and not direct:
            order.host_works(size)
            order.touch(source, write=False, by_host=True)
        order.launch(size, copies=True)
        for t, write in ((source, False), (to, True)):
            if t is not None and (isinstance(t, CudaTensor) or direct):
                order.touch(t, write=write)
    if not (asynchronous and direct):
        device.wait("copy to the device" if arrives else "copy to the host")
        if streams and not arrives and to is not None and not direct:
            order.host_works(size)
            order.touch(to, write=True, by_host=True)


def _needs_temporary(source: Tensor, to: Tensor | None, kwargs: dict[str, Any]) -> bool:
    if to is None:
        return kwargs.get("dtype") not in (None, source.dtype) or not _dense(source)
    if to.dtype != source.dtype or not (_dense(source) and _dense(to)):
        return True
    axes = zip(source.shape, source.stride(), to.stride(), strict=True)
    return any(n > 1 and a != b for n, a, b in axes)


def _dense(x: Tensor) -> bool:
    """Whether its elements fill a stretch of memory."""
    expected = 1
    for step, n in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if step != expected:
            return False
        expected *= n
    return True


class _Moved(torch.autograd.Function):
    """A transfer, whose gradient travels back: C++ would take both ends for the CPU."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.origin, ctx.dtype = x.device, x.dtype
        return move(x)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return moved(grad, ctx.origin, ctx.dtype), None


_plain_to = Tensor.to


def moved(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` for any tensor, while the device is there."""
    copy = kwargs.pop("copy", False)
    if "other" in kwargs or (args and isinstance(args[0], Tensor)):
        other = kwargs.pop("other", None)
        if other is None:
            other, args = args[0], args[1:]
        args = (other.device, other.dtype, *args)
    if len(args) > 3:
        copy, args = args[3], args[:3]
    device, dtype, asynchronous, layout = torch._C._nn._parse_to(*args, **kwargs)
    target = x.device if device is None else CUDA if device.type == "cuda" else device
    if not isinstance(x, CudaTensor) and target != CUDA:
        named = {} if layout is None else {"memory_format": layout}
        return _plain_to(x, target, dtype or x.dtype, asynchronous, copy, **named)
    dtype = dtype or x.dtype
    kept = layout in (None, torch.preserve_format) or x.is_contiguous(memory_format=layout)
    if target == x.device and dtype == x.dtype and kept and not copy:
        return x
    named = {"dtype": dtype, "device": target, "non_blocking": asynchronous}
    if layout is not None:
        named["memory_format"] = layout

    def move(x: Tensor) -> Tensor:
        before, _thread.leaves = getattr(_thread, "leaves", False), target == CPU
        try:
            return aten._to_copy.default(x, **named)
        finally:
            _thread.leaves = before

    if target != x.device and x.requires_grad and torch.is_grad_enabled():
        return _Moved.apply(x, move)
    return move(x)
