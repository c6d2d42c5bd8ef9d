"""Kernels that compute the same bits in every run: training resumes bit for bit on a GPU, too."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from volumediff.errors import UsageError

__all__ = ["deterministic"]


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic CUDA kernels inside the block; those of the CPU are deterministic already.

    Operations without a deterministic kernel are refused. Attention relies on that: told to warn
    only, torch takes its nondeterministic backward passes.

    Arguments:
        wanted: False leaves everything as it is

    Raises:
        UsageError: an operation inside has no deterministic kernel
    """
    if not wanted:
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    filled = torch.utils.deterministic.fill_uninitialized_memory
    # cuBLAS asks for this variable when its algorithms are to be reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Filling fresh memory finds bugs, not randomness, and costs a pass over every activation.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if found is None:
            raise
        raise UsageError(
            f"deterministic: {found[1]} has no deterministic kernel on this device, and the run "
            "could not be resumed bit for bit; replace the part that uses it, or set "
            "deterministic=false."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        torch.utils.deterministic.fill_uninitialized_memory = filled
