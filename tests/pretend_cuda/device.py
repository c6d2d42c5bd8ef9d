"""Switching the pretend device on."""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor

from pretend_cuda.attention import chosen
from pretend_cuda.graphs import Graph, capturing
from pretend_cuda.record import CUDA, Device
from pretend_cuda.streams import Event, Order, Stream
from pretend_cuda.tensors import CudaTensor, Dispatch, moved

__all__ = ["device"]

NAME = "pretended H200"


@contextlib.contextmanager
def device(*, streams: bool = False) -> Iterator[Device]:
    """The pretend device is there, and nothing else is.

    Arguments:
        streams: see `Device`
    """
    made = Device(streams=streams)
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in _cuda(made).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in {
            "_record_memory_history": lambda *a, **k: None,
            "_dump_snapshot": lambda path, *a, **k: open(path, "w").close(),
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda.memory, name, value))
        # Loaders ask it whether there is anything to pin memory for, optimizers about graphs.
        for name, answer in {
            "is_available": lambda: True,
            "current_accelerator": lambda check_available=False: torch.device("cuda"),
            "current_device_index": lambda: 0,
            "current_stream": lambda device=None: made.order.current,
        }.items():
            stack.enter_context(mock.patch.object(torch.accelerator, name, answer))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, _maker(getattr(torch, name))))
        stack.enter_context(mock.patch.object(Tensor, "to", moved))
        stack.enter_context(mock.patch.object(Tensor, "cuda", lambda x, *a, **k: moved(x, CUDA)))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pinned))
        group = "_group_tensors_by_device_and_dtype"
        stack.enter_context(mock.patch.object(torch._C, group, _grouped(getattr(torch._C, group))))
        stack.enter_context(mock.patch.object(torch, "group_norm", _group_norm(torch.group_norm)))
        stack.enter_context(
            mock.patch.object(
                F,
                "scaled_dot_product_attention",
                _attention(F.scaled_dot_product_attention, made),
            )
        )
        # Accelerate keeps the first device of the process.
        AcceleratorState._reset_state(reset_partial_state=True)
        stack.callback(AcceleratorState._reset_state, reset_partial_state=True)
        # Parameters keep their identity when a module moves, as on a real device.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        stack.enter_context(mock.patch.object(Device, "active", made))
        stack.enter_context(mock.patch.object(Order, "active", made.order))
        stack.enter_context(Dispatch(made))
        yield made


def _cuda(made: Device) -> dict[str, Any]:
    """The functions of torch.cuda."""
    order = made.order

    def properties(device: Any = None) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            name=NAME, total_memory=141 * 10**9, major=9, minor=0, multi_processor_count=132
        )

    def synchronize(device: Any = None) -> None:
        order.synchronize()

    @contextlib.contextmanager
    def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    def no_bytes(device: Any = None) -> int:
        return 0

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_lazy_init": lambda: None,
        "is_initialized": lambda: False,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_arch_list": lambda: ["sm_80", "sm_90"],
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": synchronize,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": no_bytes,
        "max_memory_reserved": no_bytes,
        "memory_allocated": no_bytes,
        "memory_reserved": no_bytes,
        "mem_get_info": lambda device=None: (141 * 10**9, 141 * 10**9),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda device=None: order.current,
        "default_stream": lambda device=None: order.default,
        "stream": order.on,
        "CUDAGraph": Graph,
        "graph": capturing,
        "graph_pool_handle": object,
        "device_of": nothing,
        "device": nothing,
    }


def _maker(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and `torch.as_tensor`: made on the host, then copied."""

    def made(data: Any, *, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
        if isinstance(data, Tensor) and device is None:
            device = data.device
        if isinstance(data, Tensor) and data.device.type == "cuda":
            x = data if dtype is None else data.to(dtype)
        else:
            x = make(data, dtype=dtype, **named)
        return x if device is None else moved(x, device)

    return made


def _pinned(x: Tensor, device: Any = None) -> Tensor:
    """`Tensor.pin_memory`, which a CPU build refuses."""
    return torch.empty_like(x, pin_memory=True).copy_(x)


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    """Tensors by device and dtype, for the foreach functions of optimizers and clipping."""

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        found = {}
        for (device, dtype), (tensors, indices) in group(lists, with_indices).items():
            here = any(isinstance(t, CudaTensor) for ts in tensors for t in ts)
            found[CUDA if here else device, dtype] = (tensors, indices)
        return found

    return grouped


def _group_norm(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """On CUDA x becomes planar first (native/group_norm.cpp); C++ takes it for one of the CPU."""

    def normalised(x: Tensor, *args: Any, **named: Any) -> Tensor:
        return norm(x.contiguous() if isinstance(x, CudaTensor) else x, *args, **named)

    return normalised


def _attention(attend: Callable[..., Tensor], made: Device) -> Callable[..., Tensor]:
    """Scaled dot product attention: the CUDA kernel is chosen here, and the CPU's computes."""

    def attended(q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        if not isinstance(q, CudaTensor):
            return attend(q, k, v, *args, **named)
        if len({t.dtype for t in (q, k, v)}) > 1:
            raise RuntimeError(
                "Expected query, key, and value to have the same dtype, but got "
                f"{[t.dtype for t in (q, k, v)]}"
            )
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        made.attends(chosen(q, k, v), differentiable=differentiable)
        with torch.nn.attention.sdpa_kernel(
            [torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.MATH]
        ):
            return attend(q, k, v, *args, **named)

    return attended
