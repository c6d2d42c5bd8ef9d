"""A DICOM series becomes the same volume as the NIfTI of it; what is no volume is refused."""

import locale

import numpy as np
import pytest

from volumediff.data.dicom import read_series
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read, write
from volumediff.errors import DataError

SITK = pytest.importorskip("SimpleITK")
HU = np.random.default_rng(0).integers(-1000, 1500, (6, 5, 4)).astype(np.int16)  # x, y, z
SPACING = (0.8, 1.2, 2.5)


def series(folder, *, positions=None, uid="1.2.3.4", data=HU, tags=None, start=0, direction=None):
    """One file per slice along z; world axes of DICOM are L, P, S."""
    folder.mkdir(exist_ok=True)
    # writing (not reading) leaves the process in the C locale, which would upset other tests
    before = locale.setlocale(locale.LC_ALL)
    direction = np.eye(3) if direction is None else direction
    count = data.shape[2]
    positions = np.arange(count) * SPACING[2] if positions is None else positions
    writer = SITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(count):
        image = SITK.GetImageFromArray(data[:, :, k].T.astype(np.int16))
        image.SetSpacing(SPACING[:2])
        place = np.array([-10.0, 20.0, 5.0]) + direction[:, 2] * positions[k]
        values = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{start + k + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{v:.6f}" for v in direction[:, :2].T.ravel()),
            "0018|0050": "2.5",
            "0028|1052": "-1024",
            "0028|1053": "1",
            **(tags or {}),
        }
        for tag, value in values.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{start + k:03d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return folder


def test_hu_and_world_positions(tmp_path):
    folder = series(tmp_path / "ct")
    # the pixels are the last bytes of each file, stored with intercept -1024
    stored = np.frombuffer((folder / "001.dcm").read_bytes()[-60:], np.int16).reshape(5, 6).T
    np.testing.assert_array_equal(stored, HU[:, :, 1] + 1024)
    volume = read(folder)
    # LPS -> RAS: the first two axes are flipped on the way to canonical order
    np.testing.assert_array_equal(volume.array[0], HU[::-1, ::-1])
    assert volume.spacing_mm == pytest.approx(SPACING)
    # DICOM voxel (0, 0, 0) is at (-10, 20, 5) LPS, that is (10, -20, 5) RAS
    np.testing.assert_allclose(volume.affine @ [5, 4, 0, 1], [10, -20, 5, 1], atol=1e-5)
    write(tmp_path / "a.nii.gz", volume.array, like=volume, kind="image")
    back = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)
    assert back.native.axes == "LPS"


def test_oblique_series_and_slices_in_any_order(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    direction = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    volume = read(series(tmp_path / "ct", direction=direction))
    np.testing.assert_allclose(volume.affine @ [5, 4, 0, 1], [10, -20, 5, 1], atol=1e-4)
    expected = np.diag([-1, -1, 1]) @ direction * np.array(SPACING)
    found = volume.affine[:3, :3] * [-1, -1, 1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_one_slice_takes_its_thickness(tmp_path):
    volume = read(series(tmp_path / "ct", data=HU[:, :, :1]))
    assert volume.array.shape == (1, 6, 5, 1)
    assert volume.spacing_mm == pytest.approx(SPACING)


def test_two_series(tmp_path):
    folder = series(tmp_path / "ct")
    series(folder, uid="1.2.3.9", start=10, data=HU + 1)
    with pytest.raises(DataError, match=r"ct: expected one DICOM series, got 2"):
        read(folder)
    chosen = [read_series(folder, ReadPolicy(series=uid)).raw for uid in _uids(folder)]
    assert abs(chosen[0] - chosen[1]).max() == 1
    with pytest.raises(DataError, match="no series 7"):
        read_series(folder, ReadPolicy(series="7"))


def _uids(folder):
    return SITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))


@pytest.mark.parametrize(
    ("positions", "match"),
    [
        ([0, 2.5, 7.5, 10], "not evenly spaced.*missing"),
        ([0, 2.5, 5.5, 8], "not evenly spaced"),
        ([0, 2.5, 2.5, 5], "one position"),
    ],
)
def test_uneven_slices_are_refused(positions, match, tmp_path):
    with pytest.raises(DataError, match=match):
        read(series(tmp_path / "ct", positions=positions))


def test_slices_of_other_volumes_are_refused(tmp_path):
    folder = series(tmp_path / "ct")
    series(
        folder,
        start=10,
        data=HU[:, :, :1],
        positions=[10.0],
        tags={"0020|0037": "0\\1\\0\\1\\0\\0"},
    )
    with pytest.raises(DataError, match="ct: expected"):
        read(folder)


def test_folders_without_series_and_budget(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="empty: expected a NIfTI file or a DICOM series"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="budget"):
        read(series(tmp_path / "ct"), policy=ReadPolicy(budget_bytes=100))


def test_damaged_slice_is_refused(tmp_path):
    folder = series(tmp_path / "ct")
    path = folder / "002.dcm"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="ct"):
        read(folder)
