"""The Python interface: images of six kinds in, results at their own indices out, plain errors."""

import ast
import json
import re
import sys
from functools import partial
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio
from child_processes import run_program
from monai.data import MetaTensor
from tiny_app import QUICK, WINDOW, base, label_run, oblique, program, run, save
from tiny_runs import phantom, tiny, write_data

import volumediff
from volumediff.api.images import volume_of
from volumediff.api.overrides import words_of
from volumediff.calibration.segmentation_fits import fitted
from volumediff.config import overridden
from volumediff.data.volume import Volume
from volumediff.errors import DataError, UsageError
from volumediff.inference.findings import find_in_folder
from volumediff.training.loop import train

__all__ = ["base", "program", "run"]  # fixtures

SHAPE, BLOB = (6, 7, 8), (1, 5, 2)
# The map is the intensity itself, (1 + x) / 2 = v / 200, with a threshold of the map's own.
OWN = {"method": "intensity", "post": [], "threshold": "otsu"}
# A stochastic chain of two steps.
CHAIN = {"method": "ddpm", "sampler": {"steps": 2}, "threshold": "best", "post": []}
KINDS = ("path", "nibabel", "array", "torchio", "sitk", "monai")


def oriented(order, signs) -> np.ndarray:
    """An affine whose voxel axis i points along world axis order[i], with spacing 1/2/3 mm."""
    affine = np.zeros((4, 4))
    for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, i] = sign * (1.0, 2.0, 3.0)[i]
    affine[:3, 3] = 7.25, -31.5, 12.125
    affine[3, 3] = 1
    return affine


AFFINES = {
    nib.aff2axcodes(a): a
    for a in (
        oriented(order, signs)
        for order, signs in product(permutations(range(3)), product((1, -1), repeat=3))
    )
}
TILTED = {("tilted", axes): oblique(axes, spacing=(1.0, 2.0, 3.0)) for axes in ("RAS", "PSR")}


@pytest.fixture(scope="module")
def loaded(run):
    return volumediff.load(run, device="cpu")


@pytest.fixture(scope="module")
def segmenter(base):
    return volumediff.load(label_run(base), device="cpu")


def blob() -> np.ndarray:
    """Intensities that are different everywhere, with one bright voxel."""
    values = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE) / 5 + 20
    values[BLOB] = 190
    return values.astype(np.float32)


def images_of(values, affine, path) -> dict:
    """One image in each of the six kinds; other libraries read the file with their own readers."""
    file = save(path, values, affine)
    whole = torchio.ScalarImage(file)
    whole.load()
    return {
        "path": file,
        "nibabel": nib.load(file),
        "array": (values, affine),
        "torchio": whole,
        "sitk": sitk.ReadImage(file, sitk.sitkFloat32),
        "monai": MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine)),
    }


# --- in and out ----------------------------------------------------------------------------------


def test_there_are_48_orientations():
    assert len(AFFINES) == 48


@pytest.mark.parametrize("name", [*AFFINES, *TILTED], ids="".join)
def test_a_blob_comes_back_at_its_own_indices_from_every_kind_of_image(name, loaded, tmp_path):
    affine = {**AFFINES, **TILTED}[name]
    values = blob()
    images = images_of(values, affine, tmp_path / "case.nii.gz")
    assert set(images) == set(KINDS)
    maps = {}
    for kind, image in images.items():
        result = loaded.localize(image, **OWN)
        assert result.map.shape == SHAPE
        assert np.unravel_index(result.map.argmax(), SHAPE) == BLOB, kind
        np.testing.assert_allclose(result.map, values / 200, atol=1e-6, err_msg=kind)
        np.testing.assert_allclose(result.affine, affine, atol=1e-5, err_msg=kind)
        assert result.mask[BLOB]
        maps[kind] = result.map
    for kind in KINDS:
        np.testing.assert_array_equal(maps[kind], maps["path"], err_msg=kind)
    (peak,) = {f.place.peak_mm for f in result.findings if f.peak_score > 0.9}
    np.testing.assert_allclose(peak, affine[:3] @ [*BLOB, 1], atol=0.05)


def test_what_an_index_means_to_simpleitk_is_what_it_means_to_the_result(loaded, tmp_path):
    image = sitk.ReadImage(save(tmp_path / "a.nii.gz", blob(), oblique("LIP")))
    assert image[BLOB] == pytest.approx(190)
    result = loaded.localize(image, **OWN)
    x, y, z = image.TransformIndexToPhysicalPoint(BLOB)
    np.testing.assert_allclose(result.affine[:3] @ [*BLOB, 1], (-x, -y, z), atol=1e-4)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA"])
def test_draws_depend_on_the_voxels_and_not_on_their_order_or_library(axes, loaded, tmp_path):
    values = phantom(7)
    first = loaded.localize((values, np.diag([3.0, 3, 3, 1])), **CHAIN)
    ornt = nib.orientations.axcodes2ornt(axes)
    moved = nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1])).as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), ornt)
    )
    array = np.ascontiguousarray(moved.get_fdata(dtype=np.float32))
    for kind, image in images_of(array, moved.affine, tmp_path / "a.nii.gz").items():
        if kind != "path":  # what is drawn for a file depends on its bytes
            again = loaded.localize(image, **CHAIN)
            back = nib.as_closest_canonical(again.to_nibabel())
            np.testing.assert_array_equal(back.get_fdata(dtype=np.float32), first.map, kind)
    other = loaded.localize((values, np.diag([3.0, 3, 3, 1])), **CHAIN, seed=1)
    assert not np.array_equal(other.map, first.map)


@pytest.mark.parametrize("axes", ["LPS", "PSR"])
def test_segmentations_come_back_in_the_order_that_was_given(axes, segmenter, program, tmp_path):
    values, affine = np.clip(phantom(3), 0, None), oblique(axes, degrees=0.0)
    images = images_of(values, affine, tmp_path / "case.nii.gz")
    words = {"samples": 2, "sampler": {"steps": 2}}
    found = {kind: segmenter.segment(image, **words) for kind, image in images.items()}
    out = tmp_path / "out"
    command = ("segment", images["path"], "--run", segmenter.folder, "-o", out, "--device", "cpu")
    assert program(*command, "samples=2", "sampler.steps=2")[0] == 0
    written = np.asarray(nib.load(out / "case_dseg.nii.gz").dataobj)
    np.testing.assert_array_equal(found["path"].labels, written)
    assert 0 < written.sum() < written.size
    sidecar = json.loads((out / "case_dseg.json").read_text())
    assert found["path"].volumes_ml[1] == sidecar["volumes_ml"]["1"]
    p = np.asarray(nib.load(out / "case_label-1_probseg.nii.gz").dataobj)
    np.testing.assert_array_equal(found["path"].probabilities[1], p)
    for kind in KINDS[2:]:
        np.testing.assert_array_equal(found[kind].labels, found["nibabel"].labels)
    found["path"].save(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_result_saves_the_files_of_the_command(loaded, run, program, tmp_path):
    file = save(tmp_path / "case.nii.gz", phantom(5), oblique("LPI"))
    words = ("sampler.steps=2", "threshold=otsu", "post=[]", "ensemble={name: mean, seeds: 2}")
    out = tmp_path / "command"
    method = ("--method", "ddpm", "--device", "cpu")
    assert program("localize", file, "--run", run, "-o", out, *method, *words)[0] == 0
    result = loaded.localize(file, method="ddpm", overrides=words)
    paths = result.save(tmp_path / "python")
    # the command has one page for all cases beside the files of each
    names = {p.name for p in out.iterdir()} - {"ledger.jsonl", ".lock"}
    names -= {"findings.html", "findings_cases"}
    tables = {"desc-anomaly_mask.label", "desc-anomaly_mask.ctbl"}  # of all masks of a folder
    there = {p.name for p in (tmp_path / "python").iterdir()}
    assert {p.name for p in paths} | tables == there == names
    for name in names:
        assert (tmp_path / "python" / name).read_bytes() == (out / name).read_bytes(), name
    found = (out / "case_desc-anomaly_findings.json").read_bytes()
    assert len(json.loads(found)["findings"]) == len(result.findings) > 0
    find_in_folder(out, file)  # measured again on what was written
    assert (out / "case_desc-anomaly_findings.json").read_bytes() == found
    shown = nib.load(out / "case_desc-pseudohealthy_image.nii.gz")
    np.testing.assert_array_equal(result.pseudo_healthy[0], np.asarray(shown.dataobj))
    spread = nib.load(out / "case_desc-uncertainty_map.nii.gz")
    np.testing.assert_array_equal(result.uncertainty, np.asarray(spread.dataobj))
    assert list(result.trace) == ["ensemble/map"]
    np.testing.assert_array_equal(result.to_nibabel("mask").dataobj, result.mask)
    result.save(tmp_path / "named", case="p7")
    facts = json.loads((tmp_path / "named" / "p7_desc-anomaly_map.json").read_text())
    assert facts["case"] == "p7"


def test_nothing_is_written_unless_it_is_asked_for(loaded, tmp_path, monkeypatch):
    def files(folder):
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

    monkeypatch.chdir(tmp_path)
    before = files(loaded.folder)
    result = loaded.localize((phantom(1), np.eye(4)), **CHAIN)
    repr(result), result.plot(), loaded.sample(sampler={"steps": 1})
    assert files(loaded.folder) == before
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_is_needed_is_kept_in_the_run(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("calibration"))
    loaded = volumediff.load(tmp_path / "run", device="cpu")
    words = {"method": "intensity", "threshold": {"name": "healthy_fpr", "min_volumes": 2}}
    result = loaded.localize((phantom(1), np.eye(4)), **words)
    assert list((tmp_path / "run" / "calibration" / "intensity").rglob("*.safetensors"))
    fitted = loaded.calibrate(**words)
    assert fitted.volumes == 4
    assert result.threshold == result.facts["thresholds"]["healthy_fpr"]


# --- several channels ----------------------------------------------------------------------------


def test_channels_are_a_list_in_the_order_of_the_run(tmp_path):
    root = write_data(tmp_path / "data", cases=4)
    for path in sorted(root.glob("*_T1w.nii.gz")):
        (root / path.name.replace("T1w", "T2w")).write_bytes(path.read_bytes())
    words = ("data.channels=[T1w,T2w]", "optim.steps=1", WINDOW)
    loaded = volumediff.load(train(tiny(root, tmp_path / "run", *words)), device="cpu")
    one, two = np.full((8, 8, 8), 40.0, np.float32), np.full((8, 8, 8), 80.0, np.float32)
    one[2, 3, 4], two[5, 6, 7] = 180, 190
    affine = oblique("LPS")
    flat = {"method": "smoothing", "threshold": "best", "post": []}
    given = [(one, affine), (two, affine)]
    expected = loaded.localize(given, **flat)
    assert expected.pseudo_healthy.shape == (2, 8, 8, 8)
    assert list(expected.facts["inputs"]) == ["T1w", "T2w"]
    peaks = {np.unravel_index(i, one.shape) for i in np.argsort(expected.map.ravel())[-2:]}
    assert peaks == {(2, 3, 4), (5, 6, 7)}
    files = [save(tmp_path / f"{n}.nii.gz", x, affine) for n, x in (("a", one), ("b", two))]
    stacked = torchio.ScalarImage(tensor=np.stack([one, two]), affine=affine)
    for same in (files, tuple(files), [files[0], (two, affine)], stacked):
        # files hold the spacing in single precision
        np.testing.assert_allclose(loaded.localize(same, **flat).map, expected.map, atol=1e-6)
    with pytest.raises(DataError, match=r"array: has 1 channels, the run takes 2 \(T1w, T2w\)"):
        loaded.localize(given[0], **flat)
    with pytest.raises(DataError, match="array: does not overlap with array"):
        loaded.localize([given[0], (two, affine + 1000 * np.eye(4, k=3))], **flat)


# --- a notebook ----------------------------------------------------------------------------------


def test_a_notebook_localizes_an_array_edits_a_component_and_plots(run, tmp_path):
    run = volumediff.load(run, device="cpu")
    x, affine = phantom(11), oblique("LPS")
    first = run.localize((x, affine), method="ddpm", sampler={"steps": 2}, threshold="otsu")
    other = run.localize(
        (x, affine), method="ddpm", sampler={"name": "ddim", "steps": 3}, threshold="otsu"
    )
    assert first.facts["fingerprint"] != other.facts["fingerprint"]
    assert not np.array_equal(first.map, other.map)
    figure = other.plot(slices=2)
    assert len(figure.axes) == 2 * 4  # image, pseudo-healthy, map, mask
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert repr(other).startswith("LocalizationResult(ddpm, 8x8x8 voxels LPS, score ")
    assert repr(run) == f"Run({run.folder}, Model, 1 channel, {run.trained.checkpoint}, cpu)"


def test_a_picture_shows_the_patients_right_on_the_left_and_the_front_on_top(loaded):
    x = np.full((8, 8, 8), 50.0, np.float32)
    x[6, 7, 3] = 190  # right and anterior, in RAS
    figure = loaded.localize((x, np.diag([1.0, 2, 3, 1])), **OWN).plot(slices=1)
    shown = figure.axes[0].images[0].get_array()
    assert np.unravel_index(shown.argmax(), shown.shape) == (0, 1)
    assert figure.axes[0].get_aspect() == 2  # a voxel is twice as long as it is wide
    assert figure.axes[0].get_ylabel() == "z = 9.0 mm"
    outline = figure.axes[2].collections
    assert len(outline) == 1  # the mask, on its image


def test_a_threshold_is_fitted_on_validation_volumes_once(segmenter, monkeypatch):
    words = {"samples": 1, "sampler": {"steps": 2}, "post": ["fitted_threshold"]}
    lines = []
    monkeypatch.setattr("volumediff.inference.segment.fitted", partial(spied, lines=lines))
    a = segmenter.segment((phantom(3), np.eye(4)), **words)
    assert len(lines) == 1  # the run has one validation volume
    (kept,) = (segmenter.folder / "calibration").glob("segmentation-*.json")
    b = segmenter.segment((phantom(3), np.eye(4)), **words)
    assert len(lines) == 1
    np.testing.assert_array_equal(a.labels, b.labels)
    kept.write_text(kept.read_text().replace('"fitted"', '"fit"'))
    with pytest.raises(DataError, match="delete it to fit it again"):
        segmenter.segment((phantom(3), np.eye(4)), **words)
    kept.unlink()


def spied(*given, lines, report, **named):
    return fitted(*given, report=lines.append, **named)


def test_a_segmentation_plots(segmenter):
    result = segmenter.segment((phantom(3), np.eye(4)), samples=1, sampler={"steps": 2})
    assert len(result.plot(slices=3).axes) == 6
    assert "label 1: " in repr(result)


# --- words and keywords --------------------------------------------------------------------------


def test_keywords_are_the_words_of_the_command_line(loaded):
    python = loaded.localize((phantom(1), np.eye(4)), **CHAIN)
    words = ["sampler.steps=2", "threshold=best", "post=[]"]
    typed = loaded.localize((phantom(1), np.eye(4)), method="ddpm", overrides=words)
    assert python.facts["fingerprint"] == typed.facts["fingerprint"]
    assert python.facts["overrides"] == typed.facts["overrides"] == words


@pytest.mark.parametrize(
    "value",
    [1e-5, 3, True, None, "a b", [], [1, 2], (0.5, 1.0), {"name": "x", "k": {"a": 1e-9}}, "1", ""],
    ids=repr,
)
def test_values_survive_as_words(value):
    found = overridden({"part": "old"}, words_of({"part": value}))["part"]
    assert found == (list(value) if isinstance(value, tuple) else value)
    assert type(found) is (list if isinstance(value, tuple) else type(value))


def test_mappings_without_a_name_change_what_they_name():
    tree = {"sampler": {"name": "ddim", "steps": 5}, "data": {"root": "a", "only": {"sex": "F"}}}
    words = words_of({"sampler": {"steps": np.int64(7)}, "data": {"only": {"group": "healthy"}}})
    assert words == ["sampler.steps=7", "data.only.group=healthy"]
    found = overridden(tree, words)
    assert found["sampler"] == {"name": "ddim", "steps": 7}
    assert found["data"] == {"root": "a", "only": {"sex": "F", "group": "healthy"}}
    assert overridden(tree, words_of({"sampler": {"name": "heun"}}))["sampler"] == {"name": "heun"}


# --- errors --------------------------------------------------------------------------------------

EYE = np.eye(4)
WRONG = {
    "nothing there": ("/nowhere/a.nii.gz", UsageError, "nothing there"),
    "no image": (object(), UsageError, "expected a path, an image of nibabel"),
    "no affine": (phantom(0), UsageError, "give (array, affine)"),
    "no channel": ([], UsageError, "got none"),
    "two axes": ((np.ones((4, 4)), EYE), DataError, "expected (i, j, k), got the shape (4, 4)"),
    "four axes": ((np.ones((2, 4, 4, 4)), EYE), DataError, "a list of (array, affine)"),
    "NaN": ((phantom(0), np.full((4, 4), np.nan)), DataError, "but it holds NaN or Inf; correct"),
    "singular": ((phantom(0), np.diag([1.0, 1, 0, 1])), DataError, "a spacing of 1/1/0 mm"),
    "3 x 3": ((phantom(0), np.eye(3)), DataError, "expected an affine of 4 x 4 numbers"),
    "last row": ((phantom(0), np.diag([1.0, 1, 1, 2])), DataError, "its last row is"),
    "complex": ((phantom(0) * 1j, EYE), DataError, "expected real numbers, got complex64"),
    "channels": ([(phantom(0), EYE)] * 2, DataError, "has 2 channels, the run takes 1"),
    "empty": ((np.zeros((8, 8, 8), np.float32), EYE), DataError, "shows no foreground"),
    "all NaN": ((phantom(0) * np.nan, EYE), DataError, "every voxel is NaN"),
    "frames": (nib.Nifti1Image(np.ones((4, 4, 4, 2)), EYE), DataError, "got 2 frames"),
    "no forms": (nib.Nifti1Image(np.ones((4, 4, 4)), None), DataError, "has no orientation"),
    "slice": (sitk.Image(4, 4, sitk.sitkFloat32), DataError, "expected 3 dimensions, got 2"),
    "subject": (
        torchio.Subject(a=torchio.ScalarImage(tensor=torch.ones(1, 4, 4, 4))),
        UsageError,
        "give a list of its images",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_said_in_one_line_with_a_remedy(name, loaded):
    image, kind, reason = WRONG[name]
    with pytest.raises(kind) as caught:
        loaded.localize(image, **OWN)
    said = str(caught.value)
    assert reason in said
    assert "\n" not in said
    assert "--" not in said, "no command line was used"
    assert said.endswith(".")
    assert "; " in said or "got none" in said


def test_forms_of_nibabel_that_disagree_are_refused_as_in_files(loaded):
    image = nib.Nifti1Image(phantom(0), EYE)
    image.header.set_qform(np.diag([-1.0, 1, 1, 1]), code=1)
    with pytest.raises(DataError, match=r"nibabel image: sform .* and qform .* apart"):
        loaded.localize(image, **OWN)


def test_runs_that_are_none_or_damaged_are_said(run, tmp_path):
    import shutil

    with pytest.raises(UsageError, match=r"so this is no run; give the folder of a run"):
        volumediff.load(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    for weights in (tmp_path / "run").glob("checkpoints/*/ema.safetensors"):
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*\.$") as caught:
        volumediff.load(tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"^device 'cuda:99': not usable here"):
        volumediff.load(run, device="cuda:99")


WRONG_USE = {
    "method": ({"method": "thorr"}, "Did you mean 'thor'?"),
    "component": ({"method": "ddpm", "sampeler": {"steps": 2}}, "Did you mean 'sampler'?"),
    "classifier": ({"method": "wolleb_ddpm"}, "expected a classifier"),
    "region": ({"method": "inpaint_given"}, "give its mask as the region"),
    "no region": ({"method": "ddpm", "region": (phantom(0), EYE)}, "region: the method 'ddpm'"),
    "site": ({**OWN, "site": "/nowhere"}, "nothing there"),
    "names": ({**OWN, "channels": ("a", "b")}, "channels a,b: expected the names of 1 images"),
}


@pytest.mark.parametrize("name", WRONG_USE)
def test_messages_name_parameters_and_no_options(name, loaded):
    words, reason = WRONG_USE[name]
    with pytest.raises(UsageError) as caught:
        loaded.localize((phantom(0), EYE), **words)
    assert reason in str(caught.value)
    assert "--" not in str(caught.value)


def test_results_say_what_they_have(loaded):
    result = loaded.localize((phantom(0), EYE), **OWN)
    assert result.pseudo_healthy is None
    with pytest.raises(UsageError, match="uncertainty: this method makes none"):
        result.numpy("uncertainty")
    with pytest.raises(UsageError, match=r"maps: no such array; choose from map, mask"):
        result.to_nibabel("maps")


# --- regions and maps from elsewhere -------------------------------------------------------------


def test_a_region_in_memory_is_redrawn_as_one_in_a_file(loaded, tmp_path):
    x, affine = phantom(9), oblique("LPS")
    mask = np.zeros(x.shape, np.uint8)
    mask[3:5, 2:5, 4] = 1
    words = {"method": "inpaint_given", "sampler": {"steps": 2}, "threshold": "best", "post": []}
    words["editing"] = {"selector": {"dilate_mm": 0}}
    words["normalize"] = "raw"
    file = save(tmp_path / "mask.nii.gz", mask, affine)
    one = loaded.localize((x, affine), region=(mask, affine), **words)
    two = loaded.localize((x, affine), region=file, **words)
    np.testing.assert_array_equal(one.map, two.map)
    changed = np.abs(one.pseudo_healthy[0] - np.clip(x, 0, 200)) > 1e-3  # the window of the run
    assert changed.any()
    assert not changed[mask == 0].any()


# --- volumes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PSR"])
def test_volumes_go_to_nibabel_and_files_and_back(axes, tmp_path):
    affine = oblique(axes, spacing=(1.0, 2.0, 3.0))
    volume = Volume.from_array(blob(), affine)
    assert repr(volume) == (
        f"Volume(image, 1 x {'x'.join(map(str, volume.array.shape[1:]))} voxels along R, A, S, "
        f"{'/'.join(f'{s:.4g}' for s in volume.spacing_mm)} mm, given as {axes})"
    )
    image = volume.to_nibabel()
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), blob())
    np.testing.assert_array_equal(image.affine, affine)
    np.testing.assert_array_equal(volume.native_array[0], blob())
    again = Volume.from_nibabel(image)
    np.testing.assert_array_equal(again.array, volume.array)
    file = nib.load(volume.save(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(file.get_fdata(dtype=np.float32), blob())
    np.testing.assert_allclose(file.affine, affine, atol=1e-5)
    label = Volume.from_array(blob() > 100, affine, kind="label")
    assert label.array.dtype == np.uint8
    two = Volume.from_array(np.stack([blob(), blob() + 1]), affine)
    np.testing.assert_array_equal(two.to_nibabel().get_fdata()[..., 1], blob() + 1)


def test_form_codes_of_an_image_are_those_of_its_results(loaded, tmp_path):
    image = nib.Nifti1Image(phantom(0), np.diag([3.0, 3, 3, 1]))
    image.set_sform(image.affine, code=4)
    image.set_qform(image.affine, code=0)
    result = loaded.localize(image, **OWN)
    assert [int(result.to_nibabel().header[f"{f}_code"]) for f in ("sform", "qform")] == [4, 0]
    result.save(tmp_path)
    written = nib.load(tmp_path / "image_desc-anomaly_map.nii.gz").header
    assert [int(written[f"{f}_code"]) for f in ("sform", "qform")] == [4, 0]
    assert result.findings[0].place.template is not None  # code 4: MNI152


def test_a_metatensor_in_lps_is_turned():
    values, affine = torch.from_numpy(blob()), np.diag([-1.0, -2, 3, 1])
    image = MetaTensor(values[None], affine=affine, meta={"space": "LPS"})
    np.testing.assert_array_equal(volume_of(image).affine, np.diag([1.0, 2, 3, 1]))
    bare = MetaTensor(values, affine=affine)  # before a channel was added
    assert volume_of(bare).native.axes == "LPS"


# --- the rest ------------------------------------------------------------------------------------


def test_samples_are_those_of_the_command(loaded, run, program, tmp_path):
    words = ("sampler={name: ddim, steps: 2}", "--seed", 4, "--device", "cpu")
    assert program("sample", "--run", run, "-n", 2, "-o", tmp_path / "out", *words)[0] == 0
    first, second = loaded.sample(2, sampler={"name": "ddim", "steps": 2}, seed=4)
    written = nib.load(tmp_path / "out" / "sample-0002_image.nii.gz")
    np.testing.assert_array_equal(second.array[0], np.asarray(written.dataobj))
    assert not np.array_equal(first.array, second.array)
    with pytest.raises(UsageError, match=r"takes sampler, guidance. Did you mean 'sampler'"):
        loaded.sample(1, smpler="ddim")


def test_training_planning_checking_and_evaluating(run, base, loaded, tmp_path):
    config = run / "config.yaml"
    data = write_data(tmp_path / "data", cases=5, labels=True)
    folder = volumediff.train(config, data=data, output=tmp_path / "run", optim={"steps": 1})
    assert folder == tmp_path / "run"
    made = volumediff.load(folder, device="cpu")
    assert made.trained.config.optim.steps == 1
    assert made.trained.config.data.root == str(data)
    with pytest.raises(UsageError, match=r"optim\.lrr"):
        volumediff.train(config, output=tmp_path / "no", optim={"lrr": 1})
    found = volumediff.plan(config, mode="infer", network={"widths": [8]})
    assert found.fits is None
    assert found.config.network["widths"] == [8]
    assert {r.severity for r in volumediff.check(data)} == {"info"}
    with pytest.raises(UsageError, match="layout bid: choose from auto"):
        volumediff.check(data, layout="bid")
    new = {f"new-{i}": phantom(60 + i) for i in range(2)}
    for name, x in new.items():
        save(tmp_path / "new" / f"{name}_T1w.nii.gz", x, np.diag([3.0, 3, 3, 1]))
        save(
            tmp_path / "new" / f"{name}_mask.nii.gz",
            (x > 150).astype("u1"),
            np.diag([3.0, 3, 3, 1]),
        )
    out = tmp_path / "maps"
    summary = volumediff.localize_files(loaded, tmp_path / "new", out, **OWN, progress=lambda s: 0)
    assert summary.done == ["new-0", "new-1"]
    (result,) = volumediff.evaluate(out, tmp_path / "new", replicates=0)
    assert result.measures["voxel_ap"].value == pytest.approx(1)  # the core is the brightest
    assert not (out / "evaluation.json").exists()
    volumediff.evaluate(out, tmp_path / "new", replicates=0, output=tmp_path / "e", html=True)
    assert {"evaluation.json", "report.html"} <= {p.name for p in (tmp_path / "e").iterdir()}


def test_several_inputs_are_cases_of_one_call(run, program, tmp_path):
    a = save(tmp_path / "a.nii.gz", phantom(1), np.diag([3.0, 3, 3, 1]))
    odd = save(tmp_path / "x=1" / "b.nii.gz", phantom(2), np.diag([3.0, 3, 3, 1]))
    folder = tmp_path / "folder"
    for name in ("c", "d"):
        save(folder / f"{name}_T1w.nii.gz", phantom(3), np.diag([3.0, 3, 3, 1]))
    words = ("threshold=best", a, "post=[]", odd, folder)
    code, said, _ = program(
        "localize", *words, "--method", "intensity", "--run", run, "-o", tmp_path / "out"
    )
    assert code == 0
    assert "4 done" in said
    maps = {p.name.partition("_desc")[0] for p in (tmp_path / "out").glob("*anomaly_map.nii.gz")}
    assert maps == {"a", "b", "c", "d"}
    save(tmp_path / "other" / "a.nii.gz", phantom(4), np.eye(4))
    same = (a, tmp_path / "other" / "a.nii.gz")
    code, _, said = program("localize", *same, *QUICK, "--run", run, "-o", tmp_path / "no")
    assert code == 2
    assert "both have a case called a; rename one" in said


# --- the package ---------------------------------------------------------------------------------


def test_importing_the_package_loads_one_module():
    code = (
        "import sys, importlib, typing; before = set(sys.modules); import volumediff\n"
        "print(sorted(set(sys.modules) - before))\n"
        "volumediff.load, volumediff.train, volumediff.localize_files, volumediff.evaluate\n"
        "heavy = {'torch', 'numpy', 'nibabel', 'pydantic', 'yaml', 'accelerate', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = run_program([sys.executable, "-c", code])
    assert shown.stdout.splitlines() == ["['volumediff']", "[]"]


def test_every_public_name_is_there():
    assert set(volumediff.__all__) <= set(dir(volumediff))
    for name in volumediff.__all__:
        assert getattr(volumediff, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = volumediff.lod


PROGRAMS = ("cli.py", "__main__.py", "bids_app.py", "hub_card.py")
ABOUT_THE_PROGRAM = ("commands", "documentation", "reference")


def test_no_message_outside_of_the_commands_names_an_option():
    """Whoever calls from Python has no command line to put an option on."""
    package = Path(volumediff.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent.name in ABOUT_THE_PROGRAM or file.name in PROGRAMS:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documented = [n for n in ast.walk(tree) if isinstance(n, ast.Expr)]
        texts = {id(n.value) for n in documented if isinstance(n.value, ast.Constant)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if id(node) in texts or "torchrun" in node.value:
                continue
            assert not re.search(r"(^|[\s(])--[a-z]", node.value), f"{file}: {node.value}"
