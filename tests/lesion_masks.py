"""A folder with three small lesion masks of 2 mm, for tests that paste them; it goes at exit."""

from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

_FOLDER = TemporaryDirectory()
MASKS = Path(_FOLDER.name)
SIZES = ((2, 3, 2), (3, 2, 4), (5, 4, 3))

for _i, _size in enumerate(SIZES):
    _mask = np.zeros((12, 12, 12), np.uint8)
    _mask[tuple(slice(3, 3 + _n) for _n in _size)] = 1
    _mask[3, 3, 3] = 0  # no box
    nib.save(nib.Nifti1Image(_mask, np.diag([2.0, 2, 2, 1])), MASKS / f"{_i}.nii.gz")
