"""Statistics of the training split, measured once before step 0: scalars and the atlas.

Kept in RUN/statistics, verified like a checkpoint, because inference needs the same numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from volumediff.errors import DataError, UsageError
from volumediff.recipes._base import Recipe
from volumediff.samples.volumes import TrainingVolume, healthy_volumes
from volumediff.storage.folder import Content, publish, verified
from volumediff.storage.records import Record, parse_file

__all__ = ["Statistics"]


class StoredStatistics(Record):
    """statistics.json: mean and standard deviation of each attribute, and its range."""

    scalars: dict[str, tuple[float, float]]
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Numbers of the training split.

    Arguments:
        scalars: attribute -> (mean, standard deviation)
        atlas: mean volume, if the recipe conditions on it
        ranges: attribute -> (lowest, highest) value, where they are known
    """

    scalars: Mapping[str, tuple[float, float]]
    atlas: Float[Tensor, "c d h w"] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def measure(cls, recipe: Recipe, volumes: Sequence[TrainingVolume]) -> "Statistics":
        """The statistics that a recipe asks for.

        Raises:
            UsageError: a volume lacks an attribute, or the atlas has volumes of different shapes
        """
        scalars, ranges = {}, {}
        for name in recipe.scalars:
            values = np.array([number(v, name) for v in volumes])
            scalars[name] = (float(values.mean()), float(values.std()) or 1.0)
            ranges[name] = (float(values.min()), float(values.max()))
        if not recipe.atlas:
            return cls(scalars, ranges=ranges)
        if len({v.shape for v in volumes}) > 1:
            raise UsageError("recipe.atlas: needs one data.preprocessing.shape for all volumes.")
        sound = healthy_volumes(recipe, volumes)
        if not sound:
            raise UsageError(
                "recipe.atlas: needs healthy volumes, and the training split has none."
            )
        total = torch.zeros(volumes[0].shape, dtype=torch.float64)
        for volume in sound:
            total += volume.array("x")
        return cls(scalars, (total / len(sound)).float(), ranges)

    def save(self, run: Path) -> None:
        """Writes RUN/statistics once; a run keeps the numbers it began with."""
        text = json.dumps({"scalars": self.scalars, "ranges": self.ranges}, indent=1).encode()
        files: dict[str, Content] = {"statistics.json": text}
        if self.atlas is not None:
            files["atlas.npy"] = partial(_write_array, self.atlas.numpy())
        publish(run / "statistics", files)

    @classmethod
    def load(cls, run: Path) -> "Statistics":
        """Reads RUN/statistics.

        Raises:
            DataError: damaged or missing
        """
        folder, advice = verified(run / "statistics"), "restore the folder from a backup"
        stored = parse_file(folder / "statistics.json", StoredStatistics, advice=advice)
        path = folder / "atlas.npy"
        try:
            atlas = torch.from_numpy(np.load(path)) if path.is_file() else None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: no readable array ({error}); {advice}.") from None
        return cls(stored.scalars, atlas, stored.ranges)

    def standardised(self, attributes: Mapping[str, str | float]) -> Float[Tensor, "n"] | None:
        """The scalars of a case as a network sees them, None if there are none.

        Raises:
            UsageError: an attribute is missing
        """
        if not self.scalars:
            return None
        values = []
        for name, (mean, deviation) in self.scalars.items():
            value = attributes.get(name)
            if not isinstance(value, int | float):
                raise UsageError(
                    f"attribute {name!r} is {value!r}: expected a number, as in training."
                )
            values.append((value - mean) / deviation)
        return torch.tensor(values)


def _write_array(array: np.ndarray, file: Any) -> None:
    np.lib.format.write_array(file, array, None, False)  # numbers only, no objects


def number(volume: TrainingVolume, name: str) -> float:
    """A numeric attribute of a volume."""
    value = volume.attributes.get(name)
    if not isinstance(value, int | float):
        raise UsageError(
            f"recipe.scalars: case {volume.id} has {name!r} = {value!r}, expected a number; "
            "complete participants.tsv."
        )
    return float(value)
