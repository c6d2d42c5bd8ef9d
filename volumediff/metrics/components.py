"""Connected components: the one rule for masks, findings and lesions.

Voxels that share a face, an edge or a corner belong together (26 neighbours), and a component
counts from a given volume in millilitres on.
"""

import math

import numpy as np
from jaxtyping import Bool, Int

__all__ = ["labelled", "least_voxels", "without_small"]


def labelled(mask: Bool[np.ndarray, "d h w"]) -> tuple[Int[np.ndarray, "d h w"], int]:
    """Number of the component of each voxel, 0 outside; and how many components there are."""
    from scipy import ndimage  # heavy import

    return ndimage.label(mask, structure=np.ones((3, 3, 3)))


def least_voxels(volume_ml: float, voxel_ml: float) -> int:
    """Fewest voxels of a component of at least this volume; at least 1."""
    return max(1, math.ceil(volume_ml / voxel_ml * (1 - 1e-6)))


def without_small(
    mask: Bool[np.ndarray, "d h w"], *, volume_ml: float, voxel_ml: float
) -> Bool[np.ndarray, "d h w"]:
    """The mask without components below a volume.

    Arguments:
        mask: any
        volume_ml: smallest volume that stays, in millilitres
        voxel_ml: volume of a voxel, in millilitres
    """
    labels, _ = labelled(mask)
    large = np.bincount(labels.ravel()) >= least_voxels(volume_ml, voxel_ml)
    large[0] = False
    return large[labels]
