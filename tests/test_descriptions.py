"""Descriptions of other programs are read whole; what does not fit is one line."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_app import save

from volumediff.config import build
from volumediff.data.layouts._descriptions import channel_names, described_by, label_meanings
from volumediff.data.layouts._tables import number
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.survey import find_cases, survey_cases
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.truths import find_truths
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samples.label_checks import survey_labels


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def described(tmp_path, **content):
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


HERE = Path("dataset.json")


def names(content):
    return channel_names(described_by({"channel_names": content}, HERE), HERE)


# --- channels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"0": "T1", "1": "FLAIR"}, ["T1", "FLAIR"]),
        ({"1": "FLAIR", "0": "T1"}, ["T1", "FLAIR"]),  # the number counts
        ({"1": "T1", "2": "FLAIR"}, ["T1", "FLAIR"]),  # else the order
        ({"T1": 0, "FLAIR": 1}, ["T1", "FLAIR"]),
        ({"FLAIR": 1, "T1": 0}, ["T1", "FLAIR"]),
        ({"f": "noNorm", "l": "T2"}, ["noNorm", "T2"]),
        ({"t1": "zscore", "t2": "zscore"}, ["t1", "t2"]),  # schemes of normalization
        ({"0": "CT", "1": "CT"}, ["CT_0", "CT_1"]),
        ({"0": "CT", "1": "PET", "2": "ct"}, ["CT_0", "PET", "ct_2"]),
        (["T1", "FLAIR"], ["T1", "FLAIR"]),
    ],
)
def test_channels_have_names_of_their_own(given, wanted):
    assert names(given) == wanted


@pytest.mark.parametrize("given", [[], {}, None, 3, "T1", {"0": None}, {"0": {"name": "T1"}}, [1]])
def test_no_channels_are_one_line(given):
    with pytest.raises(DataError, match="'channel_names' such as"):
        names(given)


def test_two_channels_of_one_name_are_both_read(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    (case,) = find_cases(described(tmp_path, channel_names={"0": "CT", "1": "CT"}))
    assert {k: p.name for k, p in case.images.items()} == {
        "CT_0": "a_0000.nii.gz",
        "CT_1": "a_0001.nii.gz",
    }
    listed = {"modality": {"0": "MRI", "1": "MRI"}, "training": [{"image": ["a.nii", "b.nii"]}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    (case,) = find_cases(tmp_path / "list.json")
    assert {k: p.name for k, p in case.images.items()} == {"MRI_0": "a.nii", "MRI_1": "b.nii"}


# --- labels --------------------------------------------------------------------------------------


def meanings(labels, **more):
    return label_meanings(described_by({"labels": labels, **more}, HERE), HERE)


def test_labels_of_every_convention():
    assert meanings({"background": 0, "tumour": 1, "Ignore": 2}).ignored == (2,)
    assert meanings({"0": "background", "1": "tumour"}).names == {1: "tumour"}
    assert meanings(["background", "tumour"]).names == {1: "tumour"}
    assert meanings({"background": "0", "tumour": "1"}).names == {1: "tumour"}
    brats = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    found = meanings(brats, regions_class_order=[1, 2, 3])
    assert found.names == {1: "whole", 2: "core", 3: "enhancing", 4: "ignore"}
    assert found.regions == {"whole": (1, 2, 3), "core": (2, 3)}
    assert found.written == {1: (1, 2, 3), 2: (2, 3), 3: (3,)}
    assert found.ignored == (4,)


@pytest.mark.parametrize(
    "labels", [{"a": 300}, {"a": -1}, {"a": []}, {"a": "x"}, {"a": None}, {"a": 1.5}, 3, {"a": {}}]
)
def test_labels_that_are_none_are_one_line(labels):
    with pytest.raises(DataError, match=r"dataset\.json: .*'labels'"):
        meanings(labels)


@pytest.fixture
def ignoring(tmp_path):
    """One nnU-Net case: 64 voxels of lesion, a third of the volume to be ignored."""
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[2:6, 2:6, 2:6], mask[:, :, 8:] = 1, 2
    x = np.random.default_rng(0).uniform(1, 2, mask.shape).astype(np.float32)
    save(tmp_path / "imagesTr/a_0000.nii.gz", x, np.eye(4))
    save(tmp_path / "labelsTr/a.nii.gz", mask, np.eye(4))
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    return described(tmp_path, channel_names={"0": "T1"}, labels=labels)


def test_ignored_voxels_are_neither_hit_nor_miss(ignoring):
    (case,) = find_cases(ignoring)
    assert case.ignored == (2,)
    marks = find_truths(ignoring)["a"].marks(read(case.images["T1"]))
    assert int(marks.lesion.sum()) == 64
    assert int(marks.ignored.sum()) == 12 * 12 * 4
    prepared = Preprocessing().prepare(case)
    assert int((prepared.label > 0).sum()) == 64


def test_a_model_of_labels_does_not_learn_what_is_to_be_ignored(ignoring):
    found = survey_labels(LabelDiffusion(), find_cases(ignoring), Preprocessing())
    with pytest.raises(UsageError, match=r"asks to ignore 2 \(ignore\).*dataset.json"):
        found.require()


def test_count_and_regions_are_said(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "whole": [2, 4], "core": [4]}
    described(
        tmp_path,
        channel_names={"0": "T1"},
        labels=labels,
        regions_class_order=[2, 4],
        numTraining=5,
    )
    _, problems = survey_cases(tmp_path)
    said = {p.severity: p.message for p in problems}
    assert said["warning"].startswith("says 5 training cases, 1 are there")
    assert "whole = 2+4" in said["info"]
    advice = re.search(r"recipe\.labels=(\S+) and recipe\.coding=(\{.*\})\.$", said["info"])
    given = {"labels": yaml.safe_load(advice[1]), "coding": yaml.safe_load(advice[2])}
    recipe = build("recipe", {"name": "label_diffusion", **given})
    label = torch.tensor([0, 2, 4], dtype=torch.uint8).view(1, 3, 1, 1)
    coded = recipe.coding.encode(recipe.masks(label), spacing_mm=(1.0, 1.0, 1.0))
    assert coded.flatten(1).tolist() == [[-1, 1, 1], [-1, -1, 1]], "whole, core"


def test_regions_need_the_labels_that_are_written_for_them():
    with pytest.raises(DataError, match=r"'regions_class_order': expected 2 labels .* got \[1\]"):
        meanings({"background": 0, "whole": [1, 2], "core": [2]}, regions_class_order=[1])


# --- folders of numbered channels ----------------------------------------------------------------


def test_numbered_channels_are_read_by_their_order(tmp_path):
    for case in ("a", "b"):
        touch(tmp_path / "in", f"{case}_0000.nii.gz", f"{case}_0001.nii.gz")
    cases = find_cases(tmp_path / "in", channels=["T1", "FLAIR"])
    assert [(c.id, [p.name for p in c.images.values()]) for c in cases] == [
        (name, [f"{name}_0000.nii.gz", f"{name}_0001.nii.gz"]) for name in ("a", "b")
    ]
    assert list(cases[0].images) == ["T1", "FLAIR"]
    # numbers of patients are no channels
    touch(tmp_path / "scans", "img_0000.nii.gz", "img_0001.nii.gz", "img_0002.nii.gz")
    assert len(find_cases(tmp_path / "scans")) == 3
    touch(tmp_path / "raw", "imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz")
    described(tmp_path / "raw", channel_names={"0": "T1", "1": "FLAIR"})
    (case,) = find_cases(tmp_path / "raw/imagesTs", channels=["FLAIR", "T1"])
    assert [p.name for p in case.images.values()] == ["c_0001.nii.gz", "c_0000.nii.gz"]


# --- datalists -----------------------------------------------------------------------------------


def listed(tmp_path, *entries):
    (tmp_path / "list.json").write_text(json.dumps({"training": list(entries)}))
    return tmp_path / "list.json"


def test_ids_come_from_paths_where_names_are_alike(tmp_path):
    images = ["p1/ses-1/ct.nii.gz", "p1/ses-2/ct.nii.gz", "p2/ses-1/ct.nii.gz"]
    cases = find_cases(listed(tmp_path, *({"image": image} for image in images)))
    assert [c.id for c in cases] == ["p1_ses-1", "p1_ses-2", "p2_ses-1"]
    assert [c.patient for c in cases] == ["p1", "p1", "p2"]
    cases = find_cases(listed(tmp_path, "a/x.nii", "b/x.nii", "b/y.nii"))
    assert [c.id for c in cases] == ["a_x", "b_x", "b_y"]
    with pytest.raises(DataError, match="two cases have this id"):
        find_cases(listed(tmp_path, "a/x.nii", "a/x.nii"))


def test_bare_lists_and_paths_of_windows(tmp_path):
    touch(tmp_path, "s1/ct.nii.gz", "s1/seg.nii.gz")
    (tmp_path / "list.json").write_text(
        json.dumps([{"image": "s1\\ct.nii.gz", "label": "s1\\seg.nii.gz"}])
    )
    (case,) = find_cases(tmp_path / "list.json")
    assert case.images["image"] == tmp_path / "s1/ct.nii.gz"
    assert case.label == tmp_path / "s1/seg.nii.gz"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image": "a.nii", "keypoints": [[1, 2, 3]]}, "'keypoints' is not read"),
        ({"image": "a.nii", "box": [0, 1]}, "'box' is not read"),
        ({"image": []}, "got an empty list"),
        ({"image": {"a": 1}}, "expected a path"),
        ({"image": "a.nii", "label": 3}, "expected a path"),
        ({"image": "a.nii", "id": ["x"]}, "expected text or a number under 'id'"),
        ({"image": "a.nii", "patient": None}, "expected text or a number under 'patient'"),
        (3, "expected a mapping"),
        (None, "expected a mapping"),
    ],
)
def test_entries_of_another_shape_are_one_line(entry, words, tmp_path):
    with pytest.raises(DataError, match=words):
        find_cases(listed(tmp_path, entry))


# --- tables --------------------------------------------------------------------------------------


def people(tmp_path, table, *ids, encoding="utf-8"):
    touch(tmp_path, *(f"{i}_T1w.nii.gz" for i in ids))
    (tmp_path / "participants.tsv").write_bytes(table.encode(encoding))
    cases, problems = survey_cases(tmp_path)
    return [c.attributes for c in cases], [p.message for p in problems]


@pytest.mark.parametrize("word", ["NA", "N/A", "n/a", "nan", "NaN", "-", "None", "#N/A", ""])
def test_words_for_what_is_not_known(word, tmp_path):
    found, _ = people(tmp_path, f"participant_id\tage\tgroup\nsub-1\t{word}\tsick\n", "sub-1")
    assert found == [{"group": "sick"}]


@pytest.mark.parametrize(
    ("text", "value"),
    [("63,5", 63.5), ("-0,125", -0.125), ("63.5", 63.5), ("1,000", "1,000"), ("1,5,2", "1,5,2")],
)
def test_decimal_commas(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("row", "case"),
    [
        ("1", "001"),
        ("001", "1"),
        ("1", "sub-01"),
        ("sub-01", "sub-01"),
        ("SUB-01", "sub-01"),
        ("Anna", "anna"),
        (unicodedata.normalize("NFC", "Müller"), unicodedata.normalize("NFD", "Müller")),
    ],
)
def test_spellings_of_one_name(row, case, tmp_path):
    found, said = people(tmp_path, f"participant_id\tage\n{row}\t63\n", case)
    assert found == [{"age": 63}]
    assert not said


def test_a_spelling_that_fits_two_people_fits_none(tmp_path):
    found, said = people(tmp_path, "participant_id\tage\n1\t63\n", "01", "001")
    assert found == [{}, {}]
    assert said == [
        "1 of 1 rows match no case: 1; name the participants as their files are named."
    ]


def test_rows_of_sessions_and_rows_that_contradict(tmp_path):
    table = "participant_id\tsession_id\tage\nsub-1\tses-1\t30\nsub-1\t2\t31\nsub-9\t1\t5\n"
    found, said = people(tmp_path / "a", table, "sub-1_ses-1", "sub-1_ses-02")
    assert sorted(f["age"] for f in found) == [30, 31]
    assert said == ["1 of 3 rows match no case: sub-9."]
    table = "participant_id\tage\tsex\nsub-1\t30\tf\nsub-1\t31\tf\n"
    found, said = people(tmp_path / "b", table, "sub-1")
    assert found == [{"sex": "f"}]
    assert said == [
        "the rows of sub-1 differ in age, which is left out; keep one row, or add a column "
        "session_id."
    ]


def test_sessions_have_a_table_of_their_own_in_bids(tmp_path):
    for session in ("1", "2"):
        touch(tmp_path, f"sub-1/ses-{session}/anat/sub-1_ses-{session}_T1w.nii.gz")
    (tmp_path / "sub-1/sub-1_sessions.tsv").write_text("session_id\tage\nses-1\t30\nses-2\t31\n")
    assert [c.attributes["age"] for c in find_cases(tmp_path)] == [30, 31]


@pytest.mark.parametrize(
    ("table", "encoding"),
    [
        ("participant_id,age\nsub-1,63\n", "utf-8"),
        ("participant_id;age\nsub-1;63,0\n", "utf-8-sig"),
        ("participant_id\tage\r\nsub-1\t63\r\n", "utf-16"),
    ],
)
def test_tables_as_spreadsheets_write_them(table, encoding, tmp_path):
    found, _ = people(tmp_path, table, "sub-1", encoding=encoding)
    assert found == [{"age": 63}]


def test_tables_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(DataError, match="row 2 has more cells than the table has columns"):
        people(tmp_path, "participant_id,age\nsub-1,63,5\n", "sub-1")
    with pytest.raises(DataError, match=r"byte 27 is none .*save it as UTF-8"):
        people(tmp_path, "participant_id\tsite\nsub-1\tM\xfcnchen\n", "sub-1", encoding="latin-1")
