"""DICOM as scanners and archives write it: right voxels in the right place, or the file's name."""

import copy
import gzip
import io
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from volumediff.data import dicom
from volumediff.data.dicom import series_grid
from volumediff.data.dicom_files.child import main
from volumediff.data.dicom_files.geometry import geometry_of
from volumediff.data.dicom_files.headers import frames_of_series
from volumediff.data.dicom_files.pixels import voxels_of
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read
from volumediff.errors import DataError

HU = np.random.default_rng(0).integers(-1000, 1500, (7, 5, 8)).astype(np.int16)  # x, y, z
COLUMNS, ROWS, SLICES = HU.shape
NICOM = Path(nib.__file__).parent / "nicom" / "tests" / "data"
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def header(k, *, z, data, uid="1.2.3.4"):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "CT", "1.2.3", uid
    ds.InstanceNumber, ds.ImageType = k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient = ["-10", "20", f"{5 + z:g}"]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [1.2, 0.8], 2.5
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    ds.PixelData = (data.T.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    return ds


def series(folder, edit=None, *, positions=None, data=HU, start=0, uid="1.2.3.4"):
    folder.mkdir(exist_ok=True)
    z = np.arange(data.shape[2]) * 2.5 if positions is None else positions
    for k in range(data.shape[2]):
        ds = header(k, z=z[k], data=data[:, :, k], uid=uid)
        if edit is not None:
            edit(ds, k)
        ds.save_as(folder / f"{start + k:03d}.dcm", enforce_file_format=True)
    return folder


def in_process(folder):
    """A series without the child: the same code, twenty times faster in a loop."""
    geometry = geometry_of(frames_of_series(folder, None).frames, folder)
    return voxels_of(geometry), geometry.affine


def of_reader(hu):
    """Canonical order of the array that `series` writes."""
    return hu[::-1, ::-1]


def test_shown_inverted_or_without_preamble_or_compressed(tmp_path):
    def inverted(ds, k):
        ds.PhotometricInterpretation = "MONOCHROME1"

    def compressed(ds, k):
        ds.compress(RLELossless)

    folders = [series(tmp_path / "m1", inverted), series(tmp_path / "rle", compressed)]
    bare = series(tmp_path / "bare")
    for path in bare.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    for folder in (*folders, bare):
        volume = read(folder)
        np.testing.assert_array_equal(volume.array[0], of_reader(HU))
        assert volume.findings == ()


def test_shipped_encodings_of_one_slice_agree(tmp_path):
    names = ["MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit"]
    names += ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_padded"]
    found = []
    for name in names:
        (tmp_path / name).mkdir()
        shutil.copy(SHIPPED / f"{name}.dcm", tmp_path / name)
        found.append(in_process(tmp_path / name))
    truth = pydicom.dcmread(SHIPPED / "MR_small.dcm").pixel_array.T[..., None]
    for voxels, affine in found:
        np.testing.assert_array_equal(voxels, truth)
        np.testing.assert_array_equal(affine, found[0][1])


def enhanced(folder, source, order):
    """One multi-frame file of a classic series, frames in the given order."""
    slices = [pydicom.dcmread(path) for path in sorted(source.iterdir())]
    ds = copy.deepcopy(slices[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    for keyword in ("SliceThickness", "RescaleIntercept", "RescaleSlope"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.2, 0.8], 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [plane]
    shared.PixelValueTransformationSequence = [values]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        own, position = Dataset(), Dataset()
        position.ImagePositionPatient = slices[k].ImagePositionPatient
        own.PlanePositionSequence = [position]
        frames.append(own)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.NumberOfFrames = len(order)
    ds.PixelData = b"".join(slices[k].PixelData for k in order)
    folder.mkdir()
    ds.save_as(folder / "all.dcm", enforce_file_format=True)
    return folder


def test_enhanced_file_is_its_slices(tmp_path):
    classic = series(tmp_path / "classic")
    folder = enhanced(tmp_path / "enhanced", classic, [3, 1, 2, 0, 7, 5, 6, 4])
    volume, same = read(folder), read(classic)
    np.testing.assert_array_equal(volume.array, same.array)
    np.testing.assert_array_equal(volume.affine, same.affine)
    two = enhanced(tmp_path / "echoes", classic, [0, 0, 1, 1])
    with pytest.raises(DataError, match=r"two slices at one position \(all.dcm\).*echoes"):
        read(two)
    ds = pydicom.dcmread(folder / "all.dcm")
    del ds.PerFrameFunctionalGroupsSequence[-1]
    ds.save_as(folder / "all.dcm")
    with pytest.raises(DataError, match=r"all.dcm: announces 8 frames and describes 7"):
        read(folder)


def test_rounded_positions_keep_the_spacing(tmp_path):
    def thin(ds, k):
        ds.SliceThickness = 0.625

    z = np.round(np.arange(SLICES) * 0.625, 1)
    volume = read(series(tmp_path / "ct", thin, positions=z))
    np.testing.assert_array_equal(volume.array[0], of_reader(HU))
    assert volume.spacing_mm == pytest.approx((0.8, 1.2, 0.625), abs=1e-6)
    assert volume.affine[2, 3] == pytest.approx(5, abs=0.05)
    assert [remark.code for remark in volume.findings] == ["rounded_positions"]
    z[4:] += 0.6  # a missing slice is no rounding
    with pytest.raises(DataError, match=r"between 003.dcm and 004.dcm; a slice is missing"):
        read(series(tmp_path / "gap", thin, positions=z))


@pytest.mark.parametrize("degrees", [15.0, -21.0])
def test_gantry_tilt_becomes_a_rectangular_grid(degrees, tmp_path):
    # values are a linear function of the position in space, which linear interpolation keeps
    angle = np.radians(degrees)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
    slopes = np.array([3.0, 2.0, -4.0])
    x, y, z = np.meshgrid(*map(np.arange, HU.shape), indexing="ij")
    corner = np.array([-10.0, 20.0, 5.0])
    world = corner + x[..., None] * 8 * row + y[..., None] * 12 * column
    world = world + z[..., None] * np.array([0, 0, 25.0])
    values = np.rint(world @ slopes).astype(np.int16)

    def tilted(ds, k):
        ds.ImageOrientationPatient = [*row, *(f"{v:.12f}" for v in column)]
        ds.PixelSpacing = [12, 8]

    folder = series(tmp_path / "ct", tilted, data=values, positions=np.arange(SLICES) * 25.0)
    volume = read(folder)
    assert [remark.code for remark in volume.findings] == ["gantry_tilt"]
    assert volume.native.shape[1] > ROWS
    directions = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)  # float32
    np.testing.assert_allclose(series_grid(folder).affine, volume.native.affine)
    voxels = np.stack(np.meshgrid(*map(np.arange, volume.array.shape[1:]), indexing="ij"), -1)
    ras = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    expected = (ras * [-1, -1, 1]) @ slopes
    error = np.abs(volume.array[0] - expected)
    filled = volume.array[0] == volume.array.min()
    # all slices are there whole, but for the rows that lie half outside of a slice
    inside = error < 1.5
    assert inside.sum() >= COLUMNS * (ROWS - 1) * SLICES
    assert (inside | filled | _beside(inside)).all()


def _beside(inside):
    """Voxels next to one inside, along the columns."""
    padded = np.pad(inside, ((0, 0), (1, 1), (0, 0)))
    return padded[:, :-2] | padded[:, 2:]


@pytest.mark.parametrize("k", [0, 3, SLICES - 1])
@pytest.mark.parametrize("damage", ["empty", "header", "pixels", "mark"])
def test_damaged_member_is_named(k, damage, tmp_path):
    folder = series(tmp_path / "ct")
    path = folder / f"{k:03d}.dcm"
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "header": content[:300],
            "pixels": content[:-20],
            "mark": content[:128] + b"DIC?" + content[132:],
        }[damage]
    )
    with pytest.raises(DataError, match=path.name):
        in_process(folder)


def test_damaged_member_without_suffix_is_named(tmp_path):
    folder = series(tmp_path / "ct")
    for path in folder.iterdir():
        path.rename(folder / f"IM{path.stem}")
    (folder / "IM007").write_bytes(b"")
    (folder / "README").write_text("nothing of the series")
    with pytest.raises(DataError, match="IM007: is empty"):
        in_process(folder)


def test_any_flipped_bit_of_a_header_is_noticed_or_harmless(tmp_path):
    folder = series(tmp_path / "ct")
    truth, affine = in_process(folder)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        path = folder / f"{rng.integers(SLICES):03d}.dcm"
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[rng.integers(132, len(content) - 2 * ROWS * COLUMNS)] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            voxels, found = in_process(folder)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(voxels, truth)
            np.testing.assert_allclose(found, affine, atol=1e-3)
        path.write_bytes(content)
    assert refused > 15


def _drop(*keywords):
    def edit(ds, k=0):
        for keyword in keywords:
            delattr(ds, keyword)

    return edit


def _on_detector(ds, k):
    ds.ImagerPixelSpacing = ds.PixelSpacing
    del ds.PixelSpacing


def _mosaic(ds, k):
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]


@pytest.fixture
def mosaic():
    """A mosaic of a scanner, which nibabel ships without its voxels, with others put in."""
    content = gzip.decompress((NICOM / "siemens_dwi_0.dcm.gz").read_bytes())
    ds = pydicom.dcmread(io.BytesIO(content))
    stored = np.random.default_rng(0).integers(0, 4000, (ds.Rows, ds.Columns))
    ds.PixelData = stored.astype(np.uint16).tobytes()
    return ds


@pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental")
def test_a_mosaic_is_the_volume_that_nibabel_takes_apart(mosaic, tmp_path):
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    theirs = wrapper_from_data(mosaic)
    affine = np.diag([-1.0, -1, 1, 1]) @ theirs.affine
    canonical = nib.as_closest_canonical(nib.Nifti1Image(theirs.get_data(), affine))
    mosaic.save_as(tmp_path / "a.dcm")
    ours = read(tmp_path)
    np.testing.assert_array_equal(ours.array[0], canonical.get_fdata())
    np.testing.assert_allclose(ours.affine, canonical.affine, atol=1e-3)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda ds: ds.__delitem__((0x0029, 0x1010)), r"a.dcm: .*without its CSA header"),
        (lambda ds: setattr(ds, "Rows", 895), r"a.dcm: 48 slices need 7 x 7 tiles"),
        (_drop("SpacingBetweenSlices"), r"a.dcm: .*without SpacingBetweenSlices"),
    ],
)
def test_a_mosaic_that_does_not_say_where_its_slices_lie_is_refused(edit, match, mosaic, tmp_path):
    edit(mosaic)
    mosaic.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=match + ".*dcm2niix"):
        in_process(tmp_path)


def _coloured(ds, k):
    ds.SamplesPerPixel = 3


def _one_without_rescale(ds, k):
    if k == 4:
        del ds.RescaleIntercept


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (_drop("PixelSpacing"), r"000.dcm: expected PixelSpacing, it is missing"),
        (_on_detector, r"000.dcm: .*ImagerPixelSpacing alone"),
        (_drop("ImagePositionPatient"), r"000.dcm: expected ImagePositionPatient"),
        (_drop("SeriesInstanceUID"), r"000.dcm: names no series"),
        (_mosaic, r"000.dcm: .*mosaic.*dcm2niix"),
        (_coloured, r"000.dcm: expected grey values"),
        (_one_without_rescale, r"000.dcm and 004.dcm differ in whether.*RescaleIntercept"),
    ],
)
def test_what_has_no_place_or_unit_is_refused(edit, match, tmp_path):
    folder = series(tmp_path / "ct", edit)
    with pytest.raises(DataError, match=match):
        in_process(folder)
    with pytest.raises(DataError, match=match):
        series_grid(folder)


def test_ct_slice_scaled_otherwise_is_told(tmp_path):
    def other(ds, k):
        ds.RescaleIntercept = 0 if k == 4 else -1024

    (remark,) = read(series(tmp_path / "ct", other)).findings
    assert (remark.severity, remark.code) == ("warning", "rescale_differs")
    assert "004.dcm" in remark.message


def test_other_objects_and_copies(tmp_path):
    folder = series(tmp_path / "ct")
    shutil.copy(SHIPPED / "reportsi.dcm", folder)
    shutil.copy(SHIPPED / "rtplan.dcm", folder)
    volume = read(folder)
    np.testing.assert_array_equal(volume.array[0], of_reader(HU))
    (remark,) = volume.findings
    assert remark.code == "beside_series"
    assert "reportsi.dcm (Basic Text SR)" in remark.message
    assert "rtplan.dcm (RT Plan)" in remark.message
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(SHIPPED / "rtdose.dcm", alone)
    with pytest.raises(DataError, match=r"none: it holds rtdose.dcm \(RT Dose\)"):
        read(alone)
    shutil.copy(folder / "002.dcm", folder / "002 (1).dcm")
    with pytest.raises(DataError, match=r"002 \(1\).dcm and 002.dcm are the same slice"):
        read(folder)


def test_the_policy_names_one_of_two_series(tmp_path):
    folder = series(tmp_path / "ct")
    series(folder, data=HU[..., :3] + 1, start=20, uid="1.2.3.9")
    listed = r"got 2: 1.2.3.4 \(CT, 8 files, 000.dcm\); 1.2.3.9 \(CT, 3 files, 020.dcm\)\."
    with pytest.raises(DataError, match=listed + ".* with series=1.2.3.4 or series=1.2.3.9"):
        read(folder)
    chosen = read(folder, policy=ReadPolicy(series="1.2.3.9"))
    np.testing.assert_array_equal(chosen.array[0], of_reader(HU[..., :3] + 1))


def test_bounds_of_the_child(tmp_path, monkeypatch):
    folder = series(tmp_path / "ct")
    monkeypatch.setattr(dicom, "SECONDS", -1.0)
    with pytest.raises(DataError, match=r"ct: .*not decoded within"):
        read(folder)
    monkeypatch.undo()

    def killed(*_, **__):
        return subprocess.CompletedProcess([], -9, "", "gdcm: out of memory\n")

    monkeypatch.setattr(dicom.subprocess, "run", killed)
    with pytest.raises(DataError, match=r"ct: .*bounds of memory \(gdcm: out of memory\)"):
        read(folder)


def test_the_child_limits_its_memory(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit[0]))
    order = {"folder": str(series(tmp_path / "ct")), "series": None, "budget_bytes": 2**30}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({**order, "voxels": None})))
    main()
    assert limits[-1] == 3 * 2**30 + 12 * HU.size
