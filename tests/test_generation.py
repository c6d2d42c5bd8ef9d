"""Generated volumes against real ones, from folders to the report."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from test_generation_metrics import anatomy, random
from tiny_app import program
from tiny_runs import tiny, write_data

import volumediff
from volumediff.data.cases import Case
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.generation_case import summary_of
from volumediff.evaluation.generation_metrics import generation_metric
from volumediff.evaluation.generation_volumes import ComparedVolume
from volumediff.features.med3d import Med3D
from volumediff.storage.tensors import stream
from volumediff.training.loop import train

__all__ = ["program"]  # fixture

SHAPE = (24, 28, 20)
AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])


def save(folder, name, x, affine=AFFINE):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_image.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(x, np.float32).reshape(x.shape[-3:]), affine), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twelve training volumes, twelve others, and ten samples, of which two are copies."""
    root = tmp_path_factory.mktemp("volumes")
    for i in range(12):
        save(root / "training", f"sub-{i:02d}", anatomy(i))
        save(root / "real", f"sub-{20 + i:02d}", anatomy(20 + i))
    for i in range(8):
        save(root / "samples", f"sample-{i:04d}", anatomy(40 + i))
    save(root / "samples", "sample-0008", 0.9 * anatomy(3) + 0.05 * random(*SHAPE))
    save(root / "samples", "sample-0009", anatomy(5).roll(1, 2).flip(1))
    return root


@pytest.fixture(scope="module")
def found(folders):
    (result,) = volumediff.evaluate(
        folders / "samples",
        real=folders / "real",
        training=folders / "training",
        output=folders / "out",
        html=True,
        replicates=50,
    )
    return result


def test_copies_are_named_with_the_training_volume(found):
    assert {(c.case, c.training, c.by) for c in found.copies} == {
        ("sample-0008", "sub-03", "voxels"),
        ("sample-0009", "sub-05", "voxels"),
    }
    assert len(found.memorization["voxels"].held_out) == 12


def test_volumes_of_one_law_are_alike(found):
    assert found.measures["mmd"].p > 0.05
    assert found.measures["ms_ssim"].generated.value == pytest.approx(
        found.measures["ms_ssim"].real.value, abs=0.05
    )
    assert found.measures["high_frequency"].real.value == pytest.approx(1)
    assert (found.generated, found.real) == (10, 12)


def test_the_numbers_are_those_of_the_volumes(found, folders):
    files = sorted((folders / "real").glob("*.nii.gz"))
    arrays = [nib.load(f).get_fdata() for f in files]
    levels = np.mean([np.quantile(a, np.linspace(0, 1, 201)) for a in arrays], axis=0)
    np.testing.assert_allclose(found.quantiles["real"][0], levels, rtol=1e-5, atol=1e-6)
    assert max(found.frequencies) == pytest.approx(0.5 / 2.5)


def test_tissues_and_foreground_are_measured_in_ml():
    axes = torch.meshgrid(*(torch.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    x = torch.where(radius < 8, 0.5, -1.0) + 0.05 * random(*SHAPE)
    label = (radius < 8).byte() + (radius < 4).byte()
    case = Case("one", "one", {})
    summary = summary_of(ComparedVolume(case, x[None], label, (2.0, 2.0, 2.5)), None)
    ball, core = int((radius < 8).sum()), int((radius < 4).sum())
    assert summary.foreground_ml == pytest.approx(ball * 0.01)
    assert summary.labels_ml == pytest.approx({1: (ball - core) * 0.01, 2: core * 0.01})


def test_json_table_and_page_say_the_same(found, folders):
    stored = json.loads((folders / "out" / "evaluation.json").read_text())["generated"]["samples"]
    assert list(stored["measures"]) == list(found.measures)
    for name, comparison in found.measures.items():
        assert stored["measures"][name]["generated"]["value"] == pytest.approx(
            comparison.generated.value
        )
    assert [c["case"] for c in stored["copies"]] == [c.case for c in found.copies]
    page = (folders / "out" / "report.html").read_text()
    assert all(generation_metric(name).title in page for name in found.measures)
    assert "resembles the training volume sub-03" in page
    assert page.count("data:image/png") == 2
    assert not re.search(r"(src|href)=.?http", page)


def test_blurred_samples_of_few_kinds_are_seen(folders, tmp_path):
    """What generators do: fine detail is missing, and all samples resemble each other."""
    smooth = torch.nn.functional.avg_pool3d
    for i in range(6):
        x = smooth(anatomy(60), 3, 1, 1) + 0.02 * i
        save(tmp_path / "poor", f"sample-{i:04d}", x)
    (result,) = volumediff.evaluate(tmp_path / "poor", real=folders / "real", replicates=100)
    measures = result.measures
    assert measures["mmd"].p <= 0.02
    assert measures["high_frequency"].generated.high < 0.5
    assert measures["ms_ssim"].generated.low > measures["ms_ssim"].real.high
    assert any("Memorization was not tested" in note for note in result.notes)


def test_results_do_not_depend_on_the_order_of_files(found, folders, tmp_path):
    """Cases are taken by name, and the draws are keyed."""
    again = tmp_path / "samples"
    again.mkdir()
    for path in sorted((folders / "samples").iterdir(), reverse=True):
        (again / path.name).symlink_to(path)
    (result,) = volumediff.evaluate(again, real=folders / "real", replicates=50)
    for name in ("mmd", "ms_ssim", "intensity_distance"):
        assert result.measures[name].generated == found.measures[name].generated


def test_features_of_a_table_and_of_med3d(folders, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"sample-{i:04d}" for i in range(10)] + [f"sub-{20 + i:02d}" for i in range(12)]
    rows = [",".join([n, *(f"{v:.4f}" for v in rng.standard_normal(2))]) for n in names]
    table = tmp_path / "features.csv"
    table.write_text("\n".join(["case,a,b", *rows]) + "\n")
    how = {"real": folders / "real", "replicates": 20}
    (result,) = volumediff.evaluate(folders / "samples", features=table, **how)
    assert {"kid", "fid", "fid_extrapolated", "precision", "recall"} <= set(result.measures)
    assert result.measures["fid"].generated.value > 0
    table.write_text("\n".join(["case,a,b", *rows[:-1]]) + "\n")
    with pytest.raises(DataError, match="has no row for sub-31"):
        volumediff.evaluate(folders / "samples", features=table, **how)
    table.write_text("\n".join(["case,a,b", *rows[:-1], "sub-31,1"]) + "\n")
    with pytest.raises(DataError, match="line 23: expected 2 finite numbers after the case"):
        volumediff.evaluate(folders / "samples", features=table, **how)

    torch.manual_seed(0)
    tensors = Med3D([1, 1, 1, 1], deep=False, projected=True).state_dict()
    weights = tmp_path / "med3d.safetensors"
    with open(weights, "wb") as file:
        stream(file, tensors)
    (result,) = volumediff.evaluate(folders / "samples", features=weights, **how)
    assert "kid" in result.measures
    assert "fid" not in result.measures
    assert any("512 take at least 1024 generated" in note for note in result.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: save(folder, "sample-0001", anatomy(1)[:, :22]),
            r"expected sample-0001 with the grid of the real sub-20, 1 channel of 24 x 28 x 20 "
            r"voxels of 2 x 2 x 2.5 mm, got 1 channel of 22 x 28 x 20.*the run that drew them",
        ),
        (
            lambda folder: save(folder, "sample-0001", anatomy(1), np.diag([2, 2, 2, 1.0])),
            "2 x 2 x 2 mm; give the run that drew them, which prepares real volumes",
        ),
        (
            lambda folder: save(folder, "sample-0001", 100 * anatomy(1)),
            r"expected intensities as in the real volumes, from -1 to .*the run that drew them",
        ),
    ],
)
def test_volumes_that_cannot_be_compared_are_refused(folders, tmp_path, change, said):
    folder = tmp_path / "samples"
    save(folder, "sample-0000", anatomy(0) if "intens" not in said else 100 * anatomy(0))
    change(folder)
    with pytest.raises(DataError, match=said):
        volumediff.evaluate(folder, real=folders / "real", replicates=0)


def test_arguments_that_do_not_fit_are_refused(folders, tmp_path):
    with pytest.raises(UsageError, match=r"expected truth .* or real .*, got neither"):
        volumediff.evaluate(folders / "samples")
    with pytest.raises(UsageError, match="got both"):
        volumediff.evaluate(folders / "samples", folders / "real", real=folders / "real")
    with pytest.raises(UsageError, match=r"run .*is for generated volumes; give real as well"):
        volumediff.evaluate(folders / "samples", folders / "real", run=tmp_path)
    with pytest.raises(UsageError, match="expected a folder of volumes, nothing is there"):
        volumediff.evaluate(tmp_path / "none", real=folders / "real")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run of phantoms and its samples."""
    root = tmp_path_factory.mktemp("drawn")
    data = write_data(root / "data", cases=16)
    words = ("data.split={validation: 0.4, calibration: 0.0}", "optim.lr=0.01")
    run = train(tiny(data, root / "run", *words, "optim.steps=4"))
    samples = root / "samples"
    volumediff.sample_files(volumediff.load(run), samples, 5, overrides=["sampler.steps=3"])
    return data, run, samples


def test_samples_of_a_run_are_compared_with_what_it_was_trained_on(drawn, program):
    data, run, samples = drawn
    with pytest.raises(DataError, match=f"give the run {run}"):
        volumediff.evaluate(samples, real=data, replicates=0)
    options = ("--real", data, "--run", run, "--features", run, "--replicates", 20, "--report")
    code, said, complaint = program("evaluate", samples, *options)
    assert code == 0, complaint
    assert "MMD² of voxels" in said
    assert "KID of features" in said
    stored = json.loads((samples / "evaluation.json").read_text())["generated"]["samples"]
    counts = [n for n in stored["notes"] if "were in training" in n]
    assert counts == [
        "Memorization: 10 of the volumes were in training, 6 were not; by chance at most 1% of "
        "new volumes are flagged."
    ]
    # Noise of four steps resembles nobody.
    assert stored["copies"] == []
    assert len(stored["memorization"]["features"]["samples"]) == 5
    assert (samples / "report.html").is_file()


def test_training_volumes_of_a_run_are_found_among_its_samples(drawn, tmp_path):
    data, run, samples = drawn
    loaded = volumediff.load(run)
    trained_on = json.loads((run / "splits.json").read_text())["train"]
    case = next(c for c in loaded.trained.cases("train") if c.id == trained_on[0])
    x = loaded.trained.preprocessing.prepare(case).x
    folder = tmp_path / "planted"
    like = nib.load(sorted(Path(samples).glob("*_image.nii.gz"))[0])
    save(folder, "sample-0000", like.get_fdata(), like.affine)
    save(folder, "sample-0001", 0.95 * x, like.affine)
    (result,) = volumediff.evaluate(folder, real=data, run=run, replicates=0)
    assert [(c.case, c.training) for c in result.copies] == [("sample-0001", case.id)]
