r"""FlowLet (Danesed/FlowLet): brain MRI given the age, a flow in Haar coefficients.

Its state is the orthonormal transform W x of a volume in [-1, 1], which is our wavelet space with
mu = 0 and s = 1; bands and signs are those of WDM along the axes of its arrays, see `_haar`.

Its time runs from noise at 0 to data at 1, ours the other way. So its network reads 1 - t, and the
velocity that it gives has the opposite sign: the head is negated. With `flow_type` it names paths,

    rectified, cfm    alpha = 1 - t, sigma = t; two ways to write the same velocity
    trigonometric     alpha = cos(pi t / 2), sigma = sin(pi t / 2)
    vp_diffusion      alpha = exp(-T / 2), T = beta_min t + (beta_max - beta_min) t^2 / 2

and the network's output is the velocity of the flow along each of them.

Attention to its only token is an affine map of the token, see `ContextAttention`; the queries and
keys of this attention change nothing and are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from volumediff.errors import DataError, UsageError
from volumediff.importers import _axes
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin, Ranges, Scaling, Shapes
from volumediff.importers._haar import BANDS, signs
from volumediff.importers._monai import layer, prefix
from volumediff.importers._published import agreed

__all__ = ["FlowLetImporter"]

STEM, HEAD = "input_blocks.0.0", "out.2"
BODY = "network.hourglass"
# Of its training script, where the settings beside the checkpoint say nothing.
HEADS, GROUPS, FLOW, BETAS = 8, 32, "rectified", (0.1, 20.0)
CONDITIONS = "condition_embedder.embedders."


@dataclass(frozen=True)
class FlowLetImporter(Importer):
    """Runs of FlowLet, as its train.py configures them.

    Arguments:
        axes: directions of the arrays it was trained with; those that FSL brings to the MNI152
            template run to the left, anterior and superior
        ranges: variable -> its lowest and highest value in training, which become 0 and 1, where
            no condition_ranges.json beside the checkpoint says so
    """

    records: ClassVar[tuple[str, ...]] = (
        "epoch",
        "best_val_loss",
        "epochs_without_improvement",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "scaler_state_dict",
        "config",
    )
    axes: str = "LAS"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _axes.mirrors(self.axes)

    def origin(self, source: ForeignCheckpoint) -> Origin:
        return Origin(
            "FlowLet",
            "https://github.com/Danesed/FlowLet",
            source.published.licence or "MIT",
            template="mni152",
            stripped=True,
        )

    def config(self, source: ForeignCheckpoint) -> dict[str, Any]:
        p = prefix(source, f"{STEM}.weight")
        channels = source.shape(f"{p}{STEM}.weight")[1], source.shape(f"{p}{HEAD}.weight")[0]
        if channels != (BANDS, BANDS):
            raise DataError(
                f"{source.where}: has {channels[0]} channels in and {channels[1]} out; FlowLet "
                f"has {BANDS} subbands in and out."
            )
        levels, blocks = _levels(source, p)
        names = _variables(source, p)
        first = [f"{p}input_blocks.{1 + level * (blocks + 1)}" for level in range(levels)]
        widths = [source.shape(f"{b}.0.out_layers.3.weight")[0] for b in first]
        size = _said(source, "model_input_size", [112, 112, 112], "data.preprocessing.shape=...")
        return {
            "data": {
                "preprocessing": {
                    "spacing_mm": 2.0,
                    "shape": list(size),
                    # Its limits are the percentiles 0.5 and 99.5 of the whole volume, and the
                    # brain is a quarter of its field of view: the lower one is the background.
                    "intensity": {"name": "percentile", "low": 0.0, "high": 98.0},
                    "centre": "volume",
                }
            },
            "space": {"name": "wavelet", "wavelet": "haar", "levels": 1},
            "kernel": {"name": "gaussian", "schedule": _schedule(source), "prediction": "u"},
            "network": {
                "name": "flowlet",
                "widths": widths,
                "blocks": blocks,
                "attention_levels": [
                    i for i, b in enumerate(first) if f"{b}.1.to_q.weight" in source
                ],
                "heads": _heads(source, widths),
                "groups": _said(source, "unet_norm_num_groups", GROUPS, "network.groups=N"),
                "condition": source.shape(f"{p}{CONDITIONS}{names[0]}.0.bias")[0],
                "steps": -1,
                "offset": 1.0,
            },
            "recipe": {"name": "healthy", "scalars": names},
            "optim": {"lr": 3e-6},
        }

    def scaling(self, source: ForeignCheckpoint) -> Scaling:
        names = _variables(source, prefix(source, f"{STEM}.weight"))
        ranges = (self._range(source, name) for name in names)
        return [(low, high - low) for low, high in ranges]

    def training_ranges(self, source: ForeignCheckpoint) -> Ranges:
        names = _variables(source, prefix(source, f"{STEM}.weight"))
        return {name: self._range(source, name) for name in names}

    def _range(self, source: ForeignCheckpoint, name: str) -> tuple[float, float]:
        word = f"importer.ranges={{{name}: [LOWEST, HIGHEST]}}"
        given = self.ranges.get(name)
        for part in source.published.holding(name):
            value = part.value(name, word="importer.ranges")
            if given is None and isinstance(value, Mapping) and {"min", "max"} <= set(value):
                given = value["min"], value["max"]
        if given is None:
            raise UsageError(
                f"{source.where}: no tensor tells the range of {name}; put condition_ranges.json "
                f"of its training beside it, or give {word}."
            )
        low, high = (float(v) for v in given)
        if not low < high:
            raise UsageError(f"{name}: expected a rising range, got {low} to {high}; give {word}.")
        return low, high

    def tensors(self, source: ForeignCheckpoint, shapes: Shapes) -> dict[str, Tensor]:
        p = prefix(source, f"{STEM}.weight")
        levels, blocks = _levels(source, p)
        names = _variables(source, p)
        ours = "network.embedding"
        found: dict[str, Tensor] = {}
        for i in (0, 1):
            found |= layer(source, f"{p}time_embed.{2 * i}", f"{ours}.time.{i}")
            for n, name in enumerate(names):
                theirs = f"{p}{CONDITIONS}{name}.{2 * i}"
                found |= layer(source, theirs, f"{ours}.scalar.{n}.{i}")
        found |= layer(source, f"{p}{STEM}", f"{BODY}.stem")
        last = levels - 1
        for level in range(levels):
            start = 1 + level * (blocks + 1)
            for i in range(blocks):
                found |= _stage(
                    source, f"{p}input_blocks.{start + i}", f"{BODY}.encoder.{level}.{i}"
                )
            if level < last:
                theirs = f"{p}input_blocks.{start + blocks}.0"
                found |= _block(source, theirs, f"{BODY}.down.{level}")
            start = (last - level) * (blocks + 1)
            for i in range(blocks + 1):
                found |= _stage(
                    source, f"{p}output_blocks.{start + i}", f"{BODY}.decoder.{level}.{i}"
                )
            if level > 0:
                theirs = f"{p}output_blocks.{start + blocks}"
                place = 2 if f"{theirs}.2.in_layers.0.weight" in source else 1
                found |= _block(source, f"{theirs}.{place}", f"{BODY}.up.{level - 1}")
        found |= _block(source, f"{p}middle_block.0", f"{BODY}.middle.0.block")
        found |= _attention(source, f"{p}middle_block.1", f"{BODY}.middle.0.attention")
        found |= _block(source, f"{p}middle_block.2", f"{BODY}.middle.1.block")
        found |= layer(source, f"{p}out.0", f"{BODY}.act.norm")
        found |= layer(source, f"{p}{HEAD}", f"{BODY}.head")
        mirrors = _axes.mirrors(self.axes)
        mirrored = [dim for dim, m in enumerate(mirrors, start=2) if m]
        found = {n: t.flip(mirrored) if t.ndim == 5 else t for n, t in found.items()}
        sign = signs(mirrors)
        names = "stem.weight", "head.weight", "head.bias"
        stem, weight, bias = (found[f"{BODY}.{name}"] for name in names)
        return {
            **found,
            f"{BODY}.stem.weight": stem * sign[:, None, None, None],
            # The minus is that of its time.
            f"{BODY}.head.weight": -weight * sign[:, None, None, None, None],
            f"{BODY}.head.bias": -bias * sign,
            "space.shift": torch.zeros(BANDS),
            "space.scale": torch.ones(BANDS),
        }


def _levels(source: ForeignCheckpoint, p: str) -> tuple[int, int]:
    """Levels, and residual blocks of the encoder on each."""
    count = 0
    while f"{p}output_blocks.{count}.0.in_layers.0.weight" in source:
        count += 1
    ups = [
        i
        for i in range(count)
        if any(f"{p}output_blocks.{i}.{n}.in_layers.0.weight" in source for n in (1, 2))
    ]
    levels, blocks = len(ups) + 1, ups[0] if ups else count - 1
    if blocks < 1 or count != levels * (blocks + 1):
        raise DataError(
            f"{source.where}: is no U-Net of FlowLet (found {count} decoder blocks and {len(ups)} "
            "up-samplings)."
        )
    return levels, blocks


def _variables(source: ForeignCheckpoint, p: str) -> list[str]:
    """What it is conditioned on, by name; the embeddings are added up, in whatever order."""
    start, end = f"{p}{CONDITIONS}", ".0.weight"
    names = sorted(n for n in source.left if n.startswith(start) and n.endswith(end))
    if not names or f"{p}middle_block.1.to_kv_cross.weight" not in source:
        raise DataError(
            f"{source.where}: has no attention to a condition, without which FlowLet's network "
            "ignores its condition altogether; only conditional ones are imported."
        )
    return [n.removeprefix(start).removesuffix(end) for n in names]


def _said(source: ForeignCheckpoint, key: str, default: Any, word: str) -> Any:
    """What config.json beside the checkpoint says, or what the training script does."""
    return agreed(source.published.holding(key), key, word=word, default=default)


def _heads(source: ForeignCheckpoint, widths: list[int]) -> int | list[int]:
    size = _said(source, "unet_num_head_channels", -1, "network.heads=N")
    if size == -1:
        return _said(source, "unet_num_heads", HEADS, "network.heads=N")
    return [width // size for width in widths]


def _schedule(source: ForeignCheckpoint) -> dict[str, Any]:
    flow = _said(source, "flow_type", FLOW, "kernel.schedule=NAME")
    if flow in ("rectified", "cfm"):
        return {"name": "rectified"}
    if flow == "trigonometric":
        return {"name": "trigonometric"}
    if flow == "vp_diffusion":
        words = "vp_beta_min", "vp_beta_max"
        low, high = (
            _said(source, key, value, "kernel.schedule=NAME")
            for key, value in zip(words, BETAS, strict=True)
        )
        return {"name": "vp_sde", "beta_first": low, "beta_last": high}
    raise DataError(
        f"{source.where}: flow_type {flow!r} beside it: expected rectified, cfm, trigonometric or "
        "vp_diffusion."
    )


def _stage(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    """A residual block, and attention where there is some."""
    found = _block(source, f"{theirs}.0", f"{ours}.block")
    if f"{theirs}.1.to_q.weight" in source:
        found |= _attention(source, f"{theirs}.1", f"{ours}.attention")
    return found


def _block(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    names = {
        "in_layers.0": "act1.norm",
        "in_layers.2": "conv1",
        "emb_layers.1": "project.time",
        "cond_emb_layers.1": "project.condition",
        "out_layers.0": "act2.norm",
        "out_layers.3": "conv2",
    }
    if f"{theirs}.skip_connection.weight" in source:
        names["skip_connection"] = "shortcut"
    found: dict[str, Tensor] = {}
    for name, own in names.items():
        found |= layer(source, f"{theirs}.{name}", f"{ours}.{own}")
    return found


def _attention(source: ForeignCheckpoint, theirs: str, ours: str) -> dict[str, Tensor]:
    width, told = source.shape(f"{theirs}.to_kv_cross.weight")
    width //= 2

    def take(name: str, *shape: int) -> Tensor:
        return source.take(f"{theirs}.{name}", shape)

    def pointwise(name: str, own: str) -> dict[str, Tensor]:
        weight, bias = take(f"{name}.weight", width, width, 1, 1, 1), take(f"{name}.bias", width)
        return {f"{ours}.{own}.weight": weight.flatten(1), f"{ours}.{own}.bias": bias}

    found = layer(source, f"{theirs}.norm", f"{ours}.norm")
    found |= layer(source, f"{theirs}.norm_seq", f"{ours}.tokens")
    found |= layer(source, f"{theirs}.proj_self_attn_out", f"{ours}.out")
    found |= pointwise("proj_in", "enter") | pointwise("proj_out", "leave")
    weight = torch.cat([take(f"to_{part}.weight", width, width) for part in "qkv"])
    found |= {f"{ours}.qkv.weight": weight, f"{ours}.qkv.bias": weight.new_zeros(3 * width)}
    # Queries and keys of attention to one token: they change nothing.
    take("to_q_cross.weight", width, width)
    value = take("to_kv_cross.weight", 2 * width, told)[width:].double()
    out = take("proj_cross_attn_out.weight", width, width).double()
    gain, offset = (take(f"norm_context.{n}", told).double() for n in ("weight", "bias"))
    bias = take("proj_cross_attn_out.bias", width)
    through = out @ value
    return found | {
        f"{ours}.context.weight": (through * gain).to(bias.dtype),
        f"{ours}.context.bias": (through @ offset + bias).to(bias.dtype),
    }
