"""Results as DICOM objects, read back by highdicom and by pydicom alone."""

import shutil

import matplotlib.path
import numpy as np
import pydicom
import pytest
from child_processes import run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from tiny_app import base, label_run, program, run

from volumediff.colours import label_colour
from volumediff.data.grid import native_order as native
from volumediff.data.volume import read
from volumediff.dicom_output.structure_set import _outlines
from volumediff.dicom_output.write import write_findings_dicom, write_labels_dicom
from volumediff.errors import DataError
from volumediff.findings.components import case_findings
from volumediff.findings.written import Written
from volumediff.outputs.case_files import CaseFiles

highdicom = pytest.importorskip("highdicom")

__all__ = ["base", "program", "run"]  # fixtures

SHAPE = (8, 7, 6)  # columns, rows, slices
SPACING = (1.5, 2.0, 3.0)
TURN = np.array([[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]])  # rows and columns, LPS
ORIGIN = np.array([-12.0, 30.0, 7.0])
SKEWED = np.array([[1.0, 0, 0], [0, 1, 0.3], [0, 0, np.sqrt(1 - 0.09)]])


def values(seed=0):
    return np.random.default_rng(seed).integers(1, 200, SHAPE).astype(np.uint16)


def common(uid):
    header = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.PatientID, header.PatientName = "P7", "Doe^Jane"
    header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.9", "1.2.9.1"
    header.FrameOfReferenceUID = "1.2.9.2"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
    header.Rows, header.Columns = SHAPE[1], SHAPE[0]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 0
    header.StudyDate, header.SeriesNumber, header.InstanceNumber = "20200101", 3, 1
    return header


def texts(numbers):
    return [f"{value:.6f}" for value in numbers]


def slices(folder, directions=TURN):
    """A series of one file per slice, whose names are not in the order of the slices."""
    folder.mkdir()
    for k in range(SHAPE[2]):
        header = common(f"1.2.9.3.{k}")
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = MRImageStorage
        header.Modality, header.SliceThickness = "MR", "3"
        header.RescaleSlope, header.RescaleIntercept = "1", "0"
        header.PixelSpacing = [SPACING[1], SPACING[0]]
        header.ImageOrientationPatient = texts(directions[:, :2].T.ravel())
        header.ImagePositionPatient = texts(ORIGIN + directions[:, 2] * SPACING[2] * k)
        header.PixelData = values()[:, :, k].T.tobytes()
        header.save_as(folder / f"{(5 * k) % 7}.dcm", enforce_file_format=True)
    return folder


def frames(folder, order=(3, 0, 5, 1, 4, 2)):
    """The same as one file of many frames in some order."""
    folder.mkdir()
    header = common("1.2.9.4")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    header.Modality, header.NumberOfFrames = "MR", SHAPE[2]
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], "3"
    plane.ImageOrientationPatient = texts(TURN[:, :2].T.ravel())
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for k in order:
        place, content, own = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = texts(ORIGIN + TURN[:, 2] * SPACING[2] * k)
        content.DimensionIndexValues = [k + 1]
        own.PlanePositionSequence, own.FrameContentSequence = [place], [content]
        header.PerFrameFunctionalGroupsSequence.append(own)
    header.PixelData = b"".join(values()[:, :, k].T.tobytes() for k in order)
    header.save_as(folder / "all.dcm", enforce_file_format=True)
    return folder


def result(folder, threshold=0.97):
    """A localization of a series in memory: a map that has two findings."""
    volume = read(folder)
    anomaly = np.random.default_rng(1).uniform(0, 0.4, volume.array.shape[1:]).astype(np.float32)
    anomaly[1:3, 2:5, 1] = 0.98
    anomaly[5, 4:6, 4] = 0.99
    written = Written(
        case="p7",
        facts={
            "method": "scan",
            "weights_sha256": "ab" * 32,
            "fingerprint": "f",
            "seed": 0,
            "threshold": threshold,
            "inputs": {"image": {"file": "p7", "sha256": "cd" * 32}},
            "probability": {"edges": [0.5], "values": [0.1, 0.8]},
        },
        grid=volume.grid,
        native=volume.native,
        map=anomaly,
        foreground=np.ones(anomaly.shape, bool),
        mask=anomaly > threshold,
        uncertainty=None,
        ensemble=None,
        images={"image": volume.array[0]},
        healthy={},
    )
    return written, case_findings(written)


def placed(path):
    """Voxels of every segment that are not 0, by pydicom alone: the millimetres (left, posterior,
    superior) of their centres, and their stored values."""
    content = pydicom.dcmread(path)
    shared = content.SharedFunctionalGroupsSequence[0]
    along = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    stack = content.pixel_array.reshape(-1, content.Rows, content.Columns)
    found = {}
    for frame, own in zip(stack, content.PerFrameFunctionalGroupsSequence, strict=True):
        corner = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        segment = getattr(own, "SegmentIdentificationSequence", None)
        number = 1 if segment is None else segment[0].ReferencedSegmentNumber
        for row, column in np.argwhere(frame != 0):
            at = corner + along[0] * column * columns + along[1] * row * rows
            found.setdefault(number, {})[tuple(np.round(at, 2) + 0.0)] = frame[row, column]
    return found


def expected(array, grid):
    """The same of an array along R, A, S."""
    at = np.argwhere(array)
    ras = at @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    points = np.round(ras * [-1, -1, 1], 2) + 0.0
    return {tuple(p): array[tuple(i)] for p, i in zip(points, at, strict=True)}


def near(found, wanted, tolerance=0.0):
    """Whether both have voxels at the same places, with the same values."""
    assert len(found) == len(wanted) > 0
    a, b = (np.array(sorted((*p, float(v)) for p, v in d.items())) for d in (found, wanted))
    np.testing.assert_allclose(a[:, :3], b[:, :3], atol=0.021)
    np.testing.assert_allclose(a[:, 3], b[:, 3], atol=tolerance)


def native_order(mask, volume):
    """A mask along R, A, S in the order of the files: columns, rows, slices."""
    return native(mask[None], volume.native)[0]


def enclosed(path, grid):
    """Name -> voxels (columns, rows, slices) whose centres lie within the contours of a structure
    set, by pydicom and matplotlib alone."""
    content = pydicom.dcmread(path)
    names = {roi.ROINumber: roi.ROIName for roi in content.StructureSetROISequence}
    to_voxel = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ grid.affine)
    centres = np.argwhere(np.ones(grid.shape[:2], bool))
    found = {}
    for roi in content.ROIContourSequence:
        voxels = np.zeros(grid.shape, bool)
        for contour in roi.get("ContourSequence", ()):
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            at = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            place = round(float(at[:, 2].mean()))
            np.testing.assert_allclose(at[:, 2], place, atol=1e-3)  # one slice
            inside = matplotlib.path.Path(at[:, :2]).contains_points(centres)
            voxels[:, :, place] ^= inside.reshape(grid.shape[:2])
        found[names[roi.ReferencedROINumber]] = voxels
    return found


@pytest.fixture(scope="module", params=[slices, frames], ids=["slices", "frames"])
def localized(request, tmp_path_factory):
    """(series, result, findings, files by name)"""
    root = tmp_path_factory.mktemp("dicom")
    folder = request.param(root / "p7")
    written, found = result(folder)
    paths = write_findings_dicom(CaseFiles(root, "p7"), folder, written, found)
    return (
        folder,
        written,
        found,
        {path.stem.removeprefix("p7_desc-anomaly_"): path for path in paths},
    )


def test_the_map_is_where_it_was_found_to_the_last_bit(localized):
    _, written, _, files = localized
    content = pydicom.dcmread(files["map"])
    stored = np.frombuffer(content.FloatPixelData, np.float32).reshape(-1, SHAPE[1], SHAPE[0])
    places = [
        own.PlanePositionSequence[0].ImagePositionPatient
        for own in content.PerFrameFunctionalGroupsSequence
    ]
    k = [round(float((np.array(p, float) - ORIGIN) @ TURN[:, 2]) / SPACING[2]) for p in places]
    stack = stored[np.argsort(k)].transpose(2, 1, 0)  # columns, rows, slices
    voxels = np.argwhere(np.ones(SHAPE))
    lps = ORIGIN + (voxels * SPACING) @ TURN.T
    inverse = np.linalg.inv(written.grid.affine)
    at = (lps * [-1, -1, 1]) @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(at, at.round(), atol=1e-3)
    d, h, w = at.round().astype(int).T
    np.testing.assert_array_equal(stack[tuple(voxels.T)], written.map[d, h, w])
    back = highdicom.imread(files["map"]).get_volume(dtype=np.float32)
    np.testing.assert_array_equal(np.sort(back.array.ravel()), np.sort(written.map.ravel()))


def test_findings_are_segments_in_the_space_of_the_series(localized):
    _, written, found, files = localized
    segments = placed(files["seg"])
    assert len(segments) == len(found.findings) == 2
    together = {**segments[1], **segments[2]}
    near(together, expected(written.mask.astype(np.uint8), written.grid))
    sizes = [len(segments[n]) for n in (1, 2)]
    assert sizes == [round(f.volume_ml * 1000 / np.prod(SPACING)) for f in found.findings]
    back = highdicom.seg.segread(files["seg"])
    for number, finding in enumerate(found.findings, start=1):
        about = back.get_segment_description(number)
        assert about.segment_label == f"finding {finding.id}"
        assert about.segmented_property_type.value == "52988006"  # SNOMED CT: lesion
        assert about.algorithm_type.value == "AUTOMATIC"
        colour = highdicom.color.CIELabColor.from_dicom_value(about.RecommendedDisplayCIELabValue)
        wanted = list(bytes.fromhex(label_colour(number)[1:]))
        np.testing.assert_allclose(colour.to_rgb(), wanted, atol=2)
    volume = back.get_volume(combine_segments=True)
    assert (volume.array > 0).sum() == written.mask.sum()


def test_contours_hold_the_voxels_of_the_findings_and_name_their_slices(localized):
    folder, written, _, files = localized
    found = enclosed(files["rtstruct"], written.native)
    assert len(found) == 2
    every = np.logical_or.reduce(list(found.values()))
    np.testing.assert_array_equal(every, native(written.mask[None], written.native)[0])
    content = pydicom.dcmread(files["rtstruct"])
    images = {h.SOPInstanceUID: h for h in map(pydicom.dcmread, folder.iterdir())}
    for roi in content.ROIContourSequence:
        for contour in roi.ContourSequence:
            reference = contour.ContourImageSequence[0]
            header = images[reference.ReferencedSOPInstanceUID]
            if "PerFrameFunctionalGroupsSequence" in header:
                number = reference.ReferencedFrameNumber
                header = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence
                header = header[0]
            corner = np.array(header.ImagePositionPatient, float)
            away = (np.reshape(np.array(contour.ContourData, float), (-1, 3)) - corner) @ TURN[
                :, 2
            ]
            np.testing.assert_allclose(away, 0, atol=1e-3)
    space = content.ReferencedFrameOfReferenceSequence[0]
    assert space.FrameOfReferenceUID == "1.2.9.2"
    study = space.RTReferencedStudySequence[0]
    assert study.ReferencedSOPInstanceUID == content.StudyInstanceUID == "1.2.9"
    listed = study.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {image.ReferencedSOPInstanceUID for image in listed} == set(images)


@given(plane=arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.booleans()))
@settings(max_examples=60, deadline=None)
def test_outlines_hold_the_centres_of_the_voxels_and_no_others(plane):
    """Whatever the shape: holes, islands in holes, diagonals, the border. The area is that of the
    voxels but for the corners, of which each takes or gives an eighth of a voxel."""
    centres = np.argwhere(np.ones_like(plane))
    inside, area = np.zeros(plane.size, int), 0.0
    for outline in _outlines(plane):
        inside += matplotlib.path.Path(outline).contains_points(centres)
        x, y = outline.T
        area += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    np.testing.assert_array_equal(inside.reshape(plane.shape), plane)
    padded = np.pad(plane, 1).astype(int)
    around = padded[1:, 1:] + padded[1:, :-1] + padded[:-1, 1:] + padded[:-1, :-1]
    diagonal = (around == 2) & (padded[1:, 1:] == padded[:-1, :-1])
    corners = np.isin(around, (1, 3)).sum() + 2 * diagonal.sum()
    assert abs(area - plane.sum()) <= corners / 8 + 1e-9


def test_a_header_with_a_wrong_spacing_between_slices_is_not_copied(tmp_path):
    folder = slices(tmp_path / "p7")
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.SpacingBetweenSlices = "1"
        header.save_as(path)
    written, found = result(folder)
    paths = write_findings_dicom(CaseFiles(tmp_path, "p7"), folder, written, found)
    (file,) = (path for path in paths if path.stem.endswith("_seg"))
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    assert volume.spacing[0] == pytest.approx(SPACING[2])
    assert (volume.array > 0).sum() == written.mask.sum()


def test_objects_belong_to_patient_study_and_space_of_the_series(localized):
    folder, _, _, files = localized
    sources = [pydicom.dcmread(path) for path in folder.iterdir()]
    instances = {str(source.SOPInstanceUID) for source in sources}
    series = set()
    for name, path in files.items():
        content = pydicom.dcmread(path)
        assert content.PatientID == "P7"
        assert content.PatientName == "Doe^Jane"
        assert content.StudyInstanceUID == sources[0].StudyInstanceUID
        assert content.SeriesInstanceUID != sources[0].SeriesInstanceUID
        assert "research use" in content.SeriesDescription
        assert content.SOPInstanceUID not in instances
        series.add(content.SeriesInstanceUID)
        if name != "report":
            assert content.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
        if name not in ("report", "rtstruct"):
            referred = {
                str(item.ReferencedSOPInstanceUID)
                for group in content.PerFrameFunctionalGroupsSequence
                for item in group.DerivationImageSequence[0].SourceImageSequence
            }
            assert referred <= instances
    assert len(series) == 4


def test_the_report_says_what_was_measured(localized):
    _, _, found, files = localized
    report = highdicom.sr.srread(files["report"])
    segmentation = pydicom.dcmread(files["seg"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(found.findings)
    (whole,) = report.content.get_image_measurement_groups()
    assert whole.get_measurements()[0].value == pytest.approx(
        sum(1000 * f.volume_ml for f in found.findings)
    )
    for number, (group, finding) in enumerate(zip(groups, found.findings, strict=True), start=1):
        assert group.tracking_identifier == f"finding {finding.id}"
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert segment.referenced_segment_numbers == [number]
        assert segmentation.SegmentSequence[number - 1].TrackingUID == group.tracking_uid
        measured = {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}
        volume, unit = measured["118565006"]
        assert unit == "mm3"
        assert volume == pytest.approx(1000 * finding.volume_ml, rel=1e-5)
        assert measured["anomaly-score"][0] == pytest.approx(finding.mean_score, rel=1e-5)
        assert measured["probability"][0] == pytest.approx(finding.probability, rel=1e-5)
    text = " ".join(e.value for e in report.iterall() if e.keyword == "TextValue")
    assert "Research use, not for diagnosis." in text
    assert found.statement[:40] in text
    assert found.findings[0].place.region in text


def test_equal_results_have_equal_identifiers(tmp_path):
    folder = slices(tmp_path / "p7")
    written, found = result(folder)

    def uids(name, written=written):
        where = tmp_path / name
        where.mkdir()
        paths = write_findings_dicom(CaseFiles(where, "p7"), folder, written, found)
        return [{e.value for e in pydicom.dcmread(p).iterall() if e.VR == "UI"} for p in paths]

    first = uids("a")
    assert uids("b") == first
    other = Written(**{**vars(written), "facts": {**written.facts, "weights_sha256": "ef" * 32}})
    for mine, others in zip(first, uids("c", other), strict=True):
        own = pydicom.dcmread(tmp_path / "a" / "p7_desc-anomaly_map.dcm").SeriesInstanceUID
        assert own not in others
        assert mine != others


def test_nothing_found_is_a_report_without_segments(tmp_path):
    folder = slices(tmp_path / "p7")
    written, found = result(folder, threshold=2.0)
    paths = write_findings_dicom(CaseFiles(tmp_path, "p7"), folder, written, found)
    names = [path.name for path in paths]
    assert names == ["p7_desc-anomaly_map.dcm", "p7_desc-anomaly_report.dcm"]
    report = highdicom.sr.srread(paths[1])
    assert list(report.content.get_volumetric_roi_measurement_groups()) == []
    (whole,) = report.content.get_image_measurement_groups()
    assert whole.get_measurements()[0].value == 0


def test_labels_and_probabilities(tmp_path):
    folder = slices(tmp_path / "p7")
    volume = read(folder)
    rng = np.random.default_rng(4)
    labels = np.zeros(volume.array.shape[1:], np.uint8)
    labels[1:4, 2:5, 1:3], labels[5:7, 1:3, 4] = 1, 4
    shares = {v: rng.uniform(0, 1, labels.shape).astype(np.float32) for v in (1, 4, 9)}
    paths = write_labels_dicom(
        CaseFiles(tmp_path, "p7"),
        folder,
        labels,
        shares,
        grid=volume.native,
        facts={"method": "voxelwise", "inputs": {}, "label_names": {"1": "oedema"}},
    )
    hard, structures, soft, report = paths
    read_back = enclosed(structures, volume.native)
    for name, value in (("oedema", 1), ("label 4", 4), ("label 9", 9)):
        np.testing.assert_array_equal(read_back[name], native_order(labels == value, volume))
    labelled = pydicom.dcmread(hard).SegmentSequence
    assert [segment.SegmentLabel for segment in labelled] == ["oedema", "label 4", "label 9"]
    assert labelled[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "oedema"
    segments = placed(hard)
    for number, value in ((1, 1), (2, 4)):
        near(segments[number], expected((labels == value).astype(np.uint8), volume.grid))
    assert 3 not in segments  # label 9 has no voxel
    steps = placed(soft)
    assert pydicom.dcmread(soft).MaximumFractionalValue == 255
    for number, value in ((1, 1), (2, 4), (3, 9)):
        wanted = np.rint(shares[value] * 255)
        near(steps[number], expected(wanted, volume.grid), tolerance=1.0)
    groups = highdicom.sr.srread(report).content.get_volumetric_roi_measurement_groups()
    volumes = [group.get_measurements()[0].value for group in groups]
    assert volumes == pytest.approx([n * np.prod(SPACING) for n in (18, 4, 0)])


def test_other_programs_read_the_segmentation(localized, tmp_path):
    """SimpleITK, by GDCM: the voxels of all frames; a copy by gdcmconv holds the same."""
    sitk = pytest.importorskip("SimpleITK")
    _, written, _, files = localized
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(files["seg"])))
    assert (image > 0).sum() == written.mask.sum()
    gdcm = shutil.which("gdcmconv")
    if gdcm is not None:
        run_program([gdcm, "--raw", files["seg"], tmp_path / "copy.dcm"])
        near(placed(tmp_path / "copy.dcm")[1], placed(files["seg"])[1])


@pytest.mark.parametrize("fault", ["tilt", "frame of reference", "no series", "another"])
def test_what_no_object_can_refer_to_is_refused(fault, tmp_path):
    folder = slices(tmp_path / "p7", SKEWED if fault == "tilt" else TURN)
    written, found = result(folder)
    if fault == "frame of reference":
        for path in folder.iterdir():
            header = pydicom.dcmread(path)
            del header.FrameOfReferenceUID
            header.save_as(path)
    said = {
        "tilt": "tilted gantry",
        "frame of reference": "has no FrameOfReferenceUID",
        "no series": "image in memory",
        "another": "expected the series that was localized",
    }
    if fault == "another":
        sorted(folder.iterdir())[-1].unlink()
        for path in folder.iterdir():
            if pydicom.dcmread(path).ImagePositionPatient[2] > ORIGIN[2] + 2.5 * 3 * TURN[2, 2]:
                path.unlink()
    given = None if fault == "no series" else folder
    with pytest.raises(DataError, match=said[fault]):
        write_findings_dicom(CaseFiles(tmp_path, "p7"), given, written, found)
    assert not list(tmp_path.glob("*.dcm"))


def test_the_program_writes_them_beside_the_other_files(run, base, program, tmp_path, monkeypatch):
    folder = slices(tmp_path / "p7")
    words = ("--method", "intensity", "threshold={name: fixed, value: 0.9}", "post=[]")
    out = tmp_path / "out"
    code, _, told = program("localize", folder, "--run", run, "-o", out, "--dicom", *words)
    assert code == 0, told
    wanted = read(out / "p7_desc-anomaly_mask.nii.gz", kind="label")
    found = {}
    for voxels in placed(out / "p7_desc-anomaly_seg.dcm").values():
        found |= voxels
    near(found, expected(wanted.array[0], wanted.grid))
    code, _, told = program("localize", folder, "--run", run, "-o", out, "--dicom", *words)
    assert "finished before" in told
    other = program("segment", folder, "--run", label_run(base), "-o", tmp_path / "seg", "--dicom")
    assert other[0] == 0, other[2]
    labels = read(tmp_path / "seg" / "p7_dseg.nii.gz", kind="label")
    near(placed(tmp_path / "seg/p7_seg.dcm")[1], expected(labels.array[0], labels.grid))
    nifti = tmp_path / "seg" / "p7_dseg.nii.gz"
    code, _, told = program("localize", nifti, "--run", run, "-o", tmp_path / "n", "--dicom")
    assert code == 2
    assert "expected the folder of a DICOM series" in told
