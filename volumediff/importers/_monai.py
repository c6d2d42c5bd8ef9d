"""What the importers of MONAI's networks share: layers by their names.

A layer of MONAI is a prefix of names. Its convolutions are wrapped (`conv1.conv.weight`), those of
MAISI's autoencoder twice, and checkpoints from before MONAI 1.4 (the generative repository) have
other names in attention.
"""

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers._base import ForeignCheckpoint

__all__ = [
    "attention",
    "context_of",
    "count",
    "layer",
    "prefix",
    "residual_block",
    "sized",
    "take_records",
    "transformer",
    "wrapping",
]

# What MONAI's trainers save beside the weights, and what does not change what they compute.
RECORDS = ("epoch", "loss", "num_train_timesteps")


def prefix(source: ForeignCheckpoint, stem: str) -> str:
    """What stands before all names, such as `unet_state_dict.`.

    Arguments:
        stem: a name that every checkpoint of the kind has

    Raises:
        DataError: not one tensor of this name
    """
    found = [name for name in source.left if name == stem or name.endswith(f".{stem}")]
    if len(found) != 1:
        raise DataError(
            f"{source.where}: expected one tensor {stem}, got {len(found)}; is it a checkpoint of "
            "this kind?"
        )
    return found[0].removesuffix(stem)


def count(source: ForeignCheckpoint, pattern: str) -> int:
    """How many names there are in a row that are `pattern` with 0, 1, ... in place of `*`."""
    number = 0
    while pattern.replace("*", str(number)) in source:
        number += 1
    return number


def take_records(source: ForeignCheckpoint) -> None:
    """Takes what a trainer wrote about itself."""
    for name in RECORDS:
        if name in source:
            source.take(name, ())


def sized(source: ForeignCheckpoint, name: str, *, axes: int) -> tuple[int, ...]:
    """The shape of a tensor: 5 axes are a convolution of volumes, where images have 4.

    Raises:
        DataError: another number of axes
    """
    shape = source.shape(name)
    if len(shape) != axes:
        raise DataError(f"{source.where}: {name} has shape {shape}, expected {axes} axes.")
    return shape


def wrapping(source: ForeignCheckpoint, name: str) -> int | None:
    """How often a layer is wrapped, k of `name` and k times `.conv`; None without one."""
    return next((k for k in range(4) if f"{name}{'.conv' * k}.weight" in source), None)


def layer(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution, a linear layer or a normalisation."""
    theirs += ".conv" * (wrapping(source, theirs) or 0)
    return {f"{ours}.{n}": source.take(f"{theirs}.{n}") for n in ("weight", "bias")}


def residual_block(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """A residual block, with or without embedding and shortcut."""
    names = {"norm1": "act1.norm", "conv1": "conv1", "norm2": "act2.norm", "conv2": "conv2"}
    optional = {"time_emb_proj": "project", "skip_connection": "shortcut"}
    optional |= {"nin_shortcut": "shortcut"}
    names |= {k: v for k, v in optional.items() if wrapping(source, f"{theirs}.{k}") is not None}
    found: dict[str, Tensor] = {}
    for theirs_, ours_ in names.items():
        found |= layer(source, f"{theirs}.{theirs_}", f"{ours}.{ours_}")
    return found


def attention(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Self-attention; a network without an output projection gets the identity."""
    found = layer(source, f"{theirs}.norm", f"{ours}.norm")
    width = found[f"{ours}.norm.weight"].shape[0]
    inner = (
        f"{theirs}.attn"
        if any(f"{theirs}.attn.{n}.weight" in source for n in ("qkv", "to_q"))
        else theirs
    )
    if f"{inner}.qkv.weight" in source:
        found |= layer(source, f"{inner}.qkv", f"{ours}.qkv")
    else:
        for n, shape in (("weight", (width, width)), ("bias", (width,))):
            parts = [source.take(f"{inner}.to_{part}.{n}", shape) for part in "qkv"]
            found[f"{ours}.qkv.{n}"] = torch.cat(parts)
    like = found[f"{ours}.qkv.weight"]
    return found | _projection(source, (f"{inner}.out_proj", f"{theirs}.proj_attn"), ours, like)


def context_of(source: ForeignCheckpoint, p: str) -> int:
    """Length of a token of the context; 0 for a network without cross-attention."""
    ending = ".transformer_blocks.0.attn2.to_k.weight"
    names = [n for n in source.left if n.startswith(p) and n.endswith(ending)]
    return sized(source, names[0], axes=2)[1] if names else 0


def transformer(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Transformer blocks on the voxels of a volume."""
    found = layer(source, f"{theirs}.norm", f"{ours}.norm")
    for name, name_ours in (("proj_in", "tokens"), ("proj_out", "out")):
        for n, tensor in layer(source, f"{theirs}.{name}", f"{ours}.{name_ours}").items():
            # a convolution over single voxels is a linear map of their channels
            found[n] = tensor.flatten(1) if tensor.ndim == 5 else tensor
    for i in range(count(source, f"{theirs}.transformer_blocks.*.norm1.weight")):
        block, name = f"{theirs}.transformer_blocks.{i}", f"{ours}.blocks.{i}"
        for norm in ("norm1", "norm2", "norm3"):
            found |= layer(source, f"{block}.{norm}", f"{name}.{norm}")
        found |= _token_attention(source, f"{block}.attn1", f"{name}.to_tokens")
        found |= _token_attention(source, f"{block}.attn2", f"{name}.to_context")
        for linear, name_ours in (("linear1", "inner"), ("linear2", "outer")):
            found |= layer(source, f"{block}.ff.{linear}", f"{name}.feed.{name_ours}")
    return found


def _token_attention(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Queries apart, keys and values joined; none has a bias."""
    joined = f"{theirs}.qkv.weight"
    if joined in source:
        sized(source, joined, axes=2)
        query, *others = source.take(joined).chunk(3)
    else:
        names = [f"{theirs}.to_{part}.weight" for part in "qkv"]
        width = sized(source, names[0], axes=2)[0]
        inner = (width, sized(source, names[1], axes=2)[1])
        query, *others = source.take(names[0]), *(source.take(n, inner) for n in names[1:])
    found = {f"{ours}.q.weight": query, f"{ours}.kv.weight": torch.cat(others)}
    # `to_out.0` in checkpoints from before MONAI 1.4
    return found | _projection(source, (f"{theirs}.out_proj", f"{theirs}.to_out.0"), ours, query)


def _projection(
    source: ForeignCheckpoint, names: tuple[str, ...], ours: str, like: Tensor
) -> dict[str, Tensor]:
    """The projection of what attention gives, by one of its names; without one the identity."""
    for name in names:
        if f"{name}.weight" in source:
            return layer(source, name, f"{ours}.out")
    width = like.shape[1]
    identity = torch.eye(width, dtype=like.dtype)
    return {f"{ours}.out.weight": identity, f"{ours}.out.bias": like.new_zeros(width)}
