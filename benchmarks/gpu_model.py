r"""What a GPU would have to do for a computation: kernels, bytes, operations, and a time for them.

No GPU and no memory is needed: tensors are on torch's meta device, which has shapes and no data,
and say that they are on `cuda:0`, so that every branch that Python code takes on a GPU is taken.
Each operation that reaches torch's dispatcher counts as the kernels that torch launches for it,
and a kernel as the time of its slower half, arithmetic or memory, and a launch:

.. math:: t = \sum_k \max\!\left(\frac{\text{FLOP}_k}{\text{rate}},
              \frac{\text{bytes}_k}{\text{bandwidth}}\right) + t_\text{launch}

Bytes are those of the tensors read and written, once each and without those of expanded axes; what
is changed in place is read and written. Views and uninitialized tensors are free. The rest:

- A convolution is one kernel, and one more that adds its bias (`cudnn_convolution` takes none);
  its backward pass one per gradient asked for: input, weight, and a sum for the bias. FLOP are
  those of torch's own counter.
- Group norm of torch: a kernel of moments, one of coefficients, one that applies them; backward
  one of sums, two of coefficients, one of the input's gradient, one of those of weight and bias.
  Layer norm: one, backward two.
- Fused attention: one kernel, backward three (row sums, gradients, a cast), without scores.
- An operation on a list of tensors launches as `multi_tensor_apply` does: chunks of 65536
  elements, at most 320 of them and 110, 64, 48, 36 or 30 tensors at a time, by the number of
  lists.
- A Triton kernel is one launch that reads or writes each of its tensor arguments once. The
  wrappers around kernels run as they are, over a stand-in for the `triton` package.
- Anything else is one kernel.

Convolutions of float32 tensors run in TF32, torch's default; other products of float32 do not.
Launches are added, not hidden: a queue that the GPU never waits for would cost nothing. What is
left out flatters everybody alike: convolutions that reach less than the peak rate, conversions
between layouts inside cuDNN (which has channels last, as ours), hits in the L2 cache.

References:
    torch 2.13, aten/src/ATen/native: Convolution.cpp, cuda/group_norm_kernel.cu,
    cuda/layer_norm_kernel.cu, cuda/MultiTensorApply.cuh, transformers/cuda/flash_attn
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # looks for triton when it is imported: before a stand-in is there
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["GPU", "H200", "Autocast", "Kernel", "Work", "modelled"]

aten = torch.ops.aten
CUDA, META = torch.device("cuda", 0), torch.device("meta")
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class GPU:
    """Rates of a device, in FLOP/s, bytes/s and seconds."""

    half: float
    tf32: float
    single: float
    bandwidth: float
    launch: float


H200 = GPU(half=790e12, tf32=400e12, single=67e12, bandwidth=4.3e12, launch=4e-6)


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Arguments:
        name: of the operation that it belongs to
        size: bytes read and written
        flop: operations of a matrix product or convolution; 0 elsewhere, where memory decides
        dtype: that the operations are done in
    """

    name: str
    size: int
    flop: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def convolves(self) -> bool:
        """Whether it is a convolution or a gradient of one."""
        return self.name.startswith("convolution") and self.flop > 0

    def seconds(self, gpu: GPU) -> float:
        """Modelled time, launch included."""
        single = gpu.tf32 if self.convolves else gpu.single
        rate = gpu.half if self.dtype in HALVES else single
        return max(self.flop / rate, self.size / gpu.bandwidth) + gpu.launch


@dataclass
class Work:
    """The kernels of a computation."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Number of kernels."""
        return len(self.kernels)

    @property
    def flop(self) -> int:
        """Operations of convolutions and matrix products."""
        return sum(k.flop for k in self.kernels)

    @property
    def size(self) -> int:
        """Bytes moved."""
        return sum(k.size for k in self.kernels)

    def seconds(self, gpu: GPU) -> float:
        """Modelled time, launches included."""
        return sum(k.seconds(gpu) for k in self.kernels)

    def convolutions(self) -> "Work":
        """Those kernels alone that no network of this kind can do without."""
        return Work([k for k in self.kernels if k.convolves])

    def by_name(self, gpu: GPU) -> dict[str, tuple[int, float]]:
        """Launches and seconds of every operation, the slowest first."""
        launches = Counter(k.name for k in self.kernels)
        seconds: Counter[str] = Counter()
        for kernel in self.kernels:
            seconds[kernel.name] += kernel.seconds(gpu)
        return {name: (launches[name], time) for name, time in seconds.most_common()}


@contextmanager
def modelled() -> Iterator[Work]:
    """Counts the kernels of what is computed inside the block.

    Tensors made inside with `device="cuda"` or under `torch.device("cuda")` have no data, and say
    that they are on `cuda:0`. Numbers read from them are one half, zero or False.
    """
    work = Work()
    counter = _Counter(work)
    with ExitStack() as stack:
        for name, answer in {
            "device": lambda x: CUDA,
            "is_cuda": lambda x: True,
            "is_meta": lambda x: False,
        }.items():
            stack.enter_context(mock.patch.object(Tensor, name, counter.answering(name, answer)))
        stack.enter_context(mock.patch("torch.cuda._lazy_init"))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        stack.enter_context(_over(_triton(work)))
        stack.enter_context(counter)
        yield work


@contextmanager
def _over(stand_ins: dict[str, ModuleType]) -> Iterator[None]:
    """Modules of kernels that are imported inside are made over the stand-ins, and forgotten."""
    package = sys.modules["volumediff.networks"]
    names = ("_norm_act_triton", "_norm_act_kernels", "_affine_triton", "_affine_kernels")
    before = {n: vars(package).pop(n) for n in names if hasattr(package, n)}
    with mock.patch.dict(sys.modules, stand_ins):
        for name in names:
            sys.modules.pop(f"{package.__name__}.{name}", None)
        try:
            yield
        finally:
            for name in names:
                vars(package).pop(name, None)
            vars(package).update(before)


class _Counter(TorchDispatchMode):
    """Makes tensors of the GPU, and notes down the kernels of every operation on them."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.within = work, False

    def answering(self, name: str, answer: Callable[[Tensor], Any]) -> property:
        """An attribute of tensors; the kernels of torch itself must see the true one."""
        true, device = (getattr(torch._C.TensorBase, n).__get__ for n in (name, "device"))

        def read(x: Tensor) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                return true(x) if self.within or device(x) != META else answer(x)

        return property(read)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = META
        before, self.within = self.within, True
        try:
            if func is aten._local_scalar_dense.default and args[0].device == META:
                return {torch.bool: False}.get(args[0].dtype, 0.5 * args[0].is_floating_point())
            result = _laid_out(func, args, func(*args, **kwargs))
            self.work.kernels += _kernels(func, args, kwargs, result)
        finally:
            self.within = before
        return result


def _laid_out(func: Any, args: tuple, result: Any) -> Any:
    """Channels last of convolutions where cuDNN gives them so, which meta does not."""
    if func._overloadpacket not in (aten.convolution, aten.convolution_backward):
        return result
    last, volumes = torch.channels_last_3d, [t for t in args[:3] if isinstance(t, Tensor)]
    if not any(t.ndim == 5 and t.is_contiguous(memory_format=last) for t in volumes):
        return result
    if isinstance(result, Tensor):
        return result.contiguous(memory_format=last)
    return tuple(
        t.contiguous(memory_format=last) if t is not None and t.ndim == 5 else t for t in result
    )


def _kernels(func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> list[Kernel]:
    """The launches of an operation."""
    given = _arguments(func, args, kwargs)
    read, written = _accesses(func, given, result)
    if not any(t.device == META for t in (*read, *written)):
        return []  # the CPU's own work
    name = func._schema.name.removeprefix("aten::").removesuffix("_")
    if func._overloadpacket in SPECIAL:
        return SPECIAL[func._overloadpacket](name, given, result)
    if not written or name.removeprefix("new_").startswith("empty"):
        return []
    size, flop = _size(read) + _size(written), _flop(func, args, kwargs, result)
    count = _foreach_launches(given) if "_foreach_" in name or "_fused_" in name else 1
    first = next((t for t in read if t.is_floating_point()), None)
    dtype = torch.float32 if first is None else first.dtype
    return [Kernel(name, size // count, flop // count, dtype)] * count


def _arguments(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Arguments of the operation's schema, with their values."""
    schema = func._schema.arguments
    named = [(a, kwargs[a.name]) for a in schema[len(args) :] if a.name in kwargs]
    return [*zip(schema, args, strict=False), *named]


# What is changed in place without being read; `*_like` and `new_*` read nothing either.
OVERWRITTEN = {aten.copy_, aten.fill_, aten.zero_, aten.normal_, aten.uniform_, aten.random_}


def _accesses(
    func: Any, given: list[tuple[Any, Any]], result: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that are read, and those that are written."""
    read, written, known = [], [], set()
    name = func._schema.name
    makes = name.endswith("_like") or name.startswith("aten::new_")
    for argument, value in given:
        tensors = _tensors(value)
        known |= {_storage(t) for t in tensors}
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed:
            written += tensors
        if changed and (argument.is_out or func._overloadpacket in OVERWRITTEN):
            continue
        read += [] if makes else tensors
    written += [t for t in _tensors(result) if _storage(t) not in known]
    return read, written


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for part in value for t in _tensors(part)]
    return []


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements in memory, of each tensor once."""
    seen = {(_storage(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(map(_bytes, seen.values()))


def _bytes(tensor: Tensor) -> int:
    # An expanded axis has stride 0: one element, read again and again.
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(n if stride else min(n, 1) for n, stride in pairs) * tensor.element_size()


def _flop(func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> int:
    count = flop_registry.get(func._overloadpacket)
    return 0 if count is None else count(*args, **kwargs, out_val=result)


def _convolution(name: str, given: list[tuple[Any, Any]], result: Tensor) -> list[Kernel]:
    x, weight, bias, *rest = (value for _, value in given)
    flop = _flop(aten.convolution.default, (x, weight, bias, *rest), {}, result)
    kernels = [Kernel(name, _size([x, weight, result]), flop, x.dtype)]
    if bias is not None:
        kernels.append(Kernel("bias", 2 * _bytes(result) + _bytes(bias)))
    return kernels


def _convolution_backward(
    name: str, given: list[tuple[Any, Any]], result: tuple[Tensor | None, ...]
) -> list[Kernel]:
    grad, x, weight, *rest = (value for _, value in given)
    of_x, of_weight, of_bias = result
    wanted = sum(g is not None for g in (of_x, of_weight))
    flop = _flop(aten.convolution_backward.default, (grad, x, weight, *rest), {}, result)
    kernels = []
    if of_x is not None:
        size = _size([grad, weight, of_x])
        kernels.append(Kernel(f"{name} input", size, flop // wanted, x.dtype))
    if of_weight is not None:
        size = _size([grad, x, of_weight])
        kernels.append(Kernel(f"{name} weight", size, flop // wanted, x.dtype))
    if of_bias is not None:
        kernels.append(Kernel("bias gradient", _size([grad, of_bias])))
    return kernels


def _group_norm(name: str, given: list[tuple[Any, Any]], result: tuple) -> list[Kernel]:
    x, y, small = given[0][1], result[0], _size(result[1:])
    return [Kernel(name, size) for size in (_bytes(x) + small, small, _bytes(x) + _bytes(y))]


def _group_norm_backward(name: str, given: list[tuple[Any, Any]], result: tuple) -> list[Kernel]:
    grad, x, mean, inverse = (value for _, value in given[:4])
    small, weight = _size([mean, inverse]), given[4][1]
    sizes = [_size([grad, x])]
    if result[0] is not None:
        sizes += [small] if weight is None else [small, small]
        sizes.append(_size([grad, x, result[0]]))
    if result[1] is not None:
        sizes.append(small + _size(_tensors(result[1:])))
    return [Kernel(name, size) for size in sizes]


def _layer_norm_backward(name: str, given: list[tuple[Any, Any]], result: tuple) -> list[Kernel]:
    grad, x = given[0][1], given[1][1]
    kernels = [Kernel(name, _size([grad, x, result[0]]))]
    if result[1] is not None:
        kernels.append(Kernel(name, _size([grad, x, *_tensors(result[1:])])))
    return kernels


def _attention_backward(name: str, given: list[tuple[Any, Any]], result: tuple) -> list[Kernel]:
    grad, q, k, v, out, lse = (value for _, value in given[:6])
    func = aten._scaled_dot_product_flash_attention_backward.default
    flop = _flop(func, tuple(value for _, value in given), {}, result)
    return [
        Kernel(name, _size([grad, out, lse])),
        Kernel(name, _size([grad, q, k, v, lse, *result[:3]]), flop, q.dtype),
        Kernel(name, 2 * _bytes(q)),
    ]


def _adam(name: str, given: list[tuple[Any, Any]], result: None) -> list[Kernel]:
    # Gradients are written only where they are unscaled.
    read = [t for _, value in given for t in _tensors(value)]
    written = [t for argument, value in given if argument.name != "grads" for t in _tensors(value)]
    count = _foreach_launches(given)
    return [Kernel(name, (_size(read) + _size(written)) // count)] * count


SPECIAL: dict[Any, Callable[[str, list[tuple[Any, Any]], Any], list[Kernel]]] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    aten.native_group_norm: _group_norm,
    aten.native_group_norm_backward: _group_norm_backward,
    aten.native_layer_norm_backward: _layer_norm_backward,
    aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    aten._fused_adam_: _adam,
    aten._fused_adamw_: _adam,
}

CHUNK, CHUNKS, TENSORS = 65536, 320, (110, 64, 48, 36, 30)  # MultiTensorApply.cuh


def _foreach_launches(given: list[tuple[Any, Any]]) -> int:
    lists = [v for _, v in given if isinstance(v, list | tuple) and v and _tensors(v) == list(v)]
    lists = [v for v in lists if v[0].numel() > 1 or len(lists) == 1]  # steps ride along
    most = TENSORS[min(len(lists), len(TENSORS)) - 1]
    chunks = sum(-(-t.numel() // CHUNK) for t in lists[0])
    return max(1, -(-len(lists[0]) // most), -(-chunks // CHUNKS))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, **given: Any
) -> Tensor:
    """Scaled dot product attention by the kernel that torch takes on a GPU."""
    assert query.dtype in HALVES, "the flash kernel takes half precision"
    assert attn_mask is None, "the flash kernel takes no mask"
    return aten._scaled_dot_product_flash_attention(query, key, value, **given)[0]


class _Triton:
    """A kernel: `kernel[grid](arguments)` is a launch."""

    def __init__(self, function: Callable[..., None], work: Work) -> None:
        self.name, self.work = function.__name__, work

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            self.work.kernels.append(Kernel(f"triton {self.name}", sum(map(_bytes, tensors))))

        return launch


def _triton(work: Work) -> dict[str, ModuleType]:
    """Stands for the `triton` package, which need not be installed."""
    modules = {name: ModuleType(name) for name in ("triton", "triton.language")}
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
    triton, language = modules.values()
    triton.language = language
    language.constexpr = object
    triton.jit = lambda function: _Triton(function, work)
    triton.cdiv = lambda a, b: -(-a // b)
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
    triton.knobs = mock.Mock(runtime=mock.Mock(interpret=False))
    return modules


class Autocast(TorchFunctionMode):
    """`torch.autocast("cuda")`, which does nothing for tensors without data.

    Products and convolutions in half precision, with weights cast once; normalisations, sums and
    the softmax in float32; everything else in the dtype that it is given.

    References:
        docs.pytorch.org, Automatic Mixed Precision package, CUDA Op-Specific Behavior
    """

    LOWER = (
        *(F.conv1d, F.conv2d, F.conv3d, F.linear, torch.matmul, torch.bmm, torch.baddbmm),
        *(torch.einsum, Tensor.matmul, Tensor.__matmul__),
    )
    SINGLE = (
        *(F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax),
        *(torch.sum, Tensor.sum, torch.exp, Tensor.exp, Tensor.square, Tensor.log),
    )

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.weights = dtype, {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        dtype = None
        if func in self.LOWER:
            dtype = self.dtype
        elif func in self.SINGLE:
            dtype = torch.float32
        if dtype is not None:
            args = [self._cast(a, dtype) for a in args]
            kwargs = {name: self._cast(a, dtype) for name, a in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (isinstance(value, torch.nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        key = id(value), dtype
        if key not in self.weights:
            self.weights[key] = value.to(dtype)
        return self.weights[key]
