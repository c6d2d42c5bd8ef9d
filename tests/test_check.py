"""One row per remark; a bad file never hides the others."""

import gzip
from pathlib import Path

import bad_volumes
import numpy as np
import pytest
from bad_volumes import AFFINE

from volumediff.data.check import check, has_errors
from volumediff.data.read_policy import ReadPolicy
from volumediff.errors import DataError

REAL = Path(__file__).parents[2] / "shared/data"


def put(root, name, data, affine=AFFINE, **options):
    blob = bad_volumes.content(data, affine=affine, **options)
    (root / f"{name}.nii.gz").write_bytes(gzip.compress(blob, 1))


def codes(rows, case):
    return {(r.file.split(".")[0], r.severity, r.code) for r in rows if r.case == case}


def test_rows(tmp_path):
    put(tmp_path, "good_T1w", bad_volumes.voxels())
    put(tmp_path, "good_mask", bad_volumes.lesion())
    put(tmp_path, "cut_T1w", bad_volumes.voxels(seed=1))
    blob = (tmp_path / "cut_T1w.nii.gz").read_bytes()
    (tmp_path / "cut_T1w.nii.gz").write_bytes(blob[:-100])
    put(tmp_path, "moved_T1w", bad_volumes.voxels(seed=2))
    put(tmp_path, "moved_mask", bad_volumes.lesion(), bad_volumes.affine_with({(0, 3): 20}))
    put(tmp_path, "odd_T1w", bad_volumes.damaged([np.nan]), np.diag([1, 1, 9, 1.0]))
    put(tmp_path, "copy_T1w", bad_volumes.voxels())
    put(tmp_path, "only_mask", bad_volumes.lesion())
    put(tmp_path, "two_T1w", bad_volumes.voxels(seed=4))
    put(tmp_path, "two_FLAIR", bad_volumes.voxels((10, 12, 16)), np.diag([2, 2.4, 2.5, 1]))
    rows = check([tmp_path])
    order = dict.fromkeys(r.case for r in rows if r.code in ("summary", "refused"))
    assert list(order) == ["copy", "cut", "good", "moved", "odd", "two"]
    assert has_errors(rows)
    assert codes(rows, "cut") >= {("cut_T1w", "error", "refused")}
    assert ("moved_mask", "error", "grid") in codes(rows, "moved")
    assert ("odd_T1w", "warning", "nonfinite") in codes(rows, "odd")
    assert ("", "warning", "spacing_outlier") in codes(rows, "odd")
    assert ("", "warning", "copy") in codes(rows, "good")
    assert ("", "error", "case") in codes(rows, "only")
    assert ("two_T1w", "warning", "grid") in codes(rows, "two")
    summaries = {r.file: r.message for r in rows if r.code == "summary"}
    assert summaries["good_T1w.nii.gz"].startswith("20x24x16 RAS, 1/1.2/2.5 mm, 1.")
    # 4 x 4 x 4 voxels of 3 mm3
    assert summaries["good_mask.nii.gz"].endswith("labels 1: 0.192 ml")


def test_a_sound_data_set_has_no_errors_or_warnings(tmp_path):
    for i in range(3):
        put(tmp_path, f"p{i}_T1w", bad_volumes.voxels(seed=i))
        put(tmp_path, f"p{i}_mask", bad_volumes.lesion())
    rows = check([tmp_path])
    assert not has_errors(rows)
    assert {r.code for r in rows} == {"summary"}
    assert len(rows) == 6


def test_policy_reaches_the_files(tmp_path):
    put(tmp_path, "p_T1w", bad_volumes.voxels(), sform=0)
    assert has_errors(check([tmp_path]))
    rows = check([tmp_path], policy=ReadPolicy(no_forms="las"))
    assert not has_errors(rows)
    with pytest.raises(DataError, match="nothing is there"):
        check([tmp_path / "none"])


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
def test_real_ct():
    rows = check([REAL / "ct"], layout="folder", channels=["ct"])
    assert not has_errors(rows)
    assert any("122x101x112 RAS" in r.message for r in rows)
