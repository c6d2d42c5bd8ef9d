"""Files in, maps on the files' own grid out: geometry, reruns, faults, calibration, evaluation."""

import gzip
import json
import math
import os
import shutil
import sys
import time
from dataclasses import replace
from subprocess import DEVNULL

import nibabel as nib
import numpy as np
import pytest
import torch
from child_processes import running
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_app import PLAIN, QUICK, base, label_run, oblique, program, run, save, write_cases
from tiny_runs import phantom, rebind

from volumediff.calibration import of_run as calibration_module
from volumediff.calibration.of_run import calibration_for, load_method, needs_calibration
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.evaluate import evaluate
from volumediff.evaluation.truths import find_truths
from volumediff.outputs import export
from volumediff.outputs.batch import Result, process
from volumediff.outputs.export import findings_of
from volumediff.outputs.ledger import open_ledger, read_entries
from volumediff.runs.inputs import find_inputs
from volumediff.runs.trained import load_trained
from volumediff.storage.records import read_text, write_text

__all__ = ["base", "program", "run"]  # fixtures

MAP = "desc-anomaly_map.nii.gz"


def array_of(path):
    return np.asarray(nib.load(path).dataobj)


# --- geometry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "IRP"])
def test_maps_are_on_the_grid_of_the_file(run, program, tmp_path, axes):
    rng = np.random.default_rng(0)
    values = rng.uniform(20, 180, (8, 8, 8)).astype(np.float32)
    values[:2] = 0  # background on one side, so that a flip would show
    affine = oblique(axes)
    source = save(tmp_path / "in" / "sub-9_T1w.nii.gz", values, affine)
    assert program("localize", source, "--run", run, "-o", tmp_path / "out", *PLAIN)[0] == 0
    written = nib.load(tmp_path / "out" / f"sub-9_{MAP}")
    assert written.shape == values.shape
    np.testing.assert_array_equal(written.affine, nib.load(source).affine)
    assert nib.aff2axcodes(written.affine) == tuple(axes)
    assert int(written.header["sform_code"]) == int(written.header["qform_code"]) == 1
    expected = np.clip(values / 200, 0, 1)
    np.testing.assert_allclose(np.asarray(written.dataobj), expected, atol=1e-6)
    foreground = array_of(tmp_path / "out" / "sub-9_desc-foreground_mask.nii.gz")
    np.testing.assert_array_equal(foreground, values > 0)


def test_pseudo_healthy_volumes_have_the_intensities_of_the_file(run, program, tmp_path):
    values = np.full((8, 8, 8), 120, np.float32)
    values[0] = 0
    source = save(tmp_path / "flat.nii.gz", values, oblique("LPS"))
    words = ("--method", "smoothing", "threshold=best", "post=[]")
    assert program("localize", source, "--run", run, "-o", tmp_path / "out", *words)[0] == 0
    healthy = array_of(tmp_path / "out" / "flat_desc-pseudohealthy_image.nii.gz")
    np.testing.assert_allclose(healthy, values, atol=1e-3)  # a flat volume is its own mean
    assert np.abs(array_of(tmp_path / "out" / f"flat_{MAP}")).max() < 1e-5


def test_a_cropped_volume_comes_back_in_full_size(run, program, tmp_path):
    values = np.zeros((13, 12, 11), np.float32)
    values[3:10, 4:9, 2:8] = 60
    values[6, 6, 5] = 200
    source = save(tmp_path / "large.nii.gz", values, oblique("RAS", degrees=0.0))
    assert program("localize", source, "--run", run, "-o", tmp_path / "out", *PLAIN)[0] == 0
    written = array_of(tmp_path / "out" / f"large_{MAP}")
    assert written.shape == values.shape
    assert np.unravel_index(written.argmax(), written.shape) == (6, 6, 5)
    np.testing.assert_allclose(written, values / 200, atol=1e-6)


def test_a_threshold_of_the_volumes_own_is_recorded(run, program, tmp_path):
    source = write_cases(tmp_path / "in", count=1)
    words = ("--method", "shrink", "sampler.steps=2", "route.passes=2", "threshold=otsu")
    code, _, said = program("localize", source, "--run", run, "-o", tmp_path / "out", *words)
    assert code == 0, said
    facts = json.loads((tmp_path / "out" / "new-0_desc-anomaly_map.json").read_text())
    a = array_of(tmp_path / "out" / f"new-0_{MAP}")
    mask = array_of(tmp_path / "out" / "new-0_desc-anomaly_mask.nii.gz")
    assert 0 < facts["threshold"] < a.max()
    assert 0 < mask.sum()
    assert (a[mask > 0] > facts["threshold"]).all()
    assert (tmp_path / "out" / "new-0_desc-shrink01_mask.nii.gz").is_file()


def test_a_method_of_another_noise_is_refused_with_the_way_out(run, program, tmp_path):
    source = write_cases(tmp_path / "in", count=1)
    words = ("localize", source, "--run", run, "-o", tmp_path / "out", "--method", "anoddpm")
    code, _, said = program(*words)
    assert code == 2
    assert "got one with gaussian noise" in said
    assert "train with noise=simplex" in said


def test_findings_are_in_millimetres():
    mask = np.zeros((1, 6, 6, 6), np.uint8)
    mask[0, 1:3, 1, 1] = 1
    mask[0, 4, 4, 4] = 1
    mask[0, 5, 5, 5] = 1  # touches the one before at a corner: the same finding
    mask[0, 3, 5, 0] = 1
    scores = np.zeros(mask.shape, np.float32)
    scores[0, 2, 1, 1], scores[0, 4, 4, 4] = 3, 5
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    found = findings_of(mask, scores, affine=affine)
    assert [f["volume_mm3"] for f in found] == [48, 48, 24]
    assert found[0]["centre_mm"] == [13, 23, 34]
    assert found[0]["peak_mm"] == [14, 23, 34]
    assert found[0]["peak"] == 3
    assert found[1]["peak_mm"] == [18, 32, 46]


def test_findings_are_those_of_scipys_measurements():
    rng = np.random.default_rng(0)
    blurred = ndimage.gaussian_filter(rng.standard_normal((30, 20, 25)), 1.5).astype(np.float32)
    mask = blurred > np.quantile(blurred, 0.9)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    index = np.arange(1, count + 1)
    found = findings_of(mask[None], blurred[None], affine=np.eye(4))
    assert count > 10
    sizes = ndimage.sum_labels(mask, labels, index)
    order = np.argsort(-sizes, kind="stable")
    assert [f["volume_mm3"] for f in found] == sizes[order].tolist()
    peaks = ndimage.maximum(blurred, labels, index)
    assert [f["peak"] for f in found] == peaks[order].tolist()
    for name, measure in [
        ("centre_mm", ndimage.center_of_mass(mask, labels, index)),
        ("peak_mm", ndimage.maximum_position(blurred, labels, index)),
    ]:
        assert [f[name] for f in found] == np.round(np.array(measure)[order], 2).tolist()


def test_the_first_of_equal_peaks_is_named():
    mask = np.zeros((1, 4, 4, 4), bool)
    mask[0, 1:3, 1:3, 1:3] = True
    found = findings_of(mask, np.ones(mask.shape, np.float32), affine=np.eye(4))
    assert [f["peak_mm"] for f in found] == [[1, 1, 1]]
    assert findings_of(np.zeros_like(mask), np.ones(mask.shape), affine=np.eye(4)) == []


# --- reruns and faults ---------------------------------------------------------------------------


def times_of(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("new-*")}


def test_finished_cases_are_verified_and_skipped(run, program, tmp_path):
    data, out = write_cases(tmp_path / "data"), tmp_path / "out"
    command = ("localize", data, "--run", run, "-o", out, *QUICK)
    code, said, _ = program(*command)
    assert code == 0
    assert "3 done" in said
    before = times_of(out)
    code, said, _ = program(*command)
    assert code == 0
    assert "0 done, 3 already finished and verified" in said
    assert times_of(out) == before
    damaged = out / f"new-1_{MAP}"  # one bit of one output
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    save(data / "new-2_T1w.nii.gz", phantom(7), np.diag([3.0, 3, 3, 1]))  # another input
    code, said, _ = program(*command)
    assert "2 done, 1 already finished" in said
    changed = {name for name, t in times_of(out).items() if t != before[name]}
    assert {name[:5] for name in changed} == {"new-1", "new-2"}


def test_a_bad_case_does_not_stop_the_others(run, program, tmp_path):
    data, out = write_cases(tmp_path / "data"), tmp_path / "out"
    good = (data / "new-1_T1w.nii.gz").read_bytes()
    (data / "new-1_T1w.nii.gz").write_bytes(good[: len(good) // 2])
    command = ("localize", data, "--run", run, "-o", out, *PLAIN)
    code, said, complaints = program(*command)
    assert code == 1
    assert "2 done, 1 failed" in said
    assert "new-1_T1w.nii.gz" in complaints
    assert not list(out.glob("new-1*"))
    assert read_entries(out)["new-1"].status == "failed"
    (data / "new-1_T1w.nii.gz").write_bytes(good)
    code, said, _ = program(*command)
    assert code == 0
    assert "1 done, 2 already finished" in said


def test_other_settings_do_not_mix_in_one_folder(run, program, tmp_path):
    data, out = write_cases(tmp_path / "data", count=1), tmp_path / "out"
    assert program("localize", data, "--run", run, "-o", out, *PLAIN)[0] == 0
    before = array_of(out / f"new-0_{MAP}")
    code, _, complaint = program("localize", data, "--run", run, "-o", out, *QUICK)
    assert code == 2
    assert "holds results of other settings" in complaint
    assert "choose another output folder, or overwrite them" in complaint
    np.testing.assert_array_equal(array_of(out / f"new-0_{MAP}"), before)
    assert program("localize", data, "--run", run, "-o", out, *QUICK, "--overwrite")[0] == 0
    assert not np.array_equal(array_of(out / f"new-0_{MAP}"), before)


def test_a_killed_run_leaves_nothing_half_written(run, program, tmp_path):
    data, out = write_cases(tmp_path / "data", count=4), tmp_path / "out"
    words = ["localize", str(data), "--run", str(run), "-o", str(out), *QUICK]
    ledger, deadline = out / "ledger.jsonl", time.monotonic() + 60
    with running([sys.executable, "-m", "volumediff", *words], stderr=DEVNULL) as process:
        while process.poll() is None and time.monotonic() < deadline:
            if ledger.is_file() and ledger.read_bytes().count(b"\n") >= 1:
                break
            time.sleep(0.002)
    for path in out.glob("new-*.nii.gz"):
        read(path)  # to the last byte of the stream
    for path in out.glob("new-*.json"):
        json.loads(path.read_text())
    finished = len(read_entries(out))
    assert finished >= 1
    (out / ".new-9.nii.gz.123-abc.tmp").write_bytes(b"left behind")
    with ledger.open("ab") as file:
        file.write(b'{"case": "new-3", "sta')  # a line cut by the kill
    code, said, _ = program(*words)
    assert code == 0
    assert f"{4 - finished} done, {finished} already" in said
    assert len(read_entries(out)) == 4
    assert not list(out.glob(".*.tmp"))
    assert program(*words[:5], str(tmp_path / "again"), *QUICK)[0] == 0
    for path in out.glob("new-*.nii.gz"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_interrupted_write_leaves_no_file(run, tmp_path, monkeypatch):
    trained = load_trained(run)
    cases, _ = find_inputs(write_cases(tmp_path / "data", count=1), channels=None)

    def fails(path, *args, **kwargs):
        if MAP in path.name:
            return written(path, *args, **kwargs)
        raise OSError(28, "No space left on device", str(path))

    written = export.write
    monkeypatch.setattr(export, "write", fails)
    from volumediff.inference.localize_files import localize
    from volumediff.inference.options import LocalizeOptions

    with pytest.raises(DataError, match="No space left"):
        localize(
            trained,
            cases[0].images["T1w"],
            tmp_path / "out",
            LocalizeOptions("intensity", ("threshold=best", "post=[]")),
        )
    assert not read_entries(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("new-0*")] == [f"new-0_{MAP}"]


def test_processes_of_other_settings_do_not_share_a_folder(tmp_path):
    said = rf"another process works here with other settings \(.*pid {os.getpid()}\)"
    with open_ledger(tmp_path, job="a"):
        with pytest.raises(UsageError, match=said), open_ledger(tmp_path, job="b"):
            pass
        with open_ledger(tmp_path, job="a") as other:
            pass
        assert not other.last


def test_every_failure_of_a_case_is_recorded(tmp_path):
    cases, _ = find_inputs(write_cases(tmp_path / "data"), channels=None)

    def work(case, inputs, folder):
        if case.id == "new-0":
            raise RuntimeError("CUDA out of memory.\nTried to allocate")
        if case.id == "new-1":
            raise DataError("expected a\nlesion")
        return Result([], {})

    lines = []
    summary = process(cases, tmp_path / "out", settings={}, work=work, report=lines.append)
    assert summary.done == ["new-2"]
    assert "not enough memory" in summary.failed["new-0"]
    assert summary.failed["new-1"] == "expected a lesion"
    assert [line.split(":")[0] for line in lines] == ["new-0", "new-1", "new-2"]


def test_results_depend_on_the_bytes_alone(run, program, tmp_path):
    data = write_cases(tmp_path / "data", count=2)
    shutil.copy(data / "new-1_T1w.nii.gz", tmp_path / "renamed.nii.gz")
    assert program("localize", data, "--run", run, "-o", tmp_path / "a", *QUICK)[0] == 0
    alone = tmp_path / "renamed.nii.gz"
    assert program("localize", alone, "--run", run, "-o", tmp_path / "b", *QUICK)[0] == 0
    one, two = (
        array_of(tmp_path / "a" / f"new-1_{MAP}"),
        array_of(tmp_path / "b" / f"renamed_{MAP}"),
    )
    np.testing.assert_array_equal(one, two)
    assert (
        program("localize", alone, "--run", run, "-o", tmp_path / "c", *QUICK, "--seed", 1)[0] == 0
    )
    assert not np.array_equal(two, array_of(tmp_path / "c" / f"renamed_{MAP}"))


# --- inputs --------------------------------------------------------------------------------------


def test_inputs_are_files_folders_and_manifests(tmp_path):
    data = write_cases(tmp_path / "data", count=2)
    one, _ = find_inputs(data / "new-0_T1w.nii.gz", channels=None)
    assert [c.id for c in one] == ["new-0"]
    every, problems = find_inputs(data, channels=None)
    assert [c.id for c in every] == ["new-0", "new-1"]
    assert not problems
    manifest = data / "list.json"
    manifest.write_text(json.dumps({"test": [{"image": "new-1_T1w.nii.gz", "id": "p7"}]}))
    listed, _ = find_inputs(manifest, channels=None)
    assert [(c.id, c.images["image"].name) for c in listed] == [("p7", "new-1_T1w.nii.gz")]


def test_channels_lie_beside_a_file(tmp_path):
    for name in ("a_T1w", "a_FLAIR", "b_T1w"):
        save(tmp_path / f"{name}.nii.gz", phantom(1), np.eye(4))
    (case,), _ = find_inputs(tmp_path / "a_FLAIR.nii.gz", channels=("T1w", "FLAIR"))
    assert [p.name for p in case.images.values()] == ["a_T1w.nii.gz", "a_FLAIR.nii.gz"]
    cases, problems = find_inputs(tmp_path, channels=("T1w", "FLAIR"))
    assert [c.id for c in cases] == ["a"]
    assert "missing channel 'FLAIR'" in problems["b"]
    with pytest.raises(UsageError, match="give the folder of the case"):
        find_inputs(tmp_path / "b_T1w.nii.gz", channels=("T1w", "FLAIR"))
    (tmp_path / "b_T1w.nii.gz").unlink()
    with pytest.raises(UsageError, match=r"has the images FLAIR, T1w.*as channels, such as FLAIR"):
        find_inputs(tmp_path, channels=None)


# --- calibration ---------------------------------------------------------------------------------


def test_calibration_is_fitted_once_and_belongs_to_the_weights(run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    words = ("threshold.min_volumes=2",)
    row = load_method(trained, "scan", words)
    assert needs_calibration(row)
    counted, fitted = [], calibration_module.fit
    monkeypatch.setattr(
        calibration_module, "fit", lambda *a, **k: counted.append(1) or fitted(*a, **k)
    )
    first = calibration_for(trained, row, "scan")
    again = calibration_for(trained, row, "scan")
    assert counted == [1]
    assert again.fingerprint == first.fingerprint == row.fingerprint
    assert again.validation_threshold == first.validation_threshold is not None
    for name, tensor in first.statistics.items():
        torch.testing.assert_close(again.statistics[name], tensor)
    other = load_method(trained, "scan", (*words, "normalize.floor=0.5"))
    calibration_for(trained, other, "scan")
    object.__setattr__(trained, "digest", "0" * 64)  # other weights
    calibration_for(trained, row, "scan")
    assert counted == [1, 1, 1]


def test_data_that_moved_are_asked_for(run, base, program, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "calibration", ignore_errors=True)
    path = tmp_path / "run" / "config.yaml"
    text = read_text(path, advice="").replace(str(base / "data"), "/gone/data")
    write_text(path, text)
    rebind(tmp_path / "run")  # as if it had been trained there
    data = write_cases(tmp_path / "data", count=1)
    command = ("localize", data, "--run", tmp_path / "run", "threshold.min_volumes=2")
    code, _, complaint = program(*command, "-o", tmp_path / "out")
    assert code == 2
    assert complaint.count("\n") == 1
    assert "not reachable" in complaint
    assert "as data when the run is loaded" in complaint
    code, said, _ = program(*command, "-o", tmp_path / "out", "--data", base / "data")
    assert code == 0
    assert "1 done" in said


def test_too_few_calibration_volumes_stop_before_the_first_case(run, program, tmp_path):
    data = write_cases(tmp_path / "data", count=1)
    code, _, complaint = program("localize", data, "--run", run, "-o", tmp_path / "out")
    assert code == 2
    assert "expected at least 5 healthy calibration volumes, got 4" in complaint
    assert not (tmp_path / "out").exists()


# --- evaluation ----------------------------------------------------------------------------------


def made_up(folder, truth, *, cases=4, seed=0, threshold=0.6, shift=1.0):
    """Maps, foregrounds, sidecars and truth masks with known content; the last is healthy."""
    rng = np.random.default_rng(seed)
    affine = np.diag([2.0, 2, 2, 1])
    known = {}
    for i in range(cases):
        lesion = np.zeros((6, 6, 6), np.uint8)
        if i < cases - 1:
            lesion[1:3, 1:3, 1 : 3 + i] = 1
        scores = rng.uniform(0, 1, lesion.shape).astype(np.float32) + shift * 0.3 * lesion
        foreground = np.ones_like(lesion)
        foreground[5] = 0
        case = f"p{i // 2}_ses-{i}"
        save(truth / f"{case}_mask.nii.gz", lesion, affine)
        save(truth / f"{case}_T1w.nii.gz", scores, affine)
        save(folder / f"{case}_{MAP}", scores * foreground, affine)
        save(folder / f"{case}_desc-foreground_mask.nii.gz", foreground, affine)
        mask = ((scores > threshold) & (foreground > 0)).astype(np.uint8)
        save(folder / f"{case}_desc-anomaly_mask.nii.gz", mask, affine)
        sidecar = {"method": folder.name, "score": float(scores.max())}
        sidecar["thresholds"] = {"validation": threshold, "healthy_fpr": 0.9}
        (folder / f"{case}_desc-anomaly_map.json").write_text(json.dumps(sidecar))
        known[case] = (scores, lesion, foreground)
    return known


def test_figures_of_maps_are_those_of_scikit_learn(tmp_path):
    known = made_up(tmp_path / "m", tmp_path / "truth")
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=50)
    aps, aurocs, dices = [], [], []
    for scores, lesion, foreground in known.values():
        if not lesion.any():
            continue
        inside = foreground > 0
        aps.append(average_precision_score(lesion[inside], scores[inside]))
        aurocs.append(roc_auc_score(lesion[inside], scores[inside]))
        mask = (scores > 0.6) & inside
        dices.append(2 * (mask & (lesion > 0)).sum() / (mask.sum() + lesion.sum()))
    value = {name: m.value for name, m in result.measures.items()}
    assert value["voxel_ap"] == pytest.approx(np.mean(aps), rel=1e-3)
    assert value["voxel_auroc"] == pytest.approx(np.mean(aurocs), rel=1e-3)
    assert value["dice_validation"] == pytest.approx(np.mean(dices), rel=1e-6)
    assert value["found_by_recall"] == 0  # one component over half of the volume finds nothing
    everything = [(s[f > 0], y[f > 0]) for s, y, f in known.values()]
    pooled = average_precision_score(
        np.concatenate([y for _, y in everything]), np.concatenate([s for s, _ in everything])
    )
    assert value["voxel_ap_pooled"] == pytest.approx(pooled, rel=5e-3)
    interval = result.measures["voxel_ap"]
    assert math.isnan(interval.low)  # two patients
    assert len({c.patient for c in result.cases}) == 2  # two sessions each: resampled together


def test_lesions_outside_the_foreground_count_as_missed(tmp_path):
    known = made_up(tmp_path / "m", tmp_path / "truth", shift=1000.0)
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0)
    assert result.measures["voxel_ap"].value == pytest.approx(1)
    case, (_, lesion, foreground) = next(iter(known.items()))
    foreground[lesion > 0] = 0
    affine = np.diag([2.0, 2, 2, 1])
    save(tmp_path / "m" / f"{case}_desc-foreground_mask.nii.gz", foreground, affine)
    lines = []
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", replicates=0, report=lines.append)
    missed = next(c for c in result.cases if c.case == case)
    assert "100% of the lesion of p0_ses-0 lies outside of the map" in lines[0]
    voxels = int(((foreground > 0) | (lesion > 0)).sum())
    assert missed.ap == pytest.approx(lesion.sum() / voxels, rel=0.02)  # ranked below everything


def test_methods_are_compared_on_the_cases_they_share(tmp_path):
    made_up(tmp_path / "a", tmp_path / "truth")
    made_up(tmp_path / "b", tmp_path / "truth", seed=1)
    for path in (tmp_path / "b").glob("p0_ses-0_*"):
        path.unlink()
    lines = []
    results = evaluate(
        [tmp_path / "a", tmp_path / "b"], tmp_path / "truth", replicates=0, report=lines.append
    )
    assert [r.method for r in results] == ["a", "b"]
    assert [len(r.cases) for r in results] == [3, 3]
    assert "left out: p0_ses-0" in lines[0]


def test_groups_are_averaged_with_equal_weight(tmp_path):
    made_up(tmp_path / "m", tmp_path / "truth", cases=5)
    rows = ["participant_id\tkind", "p0_ses-0\tsmall", "p0_ses-1\tlarge", "p1_ses-2\tlarge"]
    rows += ["p1_ses-3\tlarge", "p2_ses-4\thealthy"]
    (tmp_path / "truth" / "participants.tsv").write_text("\n".join(rows) + "\n")
    (result,) = evaluate([tmp_path / "m"], tmp_path / "truth", by="kind", replicates=0)
    ap = [c.ap for c in result.cases]
    assert result.groups["large"]["voxel_ap"].value == pytest.approx(np.mean(ap[1:4]))
    expected = (ap[0] + np.mean(ap[1:4])) / 2
    assert result.measures["voxel_ap_by_group"].value == pytest.approx(expected)
    assert result.measures["volume_auroc"].value == pytest.approx(
        roc_auc_score([c.abnormal for c in result.cases], [c.score for c in result.cases])
    )


def test_wrong_truth_is_refused(tmp_path):
    made_up(tmp_path / "m", tmp_path / "truth")
    with pytest.raises(DataError, match="nothing is there"):
        evaluate([tmp_path / "m"], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no masks"):
        evaluate([tmp_path / "m"], tmp_path / "empty")
    with pytest.raises(UsageError, match="localize into this folder first"):
        evaluate([tmp_path / "empty"], tmp_path / "truth")
    save(tmp_path / "other" / "zz_mask.nii.gz", np.ones((6, 6, 6), np.uint8), np.eye(4))
    with pytest.raises(DataError, match="no mask fits"):
        evaluate([tmp_path / "m"], tmp_path / "other")
    moved = np.diag([2.0, 2, 2, 1])
    moved[:3, 3] = 8
    save(tmp_path / "other" / "p0_ses-0_mask.nii.gz", np.ones((6, 6, 6), np.uint8), moved)
    with pytest.raises(DataError, match="expected the grid of"):
        evaluate([tmp_path / "m"], tmp_path / "other")


def test_masks_alone_are_truth(tmp_path):
    save(tmp_path / "p1_ses-1_seg.nii.gz", np.ones((3, 3, 3), np.uint8), np.eye(4))
    found = find_truths(tmp_path)
    assert found["p1_ses-1"].patient == "p1"
    assert found["p1_ses-1"].image is None


# --- segmentation and sampling -------------------------------------------------------------------


def test_segmentations_are_on_the_grid_of_the_file(base, program, tmp_path):
    run, values = label_run(base), np.clip(phantom(3), 0, None)
    source = save(tmp_path / "sub-3_T1w.nii.gz", values, oblique("LIP"))
    words = ("segment", source, "--run", run, "samples=2", "sampler.steps=2")
    assert program(*words, "-o", tmp_path / "out")[0] == 0
    labels = nib.load(tmp_path / "out" / "sub-3_dseg.nii.gz")
    np.testing.assert_array_equal(labels.affine, nib.load(source).affine)
    found = np.asarray(labels.dataobj)
    assert found.shape == values.shape
    assert set(np.unique(found)) <= {0, 1}
    p = array_of(tmp_path / "out" / "sub-3_label-1_probseg.nii.gz")
    np.testing.assert_array_equal(found, p > 0.5)
    sidecar = json.loads((tmp_path / "out" / "sub-3_dseg.json").read_text())
    assert sidecar["volumes_ml"]["1"] == pytest.approx(found.sum() * 27 / 1000, rel=1e-5)
    assert program(*words, "-o", tmp_path / "again", "batch=2")[0] == 0
    again = array_of(tmp_path / "again" / "sub-3_label-1_probseg.nii.gz")
    np.testing.assert_allclose(again, p, atol=1e-5)


def test_a_segmentation_is_evaluated_and_its_findings_are_listed(base, program, tmp_path):
    run, values = label_run(base), np.clip(phantom(3), 0, None)
    affine = oblique("LIP")
    source = save(tmp_path / "data" / "sub-3_T1w.nii.gz", values, affine)
    save(tmp_path / "data" / "sub-3_mask.nii.gz", (values > 150).astype("u1"), affine)
    out = tmp_path / "out"
    words = ("segment", source, "--run", run, "samples=2", "sampler.steps=2", "--write-samples")
    assert program(*words, "-o", out)[0] == 0
    every = [array_of(out / f"sub-3_label-{v}_probseg.nii.gz") for v in (0, 1)]
    np.testing.assert_allclose(sum(every), 1, atol=1e-3)  # beyond the crop, too
    sidecar = json.loads((out / "sub-3_dseg.json").read_text())
    assert sidecar["network_calls"] > 0
    assert (out / sidecar["seen"]).is_file()
    code, said, complaint = program(
        *("evaluate", out, "--truth", tmp_path / "data", "--replicates", "0", "--report")
    )
    assert code == 0, complaint
    content = json.loads((out / "evaluation.json").read_text())
    (figures,) = content["segmentation"].values()
    assert 0 <= figures["1"]["dice"] <= 1
    assert figures["mean"]["network_calls"] == sidecar["network_calls"]
    assert figures["mean"]["components_ratio"] >= 0
    assert 0 <= figures["1"]["ece"] <= 1
    assert "It is not known" not in said
    code, said, complaint = program("findings", out, "--images", source)
    assert code == 0, complaint
    listed = json.loads((out / "sub-3_desc-label_findings.json").read_text())
    whole = sum(f["volume_ml"] for f in listed["findings"])
    assert whole == pytest.approx(sidecar["volumes_ml"]["1"], rel=1e-3)


def test_samples_do_not_depend_on_their_number(run, program, tmp_path):
    words = ("sample", "--run", run, "sampler.steps=2")
    assert program(*words, "-n", 1, "-o", tmp_path / "one")[0] == 0
    assert program(*words, "-n", 2, "-o", tmp_path / "two")[0] == 0
    one = tmp_path / "one" / "sample-0001_image.nii.gz"
    assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes()
    image = nib.load(one)
    assert image.shape == (8, 8, 8)
    second = array_of(tmp_path / "two" / "sample-0002_image.nii.gz")
    assert not np.array_equal(np.asarray(image.dataobj), second)
    with gzip.open(one) as stream:
        assert len(stream.read()) == 352 + 4 * 512
    assert program(*words)[0] == 0
    assert one.read_bytes() == (run / "samples" / one.name).read_bytes()
    code, said, _ = program(*words, "-n", 3, "-o", tmp_path / "two")
    assert code == 0
    assert "1 done, 2 already" in said


def test_names_of_images_are_as_many_as_channels_and_keep_their_order(run):
    trained = load_trained(run)
    assert trained.image_names(("FLAIR",)) == ("FLAIR",)
    with pytest.raises(UsageError, match=r"channels T1w,T2w: expected the names of 1 images"):
        trained.image_names(("T1w", "T2w"))
    data = trained.config.data.model_copy(update={"channels": ("FLAIR", "T2w")})
    both = replace(trained, config=trained.config.model_copy(update={"data": data}))
    assert both.image_names(None) == ("FLAIR", "T2w")
    assert both.image_names(("flair", "t2")) == ("flair", "t2")
    with pytest.raises(UsageError, match=r"expected the order of .*, FLAIR,T2w"):
        both.image_names(("T2w", "FLAIR"))
