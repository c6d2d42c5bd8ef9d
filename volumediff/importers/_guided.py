r"""Checkpoints of the guided-diffusion lineage -> the network `guided`.

The published networks embed the step k = 0..T-1, T = 1000 mostly, ours embeds T t = k + 1. With
the features :math:`c_i = \cos T t\, \omega_i` and :math:`s_i = \sin T t\, \omega_i`,

.. math:: \cos k \omega_i = c_i \cos\omega_i + s_i \sin\omega_i, \qquad
          \sin k \omega_i = s_i \cos\omega_i - c_i \sin\omega_i,

so that a rotation of the columns of the first weight matrix gives the same function of t. Where
the number of features is odd, the published code appends a feature that is always 0; its column
is left out.

The published code reads arrays as they lie in the file, which for BraTS run to the left, posterior
and superior; ours run to the right, anterior and superior. A network with all kernels mirrored
along an axis is the same function of mirrored volumes. Of a strided convolution, y_j = sum_o w_o
x_{2 j + o} with o from -1 to 1, the mirror image on an axis of even length is sum_p w_{1 - p}
x_{2 j + p} with p from 0 to 2: a kernel of size 5 that begins with two zeros. Networks on Haar
coefficients see even and odd voxels change places along such an axis: a band changes its sign for
every mirrored axis that it is high along, and stem and head take up the signs.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers._axes import mirrors
from volumediff.importers._base import ForeignCheckpoint, Shapes
from volumediff.importers._haar import BANDS, signs

__all__ = [
    "architecture",
    "in_channels",
    "network",
    "network_of_bands",
    "out_channels",
]

STEM, HEAD = "input_blocks.0.0", "out.2"
BLOCK = {
    "act1.norm": "in_layers.0",
    "conv1": "in_layers.2",
    "project": "emb_layers.1",
    "act2.norm": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
OURS = "network."
TIME = "embedding.time.0.weight"


def in_channels(source: ForeignCheckpoint) -> int:
    """Channels of the input of the published network."""
    return source.shape(f"{STEM}.weight")[1]


def out_channels(source: ForeignCheckpoint) -> int:
    """Channels of its output."""
    return source.shape(f"{HEAD}.weight")[0]


def architecture(source: ForeignCheckpoint, axes: str) -> dict[str, Any]:
    """The network's specification, but for the groups, which leave no trace in a shape.

    Arguments:
        source: the checkpoint
        axes: directions of the arrays that it was trained with

    Raises:
        DataError: not of this lineage, or with skips of another kind
    """
    count = 0
    while f"output_blocks.{count}.0.in_layers.0.weight" in source:
        count += 1
    ups = [i for i in range(count) if any(name in source for name in _ups(i))]
    blocks = ups[0] if ups else count - 1
    levels = len(ups) + 1
    if count != levels * (blocks + 1) or blocks < 1:
        raise DataError(
            f"{source.where}: is no U-Net of the guided-diffusion lineage (found {count} decoder "
            f"blocks and {len(ups)} up-samplings)."
        )
    first = [1 + level * (blocks + 1) for level in range(levels)]
    widths = [source.shape(f"input_blocks.{i}.0.out_layers.3.weight")[0] for i in first]
    taken = source.shape("output_blocks.0.0.in_layers.0.weight")[0]
    if taken not in (widths[-1], 2 * widths[-1]):
        raise DataError(
            f"{source.where}: has a decoder block of {taken} channels where {widths[-1]}, for "
            f"skips that are added, or {2 * widths[-1]}, for concatenated ones, are expected."
        )
    film = source.shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0]
    strided = f"input_blocks.{blocks + 1}.0.op.weight" in source
    return {
        "name": "guided",
        "widths": widths,
        "blocks": blocks,
        "embedding": "film" if film else "additive",
        **({"skips": "concatenated"} if taken > widths[-1] else {}),
        **(
            {"resampling": "convolution", "down_kernel": [5 if m else 3 for m in mirrors(axes)]}
            if strided
            else {"resampling": "block"}
        ),
    }


def network(source: ForeignCheckpoint, shapes: Shapes, axes: str) -> dict[str, Tensor]:
    """The tensors of the network, by the names that the run's shapes have for them, in float32."""
    shapes = {n.removeprefix(OURS): s for n, s in shapes.items() if n.startswith(OURS)}
    levels = 1 + max(int(n.split(".")[1]) for n in shapes if n.startswith("encoder."))
    blocks = 1 + max(int(n.split(".")[2]) for n in shapes if n.startswith("encoder."))
    found = {}
    for name, shape in shapes.items():
        theirs = _theirs(name, levels, blocks)
        if name == TIME:
            width, features = shape
            whole = (width, width // 4)  # with the column that an odd number of features leaves
            tensor = _shifted(source.take(theirs, whole).double()[:, :features])
        elif len(shape) == 5:
            # Kernels are published with at most 3 voxels; a mirrored one of a stride has 5.
            sizes = tuple(min(k, 3) for k in shape[2:])
            tensor = _mirrored(source.take(theirs, (*shape[:2], *sizes)), axes)
            tensor = F.pad(tensor, [n for k in shape[:1:-1] for n in (k - min(k, 3), 0)])
        else:
            tensor = source.take(theirs, shape)
        found[OURS + name] = tensor.float()
    return found


def network_of_bands(source: ForeignCheckpoint, shapes: Shapes, axes: str) -> dict[str, Tensor]:
    """The same of a network on Haar coefficients, whose signs are those of our orientation.

    The input is the eight bands of the state, then those of each image condition.
    """
    found = network(source, shapes, axes)
    sign = signs(mirrors(axes))
    stem, head = f"{OURS}stem.weight", f"{OURS}head"
    volumes = found[stem].shape[1] // BANDS
    return {
        **found,
        stem: found[stem] * sign.repeat(volumes)[:, None, None, None],
        f"{head}.weight": found[f"{head}.weight"] * sign[:, None, None, None, None],
        f"{head}.bias": found[f"{head}.bias"] * sign,
    }


def _ups(index: int) -> tuple[str, str]:
    """Names that show an up-sampling behind a decoder block."""
    prefix = f"output_blocks.{index}.1"
    return f"{prefix}.in_layers.0.weight", f"{prefix}.conv.weight"


def _theirs(name: str, levels: int, blocks: int) -> str:
    """Their name of one of our tensors."""
    place, _, kind = name.rpartition(".")
    if name.startswith("embedding.time."):
        return f"time_embed.{2 * int(place[-1])}.{kind}"
    fixed = {"stem": STEM, "act.norm": "out.0", "head": HEAD}
    if place in fixed:
        return f"{fixed[place]}.{kind}"
    part, index, *rest = place.split(".")
    level, per_level = int(index), blocks + 1
    if part == "middle":
        prefix = f"middle_block.{level}"
    elif part == "encoder":
        prefix = f"input_blocks.{1 + level * per_level + int(rest.pop(0))}.0"
    elif part == "down":
        prefix = f"input_blocks.{(level + 1) * per_level}.0"
    elif part == "decoder":
        prefix = f"output_blocks.{(levels - 1 - level) * per_level + int(rest.pop(0))}.0"
    else:  # up, behind the last decoder block of the next coarser level
        prefix = f"output_blocks.{(levels - 1 - level) * per_level - 1}.1"
    if part in ("down", "up") and rest == ["conv"]:
        return f"{prefix}.{'op' if part == 'down' else 'conv'}.{kind}"
    rest = rest[1:] if rest[:1] == ["block"] else rest
    return f"{prefix}.{BLOCK['.'.join(rest)]}.{kind}"


def _mirrored(weight: Float[Tensor, "o i kd kh kw"], axes: str) -> Float[Tensor, "o i kd kh kw"]:
    return weight.flip([dim for dim, mirror in enumerate(mirrors(axes), start=2) if mirror])


def _shifted(weight: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Weights for the features of k + 1 from those for the features of k."""
    half = weight.shape[1] // 2
    index = torch.arange(half, dtype=weight.dtype)
    omega = torch.exp(-math.log(10_000) / half * index)
    cosine, sine = weight.chunk(2, dim=1)
    return torch.cat(
        (
            cosine * omega.cos() - sine * omega.sin(),
            cosine * omega.sin() + sine * omega.cos(),
        ),
        dim=1,
    )
