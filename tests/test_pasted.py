"""Real lesion masks pasted into volumes: size, place, borders, fading, looks, refusals."""

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from lesion_masks import MASKS, SIZES

from volumediff.data.corruptions.pasted import Pasted, _masks
from volumediff.errors import DataError

SHARP = Pasted(MASKS, edge_mm=(0.0, 0.0), fading=0.0, deviation=(0.0, 0.0))
SPACING = (2.0, 2.0, 2.0)


def applied(corruption, key, spacing_mm=SPACING, n=32):
    x = torch.zeros((1, n, n, n))
    inside = torch.zeros((1, n, n, n), dtype=torch.bool)
    inside[:, 8:-8, 8:-8, 8:-8] = True
    changed, p = corruption(x, inside, donor=lambda k: x, spacing_mm=spacing_mm, key=key)
    return x, inside, changed, p


def test_masks_keep_their_shape_and_their_millimetres():
    whole = {math.prod(size) - 1 for size in SIZES}
    counts = [int((applied(SHARP, k)[3] == 1).sum()) for k in range(20)]
    assert set(counts) & whole == whole, "each is drawn; some are cut by the border"
    assert max(counts) == max(whole)
    finer = [float(applied(SHARP, k, (1.0, 1.0, 1.0), 48)[3].sum()) for k in range(20)]
    assert max(finer) == pytest.approx(8 * max(whole), rel=0.05), "the same volume at 1 mm"


def test_a_pasted_lesion_has_the_brightness_that_was_drawn():
    for key in range(6):
        x, inside, changed, p = applied(replace(SHARP, brightness=(0.9, 0.9)), key)
        torch.testing.assert_close(changed[p == 1], torch.full_like(changed[p == 1], 0.8))
        assert torch.equal(changed[p == 0], x[p == 0])
        assert not bool(((p > 0) & ~inside).any())
    both = [float((applied(SHARP, k)[2]).sum()) > 0 for k in range(20)]
    assert 3 < sum(both) < 17, "brighter or darker: no contrast is relied on"


def test_a_lesion_differs_from_its_place_by_what_is_asked_at_least():
    near = replace(SHARP, brightness=(0.5, 0.5), least=0.2)
    _, _, changed, p = applied(near, 1)
    assert float(changed[p == 1].abs().min()) == pytest.approx(2 * 0.2)


def test_borders_are_soft_and_lesions_fade():
    soft = applied(replace(SHARP, edge_mm=(2.0, 2.0)), 3)[3]
    sharp = applied(SHARP, 3)[3]
    assert set(sharp.unique().tolist()) == {0.0, 1.0}
    assert len(soft[(soft > 0) & (soft < 1)]) > 20
    faded = applied(replace(SHARP, fading=0.8), 3)[3]
    values = faded[sharp == 1]
    assert float(values.min()) >= 0.2 - 1e-6
    assert float(values.max()) < 1
    assert float(values.std()) > 0


def test_folders_without_masks_and_empty_masks_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected lesion masks .* found none"):
        applied(Pasted(tmp_path), 0)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    _masks.cache_clear()  # the folder was empty when it was first looked into
    with pytest.raises(DataError, match="expected a lesion, got an empty mask; take the file out"):
        applied(Pasted(tmp_path), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fading": 1.0}, r"fading: expected a share in \[0, 1\), got 1"),
        ({"least": 0.9}, r"least: expected a number in \[0, 0.5\], got 0.9"),
        ({"edge_mm": (2.0, 1.0)}, "edge_mm: expected two numbers in"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pasted(MASKS, **options)
