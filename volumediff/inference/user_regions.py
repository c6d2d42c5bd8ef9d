"""Regions that the user wants redrawn: a mask per case on any grid, resampled to the model's.

For one case the region is a mask file. For several it is a folder: `<case>.nii.gz`, or the name of
the case with a last word such as `_region`, `_mask` or `_lesion`; or a data set whose cases have
labels beside their images, which may be the input folder itself. All above 0 is the region.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from volumediff.anomaly.methods._base import Method
from volumediff.data.cases import Case, safe_id
from volumediff.data.files import stem_of
from volumediff.data.grid import Grid
from volumediff.data.layouts._roles import LABEL_WORDS
from volumediff.data.survey import survey_cases
from volumediff.data.volume import SUFFIXES, Volume
from volumediff.errors import DataError, UsageError

__all__ = ["check_region", "find_regions", "missing_reasons", "nearest", "region_on"]

WORDS = LABEL_WORDS | {"region"}


def check_region(row: Method, method: str, given: bool) -> None:
    """Whether a method takes a region, and whether there is one.

    Raises:
        UsageError: one without the other
    """
    if row.takes_region and not given:
        raise UsageError(
            f"method '{method}': expected a region to redraw, got none; give its mask as the "
            "region, or use the method healthy_inpainting, which finds one."
        )
    if given and not row.takes_region:
        raise UsageError(
            f"region: the method '{method}' looks for anomalies itself and takes none; use the "
            "method inpaint_given, or one that edits with the selector given."
        )


def find_regions(source: Path | str, cases: Sequence[Case]) -> tuple[dict[str, Path], list[str]]:
    """The region of every case by its id, and the cases without one.

    Raises:
        UsageError: nothing there, one file for several cases, or no region for any case
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(f"region {source}: expected a mask or a folder of masks; nothing there.")
    if source.is_file() and source.name.lower().endswith(SUFFIXES):
        if len(cases) > 1:
            raise UsageError(
                f"region {source}: is one mask for {len(cases)} cases; give a folder with a "
                f"mask per case, such as {cases[0].id}_mask.nii.gz."
            )
        return {cases[0].id: source}, []
    images = {path.resolve() for case in cases for path in case.images.values()}
    named = _named(source, images)
    found = {}
    for case in cases:
        names = [case.id, *(safe_id(stem_of(path)) for path in case.images.values())]
        path = next((named[name] for name in names if name in named), None)
        if path is not None:
            found[case.id] = path
    if not found:
        raise UsageError(
            f"region {source}: has no mask for {cases[0].id}; expected {cases[0].id}.nii.gz or "
            f"{cases[0].id}_mask.nii.gz, or a data set with labels."
        )
    return found, [case.id for case in cases if case.id not in found]


def _named(source: Path, images: Set[Path]) -> dict[str, Path]:
    """Masks by the names that a case may have; the images themselves are none."""
    try:
        known = survey_cases(source)[0]
    except DataError:
        known = []  # a folder of masks alone is no data set
    found = {case.id: case.label for case in known if case.label is not None}
    labelled = bool(found)
    files = [p for p in source.glob("*.nii*") if p.name.lower().endswith(SUFFIXES)]
    for path in sorted(files) if source.is_dir() else ():
        name, _, word = stem_of(path).rpartition("_")
        if name and word.lower() in WORDS:
            found.setdefault(safe_id(name), path)
        elif not labelled and path.resolve() not in images:  # beside labels, these are images
            found.setdefault(safe_id(stem_of(path)), path)
    return found


def region_on(
    region: Volume, grid: Grid, foreground: Bool[Tensor, "1 d h w"]
) -> Bool[Tensor, "1 d h w"]:
    """A region on the grid of a prepared volume.

    Raises:
        DataError: it is empty, or leaves no voxel of the foreground
    """
    inside, path = (region.array > 0).any(0), region.path
    if not inside.any():
        raise DataError(f"{path}: expected a region to redraw, got an empty mask.")
    found = torch.from_numpy(nearest(inside, region.grid, grid))[None]
    if not bool((found & foreground.cpu()).any()):
        what = "lies outside of the foreground" if bool(found.any()) else "misses every voxel"
        raise DataError(
            f"{path}: {what} of the volume on the model's grid; check that both belong to one "
            "case, and that the region is not thinner than the model's voxels."
        )
    return found


def nearest(
    inside: Bool[np.ndarray, "d h w"], source: Grid, target: Grid
) -> Bool[np.ndarray, "od oh ow"]:
    """For each voxel of another grid, whether the nearest one of the source is inside.

    Voxels beyond the source's field of view are outside.
    """
    move = np.linalg.inv(source.affine) @ target.affine  # target voxel -> source voxel
    d, h, w = target.shape
    plane = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    beside = plane @ move[:3, 1:3].T + move[:3, 3]
    out = np.zeros(target.shape, bool)
    for i in range(d):  # plane by plane: positions need much more memory than the mask
        # voxels are half open, so that a point between two belongs to one; rounding is no shift
        at = np.floor(beside + move[:3, 0] * i + 0.5 + 1e-6).astype(np.int64)
        there = ((at >= 0) & (at < inside.shape)).all(-1)
        a, b, c = at[there].T
        out[i][there] = inside[a, b, c]
    return out


def missing_reasons(missing: Sequence[str], source: Path | str) -> Mapping[str, str]:
    """Why cases without a region are not worked on."""
    return {case: f"has no region in {source}; add {case}_mask.nii.gz" for case in missing}
