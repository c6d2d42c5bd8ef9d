"""Checks of what a component returned: its shape, and that it is finite."""

import inspect

import torch
from torch import Tensor

from volumediff.errors import ComponentError

__all__ = ["sound"]


def sound(volume: Tensor, like: Tensor, *, maker: object, what: str) -> Tensor:
    """The volume itself.

    Arguments:
        volume: map (1, 1, d, h, w) or pseudo-healthy volume (1, c, d, h, w)
        like: a tensor of the shape that it must have
        maker: component that made it, for the message
        what: name of the volume, for the message

    Raises:
        ComponentError: another shape, or values that are not finite
    """
    if volume.shape != like.shape:
        raise ComponentError(
            f"{_named(maker)}: expected a {what} of the shape {tuple(like.shape)}, got "
            f"{tuple(volume.shape)}."
        )
    bad = volume.numel() - int(torch.isfinite(volume).sum())
    if bad:
        raise ComponentError(
            f"{_named(maker)}: expected a {what} of finite values, got {bad} of {volume.numel()} "
            "that are not."
        )
    return volume


def _named(maker: object) -> str:
    """The class of a component, with file and line where they are known."""
    cls = type(maker)
    try:
        place = f" ({inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]})"
    except (OSError, TypeError):  # made on the fly
        place = ""
    return f"{cls.__module__}.{cls.__qualname__}{place}"
