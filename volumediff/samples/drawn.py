"""Training volumes that are drawn from label maps instead of being read."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.data.augmentation import Augmentation
from volumediff.data.contrasts import Contrast
from volumediff.data.drawing import Drawing
from volumediff.data.freesurfer import Structure
from volumediff.data.intensity import Intensity
from volumediff.randomness import key as key_of
from volumediff.randomness import uniform
from volumediff.storage.cache import CacheEntry

__all__ = ["DrawnVolumes", "LabelMap"]


@dataclass(frozen=True)
class LabelMap:
    """A label map on the grid of the run, its arrays in the cache.

    Arguments:
        entry: arrays `structures`, `numbers` and `foreground`
        structures: of the numbers
    """

    entry: CacheEntry
    structures: tuple[Structure | None, ...]

    @property
    def indices(self) -> UInt8[Tensor, "1 d h w"]:
        """Index of each voxel's structure."""
        stored = self.entry.load("structures")
        assert stored is not None, "every entry has structures"
        return torch.from_numpy(np.array(stored))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along d, h, w."""
        d, h, w = self.entry.info["spacing_mm"]
        return float(d), float(h), float(w)


@dataclass(frozen=True)
class DrawnVolumes:
    """The share of training samples that is drawn, and from what.

    Arguments:
        maps: label maps; each is as likely as any other
        share: of the samples
        contrast: brightness of the structures
        drawing: how a volume is drawn
        intensity: how volumes of the run are normalized
    """

    maps: tuple[LabelMap, ...]
    share: float
    contrast: Contrast
    drawing: Drawing
    intensity: Intensity

    def chosen(self, key: int) -> bool:
        """Whether the sample of a key is drawn."""
        return uniform(key, "drawn") < self.share

    def draw(
        self, key: int, *, augment: Augmentation | None
    ) -> tuple[Float[Tensor, "1 d h w"], Bool[Tensor, "1 d h w"], tuple[float, float, float]]:
        """A healthy volume in [-1, 1], its foreground and its voxel size.

        Arguments:
            key: everything random is a function of it
            augment: its changes of shape act on the label map, those of intensity on the volume
        """
        chosen = self.maps[int(uniform(key, "map") * len(self.maps))]
        indices, spacing = chosen.indices, chosen.spacing_mm
        if augment is not None:
            moved = augment.spatial(
                torch.full(indices.shape, -1.0), key, spacing_mm=spacing, label=indices
            ).label
            assert moved is not None, "given"
            indices = moved
        signal, foreground = self.drawing(
            indices,
            chosen.structures,
            contrast=self.contrast,
            spacing_mm=spacing,
            key=key_of(key, "drawing"),
        )
        s, inside = signal[0].numpy(), foreground[0].numpy()
        limits = self.intensity.limits(s, inside)
        x = torch.from_numpy(self.intensity.apply(s, inside, limits=limits))[None]
        if augment is not None:
            x = augment.intensities(x, key, spacing_mm=spacing).x
        return x, foreground, spacing
