"""Labels are called by one name from the data set to every output."""

import json

import nibabel as nib
import numpy as np
import pytest
from tiny_app import WINDOW
from tiny_runs import phantom, tiny, write_data

import volumediff
from volumediff.data.layouts._label_tables import names_of_labels
from volumediff.data.survey import find_cases
from volumediff.errors import DataError
from volumediff.reporting.segmentation_views import label_views
from volumediff.training.loop import train

IMAGE = (phantom(9), np.diag([3.0, 3, 3, 1]))


def table(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["index\tname\tcolor", *lines]) + "\n")


def test_the_nearest_table_whose_entities_a_label_map_has_names_it(tmp_path):
    table(tmp_path / "dseg.tsv", "0\tbackground\t#000000", "1\toedema\t#ff0000")
    label = tmp_path / "sub-1" / "anat" / "sub-1_desc-lesion_dseg.nii.gz"
    assert names_of_labels(label, tmp_path) == {1: "oedema"}
    table(tmp_path / "desc-lesion_dseg.tsv", "1\tcore\t#00ff00")  # has more of its entities
    table(tmp_path / "desc-aseg_dseg.tsv", "1\tthalamus\t#00ff00")  # of other label maps
    assert names_of_labels(label, tmp_path) == {1: "core"}
    table(label.parent / "sub-1_desc-lesion_dseg.tsv", "1\town\t#00ff00", "2\t\t#0000ff")
    assert names_of_labels(label, tmp_path) == {1: "own"}
    table(tmp_path / "dseg.tsv", "1.5\tx\t#ffffff")
    with pytest.raises(DataError, match=r"whole numbers in the column index, got '1\.5'"):
        names_of_labels(tmp_path / "sub-2_dseg.nii.gz", tmp_path)


def test_bids_cases_have_the_names_of_their_table(tmp_path):
    anat = tmp_path / "sub-1" / "anat"
    table(tmp_path / "dseg.tsv", "1\toedema\t#ff0000")
    anat.mkdir(parents=True)
    image = nib.Nifti1Image(IMAGE[0], IMAGE[1])
    nib.save(image, anat / "sub-1_T1w.nii.gz")
    nib.save(image, anat / "sub-1_dseg.nii.gz")
    assert find_cases(tmp_path)[0].names == {1: "oedema"}
    (anat / "sub-1_dseg.nii.gz").rename(anat / "sub-1_mask.nii.gz")
    assert find_cases(tmp_path)[0].names == {}  # a mask has no look-up table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on labels that the configuration names; the data are taken away."""
    root = tmp_path_factory.mktemp("named")
    data = write_data(root / "data", cases=3, labels=True)
    words = ("recipe.name=label_diffusion", "optim.steps=2", WINDOW)
    config = tiny(data, root / "run", *words, "data.label_names={White matter: 1}")
    folder = train(config)
    data.rename(root / "truth")
    return folder


def test_results_of_a_run_carry_the_names_of_its_data(run, tmp_path):
    result = volumediff.load(run).segment(IMAGE, overrides=["sampler.steps=2"])
    assert result.label_names == {1: "White matter"}
    assert "White matter: " in repr(result)
    result.save(tmp_path, case="sub-9")
    assert json.loads((tmp_path / "sub-9_dseg.json").read_bytes())["label_names"] == {
        "1": "White matter"
    }
    assert "1\tWhite matter\t#" in (tmp_path / "dseg.tsv").read_text()
    assert '"White matter"' in (tmp_path / "dseg.label").read_text()
    assert "1 White_matter " in (tmp_path / "dseg.ctbl").read_text()


def test_an_evaluation_names_labels_as_the_results_do_where_the_truth_does_not(run, tmp_path):
    truth = run.parent / "truth"
    segment = volumediff.load(run).segment
    for case in ("sub-00", "sub-01"):
        result = segment(truth / f"{case}_T1w.nii.gz", overrides=["sampler.steps=2"])
        result.save(tmp_path, case=case)
    (found,) = volumediff.evaluate(tmp_path, truth, allow_seen=True)
    assert found.names == {1: "White matter"}
    from volumediff.evaluation.truths import find_truths

    (view,) = label_views([found], find_truths(truth), ["sub-00"])
    assert view.label_names == {1: "White matter"}
