"""Inputs that a run was plainly not trained for: refused, or recorded where they are forced."""

import json

import numpy as np
import pytest
from tiny_app import PLAIN, base, oblique, program, run, save

from volumediff.data.intensity import Percentile
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError
from volumediff.inference.input_guard import (
    crop_objection,
    ct_objection,
    looks_like_ct,
    permitted,
)

__all__ = ["base", "program", "run"]  # fixtures


def volume(tmp_path, values) -> Volume:
    return read(save(tmp_path / "a.nii.gz", values.astype(np.float32), oblique("RAS", 0.0)))


def test_ct_is_told_by_its_air(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(40, 20, (10, 10, 10))
    assert not looks_like_ct(volume(tmp_path, x))
    x[0, :5] = -1000  # 5 % air
    assert looks_like_ct(volume(tmp_path, x))
    x[0, :1, :1] = 40
    assert not looks_like_ct(volume(tmp_path, x))  # 4.9 %


def test_only_a_run_that_names_contrasts_of_mri_objects_to_ct(tmp_path):
    ct = {"image": volume(tmp_path, np.full((8, 8, 8), -1000.0))}
    said = ct_objection(ct, ("T1w",))
    assert said is not None
    assert "looks like CT" in said
    assert "trained on T1w" in said
    assert "option force" in said
    for channels in (None, ("CT",), ("T1w", "CT"), ("image",)):
        assert ct_objection(ct, channels) is None
    assert ct_objection({"T1w": volume(tmp_path, np.ones((8, 8, 8)))}, ("T1w",)) is None


@pytest.mark.parametrize(("size", "lost"), [(20, 0.0), (19, 0.05), (18, 0.1)])
def test_the_cropped_share_is_the_share_of_lost_voxels(tmp_path, size, lost):
    x = np.random.default_rng(0).uniform(1, 2, (20, 8, 8))
    rule = Percentile(foreground="nonzero")
    ready = Preprocessing(shape=(size, 8, 8), intensity=rule).prepare_volumes(
        [volume(tmp_path, x)]
    )
    assert ready.cropped == pytest.approx(lost)
    said = crop_objection(ready, "a")
    assert (said is not None) == (lost > 0.05)
    if said is not None:
        assert f"{lost:.1%} of the foreground" in said


def test_an_objection_stops_unless_it_is_overruled():
    assert permitted(None, force=False) == permitted(None, force=True) == []
    assert permitted("why", force=True) == ["why"]
    with pytest.raises(DataError, match="why"):
        permitted("why", force=False)


def test_a_volume_that_the_crop_cuts_is_refused_unless_forced(run, program, tmp_path):
    values = np.random.default_rng(0).uniform(50, 200, (12, 12, 12)).astype(np.float32)
    source = save(tmp_path / "large.nii.gz", values, oblique("RAS", 0.0))
    words = ("localize", source, "--run", run, "-o", tmp_path / "out", *PLAIN)
    code, out, said = program(*words)
    assert code == 1
    assert "of the foreground" in out + said
    code, out, said = program(*words, "--force")
    assert code == 0, said
    facts = json.loads((tmp_path / "out" / "large_desc-anomaly_map.json").read_text())
    assert "cut away" in facts["forced"][0]
    assert "cropped" in [remark["code"] for remark in facts["preprocessing"]]
