"""The viewer of one case shows what the files hold, with WebGL and without."""

import nibabel as nib
import numpy as np
import pytest

from volumediff.reporting.scene import Scene
from volumediff.reporting.viewer import nifti_bytes

NASTY = "</script><script>alert(1)</script>&'\""


def scene(shape=(9, 8, 7), **more):
    rng = np.random.default_rng(0)
    image = rng.uniform(-3, 1000, shape).astype(np.float32)
    return Scene("case", {"T1w": image}, spacing_mm=(1.5, 1.0, 2.0), **more)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.linspace(-3.7, 812.3, 504), 816 / 131070),  # half a step of 65535
        (np.arange(504) - 100.0, 0.0),  # whole numbers are exact
        (np.full(504, 7.25), 0.0),
        (np.arange(504) % 2 == 0, 0.0),
        ((np.arange(504) % 256).astype(np.uint8), 0.0),
    ],
)
def test_volumes_of_the_page_are_nifti_files_with_the_values(values, error):
    array = values.reshape(9, 8, 7)
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    image = nib.Nifti1Image.from_bytes(nifti_bytes(array, scene()))
    got = np.asarray(image.dataobj, dtype=np.float64)
    # single precision of the slope adds a little
    np.testing.assert_allclose(got, array, rtol=1e-6, atol=error * 1.01)
    np.testing.assert_allclose(image.affine @ [4, 3.5, 3, 1], [0, 0, 0, 1], atol=1e-6)
    assert image.header.get_zooms() == (1.5, 1.0, 2.0)
