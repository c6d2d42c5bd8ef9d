"""Orientation is decided once, and results lie on the input to the bit."""

import gzip
from itertools import permutations, product
from pathlib import Path

import bad_volumes
import nibabel as nib
import numpy as np
import pytest

from volumediff.data import volume as volume_module
from volumediff.data.grid import Grid, canonical_grid
from volumediff.data.volume import ReadPolicy, Volume, read, write
from volumediff.errors import DataError

REAL = Path(__file__).parents[2] / "shared/data"
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def rotation(degrees: float, seed: int = 0) -> np.ndarray:
    """A rotation about a random axis (Rodrigues)."""
    x, y, z = np.random.default_rng(seed).standard_normal(3)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) / np.sqrt(x * x + y * y + z * z)
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def oriented(order, signs, degrees=0.0) -> np.ndarray:
    """An affine whose file axis i points along world axis order[i], with spacing 0.5/1/5 mm."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, i] = sign * (0.5, 1.0, 5.0)[i]
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3]
    affine[:3, 3] = 7.25, -31.5, 12.125
    return affine


@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_round_trip_is_exact_for_all_48_orientations(degrees, tmp_path):
    data = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    path, copy = tmp_path / "a.nii", tmp_path / "b.nii"
    for order, signs in ORIENTATIONS:
        affine = oriented(order, signs, degrees)
        path.write_bytes(bad_volumes.content(data, affine=affine, qform=1, sform=2))
        volume = read(path)
        image = nib.as_closest_canonical(nib.load(path))
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(volume.array[0], image.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)
        assert canonical_grid(volume.native).shape == volume.array.shape[1:]
        write(copy, volume.array, like=volume, kind="image")
        before, after = nib.load(path), nib.load(copy)
        np.testing.assert_array_equal(after.get_fdata(dtype=np.float32), data)
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(after.get_qform(), before.get_qform())
        assert [int(after.header[k]) for k in ("sform_code", "qform_code")] == [2, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, ">f8"])
def test_large_volumes_are_turned_column_by_column_without_touching_the_callers(dtype):
    data = np.random.default_rng(0).integers(0, 200, (2, 19, 9, 23)).astype(dtype)
    given = data.copy(order="F")
    for order, signs in ORIENTATIONS:
        affine = oriented(order, signs)
        found = Volume.from_array(given, affine)
        expected = nib.as_closest_canonical(nib.Nifti1Image(np.moveaxis(data, 0, -1), affine))
        expected = np.moveaxis(np.asarray(expected.dataobj), -1, 0)
        np.testing.assert_array_equal(found.array, expected)
        assert found.array.dtype == np.float32
        assert found.array.flags.c_contiguous
        found.array[:] = -1
        np.testing.assert_array_equal(given, data)


def test_what_is_not_finite_is_filled_in_a_copy():
    data = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    data[1, 2, 3], data[0, 0, 0], data[2, 1, 1] = np.nan, np.inf, -np.inf
    before = data.copy()
    found = Volume.from_array(data, np.eye(4), policy=ReadPolicy(nonfinite="fill"))
    least = np.nanmin(np.where(np.isfinite(data), data, np.nan))
    np.testing.assert_array_equal(found.array[0], np.where(np.isfinite(data), data, least))
    assert "3 voxels NaN, Inf" in found.findings[0].message
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_level_of_compression_holds_the_same_volume(level, tmp_path):
    data = np.random.default_rng(0).random((6, 5, 40)).astype(np.float32)
    data[:3] = 0
    path = tmp_path / "a.nii.gz"
    write(path, data, like=Grid((6, 5, 40), np.eye(4)), kind="image", level=level)
    np.testing.assert_array_equal(nib.load(path).get_fdata(dtype=np.float32), data)
    gzip.decompress(path.read_bytes())  # the checksum, as Python's own library sees it


def test_a_voxel_stays_at_its_place_in_the_world(tmp_path):
    affine = oriented((2, 0, 1), (-1, 1, -1), 20.0)
    data = np.zeros((6, 7, 8), np.float32)
    data[4, 1, 6] = 1
    (tmp_path / "a.nii").write_bytes(bad_volumes.content(data, affine=affine))
    volume = read(tmp_path / "a.nii")
    found = np.argwhere(volume.array[0] == 1)[0]
    np.testing.assert_allclose(volume.affine @ [*found, 1], affine @ [4, 1, 6, 1], atol=1e-5)


@pytest.mark.parametrize("options", [{"version": 2}, {"order": ">"}, {"edits": {"xyzt_units": 1}}])
def test_output_repeats_version_codes_and_units(options, tmp_path):
    blob = bad_volumes.content(bad_volumes.voxels(), qform=3, sform=4, **options)
    (tmp_path / "a.nii").write_bytes(blob)
    volume = read(tmp_path / "a.nii", policy=volume_module.ReadPolicy())
    write(tmp_path / "b.nii.gz", volume.array, like=volume.native, kind="image")
    before, after = nib.load(tmp_path / "a.nii"), nib.load(tmp_path / "b.nii.gz")
    assert type(after) is type(before)
    np.testing.assert_array_equal(after.affine, before.affine)
    for name in ("sform_code", "qform_code", "xyzt_units"):
        assert int(after.header[name]) == int(before.header[name])
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())


def test_no_names_of_people_get_into_outputs(tmp_path):
    blob = bad_volumes.content(bad_volumes.voxels(), edits={"descrip": b"Jane Doe"})
    (tmp_path / "a.nii").write_bytes(blob)
    volume = read(tmp_path / "a.nii")
    write(tmp_path / "b.nii", volume.array, like=volume, kind="image")
    assert b"Jane" not in (tmp_path / "b.nii").read_bytes()


def test_labels_are_uint8_and_int16_maps_are_close(tmp_path):
    grid = Grid((20, 24, 16), bad_volumes.AFFINE)
    mask, field = bad_volumes.lesion(), bad_volumes.voxels()
    write(tmp_path / "mask.nii.gz", mask, like=grid, kind="label")
    assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(read(tmp_path / "mask.nii.gz", kind="label").array[0], mask)
    write(tmp_path / "map.nii.gz", field, like=grid, kind="image", dtype="int16")
    back = read(tmp_path / "map.nii.gz")
    assert np.abs(back.array[0] - field).max() <= np.ptp(field) / 65534 * 0.51
    write(tmp_path / "flat.nii.gz", field * 0 + 3, like=grid, kind="image", dtype="int16")
    np.testing.assert_array_equal(read(tmp_path / "flat.nii.gz").array, 3)


def test_channels_become_frames(tmp_path):
    grid = Grid((5, 6, 4), np.diag([-1.0, 1.0, 2.0, 1.0]))
    array = np.random.default_rng(0).standard_normal((3, 5, 6, 4)).astype(np.float32)
    write(tmp_path / "a.nii.gz", array, like=grid, kind="image")
    policy = volume_module.ReadPolicy(frames="channels")
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz", policy=policy).array, array)


def test_equal_volumes_give_equal_files(tmp_path):
    grid = Grid((20, 24, 16), bad_volumes.AFFINE)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz", bad_volumes.voxels(), like=grid, kind="image")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("array", "kind", "match"),
    [
        (np.zeros((4, 5, 6), np.float32), "image", "shape"),
        (np.full((3, 4, 5), np.nan, np.float32), "image", "finite"),
        (np.full((3, 4, 5), 0.5, np.float32), "label", "whole"),
        (np.full((3, 4, 5), 300), "label", "whole"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(array, kind, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        write(tmp_path / "a.nii.gz", array, like=Grid((3, 4, 5), np.eye(4)), kind=kind)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    grid = Grid((20, 24, 16), bad_volumes.AFFINE)
    path = tmp_path / "a.nii.gz"
    write(path, bad_volumes.voxels(), like=grid, kind="image")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volume_module, "_write_single", full)
    with pytest.raises(OSError, match="No space"):
        write(path, bad_volumes.voxels(seed=1), like=grid, kind="image")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_wrong_folder_and_budget(tmp_path):
    with pytest.raises(DataError, match="not there"):
        read(tmp_path / "none.nii.gz")
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bad_volumes.GOOD))
    policy = volume_module.ReadPolicy(budget_bytes=30_000)
    with pytest.raises(DataError, match="budget"):
        read(path, policy=policy)
    assert read(path, policy=volume_module.ReadPolicy(budget_bytes=30_720)).array.size == 7680


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
@pytest.mark.parametrize(
    "name", ["full_size/ms_p07_FLAIR", "ct/lung_ct", "pathology/stroke_isles_FLAIR"]
)
def test_real_volumes_go_there_and_back(name, tmp_path):
    path = REAL / f"{name}.nii.gz"
    volume, image = read(path), nib.load(path)
    write(tmp_path / "b.nii", volume.array, like=volume, kind="image")
    back = nib.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(back.affine, image.affine)
    np.testing.assert_array_equal(
        back.get_fdata(dtype=np.float32), image.get_fdata(dtype=np.float32)
    )
