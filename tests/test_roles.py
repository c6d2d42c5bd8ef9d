"""The role of a file is told by all words of its name that stand together."""

import numpy as np
import pytest
from tiny_app import save

from volumediff.data.check import check
from volumediff.data.layouts._roles import parsed, role_of
from volumediff.data.survey import find_cases, survey_cases

OBJECTS = ("bet", "brain", "head", "body", "skull", "hdbet", "synthstrip", "icv")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


@pytest.mark.parametrize("word", OBJECTS)
@pytest.mark.parametrize(
    "name",
    [
        "p1_T1w_{}_mask",
        "p1_{}_mask",
        "p1_mask_{}",
        "mask_{}_p1",
        "{}_T1w_mask",
        "{}-mask",
        "p1_T1w_{}_mask_bin",
        "p1_{}_seg",
        "sub-1_space-T1w_desc-{}_mask",
        "sub-1_{}_mask_reader-1",
    ],
)
def test_masks_of_the_object_are_no_labels(name, word):
    assert role_of(name.format(word)) == "auxiliary"
    assert role_of(name.format(word.upper())) == "auxiliary"


@pytest.mark.parametrize(
    ("name", "role", "owner"),
    [
        ("p1_mask", "label", "p1"),
        ("p1_T1w_mask", "label", "p1"),
        ("p1_lesion_mask", "label", "p1"),
        ("p1_brain_lesion_mask", "label", "p1"),
        ("p1_T1w_bet_tumor_mask", "label", "p1"),
        ("p1_tumour_brain", "image", "p1_tumour"),  # of a tumour or without skull: an image
        ("p1_lesion_bin", "label", "p1"),
        ("p1_mask_bin", "auxiliary", None),
        ("p1_bin", "auxiliary", None),
        ("brain_001_seg", "label", "brain_001"),  # a set called brain; its words stand apart
        ("head_neck_7_mask", "label", "head_neck_7"),
        ("p1_brainmask", "auxiliary", None),
        ("brainmask_p1", "auxiliary", None),
        ("p1_T1wBrainMask", "auxiliary", None),
        ("p1_votes", "auxiliary", None),
        ("p1_associated", "associated", "p1"),
        ("p1_gt", "label", "p1"),
        ("p7_reader-1_mask", "label", "p7"),
        ("p1_T1w", "image", "p1"),
        ("p1_T1w_brain", "image", "p1"),
        ("p1_T1w_bet", "image", "p1"),
        ("p1_bet", "auxiliary", None),
        ("scan_7", "image", "scan_7"),
    ],
)
def test_roles_and_owners(name, role, owner):
    found = parsed(name)
    assert found.role == role
    if owner is not None:
        assert found.owner == owner


TREES = {
    "hdbet": ["p1/T1w.nii.gz", "p1/T1w_bet.nii.gz", "p1/T1w_bet_mask.nii.gz"],
    "fsl": ["p1/p1_T1w.nii.gz", "p1/p1_T1w_brain.nii.gz", "p1/p1_T1w_brain_mask.nii.gz"],
    "flat hdbet": ["p1_T1w.nii.gz", "p1_T1w_bet.nii.gz", "p1_T1w_bet_mask.nii.gz"],
    "flat fsl": ["p1_T1w.nii.gz", "p1_T1w_brain.nii.gz", "p1_T1w_brain_mask.nii.gz"],
    "fast": ["p1_T1w.nii.gz", "p1_T1w_brain_pve_0.nii.gz", "p1_T1w_brain_mixeltype.nii.gz"],
    "alone": ["p1_T1w_brain.nii.gz", "p1_T1w_brain_mask.nii.gz"],
}


@pytest.mark.parametrize("tree", TREES)
def test_results_of_other_programs_are_one_case_without_a_label(tree, tmp_path):
    touch(tmp_path, *TREES[tree])
    (case,) = find_cases(tmp_path)
    assert (case.id, case.patient, list(case.images)) == ("p1", "p1", ["T1w"])
    assert case.images["T1w"].name.endswith(
        "T1w_brain.nii.gz" if tree == "alone" else "T1w.nii.gz"
    )
    assert not case.labelled
    named = {file.name for problem in survey_cases(tmp_path)[1] for file in problem.files}
    assert len(named) == len(TREES[tree]) - 1


def test_bids_keeps_masks_of_the_brain_apart(tmp_path):
    at = "sub-1/anat/sub-1"
    touch(tmp_path, f"{at}_T1w.nii.gz", f"{at}_T1w_bet_mask.nii.gz", f"{at}_T1w_brain.nii.gz")
    touch(tmp_path, "derivatives/hdbet/sub-1/sub-1_T1w_bet_mask.nii.gz")
    touch(tmp_path, "derivatives/m/sub-1/sub-1_desc-brain_label-lesion_mask.nii.gz")
    (case,) = find_cases(tmp_path)
    assert list(case.images) == ["T1w"]
    assert case.label.name == "sub-1_desc-brain_label-lesion_mask.nii.gz"


def test_a_label_belongs_to_the_image_whose_name_it_goes_on_from(tmp_path):
    touch(tmp_path, "p1_pre-T1.nii.gz", "p1_pre-T1_mask.nii.gz", "p2_T1.nii.gz")
    touch(tmp_path, "p2_T1_lesion_mask.nii.gz")
    found = {c.id: c.label and c.label.name for c in find_cases(tmp_path)}
    assert found == {"p1_pre-T1": "p1_pre-T1_mask.nii.gz", "p2": "p2_T1_lesion_mask.nii.gz"}


def test_a_label_that_covers_the_object_is_a_finding(tmp_path):
    x = np.zeros((12, 12, 12), np.float32)
    x[2:10, 2:10, 2:10] = np.random.default_rng(0).uniform(1, 2, (8, 8, 8))
    for name, size in (("whole", 8), ("half", 4), ("third", 2)):
        save(tmp_path / f"{name}_T1w.nii.gz", x + (x > 0) * size, np.eye(4))
        mask = np.zeros(x.shape, np.uint8)
        mask[2 : 2 + size, 2:10, 2:10] = 1
        save(tmp_path / f"{name}_seg.nii.gz", mask, np.eye(4))
    found = {r.case: r.message for r in check([tmp_path]) if r.code == "label_covers"}
    assert set(found) == {"whole", "half"}
    assert found["whole"].startswith("covers 100% of the foreground")
    assert found["half"].startswith("covers 50%")
