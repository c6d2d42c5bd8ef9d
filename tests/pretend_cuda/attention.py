"""Which kernel torch's scaled dot product attention takes on a CUDA device, and who may not.

The rules are those of native/transformers/cuda/sdp_utils.cpp of pytorch for compute capability
9.0 (cuDNN's kernel first, which CUDA 13 wheels prefer there; then flash, efficient, math), without
masks, dropout and nested tensors. Whether backward is deterministic: `check_cudnn_deterministic`
in that file; flash and efficient attention are with `torch.use_deterministic_algorithms(True)` and
are not with `warn_only`, native/transformers/cuda/attention_backward.cu.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Choice", "chosen"]

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Choice:
    """One call of attention.

    Arguments:
        kernel: cudnn, flash, efficient or math
        deterministic: whether its backward pass is
        scores: numbers that it stores for all pairs of tokens; 0 but for math
    """

    kernel: str
    deterministic: bool
    scores: int


def chosen(q: Tensor, k: Tensor, v: Tensor) -> Choice:
    """The kernel for q, k, v of shape (batch, heads, tokens, size).

    Raises:
        RuntimeError: none of the kernels that are enabled can run
    """
    strict = torch.are_deterministic_algorithms_enabled() and (
        not torch.is_deterministic_algorithms_warn_only_enabled()
    )
    enabled = torch.backends.cuda
    size = q.shape[-1]
    rows = all(t.stride(-1) == 1 for t in (q, k, v))
    half = q.dtype in HALF
    if enabled.cudnn_sdp_enabled() and not strict and half and rows:
        # check_cudnn_tensor_shapes; more than 128 only with cuDNN above 9.22
        if size % 8 == 0 and size <= 128 and k.shape[2] > 1 and max(q.shape[:2]) <= 65535:
            return Choice("cudnn", False, 0)
    if enabled.flash_sdp_enabled() and half and rows and size <= 256:
        return Choice("flash", strict, 0)
    if enabled.mem_efficient_sdp_enabled() and rows and (half or q.dtype == torch.float32):
        alignment = 8 if half else 4  # minimum_gemm_alignment: 16 bytes
        starts = [t.storage_offset() % alignment for t in (q, k, v)]
        if size % alignment == 0 and not any(starts):
            return Choice("efficient", strict, 0)
    if enabled.math_sdp_enabled():
        return Choice("math", True, q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
    raise RuntimeError("No available kernel. Aborting execution.")
