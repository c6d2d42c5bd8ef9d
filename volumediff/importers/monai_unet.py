"""DiffusionModelUNet and DiffusionModelUNetMaisi of MONAI -> a diffusion model of `monai_unet`.

Widths, blocks, attention, classes and scalars are read off the tensors, and what no tensor tells
off the bundle's settings beside the weights. Where these do not say it, it is given in words:

    importer.head_size   channels of an attention head, always needed; MAISI has 32
    space.autoencoder    the run of the autoencoder, for a model of latents
    kernel               the schedule, here MAISI's for discrete steps, and what is predicted
    network.offset       0.0 for a model trained in continuous time, see `monai_unet`
    network.groups       unless it is 32

The context of cross-attention is made of scalars, a single token unless importer.tokens says more;
as channels of the input, too, where the network takes so many more than it gives.

A label y is MONAI's class y. The null class, which the checkpoint has not, embeds as zero. Scalars
are read as they are: MAISI wants its regions one-hot and the spacing in hundredths of a
millimetre. The axes of arrays that MONAI oriented to RAS are ours; along an axis that runs the
other way, kernels are mirrored. A network of one channel diffuses voxels, with MONAI's
intensities in [0, 1].
"""

from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError, UsageError
from volumediff.importers import _monai_bundle
from volumediff.importers._axes import mirrored, mirrors
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Ranges, Shapes
from volumediff.importers._monai import (
    attention,
    context_of,
    count,
    layer,
    prefix,
    residual_block,
    sized,
    take_records,
    transformer,
    wrapping,
)
from volumediff.importers._published import Settings, agreed

__all__ = ["MonaiUNetImporter"]

STEM = "conv_in.conv.weight"
MIDDLE = "middle_block.attention.transformer_blocks"
SCALE = "scale_factor"
NETWORKS = ("DiffusionModelUNet", "DiffusionModelUNetMaisi")
# In the order in which MAISI appends them to the embedding, with names for the scalars.
SCALARS = {
    "top_region_index_layer": "top_region",
    "bottom_region_index_layer": "bottom_region",
    "spacing_layer": "spacing",
}


class MonaiUNetImporter(Importer):
    """Diffusion U-Nets of MONAI, with self-attention or attention to a context of scalars.

    Arguments:
        head_size: channels of an attention head, one number or one per level; has to be given
            where no settings say it
        tokens: of the context of cross-attention
        axes: directions of the arrays it was trained with, such as LAS; by default those that the
            bundle turns volumes to, or RAS
    """

    def __init__(
        self,
        head_size: int | tuple[int, ...] | None = None,
        *,
        tokens: int = 1,
        axes: str | None = None,
    ) -> None:
        if axes is not None:
            mirrors(axes)
        self.axes = axes
        if tokens < 1:
            raise ValueError(f"tokens must be positive, got {tokens}")
        self.head_size = head_size
        self.tokens = tokens

    def origin(self, source: ForeignCheckpoint) -> Origin:
        return _monai_bundle.origin(source)

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = prefix(source, STEM)
        channels = sized(source, f"{p}{STEM}", axes=5)[1]
        given = sized(source, f"{p}out.2.conv.weight", axes=5)[0]
        context = context_of(source, p)
        tokens = self.tokens * context
        if channels not in (given, given + tokens):
            beside = f", or beside it the {tokens} numbers of its context" if context else ""
            raise DataError(
                f"{source.where}: takes {channels} channels and gives {given}; expected a network "
                f"that takes the state alone{beside}."
            )
        blocks = _blocks(source, p)
        first = [f"{p}down_blocks.{i}" for i in range(len(blocks))]
        widths = [sized(source, f"{b}.resnets.0.norm2.weight", axes=1)[0] for b in first]
        told = _monai_bundle.calls(source, *NETWORKS, widths=widths, channels=channels)
        classes = f"{p}class_embedding.weight"
        labels = sized(source, classes, axes=2)[0] if classes in source else 0
        groups = {
            name: sized(source, f"{p}{key}.0.weight", axes=2)[1]
            for key, name in SCALARS.items()
            if f"{p}{key}.0.weight" in source
        }
        scalars = [f"{name}_{i}" for name, n in groups.items() for i in range(n)]
        scalars += _monai_bundle.context_names(source, tokens)
        recipe: dict[str, Any] = {"name": "healthy", "scalars": scalars}
        if labels:
            values = [str(i) for i in range(labels)]
            recipe |= {"name": "class_conditional", "attribute": "class", "values": values}
        residual = wrapping(source, f"{first[0]}.downsampler.conv1") is not None
        axes = self.axes or _monai_bundle.axes(source)
        if any(mirrors(axes)) and not residual and len(blocks) > 1:
            raise UsageError(
                f"{source.where}: strided convolutions of arrays along {axes} are not those of "
                "arrays along RAS; give importer.axes=RAS if mirrored volumes will do."
            )
        levels = range(len(blocks))
        return {
            "data": {"preprocessing": _monai_bundle.preprocessing(source)},
            "space": {"name": "voxel" if _voxels(source, p) else "latent"},
            "kernel": _monai_bundle.discrete_kernel(source),
            "network": {
                "name": "monai_unet",
                "widths": widths,
                "blocks": blocks,
                "attention_levels": [
                    i for i in levels if f"{first[i]}.attentions.0.norm.weight" in source
                ],
                "context": context,
                "transformer_blocks": max(1, count(source, f"{p}{MIDDLE}.*.norm1.weight")),
                "scalar_channels": channels > given,
                "head_size": self._head_size(source, told, len(blocks)),
                "groups": agreed(told, "norm_num_groups", word="network.groups=N", default=32),
                "steps": _monai_bundle.steps(source),
                "resampling": "block" if residual else "convolution",
                "scalar_groups": list(groups.values()),
            },
            "recipe": recipe,
        }

    def training_ranges(self, source: ForeignCheckpoint) -> Ranges:
        tokens = self.tokens * context_of(source, prefix(source, STEM))
        return _monai_bundle.context_ranges(source, tokens)

    def _head_size(
        self, source: ForeignCheckpoint, told: list[Settings], levels: int
    ) -> int | list[int]:
        """Channels of a head; those of levels without attention, which may be 0, do not count."""
        if self.head_size is not None:
            return self.head_size if isinstance(self.head_size, int) else list(self.head_size)
        if not told:
            raise UsageError(
                f"{source.where}: no tensor tells the channels of an attention head; give "
                "importer.head_size=N (num_head_channels of its configuration)."
            )
        found = agreed(told, "num_head_channels", word="importer.head_size=N", default=8)
        sizes = [found] * levels if isinstance(found, int) else found
        return [max(1, size) for size in sizes]

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = prefix(source, STEM)
        take_records(source)
        body = "network.hourglass"
        factor = source.take(SCALE, ()).item() if SCALE in source else 1.0
        # z = (raw - shift) / scale: MONAI multiplies latents by its factor, and voxels are in
        # [0, 1] where ours are in [-1, 1].
        shift, scale = (-1.0, 2.0) if _voxels(source, p) else (0.0, 1 / factor)
        found = {
            "space.shift": torch.full(shapes["space.shift"], shift),
            "space.scale": torch.full(shapes["space.scale"], scale),
        }
        found |= _embedding(source, p)
        found |= layer(source, f"{p}conv_in", f"{body}.stem")
        blocks = _blocks(source, p)
        last = len(blocks) - 1
        for level, number in enumerate(blocks):
            theirs = f"{p}down_blocks.{level}"
            for i in range(number):
                found |= _stage(source, theirs, i, f"{body}.encoder.{level}.{i}")
            if level < last:
                found |= _change(source, f"{theirs}.downsampler", f"{body}.down.{level}")
        middle = f"{p}middle_block"
        found |= residual_block(source, f"{middle}.resnet_1", f"{body}.middle.0.block")
        found |= _attending(source, f"{middle}.attention", f"{body}.middle.0.attention")
        found |= residual_block(source, f"{middle}.resnet_2", f"{body}.middle.1.block")
        for level in reversed(range(last + 1)):
            theirs = f"{p}up_blocks.{last - level}"
            for i in range(blocks[level] + 1):
                found |= _stage(source, theirs, i, f"{body}.decoder.{level}.{i}")
            if level > 0:
                found |= _change(source, f"{theirs}.upsampler", f"{body}.up.{level - 1}")
        found |= layer(source, f"{p}out.0", f"{body}.act.norm")
        found |= layer(source, f"{p}out.2", f"{body}.head")
        return mirrored(found, self.axes or _monai_bundle.axes(source))


def _voxels(source: ForeignCheckpoint, p: str) -> bool:
    """Whether the state is the volume: a single channel, which no published latent has."""
    return source.shape(f"{p}{STEM}")[1] == 1


def _blocks(source: ForeignCheckpoint, p: str) -> list[int]:
    """Residual blocks per level of the encoder."""
    first = f"{p}down_blocks.*.resnets.0.norm1.weight"
    levels = count(source, first)
    if not levels:
        raise DataError(f"{source.where}: has no tensor {first.replace('*', '0')}.")
    return [count(source, f"{p}down_blocks.{i}.resnets.*.norm1.weight") for i in range(levels)]


def _embedding(source: ForeignCheckpoint, p: str) -> dict[str, Tensor]:
    ours = "network.embedding"
    found = {}
    for i in (0, 1):
        found |= layer(source, f"{p}time_embed.{2 * i}", f"{ours}.time.{i}")
    table = f"{p}class_embedding.weight"
    if table in source:
        rows = source.take(table)
        found[f"{ours}.label.weight"] = torch.cat((rows, torch.zeros_like(rows[:1])))
    present = [key for key in SCALARS if f"{p}{key}.0.weight" in source]
    for group, key in enumerate(present):
        for i in (0, 1):
            found |= layer(source, f"{p}{key}.{2 * i}", f"{ours}.scalar.{group}.{i}")
    return found


def _stage(source: ForeignCheckpoint, theirs: str, index: int, ours: str) -> dict[str, Tensor]:
    """A residual block and the attention after it, where there is one."""
    found = residual_block(source, f"{theirs}.resnets.{index}", f"{ours}.block")
    if f"{theirs}.attentions.{index}.norm.weight" in source:
        found |= _attending(source, f"{theirs}.attentions.{index}", f"{ours}.attention")
    return found


def _attending(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Self-attention, or transformer blocks."""
    crossed = f"{theirs}.transformer_blocks.0.norm1.weight" in source
    return (transformer if crossed else attention)(source, theirs, ours)


def _change(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """A change of the grid: a residual block, or a convolution by one of its names."""
    if f"{theirs}.norm1.weight" in source:
        return residual_block(source, theirs, ours)
    # `conv` in checkpoints from before MONAI 1.4
    names = (f"{theirs}.{name}" for name in ("op", "postconv", "conv"))
    name = next((n for n in names if wrapping(source, n) is not None), f"{theirs}.op")
    return layer(source, name, f"{ours}.conv")
