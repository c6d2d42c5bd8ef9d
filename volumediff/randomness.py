"""Keyed randomness: every random number is a function of a key, never of the past.

A key is a tuple such as (seed, epoch, sample, "noise"). It is hashed to the seed of a fresh
generator, so that a run can be resumed at any step, with any number of workers or processes,
without stored generator state. Numbers are drawn on the CPU in float32 and then moved, so that
they do not depend on the device.
"""

import hashlib

import torch
from torch import Tensor

from volumediff.transfer import sent

__all__ = ["generator", "key", "normal", "uniform"]


def key(*parts: int | str) -> int:
    """A 63-bit integer that depends on all parts and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the key."""
    return torch.Generator().manual_seed(key(*parts))


def normal(
    shape: tuple[int, ...],
    *parts: int | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers of the given shape, drawn from the key."""
    return sent(torch.randn(shape, generator=generator(*parts)), device, dtype=dtype)


def uniform(*parts: int | str) -> float:
    """One number in [0, 1), drawn from the key."""
    return float(torch.rand((), generator=generator(*parts), dtype=torch.float64))
