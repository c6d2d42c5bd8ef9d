"""Public data sets in their own layouts, recognised by themselves and read as they should be."""

import json
import sys

import numpy as np
import pytest
from data_sets import (
    CHEXPERT,
    NODULES,
    ROWS,
    SETS,
    XML,
    atlas,
    brats,
    chexpert,
    fastmri,
    grazped,
    ixi,
    lidc,
    luna16,
    mood,
    mslub,
    msseg2008,
    msseg2015,
    msseg2016,
    nifti,
    oct2017,
    session,
    table,
    text,
    touch,
    wmh,
)
from PIL import Image

from volumediff.data.check import check
from volumediff.data.fingerprint import fingerprint
from volumediff.data.grid import Grid, canonical_box, native_order
from volumediff.data.intensity import Window
from volumediff.data.layouts import _xml
from volumediff.data.layouts._xml import read_xml
from volumediff.data.linking import Rectangle, link
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.survey import find_cases, layout_of, survey_cases
from volumediff.data.truth import filled
from volumediff.data.volume import read, write
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.evaluate import evaluate
from volumediff.evaluation.truths import find_truths
from volumediff.outputs.export import MAP, MASK


def name(root):
    return type(layout_of(root)).__module__.rpartition(".")[2]


SICK, HEALTHY = {"group": "sick"}, {"group": "healthy"}


def files(case):
    """Names of the images and of the label."""
    label = None if case.label is None else case.label.name
    return {k: p.name for k, p in case.images.items()}, label


@pytest.mark.parametrize("wanted", SETS)
def test_recognised_alone_and_in_a_folder(wanted, tmp_path):
    root = tmp_path / "download"
    SETS[wanted](root)
    assert name(root) == wanted
    found = find_cases(root)
    assert found
    assert len({c.id for c in found}) == len(found)
    assert all(path.exists() for c in found for path in c.images.values())
    # one by one with the name: the same
    assert find_cases(root, wanted) == found


def test_look_alikes_are_kept_apart(tmp_path):
    """Plain folders, BIDS and nnU-Net that resemble a data set stay what they are."""
    touch(tmp_path / "a", "B_001/B_001_t1.nii.gz", "B_001/B_001_seg.nii.gz")
    touch(tmp_path / "b", "sub-001/anat/sub-001_T1w.nii.gz", "sub-r1s1/anat/sub-r1s1_T1w.nii.gz")
    touch(tmp_path / "c", "patient01/FLAIR.nii.gz", "patient01/lesion.nii.gz")
    touch(tmp_path / "d", "Utrecht/FLAIR.nii.gz", "train/NORMAL.nii.gz")
    touch(tmp_path / "e", "imagesTr/BraTS20_Training_001_0000.nii.gz")
    description = {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz"}
    (tmp_path / "e/dataset.json").write_text(json.dumps(description))
    text(tmp_path / "f/train.csv", "Path,label")
    touch(tmp_path / "f", "x_T1w.nii.gz")
    found = {p.name: name(p) for p in sorted(tmp_path.iterdir())}
    assert found == dict(
        zip("abcdef", ["folder", "bids", *["folder"] * 2, "nnunet", "folder"], strict=True)
    )


def test_two_data_sets_in_one_folder_are_told(tmp_path):
    brats(tmp_path)
    mslub(tmp_path)
    with pytest.raises(DataError, match="looks like brats and like mslub; name the layout"):
        find_cases(tmp_path)
    assert {c.id for c in find_cases(tmp_path, "mslub")} == {"patient01", "patient02"}
    with pytest.raises(UsageError, match="Did you mean 'mslub'"):
        find_cases(tmp_path, "mslb")


def test_a_glance_is_short(tmp_path, monkeypatch):
    """Recognising does not list a large data set: a fixed number of folders is looked at."""
    from volumediff.data.layouts import _files

    for i in range(60):
        (tmp_path / f"p{i:03d}/s/v").mkdir(parents=True)
    monkeypatch.setattr(_files, "GLANCE", 20)
    assert len(list(_files.first_folders(tmp_path, 3))) == 20
    assert len(list(_files.folders(tmp_path, 3))) == 1 + 3 * 60


def test_brats(tmp_path):
    brats(tmp_path)
    cases = {c.id: c for c in find_cases(tmp_path)}
    first = cases["BraTS20_Training_001"]
    stem = "BraTS20_Training_001"
    channels = ("flair", "t1", "t1ce", "t2")
    assert files(first) == ({c: f"{stem}_{c}.nii.gz" for c in channels}, f"{stem}_seg.nii.gz")
    assert first.attributes == {**SICK, "age": 60.463}
    assert first.lesions == (1, 2, 3, 4)
    assert first.patient == stem
    assert cases["Brats18_CBICA_AAB_1"].patient == "Brats18_CBICA_AAB"
    assert cases["Brats18_CBICA_AAB_1"].attributes["grade"] == "HGG"
    assert cases["BraTS2021_00000"].patient == "BraTS2021_00000"
    assert cases["BraTS2021_00000"].label is None
    one, two = (cases[f"BraTS-GLI-00005-00{i}"] for i in (0, 1))
    assert one.patient == two.patient == "BraTS-GLI-00005"
    assert (one.attributes["timepoint"], two.attributes["timepoint"]) == (0, 1)
    assert set(one.images) == {"t1n", "t1c", "t2w", "t2f"}
    core = find_cases(tmp_path, {"name": "brats", "lesions": [3, 4]})
    assert core[0].lesions == (3, 4)
    with pytest.raises(DataError, match=r"missing channel 't1ce'"):
        find_cases(tmp_path, channels=["t1ce"])


def test_atlas(tmp_path):
    atlas(tmp_path)
    one, two = find_cases(tmp_path)
    at = "sub-r001s001_ses-1_space-MNI152NLin2009aSym"
    assert files(one) == (
        {"T1w": f"{at}_T1w.nii.gz"},
        f"{at}_label-L_desc-T1lesion_mask.nii.gz",
    )
    assert (one.id, one.patient) == ("sub-r001s001_ses-1", "sub-r001s001")
    assert one.attributes == {"site": "r001", "split": "train", **SICK}
    assert two.attributes == {"site": "r017", "split": "test", **SICK}
    assert two.label is None


def test_wmh(tmp_path):
    wmh(tmp_path)
    one, two = find_cases(tmp_path)
    assert (one.id, two.id) == ("GE3T_100", "Utrecht_0")
    assert two.images["FLAIR"].parent.name == "pre"
    assert set(two.images) == {"FLAIR", "T1", "3DT1"}
    assert two.attributes == {"site": "Utrecht", "split": "train", **SICK}
    assert (two.lesions, two.ignored) == ((1,), (2,))
    orig = find_cases(tmp_path, {"name": "wmh", "images": "orig"})
    assert orig[0].images["T1"].parent.name == "orig"
    # FLAIR.nii.gz is the name of every case's file: it must not stand for the first one
    assert set(find_truths(tmp_path)) == {"GE3T_100", "Utrecht_0"}


def test_wmh_other_pathology_is_neither_lesion_nor_healthy(tmp_path):
    label = np.zeros((6, 5, 4), np.uint8)
    label[1, 1, 1], label[2:4, 2, 2] = 1, 2
    image = np.random.default_rng(0).normal(100, 10, label.shape).astype(np.float32)
    for word in ("FLAIR", "T1"):
        nifti(tmp_path / f"Utrecht/0/pre/{word}.nii.gz", image)
    nifti(tmp_path / "Utrecht/0/wmh.nii.gz", label)
    (case,) = find_cases(tmp_path, channels=["FLAIR", "T1"])
    prepared = Preprocessing().prepare(case)
    assert prepared.label.sum() == 1
    assert prepared.label[0, 1, 1, 1] == 1
    marks = find_truths(tmp_path)["Utrecht_0"].marks(read(case.images["FLAIR"]))
    assert marks.lesion.nonzero().tolist() == [[1, 1, 1]]
    assert marks.ignored.nonzero().tolist() == [[2, 2, 2], [3, 2, 2]]
    assert marks.boxes.corners.tolist() == [[1, 1, 1, 2, 2, 2]]
    # what counts is part of what a prepared volume is known by
    from dataclasses import replace

    other = replace(case, lesions=(1, 2))
    assert Preprocessing().prepare(other).label.sum() == 1 + 2 * 2
    assert fingerprint(case, Preprocessing()) != fingerprint(other, Preprocessing())


def test_ms_sets(tmp_path):
    mslub(tmp_path / "a")
    one, two = find_cases(tmp_path / "a")
    channels = ("T1W", "T1WKS", "T2W", "FLAIR")
    images = {c: f"patient01_{c}.nii.gz" for c in channels}
    assert files(one) == (images, "patient01_consensus_gt.nii.gz")
    assert files(two) == ({c: f"{c}.nii.gz" for c in channels}, "consensus_gt.nii.gz")
    assert (one.patient, one.attributes) == ("patient01", SICK)

    msseg2008(tmp_path / "b")
    test, chb, unc = find_cases(tmp_path / "b")
    assert files(chb) == (
        {c: f"CHB_train_Case01_{c}.nhdr" for c in ("FLAIR", "T1", "T2")},
        "CHB_train_Case01_lesion.nhdr",
    )
    assert (test.label, test.attributes["split"]) == (None, "test")
    assert unc.label.name == "UNC_train_Case02_lesion.nhdr"
    assert {name: path.name for name, path in unc.labels.items()} == {
        "CHB": "UNC_train_Case02_lesion_byCHB.nhdr",
        "UNC": "UNC_train_Case02_lesion.nhdr",
    }
    assert not chb.labels
    assert unc.attributes == {"site": "UNC", "split": "train", **SICK}
    _, chb, unc = find_cases(tmp_path / "b", {"name": "msseg2008", "rater": "CHB"})
    assert chb.label.name == "CHB_train_Case01_lesion.nhdr"
    assert unc.label.name == "UNC_train_Case02_lesion_byCHB.nhdr"

    msseg2015(tmp_path / "c")
    test, one, two = find_cases(tmp_path / "c")
    words = ("flair", "mprage", "pd", "t2")
    images = {w: f"training01_01_{w}_pp.nii" for w in words}
    assert files(one) == (images, "training01_01_mask1.nii")
    assert (one.patient, two.patient) == ("training01", "training01")
    assert two.attributes == {"split": "train", "timepoint": 2, **SICK}
    assert (test.patient, test.label) == ("test01", None)
    masks = {n: p.name for n, p in two.labels.items()}
    assert masks == {"1": "training01_02_mask1.nii", "2": "training01_02_mask2.nii"}
    _, one, _ = find_cases(tmp_path / "c", {"name": "msseg2015", "rater": 2})
    assert one.label.name == "training01_01_mask2.nii"

    msseg2016(tmp_path / "d")
    test, one = find_cases(tmp_path / "d")
    words = ("FLAIR", "T1", "T2", "DP", "GADO")
    images = {w: f"{w}_preprocessed.nii.gz" for w in words}
    assert files(one) == (images, "Consensus.nii.gz")
    assert one.attributes == {"site": "Center_01", "split": "train", **SICK}
    masks = {n: p.name for n, p in one.labels.items()}
    assert masks == {n: f"ManualSegmentation_{n}.nii.gz" for n in ("1", "2", "4")}
    assert not test.labels
    # Patient_01 of the training and of the test part are two persons
    assert one.patient != test.patient
    with pytest.raises(DataError, match=r"has no Masks/ManualSegmentation_3.nii.gz; it has"):
        find_cases(tmp_path / "d", {"name": "msseg2016", "rater": 3})
    with pytest.raises(UsageError, match="rater from 1 to 7"):
        find_cases(tmp_path / "d", {"name": "msseg2016", "rater": 8})
    (tmp_path / "c/training/training01/masks/training01_02_mask1.nii").unlink()
    with pytest.raises(DataError, match=r"training01_02: has no .*training01_02_mask1.nii"):
        find_cases(tmp_path / "c")


def test_nrrd_is_read(tmp_path):
    import SimpleITK as sitk

    array = np.arange(4 * 3 * 2, dtype=np.int16).reshape(4, 3, 2)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetOrigin((-5.0, 6.0, 7.0))
    path = tmp_path / "CHB_train_Case01_T1.nhdr"
    sitk.WriteImage(image, str(path))
    volume = read(path)
    # LPS in the file: right and anterior are the other way round
    np.testing.assert_array_equal(volume.array[0], array.transpose(2, 1, 0)[::-1, ::-1])
    np.testing.assert_allclose(volume.affine[:3, 3], [5 - 2, -6 - 6, 7])
    assert volume.spacing_mm == (2, 3, 4)
    next(p for p in tmp_path.iterdir() if p != path).unlink()
    with pytest.raises(DataError, match="cannot be read as NRRD"):
        read(path)


def test_table(tmp_path):
    table(tmp_path)
    two, one = find_cases(tmp_path)
    assert files(one) == ({"ct": "a.nii.gz"}, "a.nii.gz")
    assert one.attributes == {"age": 63, "sex": "f", **SICK}
    assert (one.patient, two.patient) == ("p1", "p2")
    assert (two.label, two.attributes) == (None, {"sex": "m", **HEALTHY})
    rows = (tmp_path / "cases.csv").read_text()
    wrong = {
        "column 'id'": rows.replace("id,", "name,", 1),
        "column 'image'": rows.replace("image:ct", "file"),
        "cases.csv, row 2: scans/c.nii.gz: not there": rows.replace("scans/a", "scans/c"),
        "row 2: the path '../x.nii.gz' leaves": rows.replace("masks/a.nii.gz", "../x.nii.gz"),
        "row 3 ends before the column 'id'": rows.replace("id,image:ct", "image:ct,z,id").replace(
            "p2_visit2,scans/b.nii.gz,,,n/a,m,healthy", "x"
        ),
    }
    for message, content in wrong.items():
        (tmp_path / "cases.csv").write_text(content)
        with pytest.raises(DataError, match=message) as error:
            find_cases(tmp_path)
        assert "\n" not in str(error.value)


def test_ixi(tmp_path):
    ixi(tmp_path)
    one, two = find_cases(tmp_path)
    names = {c: f"IXI002-Guys-0828-{c}.nii.gz" for c in ("T1", "T2")}
    assert files(one) == (names, None)
    assert (one.id, one.patient) == ("IXI002-Guys-0828", "IXI002")
    assert one.attributes == {"site": "Guys", "age": 35.8, "sex": "female", **HEALTHY}
    assert two.attributes == {"site": "HH", "age": 38.78, "sex": "male", **HEALTHY}
    text(tmp_path / "IXI.csv", "IXI_ID,SEX", "2,1")
    with pytest.raises(DataError, match=r"IXI.csv: expected a column 'AGE'"):
        find_cases(tmp_path)
    (tmp_path / "IXI.csv").rename(tmp_path / "IXI.xls")
    assert len(find_cases(tmp_path)) == 2
    (note,) = [p for p in survey_cases(tmp_path)[1] if p.id == "IXI.xls"]
    assert note.severity == "info"
    assert "save its sheet as IXI.csv" in note.message


def test_mood(tmp_path):
    mood(tmp_path)
    abdomen, brain, toy = find_cases(tmp_path)
    assert abdomen.id == "abdom_00000"
    assert brain.attributes == {"region": "brain", "split": "train", **HEALTHY}
    assert files(toy) == ({"image": "toy_0.nii.gz"}, "toy_0.nii.gz")
    assert toy.label.parent.name == "pixel"
    assert toy.attributes == {"region": "brain", "split": "test", **SICK}
    (tmp_path / "brain/toy_label/sample/toy_0.nii.gz.txt").unlink()
    with pytest.raises(DataError, match=r"expected its label toy_label/sample/toy_0.nii.gz.txt"):
        find_cases(tmp_path)


def test_oct2017(tmp_path):
    oct2017(tmp_path)
    cases = {c.id: c for c in find_cases(tmp_path)}
    normal = cases["train_NORMAL-1001666-1"]
    assert normal.patient == "1001666"
    assert normal.attributes == {"class": "NORMAL", "split": "train", **HEALTHY}
    # one picture in two parts: the same patient, so that a split by patient keeps them together
    assert cases["train_CNV-81630-6"].patient == cases["test_CNV-81630-6"].patient == "81630"
    assert cases["val_DME-9583225-1"].attributes["split"] == "validation"


def test_chexpert(tmp_path):
    chexpert(tmp_path)
    one, two, lateral = find_cases(tmp_path)
    assert one.id == "train_patient00001_study1_view1_frontal"
    assert one.patient == "patient00001"
    assert one.attributes == {
        **HEALTHY,
        "split": "train",
        "sex": "female",
        "age": 68,
        "view": "Frontal",
        "projection": "AP",
        "No Finding": 1,
        "Support Devices": 1,
    }
    assert (two.attributes["group"], two.attributes["Edema"]) == ("sick", 1)
    assert two.attributes["Fracture"] == 0
    assert "No Finding" not in two.attributes
    assert (lateral.attributes["group"], lateral.attributes["Edema"]) == ("unsure", -1)
    assert two.patient == lateral.patient
    frontal = find_cases(tmp_path, {"name": "chexpert", "views": ["Frontal"]})
    assert [c.id for c in frontal] == [one.id, two.id]
    # the folder itself, without the name that the paths start with
    assert find_cases(tmp_path / "CheXpert-v1.0-small") == [one, two, lateral]
    one.images["image"].unlink()
    with pytest.raises(DataError, match=r"train.csv: train/patient00001/.* is not there"):
        find_cases(tmp_path)
    text(tmp_path / "CheXpert-v1.0-small/train.csv", CHEXPERT.replace("No Finding", "None"))
    with pytest.raises(DataError, match=r"train.csv: expected a column 'No Finding'"):
        find_cases(tmp_path)


def test_grazped_and_its_boxes(tmp_path):
    grazped(tmp_path)
    one, two, three = find_cases(tmp_path)
    assert (one.patient, one.attributes["group"], one.attributes["sex"]) == ("1", "sick", "male")
    assert [c.attributes["group"] for c in (two, three)] == ["healthy", "other"]
    assert one.attributes["age"] == 14.1
    assert (two.boxes, two.attributes["fracture_visible"]) == ((), 0)
    # columns run to the left and rows to posterior: both are reversed in R, A, S
    assert one.boxes == ((8 - 6, 10 - 4, 0, 8 - 2, 10 - 1, 1),)
    volume = read(one.images["image"])
    inside = volume.array[filled(one.boxes, volume).array > 0]
    grey = np.arange(80).reshape(10, 8) * 500
    assert sorted(inside) == sorted(grey[1:4, 2:6].ravel())
    with_text = find_cases(tmp_path, {"name": "grazped", "objects": ["fracture", "text"]})
    assert len(with_text[0].boxes) == 2
    with pytest.raises(UsageError, match="no objects fractur"):
        find_cases(tmp_path, {"name": "grazped", "objects": ["fractur"]})
    one.images["image"].unlink()
    with pytest.raises(DataError, match=r"no images\*/0001_1_01_WRI-L1_M014.png"):
        find_cases(tmp_path)


def test_linking_by_hand():
    def r(at, x0, x1, label="a", y0=0, y1=2):
        return Rectangle(at, label, x0, y0, x1, y1)

    # IoU 6/10 and 1/3: a chain at 0.3, two findings at 0.5
    chain = [r(3, 0, 4), r(4, 1, 5), r(5, 3, 7)]
    assert chain[0].iou(chain[1]) == 6 / 10
    assert chain[1].iou(chain[2]) == 4 / 12
    assert link(chain, least_iou=0.3) == [("a", (0, 0, 3, 7, 2, 6))]
    assert link(chain[::-1], least_iou=1 / 3) == [("a", (0, 0, 3, 7, 2, 6))]
    assert link(chain, least_iou=0.5) == [("a", (0, 0, 3, 5, 2, 5)), ("a", (3, 0, 5, 7, 2, 6))]
    # a slice between them, another label, or no overlap: apart
    apart = [r(0, 0, 4), r(2, 0, 4), r(1, 0, 4, "b"), r(1, 4, 8), r(0, 0, 4)]
    assert len(link(apart, least_iou=0.1)) == 4
    # each is joined to one: the nearest
    two = [r(0, 0, 4), r(1, 0, 3), r(1, 2, 5)]
    assert link(two, least_iou=0.1) == [("a", (0, 0, 0, 4, 2, 2)), ("a", (2, 0, 1, 5, 2, 2))]
    assert link([], least_iou=0.1) == []


def test_boxes_follow_their_voxels_into_ras():
    rng = np.random.default_rng(1)
    turn = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, 6], [-1.0, 0, 0, 7], [0, 0, 0, 1]])
    from volumediff.data.grid import canonical

    for _ in range(20):
        low = rng.integers(0, 3, 3)
        high = low + rng.integers(1, 3, 3)
        mask = np.zeros((5, 6, 7), bool)
        mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = True
        moved, _ = canonical(mask, turn)
        d0, h0, w0, d1, h1, w1 = canonical_box(
            (*low.tolist(), *high.tolist()), Grid((5, 6, 7), turn)
        )
        expected = np.zeros_like(moved)
        expected[d0:d1, h0:h1, w0:w1] = True
        np.testing.assert_array_equal(moved, expected)


def test_fastmri(tmp_path):
    fastmri(tmp_path)
    one, two, three = find_cases(tmp_path)
    assert (one.id, one.patient, two.patient, three.patient) == ("file_1", "p", "p", "q")
    known = {"acquisition": "AXFLAIR", "split": "train"}
    assert one.attributes == {**known, **SICK, "findings": "Edema; Mass"}
    assert two.attributes == {**known, **HEALTHY}
    assert two.boxes == ()
    # nobody has looked at the third
    assert three.attributes == {"acquisition": "AXFLAIR", "split": "validation"}
    assert three.boxes is None
    # Mass on slices 0 and 1 (IoU 1/2) is one box, on slice 3 another; rows and columns reversed:
    # x 1..5 of 8 columns, y 2..4 of 6 rows turned over twice
    assert set(one.boxes) == {
        (8 - 5, 6 - 4, 0, 8 - 1, 6 - 2, 2),
        (8 - 5, 6 - 4, 3, 8 - 2, 6 - 2, 4),
        (8 - 5, 6 - 4, 1, 8 - 2, 6 - 2, 2),
    }
    (left_out,) = survey_cases(tmp_path)[1]
    assert (left_out.id, left_out.severity) == ("file_4", "info")
    apart = find_cases(tmp_path, {"name": "fastmri", "least_iou": 0.6})
    assert len(apart[0].boxes) == 4
    with pytest.raises(DataError, match="no case found as layout 'fastmri'"):
        find_cases(tmp_path, {"name": "fastmri", "acquisitions": ["AXT2"]})
    with pytest.raises(UsageError, match="least_iou in"):
        find_cases(tmp_path, {"name": "fastmri", "least_iou": 0})
    text(tmp_path / "Annotations/brain.csv", ROWS, "file_1,9,No,1,2,3,2,Mass")
    with pytest.raises(DataError, match=r"file_1: annotations: Mass at slice 9"):
        find_cases(tmp_path)
    text(tmp_path / "Annotations/brain.csv", ROWS.replace("width", "w"))
    with pytest.raises(DataError, match=r"brain.csv: expected a column 'width'"):
        find_cases(tmp_path)


@pytest.mark.parametrize("acquisition", ["AXT1", "CORPD_FBK"])
def test_fastmri_geometry(acquisition, tmp_path):
    fastmri(tmp_path, acquisition=acquisition)
    path = tmp_path / "multicoil_train/file_1.h5"
    volume = read(path)
    stored = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)
    # columns to the left; the last row is on top: anterior of axial, superior of coronal slices
    order = (2, 1, 0) if acquisition == "AXT1" else (2, 0, 1)
    np.testing.assert_array_equal(volume.array[0], stored.transpose(order)[::-1])
    assert volume.spacing_mm == ((0.5, 1, 5) if acquisition == "AXT1" else (0.5, 5, 1))
    assert [f.code for f in volume.findings] == ["directions_assumed"]


def test_fastmri_without_header_or_package(tmp_path, monkeypatch):
    fastmri(tmp_path, header=None)
    path = tmp_path / "multicoil_train/file_1.h5"
    assert read(path).spacing_mm == (1, 1, 1)
    assert "spacing_assumed" in [f.code for f in read(path).findings]
    with pytest.raises(DataError, match="expected the data set 'reconstruction_rss'"):
        read(path.with_name("file_4.h5"))
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="expected an HDF5 file"):
        read(tmp_path / "x.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"pip install 'volumediff\[fastmri\]'") as error:
        find_cases(tmp_path)
    assert "\n" not in str(error.value)


def test_luna16(tmp_path):
    import SimpleITK as sitk

    luna16(tmp_path)
    sick, healthy = find_cases(tmp_path)
    assert (sick.id, sick.patient, sick.attributes) == (
        "1.2.7",
        "1.2.7",
        {"nodules": 2, "fold": 0, **SICK},
    )
    assert (healthy.boxes, healthy.spheres, healthy.attributes["group"]) == ((), (), "healthy")
    # inside of a sphere are the voxels whose centre is, as SimpleITK places them; or the nearest
    image = sitk.ReadImage(str(sick.images["image"]))
    truth = np.zeros(image.GetSize(), np.uint8)
    for *centre, diameter in NODULES:
        away = {
            place: np.linalg.norm(np.subtract(image.TransformIndexToPhysicalPoint(place), centre))
            for place in np.ndindex(image.GetSize())
        }
        near = [place for place, mm in away.items() if mm <= diameter / 2]
        for place in near or [min(away, key=away.get)]:
            truth[place] = 1
    assert 5 < truth.sum() < 100
    like = read(sick.images["image"])
    label = filled(sick.boxes, like, sick.spheres)
    np.testing.assert_array_equal(native_order(label.array, like.native)[0], truth)
    prepared = Preprocessing(intensity=Window()).prepare(sick)
    assert int(prepared.label.sum()) == truth.sum()
    assert int(find_truths(tmp_path)["1.2.7"].marks(like).lesion.sum()) == truth.sum()
    # the boxes are those of the spheres one by one
    for box, sphere in zip(sick.boxes, sick.spheres, strict=True):
        places = np.argwhere(filled([box], like, [sphere]).array[0])
        low, high = places.min(0) - box[:3], box[3:] - places.max(0) - 1
        assert 0 <= min(*low, *high) <= max(*low, *high) <= 1
    (tmp_path / "annotations_excluded.csv").unlink()
    assert find_cases(tmp_path)[1].attributes["group"] == "unsure"
    text(
        tmp_path / "annotations.csv",
        "seriesuid,coordX,coordY,coordZ,diameter_mm",
        "1.2.7,90,0,0,5",
        "9.9,0,0,0,4",
    )
    _, problems = survey_cases(tmp_path)
    said = {p.id: p.message for p in problems}
    assert "lies outside of the volume" in said["1.2.7"]
    assert "of 1 series without a volume, such as 9.9" in said["annotations.csv"]
    text(
        tmp_path / "annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm", "1.2.7,a,0,0,5"
    )
    with pytest.raises(DataError, match=r"annotations\.csv: row 2: expected three coordinates"):
        find_cases(tmp_path)


def test_lidc_annotations_in_a_tree_of_their_own(tmp_path):
    lidc(tmp_path)
    (beside,) = find_cases(tmp_path)
    (xml,) = tmp_path.rglob("*.xml")
    apart = tmp_path / "LIDC-XML-only/tcia-lidc-xml/157/158.xml"
    named = "<ResponseHeader><SeriesInstanceUid>{}</SeriesInstanceUid></ResponseHeader>"
    said = xml.read_text().replace("<readingSession>", named + "<readingSession>", 1)
    text(apart, said.format("1.2.3"))
    xml.unlink()
    assert find_cases(tmp_path) == [beside]
    text(apart, said.format("1.2.99"))
    (other,) = find_cases(tmp_path)
    assert other.boxes is None
    assert not other.contours


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "document type"),
        ("<a>" * 40 + "</a>" * 40, "more than 32 deep"),
        ("<a>" + " " * 3000 + "</a>", "larger than 0 MiB"),
    ],
)
def test_xml_is_read_within_bounds(content, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(_xml, "MOST_BYTES", 2000)
    text(tmp_path / "a.xml", content)
    with pytest.raises(DataError, match=rf"a\.xml: cannot be read as XML .*{reason}"):
        read_xml(tmp_path / "a.xml")


def test_lidc(tmp_path):
    lidc(tmp_path)
    (case,) = find_cases(tmp_path)
    assert (case.id, case.patient) == ("LIDC-IDRI-0001", "LIDC-IDRI-0001")
    assert case.attributes == {"nodules": 1, **SICK}
    # inside of the contours x 3..6, 3..7, 4..7; y 2..5, 2..5, 3..5; slices 1..3, 1..3, 2..3 (the
    # fourth reader marked something else); medians 3, 7, 2, 5, 1, 3; columns and rows reversed
    assert case.boxes == ((10 - 7, 8 - 5, 1, 10 - 3, 8 - 2, 3),)
    volume = read(case.images["image"])
    assert volume.spacing_mm == (0.5, 0.5, 2)
    np.testing.assert_array_equal(volume.array[0, 0, 0], [0, 10, 20, 30])
    marked = filled(case.boxes, volume).array[0].any(axis=(0, 1))
    np.testing.assert_array_equal(marked, [False, True, True, False])
    (strict,) = find_cases(tmp_path, {"name": "lidc", "readers": 4})
    assert (strict.boxes, strict.attributes["group"]) == ((), "unsure")
    (loose,) = find_cases(tmp_path, {"name": "lidc", "readers": 1})
    assert len(loose.boxes) == 2
    (xml,) = tmp_path.rglob("*.xml")
    xml.write_text(
        XML.format(sessions=session(2, 6, 1, 5, (30,)) * 3).replace(
            "readingSession>", "readingSession>"
        )
    )
    with pytest.raises(DataError, match="lies outside of the series"):
        find_cases(tmp_path)
    xml.write_text("<x")
    with pytest.raises(DataError, match=r"069.xml: cannot be read as XML"):
        find_cases(tmp_path)
    xml.unlink()
    (plain,) = find_cases(tmp_path)
    assert (plain.boxes, plain.attributes) == (None, {})


def test_a_nifti_set_is_prepared(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((9, 8, 7), np.uint8)
    label[2:4, 3, 3], label[5, 5, 5] = 4, 2
    at = tmp_path / "BraTS20_Training_001"
    for word in ("flair", "t1"):
        image = rng.normal(100, 10, label.shape).astype(np.float32)
        nifti(at / f"BraTS20_Training_001_{word}.nii.gz", image, (1, 2, 1))
    nifti(at / "BraTS20_Training_001_seg.nii.gz", label, (1, 2, 1))
    (case,) = find_cases(tmp_path, channels=["t1", "flair"])
    prepared = Preprocessing().prepare(case)
    assert prepared.x.shape == (2, 9, 8, 7)
    assert prepared.spacing_mm == (1, 2, 1)
    np.testing.assert_array_equal(prepared.label[0], label)
    assert not [r for r in check([tmp_path]) if r.severity == "error"]


def test_an_hdf5_set_is_prepared(tmp_path):
    fastmri(tmp_path)
    case = find_cases(tmp_path)[0]
    prepared = Preprocessing(spacing_mm=(0.5, 1.0, 5.0)).prepare(case)
    assert prepared.x.shape == (1, 8, 6, 4)
    expected = np.zeros((8, 6, 4), bool)
    for d0, h0, w0, d1, h1, w1 in case.boxes:
        expected[d0:d1, h0:h1, w0:w1] = True
    np.testing.assert_array_equal(prepared.label[0].numpy() > 0, expected)
    marks = find_truths(tmp_path)["file_1"].marks(read(case.images["image"]))
    np.testing.assert_array_equal(marks.lesion.numpy(), expected)
    assert len(marks.boxes.corners) == 3
    healthy = find_truths(tmp_path)["file_2"].marks(read(case.images["image"]))
    assert not healthy.lesion.any()
    assert "file_3" not in find_truths(tmp_path)
    assert not [r for r in check([tmp_path]) if r.severity == "error"]


def test_a_set_of_pictures_is_prepared(tmp_path):
    path = tmp_path / "train/NORMAL/NORMAL-1001666-1.jpeg"
    path.parent.mkdir(parents=True)
    grey = np.repeat(np.arange(0, 240, 20, dtype=np.uint8)[:, None], 16, axis=1)
    Image.fromarray(grey).save(path, quality=100)
    (case,) = find_cases(tmp_path)
    assert name(tmp_path) == "oct2017"
    prepared = Preprocessing(intensity=Window(127.5, 255.0)).prepare(case)
    # columns, rows, one slice; rows from the top are from anterior, so that they are reversed
    assert prepared.x.shape == (1, 16, 12, 1)
    np.testing.assert_allclose(
        prepared.x[0, 5, :, 0].numpy(), grey[::-1, 0] / 127.5 - 1, atol=2 / 127.5
    )
    assert prepared.spacing_mm == (1, 1, 1)
    codes = {r.code for r in check([tmp_path])}
    assert {"picture", "single_slice"} <= codes


def test_bad_pictures_are_one_line(tmp_path):
    colours = np.zeros((4, 5, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "grey.png")
    assert read(tmp_path / "grey.png").array.shape == (1, 5, 4, 1)
    colours[0, 0, 1] = 9
    Image.fromarray(colours).save(tmp_path / "colour.png")
    (tmp_path / "text.jpg").write_text("<html>")
    whole = (tmp_path / "grey.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:45])
    for file, message in (
        ("colour.png", "got colours"),
        ("text.jpg", "expected a JPEG or PNG"),
        ("cut.png", "damaged"),
        ("none.png", "not there"),
    ):
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path / file)
        assert "\n" not in str(error.value)


def test_boxes_outside_of_the_volume(tmp_path):
    nifti(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.float32))
    volume = read(tmp_path / "a.nii.gz")
    for box in ((0, 0, 0, 4, 4, 5), (-1, 0, 0, 1, 1, 1), (2, 2, 2, 2, 3, 3)):
        with pytest.raises(DataError, match="does not lie in a volume"):
            filled([box], volume)


def test_maps_are_evaluated_against_boxes(tmp_path):
    """A map that is high in the boxes and nowhere else is perfect; a healthy one has no lesion."""
    fastmri(tmp_path / "data")
    out = tmp_path / "maps"
    out.mkdir()
    for case in find_cases(tmp_path / "data")[:2]:
        volume = read(case.images["image"])
        inside = filled(case.boxes, volume).array.astype(np.float32)
        write(out / f"{case.id}_{MAP}.nii.gz", inside, like=volume, kind="image")
        write(out / f"{case.id}_{MASK}.nii.gz", inside, like=volume, kind="label")
        sidecar = {"method": "m", "score": float(inside.sum()), "thresholds": {}}
        (out / f"{case.id}_{MAP}.json").write_text(json.dumps(sidecar))
    (result,) = evaluate([out], tmp_path / "data", replicates=0)
    one, two = result.cases
    assert (one.abnormal, two.abnormal) == (True, False)
    assert (one.patient, one.ap, one.unseen) == ("p", 1, 0)
    # the two boxes that meet are two in the truth and one in the mask
    assert one.boxes.truths == 3
    assert result.measures["box_energy"].value == 1
