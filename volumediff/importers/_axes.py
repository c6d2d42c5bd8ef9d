"""Axes of the arrays that other tools train on, and networks of mirrored volumes.

Ours run to the right, anterior and superior. A network with all kernels mirrored along an axis is
the same function of mirrored volumes.
"""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["mirrored", "mirrors"]

DIRECTIONS = ("RL", "AP", "SI")


def mirrors(axes: str) -> tuple[bool, bool, bool]:
    """Whether arrays along `axes`, such as LPS, run against our R, A, S.

    Raises:
        ValueError: these are no three axes in this order
    """
    if len(axes) != 3 or any(a not in pair for a, pair in zip(axes, DIRECTIONS, strict=True)):
        raise ValueError(
            f"expected axes such as LPS: R or L, then A or P, then S or I; got {axes!r}"
        )
    d, h, w = (a != pair[0] for a, pair in zip(axes, DIRECTIONS, strict=True))
    return d, h, w


def mirrored(tensors: Mapping[str, Tensor], axes: str) -> dict[str, Tensor]:
    """The tensors with all kernels of volumes mirrored."""
    dims = [dim for dim, mirror in enumerate(mirrors(axes), start=2) if mirror]
    return {n: t.flip(dims) if t.ndim == 5 and dims else t for n, t in tensors.items()}
