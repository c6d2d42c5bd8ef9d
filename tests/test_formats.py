"""Formats beside NIfTI give the voxels and the place that the library that wrote them gives."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from volumediff.data.grid import native_order
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import find_cases
from volumediff.data.volume import read
from volumediff.errors import DataError

# Not symmetric in any axis, oblique, of three spacings.
AFFINE = np.array(
    [[-1.9, 0.2, 0.1, 30], [0.2, 2.9, -0.3, -40], [0.1, 0.4, 4.0, 7], [0, 0, 0, 1.0]]
)
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * [2.0, 3.0, 4.0]
LAS = ReadPolicy(no_forms="las")


def voxels(dtype=np.int16):
    return np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(dtype)


def itk_image(dtype=np.int16):
    image = sitk.GetImageFromArray(voxels(dtype).transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def written(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith((".mgz", ".mgh")):
        nib.save(nib.MGHImage(voxels(), AFFINE), path)
    elif name == "pair.hdr":
        nib.save(nib.Nifti1Pair(voxels(), AFFINE), path)
    else:
        sitk.WriteImage(itk_image(), str(path), useCompression=name.startswith("z"))
    return path


NAMES = ["a.mgz", "a.mgh", "pair.hdr", "a.mha", "z.mha", "a.mhd", "z.mhd", "a.nrrd", "a.nhdr"]


@pytest.mark.parametrize("name", NAMES)
def test_voxels_and_place(name, tmp_path):
    volume = read(written(tmp_path, name))
    assert np.array_equal(volume.native_array[0], voxels())
    np.testing.assert_allclose(volume.native.affine, AFFINE, atol=1e-4)
    # the same volume with axes along R, A, S, whatever the format
    first = native_order(volume.array, volume.native)
    assert np.array_equal(first[0], voxels())
    (case,) = find_cases(tmp_path)
    assert case.images["image"].name == name


@pytest.mark.parametrize("name", NAMES)
def test_cut_files_are_refused(name, tmp_path):
    path = written(tmp_path, name)
    beside = [p for p in tmp_path.iterdir() if p.suffix in (".img", ".raw", ".zraw")]
    file = beside[0] if beside else path
    content = file.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 0):
        file.write_bytes(content[:length])
        with pytest.raises(DataError) as error:
            read(path)
        assert file.stem in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.mgz", "z.mha", "z.mhd"])
def test_bits_of_a_compressed_stream_are_checked(name, tmp_path):
    path = written(tmp_path, name)
    file = next((p for p in tmp_path.iterdir() if p.suffix == ".zraw"), path)
    content = bytearray(file.read_bytes())
    start = content.find(b"ElementDataFile = LOCAL\n") + 24 if name == "z.mha" else 30
    rng = np.random.default_rng(0)
    for place in rng.integers(start, len(content) - 1, 25):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            volume = read(path)
        except DataError:
            continue
        assert np.array_equal(volume.native_array[0], voxels())  # a bit that decides on nothing


def test_analyze_has_no_orientation(tmp_path):
    nib.save(nib.AnalyzeImage(voxels(), np.diag([2.0, 3, 4, 1])), tmp_path / "old.hdr")
    for name in ("old.hdr", "old.img"):
        with pytest.raises(DataError, match=r"no orientation.*no_forms=las"):
            read(tmp_path / name)
        volume = read(tmp_path / name, policy=LAS)
        assert volume.native.axes == "LAS"
        assert volume.spacing_mm == (2, 3, 4)
        assert np.array_equal(volume.native_array[0], voxels())
        assert [f.code for f in volume.findings] == ["no_forms"]
    (tmp_path / "old.img").unlink()
    with pytest.raises(DataError, match=r"expected old.img beside it"):
        read(tmp_path / "old.hdr")


def test_freesurfer_without_a_place_and_with_frames(tmp_path):
    image = nib.MGHImage(voxels(), np.eye(4))
    image.header["goodRASFlag"] = 0
    raw = bytearray(image.to_bytes())
    raw[28:30] = b"\0\0"
    (tmp_path / "a.mgz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(DataError, match="no orientation"):
        read(tmp_path / "a.mgz")
    assert read(tmp_path / "a.mgz", policy=LAS).native.axes == "LAS"
    frames = np.stack([voxels(), voxels() + 1], -1)
    nib.save(nib.MGHImage(frames, AFFINE), tmp_path / "f.mgz")
    with pytest.raises(DataError, match=r"got 2 frames; .*frames=0"):
        read(tmp_path / "f.mgz")
    second = read(tmp_path / "f.mgz", policy=ReadPolicy(frames=1))
    assert np.array_equal(second.native_array[0], voxels() + 1)
    with pytest.raises(DataError, match=r"has 2 frames, no frame 2"):
        read(tmp_path / "f.mgz", policy=ReadPolicy(frames=2))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("a.mhd", b"a.raw", b"../a.raw"), ("a.nhdr", b"a.raw", b"/etc/hostname")],
)
def test_voxels_lie_beside_their_header(name, old, new, tmp_path):
    path = written(tmp_path, name)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match="expected a file beside it"):
        read(path)


def test_budget(tmp_path):
    for name in ("a.mgz", "pair.hdr", "a.mha"):
        with pytest.raises(DataError, match=r"budget.*budget_bytes=N"):
            read(written(tmp_path, name), policy=ReadPolicy(budget_bytes=100))
