r"""silu(s x̂ + b) with x̂ the normalised input: one function that stores nothing but its input.

Written with separate operations, normalisation, FiLM and activation each keep a tensor of the size
of the volume for the backward pass. Here the backward pass forms them again from x.

There are two forms, equal to rounding: Triton kernels (`_norm_act_triton`), which read and write a
volume 3 + 5 times in 2 + 3 launches, and operations of torch (`_norm_act_group`,
`_norm_act_local`), for whatever the kernels cannot take. Which one runs follows from device, dtype
and layout of x by one rule, `_form`. Nothing here measures and chooses by itself: a choice by
timing may differ between two sessions of one run, and a resumed run would lose its bits.
"""

import functools
import importlib.util
import os
import shutil
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from volumediff.networks._norm_act_group import GroupNormAct
from volumediff.networks._norm_act_local import LocalNormAct

__all__ = ["NormKind", "as_images", "as_stack", "fused_refusal", "norm_act", "runs_fused"]

NormKind = Literal["group", "slice", "voxel"]
"""What is normalised together: see `volumediff.networks._layers.Norm`."""


def norm_act(
    x: Float[Tensor, "b c d h w"],
    scale: Float[Tensor, "b c"],
    shift: Float[Tensor, "b c"],
    *,
    kind: NormKind,
    groups: int,
    eps: float,
    fused: bool | None = None,
) -> Float[Tensor, "b c d h w"]:
    """silu(scale * normalised x + shift).

    Arguments:
        scale, shift: per sample and channel, in float32 or float64
        kind: what is normalised together
        groups: channel groups of the statistics; `voxel` takes all channels together
        fused: whether the Triton kernels compute it; None where they can without a copy of x. On
            a CPU they never do

    Raises:
        ValueError: x is on a GPU and the fused kernels cannot take it
    """
    if has_torch_function_unary(x):
        named = {"kind": kind, "groups": groups, "eps": eps, "fused": fused}
        return handle_torch_function(norm_act, (x,), x, scale, shift, **named)
    form = _form(x, kind, fused)
    if kind == "voxel":
        return form.apply(x, scale, shift, None, eps)
    if kind == "group":
        return form.apply(x, scale, shift, groups, eps)
    slices = x.shape[2]
    scale, shift = (v.repeat_interleave(slices, dim=0) for v in (scale, shift))
    return as_stack(form.apply(as_images(x), scale, shift, groups, eps), slices)


def fused_refusal(x: Tensor) -> str:
    """Why the fused kernels cannot take x, or an empty string."""
    reason = _lacking()
    if reason:
        return reason
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "its kernels take float32, bfloat16 and float16"
    from volumediff.networks._norm_act_triton import INTERPRETED

    if x.device.type != "cuda" and not INTERPRETED:
        return "its kernels need a GPU"
    return ""


@functools.cache
def _lacking() -> str:
    """What triton needs and this machine has not, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if "CC" not in os.environ and not any(map(shutil.which, ("gcc", "clang"))):
        return "triton finds no C compiler"
    return ""


def runs_fused(x: Tensor, fused: bool | None) -> bool:
    """Whether Triton kernels compute norms of x: see `norm_act` for `fused`.

    Raises:
        ValueError: they were asked for, x is on a GPU, and they cannot take it
    """
    cpu = x.device.type == "cpu"
    # Without data there is nothing to launch a kernel on, and a compiler makes its own.
    traced = type(x) not in (Tensor, nn.Parameter) or x.is_meta or torch.compiler.is_compiling()
    if fused is False or traced or (fused is None and cpu):
        return False
    reason = fused_refusal(x)
    # What was trained on a GPU must run on a CPU as well.
    if reason and (fused is None or cpu):
        return False
    if reason:
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(
            f"fused normalisation cannot run on {x.device.type} with {dtype}: {reason}; "
            "set 'fused' to null or false"
        )
    return bool(fused) or x[0].movedim(0, -1).is_contiguous()


def _form(x: Tensor, kind: NormKind, fused: bool | None) -> type[torch.autograd.Function]:
    """What computes the function of x.

    Triton where it was asked for; where nothing was said, on a GPU whose tensor the kernels read
    in place. Operations of torch otherwise.
    """
    if not runs_fused(x, fused):
        return GroupNormAct if kind == "group" else LocalNormAct
    from volumediff.networks._norm_act_triton import FusedNormAct

    return FusedNormAct


def as_images(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b*d c h w"]:
    """A volume as a batch of its slices; a view when channels are last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def as_stack(y: Float[Tensor, "n c h w"], slices: int) -> Float[Tensor, "b c d h w"]:
    """The inverse of `as_images`."""
    return y.unflatten(0, (-1, slices)).transpose(1, 2)
