"""The MNI152 template that nilearn ships: T1, grey and white matter at 1 mm.

References:
    Fonov et al. (2009), Unbiased nonlinear average age-appropriate brain templates
"""

from functools import cache

import numpy as np

__all__ = ["mni152"]


@cache
def mni152() -> tuple[np.ndarray, np.ndarray]:
    """T1, grey and white matter as the 8 bits of the files, cut to the brain, and its corner.

    The corner is the centre of the first voxel in MNI millimetres; voxels are 1 mm, along R, A, S.
    """
    from nilearn import datasets  # heavy import; the files are in its wheel

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    images = [load(resolution=1) for load in loaders]
    maps = np.stack(
        [np.rint(255 * np.asarray(image.dataobj)).astype(np.uint8) for image in images]
    )
    spans = [np.flatnonzero(maps[0].any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(span[0], span[-1] + 1) for span in spans)
    corner = images[0].affine[:3, 3] + np.array([span[0] for span in spans], dtype=np.float64)
    return np.ascontiguousarray(maps[(slice(None), *box)]), corner
