"""How a GPU multiplies float32 numbers: as IEEE float32, or rounded to TF32 first.

TensorFloat-32 keeps 10 of 23 bits of the fraction, so that sums that should agree to 1e-7 agree to
1e-3. torch computes convolutions with it by default, and matrix products without
(https://docs.pytorch.org/docs/stable/notes/cuda.html).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["Float32", "float32_products"]

Float32 = Literal["ieee", "tf32"]


@contextmanager
def float32_products(precision: Float32) -> Iterator[None]:
    """Convolutions and matrix products of float32 tensors inside the block; CPUs always use IEEE.

    Arguments:
        precision: ieee, or tf32 where the GPU has it (compute capability 8.0 and newer)
    """
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = precision
    try:
        yield
    finally:
        for backend, kept in zip(backends, before, strict=True):
            backend.fp32_precision = kept
