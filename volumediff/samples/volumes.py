"""A prepared volume of the training or validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volumediff.recipes._base import Recipe
from volumediff.storage.cache import CacheEntry

__all__ = ["TrainingVolume", "healthy_volumes"]


@dataclass(frozen=True)
class TrainingVolume:
    """One volume, its arrays in the cache; plain data, so that loader workers can have it.

    Arguments:
        id: the case's name
        attributes: what participants.tsv and the like say about it
        entry: arrays `x`, `foreground` and, where there are such, `label` (1, d, h, w) and the
            label maps of several `readers` (r, d, h, w)
        channels: names of its images, as the data set has them; none for simulated volumes
    """

    id: str
    attributes: Mapping[str, str | float]
    entry: CacheEntry
    channels: tuple[str, ...] = ()

    def array(self, name: str) -> Tensor | None:
        """A copy of one array in memory, or None if the case has none."""
        stored = self.entry.load(name)
        return None if stored is None else torch.from_numpy(np.array(stored))

    @property
    def x(self) -> Tensor:
        """The volume (c, d, h, w)."""
        x = self.array("x")
        assert x is not None, "every entry has x"
        return x

    @property
    def foreground(self) -> Tensor:
        """Where the imaged object is (1, d, h, w)."""
        foreground = self.array("foreground")
        assert foreground is not None, "every entry in voxels has a foreground"
        return foreground

    @property
    def reader_count(self) -> int:
        """How many people have labelled it, 1 for a label map alone, 0 for none."""
        readers = self.entry.load("readers")
        if readers is not None:
            return len(readers)
        return int(self.entry.load("label") is not None)

    @property
    def lesioned(self) -> bool:
        """Whether a label marks anything: such a volume is no healthy one."""
        label = self.array("label")
        return label is not None and bool(label.any())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels and voxels, without reading them."""
        stored = self.entry.load("x")
        assert stored is not None, "every entry has x"
        c, d, h, w = stored.shape
        return c, d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along d, h, w."""
        d, h, w = self.entry.info["spacing_mm"]
        return float(d), float(h), float(w)

    @property
    def file_spacing_mm(self) -> tuple[float, ...] | None:
        """Voxel size of its first file; None for volumes without files."""
        stored = self.entry.info.get("file_spacing_mm")
        return None if stored is None else tuple(stored)


def healthy_volumes(recipe: Recipe, volumes: Sequence[TrainingVolume]) -> list[TrainingVolume]:
    """Those that may stand for health: of the healthy class, and without a marked lesion."""
    return [v for v in volumes if recipe.healthy(v.attributes) and not v.lesioned]
