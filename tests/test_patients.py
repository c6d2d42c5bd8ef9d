"""Whose a case is: patterns and tables keep the cases of a patient in one part of the split."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from data_sets import text, touch

import volumediff
from volumediff.data.cases import Case
from volumediff.data.patients import Patients, patients_rule, read_patients
from volumediff.data.single_case import case_of_file
from volumediff.data.splits import PARTS
from volumediff.data.survey import find_cases
from volumediff.errors import DataError, UsageError
from volumediff.runs.inputs import find_inputs
from volumediff.samples.sources import cases_of, split_of
from volumediff.settings.run_config import load_run_config
from volumediff.settings.sections import Data

REAL = Path(__file__).parents[2] / "shared/data/segmentation/mouse_hippocampus"


def cases(*names):
    return [Case(name, name, {}) for name in names]


def mice(root, count=6):
    names = [f"mouse{i:02d}{side}" for i in range(1, count + 1) for side in "LR"]
    touch(root, *(f"imagesTr/{name}_0000.nii.gz" for name in names))
    touch(root, *(f"labelsTr/{name}.nii.gz" for name in names))
    labels = {"background": 0, "hippocampus": 1, "fimbria": 2, "ignore": 3}
    described = {"channel_names": {"0": "T2w"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(described))
    return names


def test_pattern_by_hand():
    rule = Patients(pattern=r"mouse\d+")
    assert [c.patient for c in rule.named(cases("mouse01L", "mouse01R", "mouse12L"))] == [
        *("mouse01", "mouse01", "mouse12")
    ]
    group = Patients(pattern=r"^scan_(\w\d+)_")
    assert group.patient("scan_p7_b") == "p7"
    assert group.patient("other") is None
    assert [c.patient for c in group.known(cases("scan_p7_b", "other"))] == ["p7", "other"]


@pytest.mark.parametrize(
    ("rule", "names", "message"),
    [
        ({"pattern": r"rat\d+"}, ("rat1", "mouse1"), r"names no patient for 1 of 2 cases: mouse1"),
        ({"pattern": r"mouse\d"}, ("mouse1L", "mouse10L"), r"ends inside a number of mouse10L"),
        ({"pattern": r"(m\d)"}, ("m1", "m12"), r"would join different patients"),
    ],
)
def test_rules_that_do_not_name_every_patient_are_refused(rule, names, message):
    with pytest.raises(UsageError, match=message):
        Patients(**rule).named(cases(*names))


@pytest.mark.parametrize("rule", ["{}", "{pattern: a, table: b.tsv}", "{pattern: '('}"])
def test_impossible_rules_are_refused(rule):
    with pytest.raises(UsageError, match=r"data.patients: expected pattern|no regular expression"):
        load_run_config("wavelet_64", [f"data.patients={rule}"])


def test_a_pattern_may_be_given_as_a_word():
    config = load_run_config("wavelet_64", [r"data.patients.pattern=mouse\d+"])
    assert config.data.patients == Patients(pattern=r"mouse\d+")
    with pytest.raises(UsageError, match="unknown key patern"):
        load_run_config("wavelet_64", ["data.patients.patern=a"])


@pytest.mark.parametrize("seed", range(4))
def test_both_hippocampi_of_a_mouse_are_in_one_part(seed, tmp_path):
    mice(tmp_path)
    tree = {"root": str(tmp_path), "patients": {"pattern": r"mouse\d+"}}
    fractions = {"seed": seed, "validation": 0.25, "calibration": 0.25, "least_calibration": 0}
    data = Data.model_validate({**tree, "split": fractions})
    split = split_of(cases_of(data), data)
    for part in PARTS:
        sides = [name[-1] for name in getattr(split, part)]
        assert sides.count("L") == sides.count("R")
    assert "volumes of 6 patients" in split.note(0)
    without = Data.model_validate({"root": str(tmp_path), "split": fractions})
    torn = [len(getattr(split_of(cases_of(without), without), part)) for part in PARTS]
    assert torn == [6, 3, 3, 0]


def test_a_table_beside_the_data_is_known_to_every_command(tmp_path):
    names = mice(tmp_path, count=2)
    rows = [f"{name}\t{name[:-1]}" for name in names]
    text(tmp_path / "patients.tsv", "case\tpatient", *rows)
    assert [c.patient for c in find_cases(tmp_path)] == ["mouse01"] * 2 + ["mouse02"] * 2
    found, _ = find_inputs(tmp_path, channels=None)
    assert {c.patient for c in found} == {"mouse01", "mouse02"}
    alone = case_of_file(tmp_path / "imagesTr/mouse02R_0000.nii.gz")
    assert (alone.id, alone.patient) == ("mouse02R", "mouse02")
    text(tmp_path / "patients.tsv", "case\tpatient", *rows[:-1])
    with pytest.raises(DataError, match=r"mouse02R: is not in patients.tsv beside the data"):
        find_cases(tmp_path)
    text(tmp_path / "patients.csv", "case,patient")
    with pytest.raises(DataError, match=r"patients.tsv and patients.csv; keep one"):
        find_cases(tmp_path)


def test_a_table_may_lie_elsewhere(tmp_path):
    names = mice(tmp_path / "data", count=2)
    text(tmp_path / "who.csv", "case,patient", *(f"{name},{name[5:7]}" for name in names))
    rule = {"table": str(tmp_path / "who.csv")}
    data = Data.model_validate({"root": str(tmp_path / "data"), "patients": rule})
    assert [c.patient for c in cases_of(data)] == ["01", "01", "02", "02"]
    text(tmp_path / "who.csv", "case,patient", "mouse01L,a", "mouse01L,b")
    with pytest.raises(DataError, match="case mouse01L is of a and of b"):
        read_patients(tmp_path / "who.csv")


def test_inputs_of_a_run_have_the_patients_of_its_rule(tmp_path):
    mice(tmp_path, count=1)
    touch(tmp_path, "imagesTs/rat7_0000.nii.gz")
    found, _ = find_inputs(tmp_path, channels=None, patients=Patients(pattern=r"mouse\d+"))
    assert {c.id: c.patient for c in found} == {
        "mouse01L": "mouse01",
        "mouse01R": "mouse01",
        "rat7": "rat7",
    }


def test_names_of_labels_and_the_one_to_ignore(tmp_path):
    mice(tmp_path, count=1)
    case = find_cases(tmp_path)[0]
    assert case.names == {1: "hippocampus", 2: "fimbria", 3: "ignore"}
    assert case.ignored == (3,)


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
def test_real_mice():
    data = Data.model_validate({"root": str(REAL), "patients": {"pattern": r"mouse\d+"}})
    found = cases_of(data)
    assert len(found) == 12
    assert len({c.patient for c in found}) == 6
    split = split_of(found, data)
    assert all(name[:-1] + "LR"[name[-1] == "L"] in split.train for name in split.train)


def test_a_rule_of_an_evaluation_is_a_table_or_a_pattern(tmp_path):
    table = tmp_path / "who.tsv"
    table.write_text("case\tpatient\nl\tp\nr\tp\n")
    assert patients_rule(table) == patients_rule(str(table)) == Patients(table=table)
    assert patients_rule(r"p\d+") == Patients(pattern=r"p\d+")
    with pytest.raises(UsageError, match="patients: pattern '\\(' is no regular expression"):
        patients_rule("(")
    with pytest.raises(UsageError, match="patients: names no patient for 1 of 2 cases: x;"):
        Patients(table=table).of_each(["l", "x"], where="patients")


def test_an_evaluation_draws_whole_patients_as_it_is_told(tmp_path):
    """Four label maps of another program, two of each patient: told so, the intervals are those of
    two patients, whatever the truth or the results say."""
    for i, name in enumerate(("p1_l", "p1_r", "p2_l", "p2_r")):
        truth = np.zeros((6, 6, 6), np.uint8)
        truth[1:5, 1:5, 1:5] = 1
        found = truth.copy()
        found[1 : 1 + i] = 0
        for folder, array in (("truth", truth), ("found", found)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = nib.Nifti1Image(array, np.diag([3.0, 3, 3, 1]))
            nib.save(image, tmp_path / folder / f"{name}_dseg.nii.gz")
    (tmp_path / "who.tsv").write_text(
        "case\tpatient\n" + "".join(f"{c}\t{c}\n" for c in ("p1_l", "p1_r", "p2_l", "p2_r"))
    )

    def patients(rule):
        (found,) = volumediff.evaluate(tmp_path / "found", tmp_path / "truth", patients=rule)
        return [case.patient for case in found.cases], found.labels["1"]["dice"]

    alone, wide = patients(None)
    told, narrow = patients(r"p\d+")
    assert alone == ["p1_l", "p1_r", "p2_l", "p2_r"]
    assert told == ["p1", "p1", "p2", "p2"]
    assert wide.value == narrow.value  # the same cases
    assert patients(tmp_path / "who.tsv")[0] == alone
