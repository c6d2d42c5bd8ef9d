"""The diffusion model of Medical Diffusion -> a run of `medicaldiffusion_unet` on its latents.

Its latents go to [-1, 1] between the least and the greatest number of the codebook, which the
checkpoint holds with the autoencoder. What is not in the tensors is given in words:

    space.autoencoder   the run that `medicaldiffusion_autoencoder` makes of the same file
    network.groups      unless it is 8

Of the weights and their running average the average is taken; the weights themselves, the
autoencoder and what the trainer wrote down are left out.
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
    turned,
    weights_of,
)
from volumediff.schedules.cosine import Cosine

__all__ = ["MedicalDiffusionUNetImporter"]

NET = "denoise_fn."
STEM = f"{NET}init_conv.weight"
CODES = "vqgan.codebook.embeddings"
ALPHAS = "alphas_cumprod"
ROTATED, BASE = 32, 10_000.0
LAST_BETA = 0.9999  # the largest, which only the last step has
OURS = "network."
BLOCK = {
    "block1.proj": "conv1",
    "block1.norm": "act1.norm",
    "block2.proj": "conv2",
    "block2.norm": "act2.norm",
}


class MedicalDiffusionUNetImporter(Importer):
    """Diffusion models of Medical Diffusion in the latents of its VQ-GAN."""

    def origin(self, source: ForeignCheckpoint) -> Origin:
        return _medicaldiffusion.origin(source)

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = weights_of(source, CHAINS, STEM)
        net, width = f"{p}{NET}", source.shape(f"{p}{STEM}")[0]
        levels = _levels(source, net)
        if not levels:
            source.shape(f"{net}downs.0.0.block1.proj.weight")
        names = [f"{net}downs.{i}.0.block1.proj.weight" for i in range(levels)]
        steps = source.shape(f"{p}{ALPHAS}")[0]
        heads = source.shape(f"{net}time_rel_pos_bias.relative_attention_bias.weight")[1]
        size = source.shape(f"{net}downs.0.3.fn.fn.fn.to_qkv.weight")[0] // (3 * heads)
        source.shape(f"{p}{CODES}")
        return {
            "data": {"preprocessing": _medicaldiffusion.PREPROCESSING},
            "space": {"name": "latent"},
            "kernel": {
                "name": "gaussian",
                "schedule": {"name": "cosine", "levels": steps, "largest_beta": LAST_BETA},
                "prediction": "eps",
            },
            "network": {
                "name": "medicaldiffusion_unet",
                "width": width,
                "multiples": [source.shape(name)[0] // width for name in names],
                "groups": 8,
                "heads": heads,
                "head_size": size,
                "steps": steps,
            },
            "recipe": {"name": "healthy"},
            "optim": {"lr": 1e-4, "ema": 0.995},
        }

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = weights_of(source, CHAINS, STEM)
        net, levels = f"{p}{NET}", _levels(source, f"{p}{NET}")
        _check_schedule(source, source.take(f"{p}{ALPHAS}"))
        low, high = source.take(f"{p}{CODES}").aminmax()
        found = {
            "space.shift": ((low + high) / 2).expand(shapes["space.shift"]).clone(),
            "space.scale": ((high - low) / 2).expand(shapes["space.scale"]).clone(),
        }
        for i, theirs in ((0, "time_mlp.1"), (1, "time_mlp.3")):
            found |= layer(source, f"{net}{theirs}", f"{OURS}embedding.time.{i}")
        found |= layer(source, f"{net}init_conv", f"{OURS}stem")
        table = f"{net}time_rel_pos_bias.relative_attention_bias.weight"
        found[f"{OURS}positions.table.weight"] = source.take(table)
        found |= _attention(source, f"{net}init_temporal_attn", f"{OURS}first")
        for i in range(levels):
            found |= _stage(source, f"{net}downs.{i}", f"{OURS}encoder.{i}")
            if i < levels - 1:
                found |= layer(source, f"{net}downs.{i}.4", f"{OURS}down.{i}")
            theirs = f"{net}ups.{levels - 1 - i}"
            found |= _stage(source, theirs, f"{OURS}decoder.{i}")
            if i:
                found |= layer(source, f"{theirs}.4", f"{OURS}up.{i - 1}")
        for i in (0, 1):
            found |= _block(source, f"{net}mid_block{i + 1}", f"{OURS}middle.{i}")
        found |= _attention(source, f"{net}mid_spatial_attn", f"{OURS}within")
        found |= _attention(source, f"{net}mid_temporal_attn", f"{OURS}through")
        found |= _block(source, f"{net}final_conv.0", f"{OURS}last")
        found |= layer(source, f"{net}final_conv.1", f"{OURS}head")
        set_aside_training(source, p)
        source.set_aside(f"{p}vqgan.")
        return found


def _levels(source: ForeignCheckpoint, net: str) -> int:
    number = 0
    while f"{net}downs.{number}.0.block1.proj.weight" in source:
        number += 1
    return number


def _stage(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Two blocks and two attentions."""
    found = _block(source, f"{theirs}.0", f"{ours}.block1")
    found |= _block(source, f"{theirs}.1", f"{ours}.block2")
    inner, norm = f"{theirs}.2.fn.fn", f"{theirs}.2.fn.norm.gamma"
    found[f"{ours}.within.norm.weight"] = source.take(norm).flatten()
    # convolutions over single pixels are linear maps of their channels
    found[f"{ours}.within.qkv.weight"] = source.take(f"{inner}.to_qkv.weight").flatten(1)
    found[f"{ours}.within.out.weight"] = source.take(f"{inner}.to_out.weight").flatten(1)
    found[f"{ours}.within.out.bias"] = source.take(f"{inner}.to_out.bias")
    return found | _attention(source, f"{theirs}.3", f"{ours}.through")


def _block(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Two convolutions, with or without the embedding and the shortcut."""
    found: dict[str, Tensor] = {}
    optional = {"mlp.1": "project", "res_conv": "shortcut"}
    names = {k: v for k, v in optional.items() if f"{theirs}.{k}.weight" in source}
    for name, name_ours in (BLOCK | names).items():
        found |= layer(source, f"{theirs}.{name}", f"{ours}.{name_ours}")
    return found


def _attention(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """Attention in or through slices; the frequencies of its rotations are no weights."""
    inner = f"{theirs}.fn.fn.fn"
    found = {f"{ours}.norm.weight": source.take(f"{theirs}.fn.norm.gamma").flatten()}
    for name, name_ours in (("to_qkv", "qkv"), ("to_out", "out")):
        found[f"{ours}.{name_ours}.weight"] = turned(source.take(f"{inner}.{name}.weight"))
    freqs = f"{inner}.rotary_emb.freqs"
    if freqs in source:
        given = source.take(freqs).double()
        index = torch.arange(0, 2 * len(given), 2, dtype=torch.float64)
        if len(given) > ROTATED // 2 or not torch.allclose(
            given, BASE ** (-index / (2 * len(given))), rtol=1e-4
        ):
            raise DataError(f"{source.where}: {freqs} are other frequencies than published ones.")
    return found


def _check_schedule(source: ForeignCheckpoint, alphas: Tensor) -> None:
    """Whether the products of 1 - beta are those of the cosine schedule."""
    steps = len(alphas)
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    expected = (2 * Cosine(levels=steps, largest_beta=LAST_BETA).log_alpha(t)).exp()
    if not torch.allclose(alphas.double(), expected, rtol=1e-4, atol=1e-6):
        raise DataError(f"{source.where}: {ALPHAS} is no cosine schedule of {steps} steps.")
