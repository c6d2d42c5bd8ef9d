r"""Distances between the surfaces of two masks, in millimetres, on voxels of any shape.

The surface S of a mask are its voxels with a face neighbour outside of it; beyond the volume is
outside. With d(p, S) the distance from the centre of voxel p to the nearest centre of S, A the
mask and B the truth,

    HD95 = max(P95 {d(a, S_B)}, P95 {d(b, S_A)}),
    ASSD = (Σ_a d(a, S_B) + Σ_b d(b, S_A)) / (|S_A| + |S_B|),
    NSD(τ) = (|{a : d(a, S_B) <= τ}| + |{b : d(b, S_A) <= τ}|) / (|S_A| + |S_B|).

These are the definitions of MONAI on whole voxels; P95 interpolates between order statistics.
Programs that take P95 of both directions pooled (medpy), or weigh surface elements by their area
(surface-distance), give other figures: by less than a voxel.

References:
    Nikolov et al. (2021), Clinically applicable segmentation of head and neck anatomy for
        radiotherapy, arXiv:1809.04430 (NSD)
    Reinke et al. (2024), Understanding metric-related pitfalls in image analysis validation,
        arXiv:2302.01790
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["PERCENTILE", "SurfaceDistances", "surface_distances", "surface_voxels"]

PERCENTILE = 95.0
# A distance that is equal to the tolerance is within it, whatever the rounding of the transform.
SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances between two surfaces.

    Arguments:
        to_truth: from every surface voxel of the mask to the surface of the truth, in mm
        to_mask: from every surface voxel of the truth to the surface of the mask, in mm
    """

    to_truth: Float[np.ndarray, "a"]
    to_mask: Float[np.ndarray, "b"]

    def hausdorff(self, percentile: float = PERCENTILE) -> float:
        """The larger of the two directed percentiles, in mm; 100 is the Hausdorff distance."""
        ends = [np.percentile(d, percentile) for d in (self.to_truth, self.to_mask)]
        return float(max(ends))

    @property
    def average(self) -> float:
        """ASSD, the mean over the voxels of both surfaces, in mm."""
        return float(np.concatenate([self.to_truth, self.to_mask]).mean())

    def within(self, tolerance_mm: float) -> float:
        """NSD, the share of both surfaces within a tolerance of the other, in [0, 1]."""
        every = np.concatenate([self.to_truth, self.to_mask])
        return float((every <= tolerance_mm + SLACK).mean())


def surface_voxels(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """The voxels of a mask that have a face neighbour outside of it."""
    from scipy import ndimage  # heavy import

    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(
    mask: Bool[np.ndarray, "d h w"],
    truth: Bool[np.ndarray, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks; None where one of them is empty.

    Arguments:
        mask: what the method marked
        truth: what there is
        spacing_mm: voxel size along d, h, w
    """
    from scipy import ndimage  # heavy import

    if not mask.any() or not truth.any():
        return None
    # nothing outside of the box around both is nearer than what is inside
    (box,) = ndimage.find_objects((mask | truth).astype(np.uint8))
    mine, theirs = surface_voxels(mask[box]), surface_voxels(truth[box])
    return SurfaceDistances(
        ndimage.distance_transform_edt(~theirs, sampling=spacing_mm)[mine],
        ndimage.distance_transform_edt(~mine, sampling=spacing_mm)[theirs],
    )
