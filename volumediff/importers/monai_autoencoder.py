"""AutoencoderKL and AutoencoderKlMaisi of MONAI -> an autoencoder's run of `monai_kl`.

A layer is known by its names; MAISI's autoencoder, which doubles the grid by linear interpolation,
by convolutions that are wrapped twice. What no tensor tells is read off the bundle's settings
beside the weights, or given in words:

    autoencoder.groups      unless it is 32
    autoencoder.interval    of the intensities, unless it is [0,1]

A MAISI autoencoder with transposed convolutions (`use_convtranspose`) has the same names and
shapes; nobody publishes one, and it cannot be told apart.
"""

import re
from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _monai_bundle
from volumediff.importers._axes import mirrored, mirrors
from volumediff.importers._base import ForeignCheckpoint, Shapes
from volumediff.importers._bundled_autoencoder import BundledAutoencoder
from volumediff.importers._monai import (
    attention,
    layer,
    prefix,
    residual_block,
    sized,
    take_records,
    wrapping,
)
from volumediff.importers._published import agreed

__all__ = ["MonaiAutoencoderImporter"]

STEM = "post_quant_conv.conv.weight"
NETWORKS = ("AutoencoderKL", "AutoencoderKlMaisi")
# Letters of `_kinds`: C convolution, R residual block, A attention, N normalisation. The blocks of
# a level all have attention behind them, or none has.
ENCODER = re.compile(r"C((?:(?:R+|(?:RA)+)C)*)(R+?|(?:RA)+?)(RAR)?NC")
DECODER = re.compile(r"C(RAR)?((?:(?:R+|(?:RA)+)C)*)(R+|(?:RA)+)NC")


class MonaiAutoencoderImporter(BundledAutoencoder):
    """Autoencoders of MONAI with a Gaussian latent.

    Arguments:
        axes: directions of the arrays it was trained with, such as LAS; by default those that the
            bundle turns volumes to, or RAS
    """

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = prefix(source, STEM)
        k = sized(source, f"{p}{STEM}", axes=5)[0]
        down, up = _kinds(source, f"{p}encoder"), _kinds(source, f"{p}decoder")
        encoder, decoder = ENCODER.fullmatch(down), DECODER.fullmatch(up)
        for half, kinds, match in (("encoder", down, encoder), ("decoder", up, decoder)):
            if match is None:
                raise DataError(
                    f"{source.where}: the {half}'s layers {kinds} (C convolution, R block, A "
                    "attention, N normalisation, ? unknown) are not supported: no transposed "
                    "convolutions, and attention behind all blocks of a level or none."
                )
        levels = f"{encoder[1]}{encoder[2]}".split("C")
        mirrored = f"{decoder[2]}{decoder[3]}".split("C")[::-1]
        if mirrored != levels:
            raise DataError(
                f"{source.where}: expected the same blocks per level in the decoder as in the "
                f"encoder, got {mirrored} and {levels}."
            )
        stem, head = _conv(source, f"{p}encoder", 0), _conv(source, f"{p}decoder", len(up) - 1)
        channels, given = sized(source, stem, axes=5)[1], sized(source, head, axes=5)[0]
        if channels != given:
            raise DataError(f"{source.where}: takes {channels} channels and gives {given}.")
        widths = _widths(source, f"{p}encoder", down)
        told = _monai_bundle.calls(source, *NETWORKS, widths=widths, channels=channels)
        tree: dict[str, Any] = {
            "task": "autoencoder",
            "data": {"preprocessing": _monai_bundle.preprocessing(source)},
            "autoencoder": {
                "name": "monai_kl",
                "latent_channels": k,
                "widths": widths,
                "blocks": [level.count("R") for level in levels],
                "attention_levels": [i for i, level in enumerate(levels) if "A" in level],
                "groups": agreed(told, "norm_num_groups", word="autoencoder.groups=N", default=32),
                "encoder_attention": encoder[3] is not None,
                "decoder_attention": decoder[1] is not None,
                "mirrored": list(mirrors(self.axes_of(source))),
                "interval": _monai_bundle.scaled_range(source),
                "upsampling": "trilinear" if stem.endswith("conv.conv.weight") else "nearest",
            },
        }
        if channels > 1:
            tree["data"]["channels"] = [f"channel_{i}" for i in range(channels)]
        return tree

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = prefix(source, STEM)
        take_records(source)
        encoder, decoder = "codec.encoder", "codec.decoder"
        found = layer(source, f"{p}post_quant_conv", f"{decoder}.0")
        down, up = _kinds(source, f"{p}encoder"), _kinds(source, f"{p}decoder")
        # One convolution here gives mean and log-variance.
        k = source.shape(f"{p}{STEM}")[0]
        for name, shape in (("weight", (k, k, 1, 1, 1)), ("bias", (k,))):
            parts = [f"{p}quant_conv_{part}.conv.{name}" for part in ("mu", "log_sigma")]
            joined = torch.cat([source.take(part, shape) for part in parts])
            found[f"{encoder}.{len(down) + 1}.{name}"] = joined
        for half, kinds, ours, first in (
            ("encoder", down, encoder, 1),
            ("decoder", up, decoder, 1),
        ):
            for i, kind in enumerate(kinds):
                theirs, name = f"{p}{half}.blocks.{i}", f"{ours}.{i + first}"
                if kind == "R":
                    found |= residual_block(source, theirs, name)
                elif kind == "A":
                    found |= attention(source, theirs, name)
                elif kind == "C":
                    # A change of the grid holds its convolution by name, in both of ours.
                    changes = 0 < i < len(kinds) - 1
                    theirs = _conv(source, f"{p}{half}", i).removesuffix(".weight")
                    found |= layer(source, theirs, f"{name}.conv" if changes else name)
                else:
                    found |= layer(source, theirs, name)
        return mirrored(found, self.axes_of(source))


def _kinds(source: ForeignCheckpoint, half: str) -> str:
    """One letter for each layer of the encoder or the decoder."""
    names = [n.removeprefix(f"{half}.blocks.") for n in source.left if n.startswith(f"{half}.")]
    number = 1 + max((int(n.split(".")[0]) for n in names if n[:1].isdigit()), default=-1)
    return "".join(_kind(source, f"{half}.blocks.{i}") for i in range(number))


def _kind(source: ForeignCheckpoint, block: str) -> str:
    if f"{block}.norm1.weight" in source:
        return "R"
    if f"{block}.norm.weight" in source:
        return "A"
    if f"{block}.weight" in source:
        return "N"
    wrapped = (wrapping(source, name) for name in (block, f"{block}.postconv"))
    return "C" if any(k is not None for k in wrapped) else "?"


def _conv(source: ForeignCheckpoint, half: str, index: int) -> str:
    """The name of the weight of a convolution."""
    block = f"{half}.blocks.{index}"
    name = block if wrapping(source, block) is not None else f"{block}.postconv"
    return f"{name}{'.conv' * (wrapping(source, name) or 0)}.weight"


def _widths(source: ForeignCheckpoint, half: str, kinds: str) -> list[int]:
    """Channels per level of the encoder; a convolution inside begins the next level."""
    widths: list[int] = []
    for i, kind in enumerate(kinds):
        if kind == "C" and i < len(kinds) - 1:
            widths.append(0)
        elif kind == "R":
            widths[-1] = sized(source, f"{half}.blocks.{i}.norm2.weight", axes=1)[0]
    return widths
