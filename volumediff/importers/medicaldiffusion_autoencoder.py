"""The VQ-GAN of Medical Diffusion -> an autoencoder's run of `medicaldiffusion_vq`.

The checkpoint of a diffusion model holds its autoencoder, so that both kinds take the same file.
A checkpoint of the autoencoder alone holds settings as objects, which the restricted reader
refuses: save its `state_dict`, and nothing else. Discriminators, the network of the perceptual
loss and the running sums of the codebook serve training alone and are left out, and so is the
diffusion model. What no tensor tells:

    autoencoder.downsample   voxels of a latent voxel along R, A and the slice axis, unless equal
    autoencoder.groups       unless it is 32
"""

from typing import Any

import torch
from torch import Tensor

from volumediff.errors import DataError
from volumediff.importers import _medicaldiffusion
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Shapes
from volumediff.importers._medicaldiffusion import (
    CHAINS,
    layer,
    set_aside_training,
    weights_of,
)
from volumediff.importers._published import agreed

__all__ = ["MedicalDiffusionAutoencoderImporter"]

PREFIXES = ("state_dict.", *(f"{p}vqgan." for p in CHAINS), "")
STEM, CODES = "encoder.conv_first.conv.weight", "codebook.embeddings"
TRAINING = ("image_discriminator.", "video_discriminator.", "perceptual_model.", "codebook.z_avg")
BLOCK = {"norm1": "act1.norm", "conv1.conv": "conv1", "norm2": "act2.norm", "conv2.conv": "conv2"}


class MedicalDiffusionAutoencoderImporter(Importer):
    """Autoencoders of Medical Diffusion with a quantised latent."""

    def origin(self, source: ForeignCheckpoint) -> Origin:
        return _medicaldiffusion.origin(source)

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = weights_of(source, PREFIXES, STEM)
        width, channels = source.shape(f"{p}{STEM}")[:2]
        levels = _levels(source, p)
        codes, length = source.shape(f"{p}{CODES}")
        parts = source.published.holding("n_hiddens")
        told = [t for t in parts if t.value("n_hiddens", word="autoencoder.width=N") == width]
        padding = agreed(told, "padding_type", word="autoencoder={...}", default="replicate")
        if padding != "replicate":
            raise DataError(
                f"{source.where}: its convolutions pad by {padding}, expected replicate."
            )
        word = "autoencoder.downsample=[R,A,S]"
        first, *others = agreed(told, "downsample", word=word, default=[2**levels] * 3)
        tree: dict[str, Any] = {
            "task": "autoencoder",
            "data": {"preprocessing": _medicaldiffusion.PREPROCESSING},
            "autoencoder": {
                "name": "medicaldiffusion_vq",
                "latent_channels": length,
                "codes": codes,
                "width": width,
                "downsample": [*others, first],
                "groups": agreed(told, "num_groups", word="autoencoder.groups=N", default=32),
            },
        }
        if channels > 1:
            tree["data"]["channels"] = [f"channel_{i}" for i in range(channels)]
        return tree

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = weights_of(source, PREFIXES, STEM)
        levels = _levels(source, p)
        encoder, decoder = "codec.encoder", "codec.decoder"
        found = layer(source, f"{p}encoder.conv_first.conv", f"{encoder}.0")
        for i in range(levels):
            theirs, place = f"{p}encoder.conv_blocks.{i}", 1 + 2 * i
            found |= layer(source, f"{theirs}.down.conv", f"{encoder}.{place}")
            found |= _block(source, f"{theirs}.res", f"{encoder}.{place + 1}")
        end = 1 + 2 * levels
        found |= layer(source, f"{p}encoder.final_block.0", f"{encoder}.{end}.norm")
        found |= layer(source, f"{p}pre_vq_conv.conv", f"{encoder}.{end + 1}")
        found |= layer(source, f"{p}post_vq_conv.conv", f"{decoder}.0")
        found |= layer(source, f"{p}decoder.final_block.0", f"{decoder}.1.norm")
        for i in range(levels):
            theirs, place = f"{p}decoder.conv_blocks.{i}", 2 + 3 * i
            found |= layer(source, f"{theirs}.up.convt", f"{decoder}.{place}")
            for k in (1, 2):
                found |= _block(source, f"{theirs}.res{k}", f"{decoder}.{place + k}")
        found |= layer(source, f"{p}decoder.conv_last.conv", f"{decoder}.{2 + 3 * levels}")
        use = source.take(f"{p}codebook.N")
        found |= {
            "codec.codebook.vectors": source.take(f"{p}{CODES}"),
            "codec.codebook.use": use / use.sum().clamp(min=1e-7),
            "codec.codebook.idle": torch.zeros(use.shape, dtype=torch.int64),
            "codec.codebook.error": torch.zeros(()),
        }
        source.set_aside(*(f"{p}{name}" for name in TRAINING))
        if p.endswith("vqgan."):
            set_aside_training(source, p.removesuffix("vqgan."))
            source.set_aside(f"{p.removesuffix('vqgan.')}denoise_fn.")
        return found


def _levels(source: ForeignCheckpoint, p: str) -> int:
    number = 0
    while f"{p}encoder.conv_blocks.{number}.down.conv.weight" in source:
        number += 1
    return number


def _block(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, name_ours in BLOCK.items():
        found |= layer(source, f"{theirs}.{name}", f"{ours}.{name_ours}")
    return found
