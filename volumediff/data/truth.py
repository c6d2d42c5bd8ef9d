"""What counts as a lesion: values of a label, or boxes that are filled.

A label may mark more than lesions (other pathology, organs); a case says which values count. Boxes
are coarser than lesions, and filled they are a label like any other: metrics that are counted in
voxels are then those of the boxes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from volumediff.data.cases import Box
from volumediff.data.volume import Volume
from volumediff.errors import DataError

__all__ = ["filled", "only"]


def only(label: Volume, values: Sequence[int] | None) -> Volume:
    """The label with all other values set to 0; None keeps every value."""
    if values is None:
        return label
    kept = np.where(np.isin(label.array, values), label.array, 0).astype(np.uint8)
    return replace(label, array=kept)


def filled(boxes: Sequence[Box], like: Volume) -> Volume:
    """A label on the grid of a volume: 1 inside the boxes.

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
        array[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    return Volume(array, like.affine, "label", like.native, like.path)
