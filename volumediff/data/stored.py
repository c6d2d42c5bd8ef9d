"""Voxels of a file as stored, and their grid: the output of every file reader.

`data.volume` turns them to R, A, S and checks that they are intensities or labels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from volumediff.data.grid import Grid
from volumediff.data.remarks import Remark

__all__ = ["StoredVolume"]


@dataclass(frozen=True, eq=False)
class StoredVolume:
    """Voxels in the order of the file.

    Arguments:
        raw: frames last
        grid: of the file
        findings: what was noticed and treated while reading
    """

    raw: Shaped[np.ndarray, "x y z f"]
    grid: Grid
    findings: tuple[Remark, ...] = ()
