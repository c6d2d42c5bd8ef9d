"""Regions that a user gives: on any grid, by case, for methods that take one."""

import json
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_app import base, oblique, program, run, save, write_cases

from volumediff.data.cases import Case
from volumediff.data.grid import Grid
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.inference.user_regions import find_regions, nearest, region_on

__all__ = ["base", "program", "run"]  # fixtures

GIVEN = ("--method", "inpaint_given", "sampler.steps=2", "editing.selector.dilate_mm=0")


def test_every_voxel_takes_the_nearest_one_of_the_mask():
    rng = np.random.default_rng(0)
    inside = rng.random((6, 5, 7)) > 0.5
    source = Grid(inside.shape, oblique("RAS", 0.0, (2.0, 3.0, 1.5)))
    target = Grid((7, 8, 4), oblique("LPS", 33.0, (1.0, 1.7, 2.9)))
    got = nearest(inside, source, target)
    back = np.linalg.inv(source.affine) @ target.affine
    assert 0 < got.sum() < got.size
    for index in product(*map(range, target.shape)):
        at = back @ (*index, 1.0)
        best, value = 0.5 + 1e-9, False  # in voxels along each axis
        for voxel in product(*map(range, inside.shape)):
            gap = np.abs(at[:3] - voxel).max()
            if gap < best:
                best, value = gap, inside[voxel]
        assert got[index] == value, index


def test_a_mask_on_its_own_grid_is_itself(tmp_path):
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1, 2, 3] = 7
    path = save(tmp_path / "m.nii.gz", mask, np.diag([2.0, 2, 2, 1]))
    grid, everywhere = Grid((4, 4, 4), np.diag([2.0, 2, 2, 1])), torch.ones(1, 4, 4, 4).bool()
    label = read(path, kind="label")
    got = region_on(label, grid, everywhere)
    np.testing.assert_array_equal(got[0].numpy(), mask > 0)
    with pytest.raises(DataError, match="lies outside of the foreground"):
        region_on(label, grid, ~everywhere)
    moved = np.diag([2.0, 2, 2, 1])
    moved[0, 3] = 500
    far = Grid((4, 4, 4), moved)
    with pytest.raises(DataError, match="misses every voxel"):
        region_on(label, far, everywhere)
    empty = save(tmp_path / "e.nii.gz", 0 * mask, np.eye(4))
    with pytest.raises(DataError, match="got an empty mask"):
        region_on(read(empty, kind="label"), grid, everywhere)


def test_regions_are_found_by_the_names_of_the_cases(tmp_path):
    cases = [Case(f"p{i}", f"p{i}", {"T1w": tmp_path / f"p{i}_T1w.nii.gz"}) for i in range(3)]
    masks = tmp_path / "masks"
    bare, worded = (
        save(masks / name, np.ones((2, 2, 2), np.uint8), np.eye(4))
        for name in ("p0.nii.gz", "p1_region.nii.gz")
    )
    assert find_regions(masks, cases) == ({"p0": bare, "p1": worded}, ["p2"])
    assert find_regions(bare, cases[:1]) == ({"p0": bare}, [])
    with pytest.raises(UsageError, match="is one mask for 3 cases; give a folder"):
        find_regions(bare, cases)
    with pytest.raises(UsageError, match="nothing there"):
        find_regions(tmp_path / "gone", cases)
    with pytest.raises(UsageError, match="has no mask for p2"):
        find_regions(masks, cases[2:])
    # labels beside the images
    for i in range(3):
        image = save(
            tmp_path / "set" / f"p{i}_T1w.nii.gz", np.ones((2, 2, 2), np.float32), np.eye(4)
        )
        cases[i] = Case(f"p{i}", f"p{i}", {"T1w": image})
    with pytest.raises(UsageError, match="has no mask for p0"):
        find_regions(tmp_path / "set", cases)
    label = save(tmp_path / "set" / "p1_mask.nii.gz", np.ones((2, 2, 2), np.uint8), np.eye(4))
    assert find_regions(tmp_path / "set", cases) == ({"p1": label}, ["p0", "p2"])


def test_a_region_is_redrawn_and_the_rest_is_kept(run, program, tmp_path):
    data = write_cases(tmp_path / "in", count=2)
    # voxels of 1.5 mm, two per axis and voxel of the volume; its voxels 3 to 4 along each axis
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[6:10, 6:10, 6:10] = 1
    affine = np.diag([1.5, 1.5, 1.5, 1])
    affine[:3, 3] = -0.75
    path = save(tmp_path / "masks" / "new-0_mask.nii.gz", mask, affine)
    out = tmp_path / "out"
    words = ("localize", data / "new-0_T1w.nii.gz", "--run", run, "-o", out, *GIVEN)
    code, _, said = program(*words, "--region", path)
    assert code == 0, said
    image = np.asarray(nib.load(data / "new-0_T1w.nii.gz").dataobj)
    prefix = out / "new-0_desc-"
    healthy = np.asarray(nib.load(f"{prefix}pseudohealthy_image.nii.gz").dataobj)
    scores = np.asarray(nib.load(f"{prefix}anomaly_map.nii.gz").dataobj)
    traced = np.asarray(nib.load(f"{prefix}given_mask.nii.gz").dataobj)
    inside = np.zeros(image.shape, bool)
    inside[3:5, 3:5, 3:5] = True
    np.testing.assert_array_equal(traced > 0, inside)
    np.testing.assert_allclose(healthy[~inside], np.clip(image, 0, 200)[~inside], atol=1e-3)
    assert np.abs(healthy - image)[inside].min() > 1e-3
    assert scores[~inside].max() < 1e-5 * scores.max()  # zero up to rounding
    facts = json.loads((out / "new-0_desc-anomaly_map.json").read_text())
    assert facts["region_sha256"]
    # another region is another result; the same one is finished
    assert "1 already finished" in program(*words, "--region", path)[1]
    mask[6:10, 6:10, 6:12] = 1
    save(path, mask, affine)
    assert "1 done" in program(*words, "--region", path)[1]
    # of a folder, cases without a region fail with the reason
    both = ("localize", data, "--run", run, "-o", tmp_path / "two", *GIVEN)
    code, said, complaint = program(*both, "--region", tmp_path / "masks")
    assert code == 1
    assert "1 done, 1 failed" in said
    assert "new-1: has no region in" in complaint


@pytest.mark.parametrize(
    ("words", "region", "reason"),
    [
        (GIVEN, False, "expected a region to redraw, got none"),
        (
            ("--method", "ddpm"),
            True,
            "looks for anomalies itself and takes none; use the method inpaint",
        ),
        (("--method", "repaint"), True, "looks for anomalies itself and takes none"),
        (("--method", "intensity"), True, "looks for anomalies itself and takes none"),
        ((*GIVEN, "threshold=healthy_fpr"), True, "and healthy volumes have none"),
    ],
)
def test_regions_and_methods_must_fit(run, program, tmp_path, words, region, reason):
    data = write_cases(tmp_path / "in", count=1)
    path = save(tmp_path / "m.nii.gz", np.ones((8, 8, 8), np.uint8), np.diag([3.0, 3, 3, 1]))
    given = ("--region", path) if region else ()
    code, _, said = program("localize", data, "--run", run, "-o", tmp_path / "o", *words, *given)
    assert code == 2, said
    assert reason in said
    assert said.count("\n") == 1
