"""Bad volumes are refused with a line that names the file, odd ones accepted with a finding."""

import gzip
import time
import zlib

import bad_volumes
import nibabel as nib
import numpy as np
import pytest
from bad_volumes import AFFINE, corpus

from volumediff.data.volume import check_grids, read
from volumediff.errors import DataError

CORPUS = corpus()


@pytest.mark.parametrize("entry", CORPUS, ids=[e.name for e in CORPUS])
def test_every_volume_is_refused_or_accepted_as_stated(entry, tmp_path):
    path = entry.build(tmp_path)
    start = time.process_time()
    if entry.must == "refused":
        with pytest.raises(DataError) as caught:
            read(path, kind=entry.kind, policy=entry.policy)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert entry.word in message
        assert "\n" not in message.replace(str(path), "")
    else:
        volume = read(path, kind=entry.kind, policy=entry.policy)
        codes = [f.code for f in volume.findings]
        assert entry.word in codes if entry.word else not codes
        assert np.isfinite(volume.array).all()
        assert np.isfinite(volume.affine).all()
        assert abs(np.linalg.det(volume.affine[:3, :3] / volume.spacing_mm)) > 0.9
    assert time.process_time() - start < 2.0


def test_corpus_is_large_and_names_are_unique():
    assert len({e.name for e in CORPUS}) == len(CORPUS)
    assert sum(e.must == "refused" for e in CORPUS) >= 60
    assert sum(e.word is None for e in CORPUS) >= 20


@pytest.mark.parametrize("name", ["big_endian", "nifti2_big_endian", "scaled_int16", "qfac_zero"])
def test_controls_hold_what_nibabel_reads(name, tmp_path):
    path = next(e for e in CORPUS if e.name == name).build(tmp_path)
    image = nib.load(path)
    volume = read(path)
    np.testing.assert_allclose(volume.array[0], image.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)


def accepted(name, tmp_path):
    entry = next(e for e in CORPUS if e.name == name)
    return read(entry.build(tmp_path), kind=entry.kind, policy=entry.policy)


def test_treatments_are_the_ones_stated(tmp_path):
    def get(name):
        (tmp_path / name).mkdir()
        return accepted(name, tmp_path / name)

    good = bad_volumes.voxels()
    nan = get("nan_one").array[0]
    assert nan.flat[0] == good.flat[1:].min()
    np.testing.assert_array_equal(nan.flat[1:], good.flat[1:])
    np.testing.assert_array_equal(get("slope_nan").array[0], good)
    np.testing.assert_array_equal(get("slope_negative").array[0], -good)
    np.testing.assert_array_equal(get("payload_longer").array[0], good)
    assert get("pixdim_3mm").spacing_mm == pytest.approx((1, 1.2, 2.5))
    assert get("metres").spacing_mm == pytest.approx((1, 1.2, 2.5))
    np.testing.assert_array_equal(get("label_0_255").array[0], bad_volumes.lesion())
    np.testing.assert_array_equal(get("label_scaled").array[0], bad_volumes.lesion())
    # no forms, LAS assumed: the first axis is flipped on the way to RAS
    np.testing.assert_array_equal(get("no_forms_las").array[0], good[::-1])
    # the two forms of one file: mirrored sform, RAS qform
    np.testing.assert_array_equal(get("forms_sform").array[0], good[::-1])
    np.testing.assert_array_equal(get("forms_qform").array[0], good)
    frames = bad_volumes.voxels((*bad_volumes.SHAPE, 3))
    np.testing.assert_array_equal(get("frames_chosen").array[0], frames[..., 2])
    np.testing.assert_array_equal(get("frames_as_channels").array, np.moveaxis(frames, -1, 0))


def large_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 3000, (96, 96, 96)).astype(np.int16)
    path = tmp_path / "large.nii.gz"
    path.write_bytes(gzip.compress(bad_volumes.content(noise), 1, mtime=0))
    return path, noise


def test_one_bit_flips_and_cuts_of_a_large_file_are_refused(tmp_path):
    path, noise = large_file(tmp_path)
    good = path.read_bytes()
    assert len(good) > 1 << 20
    np.testing.assert_array_equal(read(path).array[0], noise)
    rng = np.random.default_rng(1)
    # the ten bytes before the stream hold time and flags, which no checksum covers
    ends = [10 * 8, len(good) * 8 - 1, len(good) * 8 - 40, len(good) * 8 - 70]
    for bit in [*rng.integers(80, len(good) * 8, 50).tolist(), *ends]:
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"large\.nii\.gz"):
            read(path)
    for end in [*rng.integers(1, len(good), 20).tolist(), len(good) - 1]:
        path.write_bytes(good[:end])
        with pytest.raises(DataError, match=r"large\.nii\.gz"):
            read(path)


def test_flips_in_the_gzip_header_change_no_voxel(tmp_path):
    path, noise = large_file(tmp_path)
    good = path.read_bytes()
    for bit in range(80):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            array = read(path).array[0]
        except DataError:
            continue
        np.testing.assert_array_equal(array, noise)


@pytest.mark.parametrize("version", [1, 2])
def test_mutated_headers_give_a_data_error_or_a_sound_volume(version, tmp_path):
    good = bad_volumes.content(bad_volumes.voxels((6, 5, 4)), version=version, qform=1)
    rng = np.random.default_rng(version)
    size = 352 if version == 1 else 544
    path, accepted_count = tmp_path / "a.nii", 0
    for _ in range(400):
        mutated = bytearray(good)
        for at in rng.integers(0, size, rng.integers(1, 4)):
            mutated[at] = rng.integers(0, 256)
        path.write_bytes(mutated)
        try:
            volume = read(path)
        except DataError:
            continue
        accepted_count += 1
        assert np.isfinite(volume.affine).all()
        assert min(volume.spacing_mm) > 0
        assert np.isfinite(volume.array).all()
    assert accepted_count > 20


def mask_on(tmp_path, affine, data=None):
    path = tmp_path / "mask.nii.gz"
    data = bad_volumes.lesion() if data is None else data
    path.write_bytes(gzip.compress(bad_volumes.content(data, affine=affine)))
    return read(path, kind="label")


def test_masks_on_another_grid_are_refused(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(bad_volumes.GOOD))
    image = read(tmp_path / "image.nii.gz")
    moved = bad_volumes.affine_with
    for affine in (
        moved({(0, 3): 20}),  # 30 mm off
        moved({(0, 0): -1}),  # mirrored about its first voxel
        moved({(1, 1): 1.3}),
        moved({(0, 3): -9.5}),  # half a voxel
    ):
        with pytest.raises(DataError, match=r"mask.nii.gz.*image.nii.gz"):
            check_grids(image, mask_on(tmp_path, affine))
    with pytest.raises(DataError, match="shapes 20x24x16 and 20x24x4"):
        check_grids(image, mask_on(tmp_path, AFFINE, bad_volumes.lesion()[..., :4]))
    check_grids(image, mask_on(tmp_path, moved({(0, 3): -10 + 1e-5})))


def test_equal_places_in_other_axis_orders_are_one_grid(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(bad_volumes.GOOD))
    image = read(tmp_path / "image.nii.gz")
    flipped = mask_on(tmp_path, bad_volumes.MIRRORED, bad_volumes.lesion()[::-1])
    check_grids(image, flipped)
    np.testing.assert_array_equal(flipped.array[0], bad_volumes.lesion())
    order = [2, 0, 1]
    permuted = mask_on(tmp_path, AFFINE[:, [*order, 3]], bad_volumes.lesion().transpose(order))
    check_grids(image, permuted)
    np.testing.assert_array_equal(permuted.array[0], bad_volumes.lesion())


def test_reading_stops_soon_after_unannounced_content(tmp_path):
    # 1 GiB of zeros behind a small volume: stored in 1 MB, never inflated whole
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    with (tmp_path / "a.nii.gz").open("wb") as file:
        file.write(squeeze.compress(bad_volumes.GOOD))
        block = bytes(1 << 24)
        for _ in range(8):
            file.write(squeeze.compress(block))
        file.write(squeeze.flush())
    start = time.process_time()
    with pytest.raises(DataError, match="belong together"):
        read(tmp_path / "a.nii.gz")
    assert time.process_time() - start < 0.5
