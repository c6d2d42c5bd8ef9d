"""The demo at toy size: every step, its outputs, and that it goes on where it stopped."""

import json

import nibabel as nib
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tiny_app import program

from volumediff.commands._demo import load_demo
from volumediff.data.anomalies import TEST, insert
from volumediff.errors import UsageError
from volumediff.randomness import key
from volumediff.samples.sources import simulated
from volumediff.settings.run_config import parse

__all__ = ["program"]  # fixtures

TOY = (
    "run.optim={steps: 2, warmup: 1, batch_size: 2}",
    "run.data.population.subjects=12",
    "run.data.split={validation: 0.2, calibration: 0.5}",
    "run.data.preprocessing.shape=[20,24,20]",
    "run.data.preprocessing.spacing_mm=8",
    "run.network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
    "run.memory={}",
    "run.validation={every: 2, volumes: 1}",
    "test.subjects=2",
    "test.kinds=[hyper, foreign_patch]",
    "calibration_volumes=5",
    "method.row=scan",
    "replicates=20",
)
METHODS = ["scan", "intensity", "smoothing", "atlas", "prevalence"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
def test_the_demo_writes_what_it_promises(program, folder):
    code, said, lines = program("demo", "-o", folder, *TOY)
    assert code == 0, lines
    assert "Voxel AP by kind of lesion" in said
    assert "training 2 steps on 12 subjects" in lines
    found = json.loads((folder / "metrics.json").read_text())
    assert list(found["voxel_ap"]) == METHODS
    for method in METHODS:
        kinds = found["voxel_ap_per_kind"][method]
        assert set(kinds) == {"hyper", "foreign_patch"}
        mean = np.mean([kind["value"] for kind in kinds.values()])
        assert found["voxel_ap"][method] == pytest.approx(mean)
        for kind in kinds.values():
            assert np.isnan(kind["low"] or np.nan)  # too few subjects for an interval
    prevalence, total = [], []
    for mask in sorted((folder / "test").glob("*hyper_mask.nii.gz")):
        case = mask.name.removesuffix("_mask.nii.gz")
        truth = np.asarray(nib.load(mask).dataobj) > 0
        image = np.asarray(nib.load(mask.with_name(f"{case}_T1w.nii.gz")).dataobj)
        scores = nib.load(folder / "maps" / "intensity" / f"{case}_desc-anomaly_map.nii.gz")
        inside = image > 0
        assert not truth[~inside].any()
        prevalence.append(truth[inside].mean())
        total.append(average_precision_score(truth[inside], np.asarray(scores.dataobj)[inside]))
        # the window of the demo gives back the subjects' own intensities
        np.testing.assert_allclose(
            np.asarray(scores.dataobj)[inside], (image[inside] - 1) / 1000, atol=1e-5
        )
    per_kind = found["voxel_ap_per_kind"]
    assert per_kind["prevalence"]["hyper"]["value"] == pytest.approx(np.mean(prevalence), rel=1e-4)
    assert per_kind["intensity"]["hyper"]["value"] == pytest.approx(np.mean(total), rel=1e-3)
    page = (folder / "report.html").read_text()
    assert page.count("<figure") == 4  # progress, three curves
    assert page.count('loading="lazy"') == len([*(folder / "report_cases").glob("*.html")]) == 6
    assert (folder / "table.md").read_text().startswith("| voxel AP (95 % interval) |")
    assert found["verdicts"]


@pytest.mark.slow
def test_the_same_demo_again_repeats_nothing(program, folder):
    before = {p: p.stat().st_mtime_ns for p in (folder / "maps").rglob("*.nii.gz")}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert before
    code, _, lines = program("demo", "-o", folder, *TOY)
    assert code == 0
    assert "6 already finished and verified" in lines
    assert {p: p.stat().st_mtime_ns for p in (folder / "maps").rglob("*.nii.gz")} == before
    assert json.loads((folder / "metrics.json").read_text())["voxel_ap"] == metrics["voxel_ap"]


@pytest.mark.slow
def test_test_lesions_are_of_the_test_family(folder):
    """Recomputed for one subject: neither its number nor its family is used anywhere else."""
    demo = load_demo(TOY)
    population = simulated(parse(demo.run).data)
    number = demo.test.first
    assert number >= population_size(demo)
    subject = population.subject(number)
    x, truth = insert(
        subject.x,
        subject.foreground,
        kind="hyper",
        key=key(demo.test.seed, "test lesion", number, "hyper"),
        spacing_mm=population.spacing_mm,
        family=TEST,
    )
    written = nib.load(folder / "test" / f"sub-{number}_hyper_T1w.nii.gz")
    inside = subject.foreground[0].numpy()
    stored = np.asarray(written.dataobj)
    np.testing.assert_allclose(stored[inside], 500 * (x[0].numpy()[inside] + 1) + 1, atol=1e-3)
    assert not stored[~inside].any()
    np.testing.assert_allclose(written.affine, population.affine)
    mask = np.asarray(nib.load(folder / "test" / f"sub-{number}_hyper_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask > 0, truth[0].numpy())


def population_size(demo):
    return parse(demo.run).data.population.subjects


def test_the_shipped_demo_is_valid():
    demo = load_demo()
    config = parse(demo.run)
    assert config.data.root == "population"
    assert demo.test.subjects >= 8
    assert demo.test.first >= config.data.population.subjects
    assert {"intensity", "smoothing", "atlas", "prevalence"} == {b.row for b in demo.baselines}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("test.subject=2", "demo: test.subject"),
        ("test.subjects=none", r"test\.subjects: .*got 'none'"),
        ("replicates=0", "replicates"),
    ],
)
def test_wrong_words_are_named(word, message):
    with pytest.raises(UsageError, match=message):
        load_demo([word])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("test.kinds=[hyper, blob]", "demo.test.kinds: expected some of"),
        ("test.first=3", "the number of training subjects"),
        ("run.data.root=/data", "the demo's own subjects"),
        ("run.optim.stps=2", "Did you mean 'steps'?"),
    ],
)
def test_demos_that_make_no_sense_do_not_start(program, tmp_path, word, message):
    code, _, complaint = program("demo", "-o", tmp_path / "d", word)
    assert code == 2
    assert message in complaint
    assert not (tmp_path / "d").exists()
