"""VQVAE of MONAI and of its GenerativeModels, whose names are the same -> a run of `monai_vq`.

Levels, widths, blocks and codes are read off the tensors. Changes of the grid are those that the
class has by default, a kernel of 4 at stride 2 with padding 1; others are refused as far as
tensors or the bundle's settings tell. What no tensor tells is read off these settings, or given in
words:

    autoencoder.interval    of the intensities, unless it is [0,1]
"""

from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _monai_bundle
from volumediff.importers._axes import mirrored
from volumediff.importers._base import ForeignCheckpoint, Shapes
from volumediff.importers._bundled_autoencoder import BundledAutoencoder
from volumediff.importers._monai import layer, prefix, sized, take_records
from volumediff.importers._published import Settings, agreed

__all__ = ["MonaiVQImporter"]

CODES = "quantizer.quantizer.embedding.weight"
USE, MOVING = "quantizer.quantizer.ema_cluster_size", "quantizer.quantizer.ema_w"
KERNEL = (4, 4, 4)
# Arguments of the class that leave no trace in a tensor, and the only values that are known here.
KNOWN = {
    "downsample_parameters": (2, 4, 1, 1),
    "upsample_parameters": (2, 4, 1, 1, 0),
    "act": "RELU",
    "output_act": None,
}


class MonaiVQImporter(BundledAutoencoder):
    """Autoencoders of MONAI with a quantised latent.

    The moving sum of the latents of each code, which MONAI trains its codebook by, is not taken
    over: codes follow gradients here.

    Arguments:
        axes: directions of the arrays it was trained with, such as LAS; by default those that the
            bundle turns volumes to, or RAS
    """

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = prefix(source, CODES)
        codes, length = sized(source, f"{p}{CODES}", axes=2)
        halvings, blocks = _levels(source, p)
        convs = [f"{p}encoder.blocks.{i}.conv.weight" for i in halvings]
        shapes = [sized(source, name, axes=5) for name in convs]
        if any(shape[2:] != KERNEL for shape in shapes):
            raise DataError(
                f"{source.where}: changes the grid by kernels of {shapes[0][2:]}; expected 4 "
                "voxels along each axis, at stride 2."
            )
        widths, channels = [shape[0] for shape in shapes], shapes[0][1]
        inner = [
            sized(source, f"{p}encoder.blocks.{i + 1}.conv1.conv.weight", axes=5)[0]
            if blocks
            else width
            for i, width in zip(halvings, widths, strict=True)
        ]
        for part in source.published.parts("VQVAE"):
            _check(source, part)
        tree: dict[str, Any] = {
            "task": "autoencoder",
            "data": {"preprocessing": _monai_bundle.preprocessing(source)},
            "autoencoder": {
                "name": "monai_vq",
                "latent_channels": length,
                "codes": codes,
                "widths": widths,
                "inner": inner,
                "blocks": blocks,
                "interval": _monai_bundle.scaled_range(source),
            },
        }
        if channels > 1:
            tree["data"]["channels"] = [f"channel_{i}" for i in range(channels)]
        return tree

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = prefix(source, CODES)
        take_records(source)
        halvings, blocks = _levels(source, p)
        last = len(halvings) * (1 + blocks)
        found: dict[str, Tensor] = {}
        # Ours begins with the change of intensities in the encoder, and ends with it.
        for i in range(last + 1):
            found |= _block(source, f"{p}encoder.blocks.{i}", f"codec.encoder.{i + 1}")
            found |= _block(source, f"{p}decoder.blocks.{i}", f"codec.decoder.{i}")
        # Arrays along other axes are mirrored, and a kernel at stride 2 with padding 1 with them.
        found = mirrored(found, self.axes_of(source))
        codes = source.take(f"{p}{CODES}")
        use = source.take(f"{p}{USE}") if f"{p}{USE}" in source else torch.zeros(len(codes))
        source.set_aside(f"{p}{MOVING}")
        return {
            **found,
            "codec.codebook.vectors": codes,
            "codec.codebook.use": use / use.sum().clamp(min=1e-7),
            "codec.codebook.idle": torch.zeros(len(codes), dtype=torch.int64),
            "codec.codebook.error": torch.zeros(()),
        }


def _levels(source: ForeignCheckpoint, p: str) -> tuple[list[int], int]:
    """Where the levels of the encoder begin, and how many residual blocks each has.

    Raises:
        DataError: levels with different numbers of blocks
    """
    kinds = ""
    while True:
        place = f"{p}encoder.blocks.{len(kinds)}"
        if f"{place}.conv1.conv.weight" in source:
            kinds += "R"
        elif f"{place}.conv.weight" in source:
            kinds += "C"
        else:
            break
    numbers = [len(part) for part in kinds.split("C")[1:-1]]
    if not numbers or len(set(numbers)) > 1 or kinds[-1] != "C":
        raise DataError(
            f"{source.where}: the encoder's layers {kinds or 'none'} (C convolution, R block) are "
            "not those of a VQVAE: levels of a convolution and as many blocks, and a convolution."
        )
    blocks = numbers[0]
    return [level * (1 + blocks) for level in range(len(numbers))], blocks


def _block(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    if f"{theirs}.conv1.conv.weight" not in source:
        return layer(source, theirs, ours)
    first, second = (layer(source, f"{theirs}.conv{n}", f"{ours}.conv{n}") for n in (1, 2))
    return first | second


def _check(source: ForeignCheckpoint, part: Settings) -> None:
    """Raises DataError for a setting that leaves no trace in a tensor and is not known here."""
    for key, expected in KNOWN.items():
        found = agreed([part], key, word="importer=monai_vq", default=expected)
        each = found if isinstance(found, list) and isinstance(found[0], list) else [found]
        same = {tuple(one) if isinstance(one, list) else one for one in each} == {expected}
        if not same:
            raise DataError(
                f"{source.where}: {part.place} has {key} = {found}, and {expected} alone is known."
            )
