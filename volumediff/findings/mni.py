"""Where a finding lies in MNI152 space, with what nilearn carries in its wheel.

That is grey and white matter maps of the template at 1 mm, and tables of named functional seeds
(coordinates, no volumes). Atlases of lobes would have to be downloaded: there is none, and none
is made up. Only a file whose form code is 4 (NIFTI_XFORM_MNI_152) says that it lies there; a
plausible affine does not.

References:
    Dosenbach et al. (2010), Prediction of Individual Brain Maturity Using fMRI, Science 329:1358
"""

from functools import cache

import numpy as np
from jaxtyping import Float

from volumediff.data.grid import Grid
from volumediff.data.header import parse
from volumediff.data.mni152 import mni152
from volumediff.findings.schema import TemplateLocation

__all__ = ["in_mni", "template_place"]

MNI152 = 4  # NIFTI_XFORM_MNI_152


def in_mni(native: Grid) -> bool:
    """Whether the file says that its world coordinates are those of MNI152."""
    if native.header is None:
        return False
    fields = parse(native.header)
    code = int(fields["sform_code"]) or int(fields["qform_code"])
    return code == MNI152


def template_place(
    points_mm: Float[np.ndarray, "n 3"], centre_mm: Float[np.ndarray, "3"]
) -> TemplateLocation:
    """Tissue of the template under a finding's voxels, and the named seed next to its centre."""
    maps, corner = mni152()
    index = np.rint(points_mm - corner).astype(int)  # voxels of the template are 1 mm
    there = ((index >= 0) & (index < maps.shape[1:])).all(1)
    i, j, k = index[there].T
    grey, white = (float(m[i, j, k].sum(dtype=np.int64)) / 255 / len(index) for m in maps[1:])
    names, seeds = _seeds()
    gaps = np.linalg.norm(seeds - centre_mm, axis=1)
    nearest = int(gaps.argmin())
    return TemplateLocation(
        grey=round(grey, 3),
        white=round(white, 3),
        other=round(max(0.0, 1 - grey - white), 3),
        seed=names[nearest],
        seed_distance_mm=round(float(gaps[nearest]), 1),
    )


@cache
def _seeds() -> tuple[tuple[str, ...], np.ndarray]:
    from nilearn import datasets  # heavy import; the table is in its wheel

    table = datasets.fetch_coords_dosenbach_2010(ordered_regions=False)
    points = np.asarray(table.rois[["x", "y", "z"]], np.float64)
    sides = ["left" if x < 0 else "right" if x > 0 else "midline" for x in points[:, 0]]
    # labels end with the number of the seed
    names = [str(label).rpartition(" ")[0] for label in table.labels]
    return tuple(f"{side} {name}" for side, name in zip(sides, names, strict=True)), points
