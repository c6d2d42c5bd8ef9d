"""Operations of which torch has no deterministic CUDA kernel.

`torch.use_deterministic_algorithms` documents the list: in that mode they raise, and with
`warn_only` they run all the same. Here is the same list by operation, as `alertNotDeterministic`
names them in aten/src/ATen/native/cuda; a test holds it against the documentation of the installed
torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["DOCUMENTED", "OPERATIONS", "is_nondeterministic"]

DOCUMENTED: Mapping[str, tuple[str, ...]] = {
    "torch.nn.AvgPool3d": ("avg_pool3d_backward",),
    "torch.nn.AdaptiveAvgPool2d": ("_adaptive_avg_pool2d_backward",),
    "torch.nn.AdaptiveAvgPool3d": ("_adaptive_avg_pool3d_backward",),
    "torch.nn.AdaptiveMaxPool2d": ("adaptive_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool2d": ("fractional_max_pool2d_backward",),
    "torch.nn.FractionalMaxPool3d": ("fractional_max_pool3d_backward",),
    "torch.nn.MaxUnpool1d": ("max_unpool2d",),
    "torch.nn.MaxUnpool2d": ("max_unpool2d",),
    "torch.nn.MaxUnpool3d": ("max_unpool3d",),
    "torch.nn.functional.interpolate": (
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward",
        "_upsample_bicubic2d_aa_backward",
        "upsample_trilinear3d_backward",
    ),
    "torch.nn.ReflectionPad1d": ("reflection_pad1d_backward",),
    "torch.nn.ReflectionPad2d": ("reflection_pad2d_backward",),
    "torch.nn.ReflectionPad3d": ("reflection_pad3d_backward",),
    "torch.nn.NLLLoss": ("nll_loss2d_forward",),
    "torch.nn.CTCLoss": ("_ctc_loss_backward", "_cudnn_ctc_loss"),
    "torch.nn.EmbeddingBag": ("_embedding_bag_dense_backward",),
    "torch.Tensor.put_": ("put_", "put"),
    "torch.histc": ("histc",),
    "torch.bincount": ("bincount",),
    "torch.median": ("median", "nanmedian"),
    "torch.nn.functional.grid_sample": ("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    "torch.cumsum": ("cumsum", "cumsum_"),
    "torch.Tensor.scatter_reduce": ("scatter_reduce", "scatter_reduce_"),
    "torch.Tensor.resize_": (),  # of quantized tensors, which this package has none of
}
"""Operations (names of torch.ops.aten) by entry of the documentation."""
OPERATIONS = frozenset(name for names in DOCUMENTED.values() for name in names)


def _floating(self: Tensor, *rest: Any, **named: Any) -> bool:
    return self.is_floating_point() or self.is_complex()


def _weighted(self: Tensor, weights: Tensor | None = None, *rest: Any) -> bool:
    return weights is not None


def _product(
    self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, **named: Any
) -> bool:
    return reduce == "prod"


def _along_an_axis(self: Tensor, *rest: Any, **named: Any) -> bool:
    return bool(rest) or bool(named)


# Where it depends on the arguments, as documented.
CONDITIONS: Mapping[str, Callable[..., bool]] = {
    "cumsum": _floating,
    "cumsum_": _floating,
    "bincount": _weighted,
    "scatter_reduce": _product,
    "scatter_reduce_": _product,
    "median": _along_an_axis,
    "nanmedian": _along_an_axis,
}


def is_nondeterministic(func: torch._ops.OpOverload, args: Any, kwargs: Any) -> bool:
    """Whether two runs of this call on a CUDA device may differ in spite of everything."""
    name = func.overloadpacket.__name__
    if name not in OPERATIONS:
        return False
    condition = CONDITIONS.get(name)
    return condition is None or condition(*args, **kwargs)
