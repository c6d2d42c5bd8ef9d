"""What CUDA kernels refuse and those of the CPU take, each with its source.

Contracts see dtypes, shapes and layouts alone, so that they hold for tensors of the pretend device
and for fake tensors of any size alike. `native/` is short for aten/src/ATen/native of pytorch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["CONTRACTS", "Contract", "check"]

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
INDEX_LIMIT = 2**31 - 1


class Contract:
    """What one kernel asks for.

    Arguments:
        source: file of pytorch, issue or page that says so
        rule: called as the operation is; raises RuntimeError
    """

    def __init__(self, source: str, rule: Callable[..., None]) -> None:
        self.source, self.rule = source, rule


def check(func: torch._ops.OpOverload, args: Any, kwargs: Any) -> None:
    """Raises RuntimeError where the CUDA kernel would, with the source of the rule."""
    contract = CONTRACTS.get(func)
    if contract is None:
        return
    try:
        contract.rule(*args, **kwargs)
    except RuntimeError as error:
        raise RuntimeError(f"{error} [{func} on CUDA: {contract.source}]") from None


def _same_dtype(x: Tensor, *others: Tensor | None) -> None:
    for other in others:
        if other is not None and other.dtype != x.dtype:
            raise RuntimeError(f"expected scalar type {x.dtype} but found {other.dtype}")


def _statistics(x: Tensor, *statistics: Tensor) -> None:
    """Accumulated in float32 for half precision, in the dtype of x otherwise."""
    wanted = torch.float32 if x.dtype in HALF else x.dtype
    for one in statistics:
        if one.dtype != wanted:
            raise RuntimeError(f"expected scalar type {wanted} but found {one.dtype}")


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    _same_dtype(x, weight, bias)


def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Any,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Any,
) -> None:
    _same_dtype(x, grad, weight)
    _statistics(x, mean, rstd)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, hw: int, *rest: Any
) -> None:
    if not x.is_contiguous():
        raise RuntimeError("Expected X.is_contiguous(memory_format) to be true, but got false.")
    _same_dtype(x, weight, bias)


def _group_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *rest: Any
) -> None:
    if not (x.is_contiguous() and grad.is_contiguous()):
        raise RuntimeError("Expected X.is_contiguous(memory_format) to be true, but got false.")
    _same_dtype(x, grad, mean, rstd, weight)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    *rest: Any,
) -> None:
    given = [t for t in (weight, bias, mean, variance) if t is not None]
    wanted = {x.dtype, torch.float32} if x.dtype in HALF else {x.dtype}
    if len({t.dtype for t in given}) > 1 or any(t.dtype not in wanted for t in given):
        raise RuntimeError(f"parameters of {[t.dtype for t in given]} with an input of {x.dtype}")


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
    for name, one in (("weight", weight), ("bias", bias)):
        if one is not None and one.dtype != x.dtype:
            raise RuntimeError(
                f"Input type ({x.dtype}) and {name} type ({one.dtype}) should be the same"
            )


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> None:
    _convolution(x, weight, None)
    _same_dtype(x, grad)


def _matmul(a: Tensor, b: Tensor, *rest: Any, **named: Any) -> None:
    if a.dtype != b.dtype:
        raise RuntimeError(
            f"expected mat1 and mat2 to have the same dtype, but got: {a.dtype} != {b.dtype}"
        )
    if not (a.is_floating_point() or a.is_complex()):
        raise RuntimeError(f"no CUDA kernel of matrix products for {a.dtype}")


def _added_matmul(c: Tensor, a: Tensor, b: Tensor, *rest: Any, **named: Any) -> None:
    _matmul(a, b)
    _matmul(c, a)


def _indexed_in_32_bits(*tensors: Any, **named: Any) -> None:
    for one in tensors:
        if isinstance(one, Tensor) and one.numel() > INDEX_LIMIT:
            raise RuntimeError(
                f"input tensor must fit into 32-bit index math, got {tuple(one.shape)}"
            )


def _transform(x: Tensor, dim: Any, *rest: Any, **named: Any) -> None:
    if x.dtype == torch.bfloat16:
        raise RuntimeError("Unsupported dtype BFloat16")
    sizes = [x.shape[d] for d in dim]
    if x.dtype == torch.float16 and any(n & (n - 1) for n in sizes):
        raise RuntimeError(
            "cuFFT only supports dimensions whose sizes are powers of two when computing in half "
            f"precision, but got a signal size of {sizes}"
        )


NORMS = "native/cuda/layer_norm_kernel.cu, data_ptr<T> of gamma and statistics; issue 138128"
GROUPS = (
    "native/group_norm.cpp, is_contiguous of the planar format; native/cuda/group_norm_kernel.cu"
)
CONVOLUTIONS = "native/Convolution.cpp, check_input_same_type_as_parameters"
PRODUCTS = "native/cuda/Blas.cpp, same dtype of mat1 and mat2; no integer kernels"
PADS = "native/cuda/ReflectionPad.cu and ReplicationPadding.cu, canUse32BitIndexMath"
CONTRACTS: dict[torch._ops.OpOverload, Contract] = {
    aten.native_layer_norm.default: Contract(NORMS, _layer_norm),
    aten.native_layer_norm_backward.default: Contract(NORMS, _layer_norm_backward),
    aten.native_group_norm.default: Contract(GROUPS, _group_norm),
    aten.native_group_norm_backward.default: Contract(GROUPS, _group_norm_backward),
    aten.native_batch_norm.default: Contract(
        "native/cuda/Normalization.cu, is_mixed_type asks for one dtype of all parameters",
        _batch_norm,
    ),
    aten.convolution.default: Contract(CONVOLUTIONS, _convolution),
    aten.convolution_backward.default: Contract(CONVOLUTIONS, _convolution_backward),
    aten.mm.default: Contract(PRODUCTS, _matmul),
    aten.bmm.default: Contract(PRODUCTS, _matmul),
    aten.addmm.default: Contract(PRODUCTS, _added_matmul),
    aten.baddbmm.default: Contract(PRODUCTS, _added_matmul),
    aten._fft_r2c.default: Contract(
        "native/cuda/CuFFTPlanCache.h, sizes in half precision", _transform
    ),
}
CONTRACTS |= {
    op: Contract(PADS, _indexed_in_32_bits)
    for op in (
        aten.reflection_pad1d.default,
        aten.reflection_pad2d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad1d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
    )
}
