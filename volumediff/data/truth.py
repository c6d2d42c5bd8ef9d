"""What counts as a lesion: values of a label, what most readers say, or boxes that are filled.

A label may mark more than lesions (other pathology, organs); a case says which values count. Boxes
are coarser than lesions, and filled they are a label like any other: metrics that are counted in
voxels are then those of the boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from volumediff.data.cases import Box, Case, Sphere
from volumediff.data.contours import filled_contours
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.readers import majority
from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError

__all__ = ["Marked", "filled", "label_map", "marked", "only"]


@dataclass(frozen=True, eq=False)
class Marked:
    """What is marked in a case, on the grid of its image.

    Arguments:
        label: the consensus: the data set's own, else what most readers say, else filled boxes
        readers: label maps of the readers, in the order of `Case.labels` or `Case.contours`
    """

    label: Volume | None
    readers: tuple[Volume, ...] = ()

    @property
    def majority_of_readers(self) -> UInt8[np.ndarray, "1 d h w"]:
        """What most readers say, whether or not the data set has a consensus of its own."""
        return majority(np.concatenate([reader.array for reader in self.readers]))


def marked(case: Case, like: Volume | None, policy: ReadPolicy | None = None) -> Marked:
    """Reads what is marked in a case; of its label maps only the values that are lesions.

    Arguments:
        like: an image of the case, whose grid all label maps must have; None looks at label maps
            alone, which must share one (contours still need the first image)
        policy: decisions on ambiguous files

    Raises:
        DataError: a file is refused, or lies on another grid
    """
    files = list(case.labels.values()) + ([] if case.label is None else [case.label])
    maps = [only(label_map(path, policy), case.lesions, case.ignored) for path in files]
    for volume in maps:
        check_grids(maps[0] if like is None else like, volume)
    readers = tuple(maps[: len(case.labels)])
    if case.contours and not readers:
        like = read(next(iter(case.images.values()))) if like is None else like
        readers = tuple(filled_contours(drawn, like) for drawn in case.contours.values())
    if case.label is not None:
        return Marked(maps[-1], readers)
    if readers:
        found = Marked(None, readers)
        # remarks on the files are those of the readers
        return Marked(replace(readers[0], array=found.majority_of_readers, findings=()), readers)
    if case.boxes is None or like is None:
        return Marked(None)
    return Marked(filled(case.boxes, like, case.spheres))


def label_map(path: Path, policy: ReadPolicy | None = None) -> Volume:
    """A file of numbered labels.

    Raises:
        DataError: no labels, or several volumes of them
    """
    volume = read(path, kind="label", policy=policy or ReadPolicy())
    if len(volume.array) != 1:
        raise DataError(
            f"{path}: expected one label volume, got {len(volume.array)} frames; give one file of "
            "numbered labels."
        )
    return volume


def only(label: Volume, lesions: Sequence[int] | None, ignored: Sequence[int] = ()) -> Volume:
    """The label with all values set to 0 that are no lesions.

    Arguments:
        lesions: the values that are; None takes all that are not ignored
        ignored: values that are neither lesion nor healthy
    """
    if lesions is None and not ignored:
        return label
    other = np.isin(label.array, ignored) if lesions is None else ~np.isin(label.array, lesions)
    return replace(label, array=np.where(other, 0, label.array).astype(np.uint8))


def filled(boxes: Sequence[Box], like: Volume, spheres: Sequence[Sphere] = ()) -> Volume:
    """A label on the grid of a volume: 1 inside the boxes, or inside the spheres in them.

    A voxel is inside of a sphere where its centre is; of a smaller sphere it is the nearest one.

    Raises:
        DataError: a box is empty or leaves the volume
    """
    shape = like.array.shape[1:]
    array = np.zeros((1, *shape), np.uint8)
    for box in boxes:
        low, high = box[:3], box[3:]
        if not all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True)):
            raise DataError(
                f"{like.path}: the box {box} does not lie in a volume of {shape} voxels; check "
                "that the boxes belong to this file."
            )
        if not spheres:
            array[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    for x, y, z, diameter in spheres:
        _fill(array[0], like.affine, np.array([x, y, z]), diameter / 2)
    return Volume(array, like.affine, "label", like.native, like.path)


def _fill(
    array: UInt8[np.ndarray, "d h w"],
    affine: Float[np.ndarray, "4 4"],
    centre_mm: Float[np.ndarray, "3"],
    radius_mm: float,
) -> None:
    """Sets the voxels of a sphere to 1."""
    middle = np.linalg.solve(affine, np.append(centre_mm, 1.0))[:3]
    reach = radius_mm / np.linalg.norm(affine[:3, :3], axis=0) + 1
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, array.shape).astype(int)
    place = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1)
    offset = (place - middle) @ affine[:3, :3].T
    inside = (offset**2).sum(-1) <= radius_mm**2
    here = array[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    if inside.any():
        here[inside] = 1
    elif inside.size:
        here[np.unravel_index((offset**2).sum(-1).argmin(), inside.shape)] = 1
