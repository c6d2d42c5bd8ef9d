"""RUN/inputs: what the volumes are like that a run is trained on, for what it is given later.

    profile.json   ranges over the training volumes, of which at most 50 are looked at
    mean.npy       their mean on voxels of about 3 mm, where they share a grid

Likeness to the mean is that of each volume to the mean of the others. Runs whose volumes were
never at hand, such as imported ones, have none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.errors import DataError
from volumediff.samples.input_measures import Likeness, coarse, likeness, measured
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.folder import Content, publish, verified
from volumediff.storage.records import Record, parse_file

__all__ = ["FOLDER", "InputProfile", "ProfileRecord", "Range"]

FOLDER = "inputs"
MOST = 50  # volumes that are looked at, spread evenly over the training split


class Range(Record):
    """A number over the training volumes."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """The range of some values."""
        low, median, high = np.quantile(values, (0, 0.5, 1)).tolist()
        return cls(low=low, median=median, high=high)


class LikenessRecord(Record):
    """Ranges of `Likeness`."""

    correlation: Range
    tissue: Range
    overlap: Range


class ProfileRecord(Record):
    """profile.json.

    Arguments:
        volumes: that were looked at
        channels: what the images are called in the training data, where all agree
        foreground_ml: volume of what is imaged
        quantiles: of each channel, intensities in [-1, 1] at `LEVELS` inside the foreground
        voxel_mm: longest edge of a file's voxels; None for volumes without files
        likeness: of each volume to the mean of the others; None where they share no grid
    """

    volumes: int
    channels: tuple[str, ...] | None
    foreground_ml: Range
    quantiles: tuple[tuple[Range, ...], ...]
    voxel_mm: Range | None
    likeness: LikenessRecord | None


@dataclass(frozen=True, eq=False)
class InputProfile:
    """What the inputs of a run are like.

    Arguments:
        record: ranges over the training volumes
        mean: of the coarse volumes; None where they share no grid
    """

    record: ProfileRecord
    mean: Float[Tensor, "c e i v"] | None

    @classmethod
    def measure(cls, volumes: Sequence[TrainingVolume]) -> "InputProfile":
        """The profile of a training split."""
        places = np.linspace(0, len(volumes) - 1, min(MOST, len(volumes))).round().astype(int)
        chosen = [volumes[i] for i in places]
        found, blocks = [], []
        for volume in chosen:
            x, foreground, spacing = volume.x, volume.foreground, volume.spacing_mm
            found.append(measured(x, foreground, spacing))
            blocks.append(coarse(x, foreground, spacing))
        names = {volume.channels for volume in chosen}
        edges = [max(v.file_spacing_mm) for v in chosen if v.file_spacing_mm is not None]
        levels = zip(*(m.quantiles for m in found), strict=True)
        mean, alike = _compared(blocks)
        record = ProfileRecord(
            volumes=len(chosen),
            channels=(names.pop() or None) if len(names) == 1 else None,
            foreground_ml=Range.of([m.foreground_ml for m in found]),
            quantiles=tuple(
                tuple(Range.of(values) for values in zip(*channel, strict=True))
                for channel in levels
            ),
            voxel_mm=Range.of(edges) if edges else None,
            likeness=alike,
        )
        return cls(record, mean)

    def save(self, run: Path) -> None:
        """Writes RUN/inputs once; a run keeps the numbers it began with."""
        files: dict[str, Content] = {
            "profile.json": json.dumps(self.record.model_dump(), indent=1).encode()
        }
        if self.mean is not None:
            files["mean.npy"] = partial(_write_array, self.mean.numpy().astype(np.float16))
        publish(run / FOLDER, files)

    @classmethod
    def load(cls, run: Path) -> "InputProfile | None":
        """Reads RUN/inputs; None where there is none.

        Raises:
            DataError: damaged
        """
        if not (run / FOLDER).is_dir():
            return None
        folder, advice = verified(run / FOLDER), "restore the folder from a backup"
        record = parse_file(folder / "profile.json", ProfileRecord, advice=advice)
        path = folder / "mean.npy"
        try:
            mean = torch.from_numpy(np.load(path)).float() if path.is_file() else None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: no readable array ({error}); {advice}.") from None
        return cls(record, mean)

    def of_channels(self, numbers: Sequence[int]) -> "InputProfile":
        """The same of these channels alone, in this order; the likeness is that of all."""
        record, names = self.record, self.record.channels
        chosen: Mapping[str, Any] = {
            "quantiles": tuple(record.quantiles[i] for i in numbers),
            "channels": None if names is None else tuple(names[i] for i in numbers),
        }
        mean = None if self.mean is None else self.mean[list(numbers)]
        return InputProfile(record.model_copy(update=chosen), mean)


def _compared(
    blocks: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor | None, LikenessRecord | None]:
    """The mean of coarse volumes, and how alike each is to the mean of the others."""
    n = len(blocks)
    if n < 2 or len({x.shape for x, _ in blocks}) > 1:
        return None, None
    total = torch.zeros(blocks[0][0].shape, dtype=torch.float64)
    for x, _ in blocks:
        total += x
    each = [likeness(x, inside, ((total - x) / (n - 1)).float()) for x, inside in blocks]
    names = Likeness.__dataclass_fields__
    ranges = {name: Range.of([getattr(alike, name) for alike in each]) for name in names}
    return (total / n).float(), LikenessRecord(**ranges)


def _write_array(array: np.ndarray, file: Any) -> None:
    np.lib.format.write_array(file, array, None, False)  # numbers only, no objects
