"""What is refused about labels before anything is prepared, and what is said about them."""

from pathlib import Path

import numpy as np
import pytest
from data_sets import nifti
from tiny_app import program
from tiny_runs import phantom, tiny

from volumediff import check
from volumediff.data.label_survey import kept, labels_of
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.survey import find_cases
from volumediff.data.volume import read
from volumediff.errors import UsageError
from volumediff.recipes.healthy import Healthy
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samples.label_checks import survey_labels
from volumediff.settings.run_config import load_run_config
from volumediff.training.loop import train

__all__ = ["program"]  # fixture

REAL = Path(__file__).parents[2] / "shared/data/segmentation/mouse_hippocampus"
real = pytest.mark.skipif(not REAL.is_dir(), reason="real labels are not here")
SIZE = (16, 16, 16)


def write_set(root, cases=5, *, labelled=None, spacing=3.0):
    """Cases with a large label 1, a thin sheet 2 and a speck 4."""
    for i in range(cases):
        nifti(root / f"c{i}_T1w.nii.gz", phantom(i, SIZE), (spacing,) * 3)
        if labelled is None or i < labelled:
            y = np.zeros(SIZE, np.uint8)
            y[3:9, 3:13, 3:13], y[12, 3:13, 3:13], y[14, 7, 7] = 1, 2, 4
            nifti(root / f"c{i}_mask.nii.gz", y, (spacing,) * 3)
    return root


def labels(*values, raters=None):
    recipe = f"recipe.labels=[{','.join(map(str, values))}]"
    return [
        "recipe.name=label_diffusion",
        recipe,
        *([f"recipe.raters={raters}"] if raters else []),
    ]


def refused(root, tmp_path, *words):
    """The message, and that nothing was prepared or written."""
    config = tiny(root, tmp_path / "run", *words, "data.preprocessing.shape=null")
    with pytest.raises(UsageError) as caught:
        train(config)
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run/splits.json").exists()
    return str(caught.value)


def test_missing_label_maps_are_named_at_once(tmp_path):
    root = write_set(tmp_path / "data", cases=6, labelled=3)
    said = refused(root, tmp_path, *labels(1), "data.split.validation=0.3")
    assert said == (
        "recipe: needs a label map for every case; 3 of 6 have none: c3, c4, c5; add them, or "
        "choose cases with data.only."
    )


def test_a_label_that_no_case_has(tmp_path):
    said = refused(write_set(tmp_path / "data"), tmp_path, *labels(1, 3))
    assert "no case has 3; the 5 label maps have 1, 2, 4: choose among them" in said


def test_rules_for_readers_need_readers(tmp_path):
    said = refused(write_set(tmp_path / "data"), tmp_path, *labels(1, raters="drawn"))
    assert said.startswith("recipe.raters: expected cases that several readers have labelled")


def test_a_label_that_the_spacing_loses(tmp_path):
    root = write_set(tmp_path / "data")
    said = refused(root, tmp_path, *labels(1, 2), "data.preprocessing.spacing_mm=9.0")
    assert "at the run's spacing of 9 mm, nothing is left of label 2 in any of 5 cases" in said
    assert said.endswith("the files have 3 mm: set data.preprocessing.spacing_mm=3.")
    assert "of label 1" not in said


def test_a_label_that_the_shape_crops(tmp_path):
    root = write_set(tmp_path / "data")
    words = (*labels(1, 4), "data.preprocessing.shape=[8,8,8]")
    with pytest.raises(UsageError, match=r"no prepared volume has label 4 any more"):
        train(tiny(root, tmp_path / "run", *words))


def test_values_that_become_background_are_said_and_no_more(tmp_path, capsys):
    root = write_set(tmp_path / "data")
    train(tiny(root, tmp_path / "run", *labels(1), "data.preprocessing.shape=[16,16,16]"))
    said = " ".join(capsys.readouterr().err.split())
    assert "of 5 label maps, 2 in 5, 4 in 5 become background; name them" in said


def test_what_is_left_is_counted_as_prepared(tmp_path):
    root = write_set(tmp_path / "data")
    for spacing in (3.0, 4.1, 2.0, (3.0, 4.5, 7.0)):
        spacing = (spacing,) * 3 if isinstance(spacing, float) else spacing
        plan = Preprocessing(spacing_mm=spacing, centre="volume")
        for case in find_cases(root)[:2]:
            found = labels_of(case, plan, left=True)
            prepared = plan.prepare(case).label.numpy()
            values, counts = np.unique(prepared[prepared > 0], return_counts=True)
            assert found.left == dict(zip(values.tolist(), counts.tolist(), strict=True))
            whole = read(case.label, kind="label").array
            assert found.voxels == {v: int((whole == v).sum()) for v in (1, 2, 4)}


def test_shares_by_hand(tmp_path):
    root = write_set(tmp_path / "data")
    plan = Preprocessing(spacing_mm=(6.0, 6.0, 6.0))
    found = [labels_of(case, plan, left=True) for case in find_cases(root)]
    one, two, four = kept(found, (1, 2, 4))
    # 6 x 10 x 10 voxels become 3 x 5 x 5 or, where memberships are equal, up to 4 x 6 x 6
    assert 75 <= one.voxels[1] <= 144
    assert one.share == pytest.approx(8 * one.voxels[1] / 600)
    assert (one.cases, one.gone, one.lost) == (5, 0, False)
    assert (four.gone, four.lost) == (5, True)
    assert two.voxels[0] == 100
    assert not survey_labels(Healthy(), find_cases(root), plan).remarks


def test_check_for_a_configuration(tmp_path, program):
    root = write_set(tmp_path / "data")
    config = tmp_path / "c.yaml"
    config.write_text(tiny(root, tmp_path / "run", *labels(1, 2)).to_yaml())
    words = ["data.preprocessing.spacing_mm=9.0"]
    rows = check(root, config=config, overrides=words)
    errors = [row for row in rows if row.severity == "error"]
    assert [row.code for row in errors] == ["label_lost"]
    assert any(row.code == "label_share" and "1 keeps" in row.message for row in rows)
    assert not any(row.severity == "error" for row in check(root, config=config))
    code, out, _ = program("check", root, "--for", config, *words)
    assert code == 1
    assert "label_lost" in out
    with pytest.raises(UsageError, match="expected a configuration that it changes"):
        check(root, overrides=words)


@real
def test_three_millimetres_on_mouse_crops_are_refused_with_the_remedy():
    words = ["recipe=label_diffusion", r"data.patients.pattern=mouse\d+"]
    rows = check(REAL, config="wavelet_64", overrides=words)
    (error,) = [row.message for row in rows if row.severity == "error"]
    assert "at the run's spacing of 3 mm" in error
    assert "label 1 (hippocampus)" in error
    assert error.endswith("set data.preprocessing.spacing_mm=0.15.")
    remedy = [*words, "data.preprocessing.spacing_mm=0.15"]
    rows = check(REAL, config="wavelet_64", overrides=remedy)
    assert not any(row.severity == "error" for row in rows)
    assert any("1 (hippocampus) keeps 100% of its volume" in row.message for row in rows)
    (unnamed,) = [row for row in rows if row.code == "label_unnamed"]
    assert "2 (fimbria) in 12 become background" in unnamed.message
    assert any("6 patients" in row.message for row in rows if row.code == "split")


@real
def test_the_fimbria_keeps_its_volume_at_twice_the_spacing():
    cases = find_cases(REAL)
    plan = Preprocessing(spacing_mm=(0.3,) * 3)
    found = [labels_of(case, plan, left=True) for case in cases]
    hippocampus, fimbria = kept(found, (1, 2))
    assert hippocampus.share == pytest.approx(0.97, abs=0.02)
    assert fimbria.share == pytest.approx(0.9, abs=0.05)
    assert not fimbria.gone
    coarse = [labels_of(case, Preprocessing(spacing_mm=(1.2,) * 3), left=True) for case in cases]
    assert kept(coarse, (2,))[0].lost
    recipe = LabelDiffusion(labels=(1, 2))
    config = load_run_config("wavelet_64", ["recipe=label_diffusion"])
    spacing = config.data.preprocessing.spacing()
    remarks = survey_labels(recipe, cases, Preprocessing(spacing_mm=spacing)).remarks
    assert [r.code for r in remarks] == ["label_share", "label_lost"]
