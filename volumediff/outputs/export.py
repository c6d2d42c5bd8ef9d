"""Files of one localized volume: NIfTI on the grid of the input, and a JSON sidecar.

`<case>` is what `outputs.case_files` lets names begin with, below the folders of a BIDS data set.

<case>_desc-anomaly_map.nii.gz        higher is more abnormal, lowest outside the foreground
<case>_desc-anomaly_mask.nii.gz       map above the threshold, if the method has one
<case>_desc-foreground_mask.nii.gz    voxels that were looked at
<case>_desc-uncertainty_map.nii.gz    deviation of the map between the seeds of an ensemble
<case>_desc-pseudohealthy_image.nii.gz   in the intensities of the file
<case>_desc-contribution<Member>_map.nii.gz   what each member of a fusion adds to the map
<case>_desc-<step>_mask|map.nii.gz    masks and intermediate maps of the method's components
<case>_desc-anomaly_map.json          method, weights, inputs, score, thresholds, components,
                                      share and network calls of each member of a fusion
<case>_desc-anomaly_findings.json     the findings, one entry each; see findings/schema.py
OUT/seen-<hash>.json                  subjects that the weights were trained on; see leakage.py
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from volumediff.anomaly.raw_map import Localization
from volumediff.data.volume import write
from volumediff.metrics.components import labelled
from volumediff.outputs.bids_dataset import image_keys
from volumediff.outputs.case_files import CaseFiles
from volumediff.outputs.result_grid import ResultGrid
from volumediff.storage.atomic import atomic
from volumediff.storage.folder import made

__all__ = [
    "ENSEMBLE",
    "FINDINGS",
    "FOREGROUND",
    "HEALTHY",
    "MAP",
    "MASK",
    "UNCERTAINTY",
    "Writer",
    "block_name",
    "blocks_of",
    "findings_of",
    "finite",
    "share_of",
    "write_json",
    "write_localization",
]

MAP, MASK = "desc-anomaly_map", "desc-anomaly_mask"
FOREGROUND, HEALTHY = "desc-foreground_mask", "desc-pseudohealthy_image"
UNCERTAINTY = "desc-uncertainty_map"
ENSEMBLE = "desc-ensemble_map"  # of the trace: the map that the uncertainty belongs to
FINDINGS = "desc-anomaly_findings"


def write_localization(
    files: CaseFiles,
    found: Localization,
    *,
    foreground: Tensor,
    grid: ResultGrid,
    facts: Mapping[str, Any],
    trace: bool = True,
) -> list[Path]:
    """Writes the outputs of one case; every file appears whole or not at all.

    Arguments:
        files: where to
        found: on the prepared grid
        foreground: (1, d, h, w) of the prepared volume
        grid: of the input
        facts: for the JSON
        trace: whether masks and maps of the components are written too
    """
    writer = Writer(files, grid)
    anomaly = writer.image(MAP, found.map[0])
    writer.label(FOREGROUND, foreground)
    findings: list[dict[str, Any]] = []
    if found.mask is not None:
        mask = writer.mask(MASK, found.mask[0], volume_ml=found.finding_ml)
        findings = findings_of(mask, anomaly, affine=grid.record.canonical.affine)
    if found.uncertainty is not None:
        writer.image(UNCERTAINTY, found.uncertainty[0])
    if found.pseudo_healthy is not None:
        writer.channels(HEALTHY, found.pseudo_healthy[0])
    sums = {name: float(added.double().sum()) for name, added in found.contributions.items()}
    members = []
    for name, added in found.contributions.items():
        writer.image(block_name(f"contribution {name}", added), added[0])
        members.append(
            {
                "name": name,
                "share": share_of(name, sums),
                "network_calls": found.network_calls.get(name, 0),
                "file": writer.files[-1].name,
            }
        )
    steps = []
    for name, block in blocks_of(found).items() if trace else ():
        is_mask = block.dtype == torch.bool
        (writer.label if is_mask else writer.image)(block_name(name, block), block[0])
        steps.append({"name": name, "file": writer.files[-1].name})
    volume_ml = sum(f["volume_mm3"] for f in findings) / 1000
    return writer.record(
        MAP,
        {
            **facts,
            "score": found.score,
            "mask_volume_ml": volume_ml if found.mask is not None else None,
            "findings": findings,
            "members": members,
            "trace": steps,
            "preprocessing": [vars(f) for f in grid.record.findings],
            "notice": "Research software, not for diagnosis.",
        },
    )


def share_of(name: str, sums: Mapping[str, float]) -> float | None:
    """What a member adds as a share of what all of them add; None where none adds anything.

    Arguments:
        name: of the member
        sums: of all members' contributions
    """
    whole = sum(sums.values())
    return float(f"{sums[name] / whole:.6g}") if whole > 0 else None


def blocks_of(found: Localization) -> dict[str, Tensor]:
    """Masks and maps of a method's components that have the shape of its map, by name."""
    return {n: block for n, block in found.trace.items() if block.shape == found.map.shape}


def block_name(name: str, block: Tensor) -> str:
    """What the file of a mask or map is called, such as `desc-ensemble_map`."""
    kind = "mask" if block.dtype == torch.bool else "map"
    words = re.sub(r"[^A-Za-z0-9]+", "", name.removesuffix(kind).title())
    return f"desc-{words[:1].lower() + words[1:] or 'block'}_{kind}"


class Writer:
    """Writes arrays of the prepared grid on the grid of the input, and remembers the files."""

    def __init__(self, place: CaseFiles, grid: ResultGrid) -> None:
        self.place, self.grid = place, grid
        made(place.folder)
        self.files: list[Path] = []
        self.names: list[str] = []

    def image(self, name: str, array: Tensor, *, beyond: float | None = None) -> np.ndarray:
        """A map, as it is written: (1, d, h, w) along R, A, S; see `ResultGrid.image`."""
        return self._write(name, self.grid.image(array, beyond=beyond), "image")

    def channels(self, name: str, array: Tensor) -> np.ndarray:
        """Normalized channels, written in the intensities of the input."""
        return self._write(name, self.grid.channels(array), "image")

    def label(self, name: str, array: Tensor) -> np.ndarray:
        """Labels or a mask."""
        return self._write(name, self.grid.label(array), "label")

    def native_label(self, name: str, array: np.ndarray) -> np.ndarray:
        """Labels that are on the grid of the input already."""
        return self._write(name, array, "label")

    def native_image(self, name: str, array: np.ndarray) -> np.ndarray:
        """A map that is on the grid of the input already."""
        return self._write(name, array, "image")

    def mask(self, name: str, array: Tensor, *, volume_ml: float) -> np.ndarray:
        """A mask of findings, without parts below a volume."""
        return self._write(name, self.grid.mask(array, volume_ml=volume_ml), "label")

    def record(
        self,
        name: str,
        content: Mapping[str, Any],
        *,
        keys: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Path]:
        """Writes the JSON of the case, and beside every image that BIDS knows its keys.

        Arguments:
            name: of the JSON
            content: of the JSON
            keys: what every image has beside it, too

        Returns:
            every file of the case
        """
        beside = {image: image_keys(self.place, image) for image in self.names}
        records = {image: {**known, **keys} for image, known in beside.items() if known}
        records[name] = {**content, **records.get(name, {})}
        paths = []
        for image, written in records.items():
            paths.append(self.place.path(image, ".json"))
            write_json(paths[-1], written)
        return [*self.files, *paths]

    def _write(self, name: str, array: np.ndarray, kind: Literal["image", "label"]) -> np.ndarray:
        path = self.place.path(name)
        write(path, array, like=self.grid.record.native, kind=kind)
        self.files.append(path)
        self.names.append(name)
        return array


def findings_of(mask: np.ndarray, anomaly: np.ndarray, *, affine: np.ndarray) -> list[dict]:
    """The components of a mask, largest first: volume, centre and peak in RAS millimetres.

    The peak is the first of the voxels with the highest value.

    Arguments:
        mask: (1, d, h, w), canonical axes
        anomaly: the map on the same grid
        affine: voxel index to millimetres
    """
    labels, count = labelled(mask[0] > 0)
    if count == 0:
        return []
    # The mask's voxels alone: a volume has a hundred times as many.
    at = np.flatnonzero(labels)
    of, scores = labels.ravel()[at] - 1, anomaly[0].ravel()[at]
    points = np.unravel_index(at, labels.shape)
    sizes = np.bincount(of, minlength=count)
    centres = np.stack([np.bincount(of, weights=axis) for axis in points], axis=1) / sizes[:, None]
    # By component, the highest first; of equal heights the first voxel.
    highest = np.lexsort((-scores, of))[np.cumsum(sizes) - sizes]
    peaks, heights = np.stack([axis[highest] for axis in points], axis=1), scores[highest]
    voxel = abs(float(np.linalg.det(affine[:3, :3])))

    def millimetres(point: np.ndarray) -> list[float]:
        return np.round(affine[:3, :3] @ point + affine[:3, 3], 2).tolist()

    return [
        {
            "volume_mm3": round(float(sizes[i]) * voxel, 2),
            "centre_mm": millimetres(centres[i]),
            "peak_mm": millimetres(peaks[i]),
            "peak": float(heights[i]),
        }
        for i in np.argsort(-sizes, kind="stable")
    ]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; numbers that are not finite become null."""
    with atomic(path) as file:
        file.write(json.dumps(finite(content), indent=1).encode())


def finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
