"""Features of labelled voxels in place of volumes: computed once, then dealt out mixed.

A volume becomes the features of as many voxels of every class, in an array of the form of a
volume, (features, voxels, 1, 1), with their labels beside it. For training the voxels of all
volumes are shuffled and dealt into as many parts as there were volumes, so that every part stands
for all of them, as statistics over a batch should.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from volumediff.distributed.mesh import turn
from volumediff.distributed.processes import wait
from volumediff.features.points import drawn_voxels, voxel_points
from volumediff.randomness import generator
from volumediff.randomness import key as key_of
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import Cache

__all__ = ["VoxelFeatures", "class_index", "dealt", "voxel_features"]

Rows = Float[Tensor, "n f"]


@dataclass(frozen=True, eq=False)
class VoxelFeatures:
    """Features of the drawn voxels of some volumes.

    Arguments:
        rows: one per voxel
        y: class of each, 0 for the background
        voxels: how many voxels of each class the volumes have
    """

    rows: Rows
    y: Int[Tensor, "n"]
    voxels: Int[Tensor, "k"]

    @staticmethod
    def of(volumes: Sequence[TrainingVolume], values: Sequence[int]) -> "VoxelFeatures":
        """What `voxel_features` made of volumes, side by side."""
        rows, labels, voxels = [], [], torch.zeros(len(values) + 1, dtype=torch.int64)
        for volume in volumes:
            label, counted = volume.array("label"), volume.array("voxels")
            assert label is not None, "voxel_features stores it"
            assert counted is not None, "voxel_features stores it"
            rows.append(volume.x.flatten(1).T)
            labels.append(class_index(label, values).flatten())
            voxels += counted
        return VoxelFeatures(torch.cat(rows), torch.cat(labels), voxels)

    def drawn(self) -> Int[Tensor, "k"]:
        """How many of the voxels are of each class."""
        return torch.bincount(self.y, minlength=len(self.voxels))


def class_index(label: UInt8[Tensor, "1 *s"], values: Sequence[int]) -> Int[Tensor, "*s"]:
    """Position of each label value, from 1 on; 0 for all others."""
    index = torch.zeros(256, dtype=torch.int64, device=label.device)
    for i, value in enumerate(values, start=1):
        index[value] = i
    return index[label[0].long()]


def voxel_features(
    volumes: Sequence[TrainingVolume],
    rows: Callable[[TrainingVolume, Float[Tensor, "n 3"]], Rows],
    *,
    values: Sequence[int],
    each: int,
    seed: int,
    fingerprint: Mapping[str, Any],
    cache: Cache,
    accelerator: Accelerator,
) -> list[TrainingVolume]:
    """The same volumes with features of drawn voxels in place of their own voxels.

    Arguments:
        rows: features of a volume at points
        values: labels that are told apart
        each: most voxels of a class and volume
        seed: of the run; which voxels are drawn depends on it and the name of the volume
        fingerprint: what else the features depend on
        cache: where they are kept
        accelerator: all processes take part
    """

    def entry(volume: TrainingVolume) -> TrainingVolume:
        def make() -> tuple[dict[str, np.ndarray], dict[str, object]]:
            label = volume.array("label")
            assert label is not None, "the recipe needs labels"
            classes = class_index(label, values)
            draw = key_of(seed, "voxels", volume.id)
            index, sound = drawn_voxels(classes, len(values) + 1, each, key=draw)
            index = index[sound]
            d, h, w = classes.shape
            found = rows(volume, voxel_points(index, (d, h, w))).float().cpu()
            arrays = {
                "x": found.T[:, :, None, None].numpy(),
                "label": label.flatten()[index][None, :, None, None].numpy(),
                "voxels": torch.bincount(classes.flatten(), minlength=len(values) + 1).numpy(),
            }
            return arrays, dict(volume.entry.info)

        described = {
            "volume": volume.entry.folder.name,
            "labels": list(values),
            "each": each,
            "seed": seed,
            "device": accelerator.device.type,
            **fingerprint,
        }
        return replace(volume, entry=cache.entry(f"{volume.id}-features", described, make))

    rank, world = turn(accelerator)
    for volume in volumes[rank::world]:
        entry(volume)
    wait(accelerator)
    return [entry(volume) for volume in volumes]


def dealt(
    volumes: Sequence[TrainingVolume], *, seed: int, cache: Cache, accelerator: Accelerator
) -> list[TrainingVolume]:
    """The voxels of all volumes, shuffled and dealt into as many parts.

    Arguments:
        volumes: of `voxel_features`
        seed: of the order
        cache: where the parts are kept
        accelerator: all processes take part
    """
    count = len(volumes)
    arrays: list[tuple[np.ndarray, np.ndarray]] = []

    def mixed() -> tuple[np.ndarray, np.ndarray]:
        if not arrays:
            x, label = (
                np.concatenate([volume.array(name).numpy() for volume in volumes], axis=1)
                for name in ("x", "label")
            )
            order = torch.randperm(x.shape[1], generator=generator(seed, "deal")).numpy()
            # Parts of one size: a few voxels are dealt twice.
            order = np.resize(order, count * -(-len(order) // count))
            arrays.append((x[:, order], label[:, order]))
        return arrays[0]

    def entry(i: int) -> TrainingVolume:
        def make() -> tuple[dict[str, np.ndarray], dict[str, object]]:
            x, label = mixed()
            return {"x": x[:, i::count], "label": label[:, i::count]}, dict(volumes[0].entry.info)

        described = {"of": [v.entry.folder.name for v in volumes], "part": i, "seed": seed}
        name = f"features-{i + 1}-of-{count}"
        # Attributes went into the features; the recipe asks for them all the same.
        return TrainingVolume(name, volumes[i].attributes, cache.entry(name, described, make))

    for i in range(accelerator.process_index, count, accelerator.num_processes):
        entry(i)
    wait(accelerator)
    return [entry(i) for i in range(count)]
