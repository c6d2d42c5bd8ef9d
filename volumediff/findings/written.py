"""The outputs of one case, read back from the folder, with the volume that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from volumediff.data.cases import Case
from volumediff.data.files import digests
from volumediff.data.foreground import foreground
from volumediff.data.grid import Grid, agree
from volumediff.data.read_policy import WRITTEN, ReadPolicy
from volumediff.data.resampling import onto
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError
from volumediff.outputs.case_files import CaseFiles
from volumediff.outputs.export import (
    ENSEMBLE,
    FOREGROUND,
    HEALTHY,
    MAP,
    MASK,
    UNCERTAINTY,
)
from volumediff.outputs.segmentation_files import DSEG, probabilities_of
from volumediff.outputs.sidecar import read_facts

__all__ = ["Written", "channels_on", "read_segmented", "read_written"]

Array = Float[np.ndarray, "d h w"]


@dataclass(frozen=True, eq=False)
class Written:
    """What lies in the folder for one case; all arrays on the grid of the file, along R, A, S.

    Arguments:
        case: its name
        facts: content of the JSON beside the map
        grid: canonical, and of the file
        map: anomaly map
        foreground: what was looked at
        mask: map above the threshold; None where the method gave none
        uncertainty: deviation between seeds; None with one seed
        ensemble: the map that the uncertainty belongs to; None where it was not kept
        images: intensities of the input by channel
        healthy: pseudo-healthy intensities by channel; empty where the method makes none
        contributions: what each member of a fusion adds to the map; empty for other methods
        labels: label values of a segmentation; `map` is then the probability of the label of each
            voxel, of the most probable one in the background, and `mask` where there is a label
        files: where it lies; None for a result in memory
    """

    case: str
    facts: Mapping[str, Any]
    grid: Grid
    native: Grid
    map: Array
    foreground: Bool[np.ndarray, "d h w"]
    mask: Bool[np.ndarray, "d h w"] | None
    uncertainty: Array | None
    ensemble: Array | None
    images: Mapping[str, Array]
    healthy: Mapping[str, Array]
    contributions: Mapping[str, Array] = field(default_factory=dict)
    labels: UInt8[np.ndarray, "d h w"] | None = None
    files: CaseFiles | None = None

    @property
    def threshold(self) -> float | None:
        """Of the mask."""
        value = self.facts.get("threshold")
        return None if value is None else float(value)


def read_written(files: CaseFiles, case: Case) -> Written:
    """Reads a case back.

    Arguments:
        files: results of a localization
        case: the same that was localized

    Raises:
        DataError: a file is missing or damaged, lies on another grid, or the input is not the one
            that was localized
    """
    facts = read_facts(files.path(MAP, ".json"))
    channels = _channels(facts, case)
    policy = ReadPolicy(**{**facts.get("read_policy", {}), "labels": None})
    anomaly = read(files.path(MAP), policy=WRITTEN)

    def beside(name: str, kind: Literal["image", "label"] = "image") -> np.ndarray | None:
        path = files.path(name)
        if not path.is_file():
            return None
        volume = read(path, kind=kind, policy=WRITTEN)
        difference = agree(anomaly.grid, volume.grid)
        if difference:
            raise DataError(f"{path}: expected the grid of the map, got {difference}.")
        return volume.array

    def first(name: str) -> Array | None:
        found = beside(name)
        return None if found is None else found[0]

    added = {}
    for member in facts.get("members", ()):
        array = first(str(member["file"]).removeprefix(f"{files.stem}_").removesuffix(".nii.gz"))
        if array is None:
            raise DataError(
                f"{files.folder}: expected {member['file']}, found none; localize again."
            )
        added[str(member["name"])] = array

    volumes = {name: read(path, policy=policy) for name, path in channels.items()}
    images = channels_on(volumes, anomaly.grid)
    restored = beside(HEALTHY)
    if restored is not None and len(restored) != len(images):
        raise DataError(
            f"{files.path(HEALTHY)}: expected {len(images)} channels, got {len(restored)}; "
            "localize again."
        )
    foreground, mask = beside(FOREGROUND, "label"), beside(MASK, "label")
    return Written(
        case=case.id,
        facts=facts,
        grid=anomaly.grid,
        native=anomaly.native,
        map=anomaly.array[0],
        foreground=np.ones(anomaly.grid.shape, bool) if foreground is None else foreground[0] > 0,
        mask=None if mask is None else mask[0] > 0,
        uncertainty=first(UNCERTAINTY),
        ensemble=first(ENSEMBLE),
        images=images,
        healthy={} if restored is None else dict(zip(images, restored, strict=True)),
        contributions=added,
        files=files,
    )


def read_segmented(files: CaseFiles, case: Case) -> Written:
    """Reads a segmented case back.

    Arguments:
        files: results of a segmentation
        case: the same that was segmented

    Raises:
        DataError: a file is missing or damaged, lies on another grid, or the input is not the one
            that was segmented
    """
    facts = read_facts(files.path(DSEG, ".json"))
    channels = _channels(facts, case)
    policy = ReadPolicy(**{**facts.get("read_policy", {}), "labels": None})
    volume = read(files.path(DSEG), kind="label", policy=WRITTEN)
    labels = volume.array[0].astype(np.uint8)

    def on_grid(path: Path) -> Array:
        found = read(path, policy=WRITTEN)
        difference = agree(volume.grid, found.grid)
        if difference:
            raise DataError(f"{path}: expected the grid of the label map, got {difference}.")
        return found.array[0]

    every = {v: on_grid(p) for v, p in probabilities_of(files).items() if v}
    spread = {}
    for v in every:
        path = files.path(f"label-{v}_desc-variance_map")
        if path.is_file():
            spread[v] = np.sqrt(on_grid(path).clip(min=0))
    images = channels_on({n: read(p, policy=policy) for n, p in channels.items()}, volume.grid)
    first = next(iter(images.values()))
    seen = foreground(first, "auto") | (labels > 0)
    own = _of_labels(labels, every) if every else (labels > 0).astype(np.float32)
    return Written(
        case=case.id,
        facts={**facts, "finding_ml": 0.0},
        grid=volume.grid,
        native=volume.native,
        map=own,
        foreground=seen,
        mask=labels > 0,
        uncertainty=_of_labels(labels, spread) if spread else None,
        ensemble=own if spread else None,
        images=images,
        healthy={},
        labels=labels,
        files=files,
    )


def _of_labels(labels: UInt8[np.ndarray, "d h w"], every: Mapping[int, Array]) -> Array:
    """The value of each voxel's own label; the largest of all where it has none."""
    result = np.max(np.stack([*every.values()]), axis=0)
    for v, array in every.items():
        result[labels == v] = array[labels == v]
    return result


def _channels(facts: Mapping[str, Any], case: Case) -> dict[str, Path]:
    """Files of the case under the names that the results give them, by their bytes.

    Raises:
        DataError: they are not those that were localized
    """
    here = {value: case.images[name] for name, value in digests(case).items()}
    known = {name: entry["sha256"] for name, entry in facts.get("inputs", {}).items()}
    if not known or set(known.values()) != set(here):
        names = ", ".join(p.name for p in case.images.values())
        raise DataError(
            f"{case.id}: expected the volume that was localized or segmented, got another "
            f"({names}); give the images of the results, or make the results again."
        )
    return {name: here[digest] for name, digest in known.items()}


def channels_on(volumes: Mapping[str, Volume], grid: Grid) -> dict[str, Array]:
    """Intensities of every channel on a canonical grid, as the model met them.

    Arguments:
        volumes: by name; those of several channels give `name[0]`, `name[1]`, ...
        grid: of the first of them, and of its results
    """
    found: dict[str, Array] = {}
    for name, volume in volumes.items():
        array = volume.array
        if agree(grid, volume.grid):
            x = torch.from_numpy(array)
            moved, _ = onto(x, volume.grid, grid, fill=float(array.min()))
            array = moved.numpy()
        for number, channel in enumerate(array):
            found[name if len(array) == 1 else f"{name}[{number}]"] = channel
    return found
