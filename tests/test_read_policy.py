"""Decisions on ambiguous files: what a message names settles the matter, in every command."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from tiny_app import PLAIN, base, program, run, save  # noqa: F401
from tiny_runs import phantom

import volumediff
from volumediff.api.reading import read_policy
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError

AFFINE = np.diag([3.0, 3, 3, 1])
NAMED = re.compile(r"decide by `read` with ((\w+)=.+?) \(data\.read in a configuration\)")


def without_forms(path, array):
    image = nib.Nifti1Image(array, AFFINE)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = 3
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def with_two_forms(path):
    image = nib.Nifti1Image(phantom(0), AFFINE)
    image.set_sform(np.diag([-3.0, 3, 3, 1]), 1)
    image.set_qform(AFFINE, 1)
    nib.save(image, path)
    return path


def scaled_labels(path, slope, values):
    stored = np.zeros((8, 8, 8), np.uint8)
    stored.flat[: len(values)] = values
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return path


def nans(path):
    array = phantom(0)
    array[0, 0, 0] = np.nan
    return save(path, array, AFFINE)


AMBIGUOUS = {
    "no_forms": (lambda p: without_forms(p, phantom(0)), "image", ReadPolicy()),
    "forms": (with_two_forms, "image", ReadPolicy()),
    "frames": (
        lambda p: save(p, np.stack([phantom(0), phantom(1)], -1), AFFINE),
        "image",
        ReadPolicy(),
    ),
    "nonfinite": (nans, "image", ReadPolicy(nonfinite="refuse")),
    "budget_bytes": (lambda p: save(p, phantom(0), AFFINE), "image", ReadPolicy(budget_bytes=99)),
    "labels": (
        lambda p: save(p, (phantom(0) > 1).astype(np.uint8) * 3, AFFINE),
        "label",
        ReadPolicy(labels=(1, 2)),
    ),
    "label_rounding": (lambda p: scaled_labels(p, 0.8, [1]), "label", ReadPolicy()),
}


@pytest.mark.parametrize("key", AMBIGUOUS)
def test_every_remedy_that_is_named_works(key, tmp_path):
    write, kind, policy = AMBIGUOUS[key]
    path = write(tmp_path / "a.nii.gz")
    with pytest.raises(DataError) as refused:
        read(path, kind=kind, policy=policy)
    named = NAMED.search(str(refused.value))
    assert named is not None, str(refused.value)
    assert named[2] == key
    for word in re.split(r", (?=\w+=)| or ", named[1]):
        volume = read(path, kind=kind, policy=read_policy([word], policy))
        assert np.isfinite(volume.array).all()


def test_decisions_are_those_that_were_asked_for(tmp_path):
    path = without_forms(tmp_path / "a.nii.gz", phantom(0))
    ras = read(path, policy=read_policy({"no_forms": "ras"}))
    lps = read(path, policy=read_policy(["no_forms=lps"]))
    np.testing.assert_array_equal(ras.array, lps.array[:, ::-1, ::-1])
    frames = save(tmp_path / "b.nii.gz", np.stack([phantom(0), phantom(1)], -1), AFFINE)
    second = read(frames, policy=read_policy(["frames=1"]))
    np.testing.assert_array_equal(second.array[0], phantom(1))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["no_form=ras"], "unknown key no_form; .*Did you mean 'no_forms'"),
        (["no_forms=xyz"], "no_forms: expected refuse, ras, las or lps, got 'xyz'"),
        (["budget_bytes=many"], "budget_bytes"),
        (["no_forms"], "expected key=value"),
    ],
)
def test_wrong_decisions_are_one_line(words, match):
    with pytest.raises(UsageError, match=match) as error:
        read_policy(words)
    assert "\n" not in str(error.value)


def test_scaled_labels_are_rounded_by_half_a_slope(tmp_path):
    # Colin27 keeps its labels in 8 bits with slope 12/255: .988, 2.02 and so on
    slope = 12 / 255
    stored = [round(label / slope) for label in range(1, 13)]
    path = scaled_labels(tmp_path / "a.nii.gz", slope, stored)
    found = read(path, kind="label")
    assert sorted(np.unique(found.array)) == list(range(13))
    # two stored values of one label: the slope does not keep labels apart
    path = scaled_labels(tmp_path / "b.nii.gz", 0.4, [2, 3])
    with pytest.raises(DataError, match="expected whole labels"):
        read(path, kind="label")


def test_outputs_say_plainly_where_they_lie(tmp_path):
    """What was decided on reading needs no decision in the result."""
    path = without_forms(tmp_path / "a.nii.gz", phantom(0))
    volume = read(path, policy=ReadPolicy(no_forms="las"))
    volumediff.data.volume.write(tmp_path / "b.nii.gz", volume.array, like=volume, kind="image")
    back = read(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.native.affine, volume.native.affine)
    assert back.native.axes == "LAS"


def test_every_command_takes_decisions(run, tmp_path, program):  # noqa: F811
    data = tmp_path / "data"
    for i in range(2):
        name = f"new-{i}"
        without_forms(data / name / f"{name}_T1w.nii.gz", phantom(100 + i))
        label = (phantom(100 + i) > 80).astype(np.uint8)
        without_forms(data / name / f"{name}_label.nii.gz", label)
    decide = ("--read", "no_forms=las")
    assert program("check", data)[0] == 1
    assert program("check", data, *decide)[0] == 0
    out = tmp_path / "out"
    words = (data, "--run", run, "-o", out, *PLAIN, "--no-report")
    assert program("localize", *words)[0] == 1
    code, _, err = program("localize", *words, *decide)
    assert code == 0, err
    sidecar = json.loads((out / "new-0_desc-anomaly_map.json").read_text())
    assert sidecar["read_policy"]["no_forms"] == "las"
    found = read(out / "new-0_desc-anomaly_map.nii.gz")
    np.testing.assert_array_equal(found.native.axes, "LAS")
    # the truth lies as the results say, or as is asked for
    scores = {}
    for read_as in ((), decide, ("--read", "no_forms=lps")):
        words = ("--truth", data, "--replicates", 0, "--report", *read_as)
        code, _, err = program("evaluate", out, *words)
        assert code == 0, err
        (method,) = json.loads((out / "evaluation.json").read_text())["methods"].values()
        scores[read_as] = method["measures"]
    assert scores[()] == scores[decide]
    assert scores[()] != scores["--read", "no_forms=lps"]
    code, _, err = program("findings", out, "--images", data)
    assert code == 0, err


def test_training_keeps_its_decisions(tmp_path, program):  # noqa: F811
    data = tmp_path / "data"
    for i in range(4):
        without_forms(data / f"sub-{i}_T1w.nii.gz", phantom(i))
    words = ["space=voxel", "kernel.schedule=cosine", "network.widths=[4,8]", "network.groups=2"]
    words += ["data.preprocessing.shape=[8,8,8]", "data.preprocessing.spacing_mm=null"]
    words += ["optim.steps=1", "optim.batch_size=1", "validation.volumes=1"]
    words += ["validation.best=null"]
    words += ["data.split={validation: 0.25, calibration: 0.0}", "validation.previews=0"]
    words += ["memory.dtype=float32", f"data.root={data}"]
    assert program("train", "wavelet_64", *words, f"output={tmp_path / 'a'}")[0] == 1
    code, _, err = program(
        "train", "wavelet_64", *words, f"output={tmp_path / 'b'}", "--read", "no_forms=ras"
    )
    assert code == 0, err
    trained = volumediff.load(tmp_path / "b", device="cpu")
    assert trained.trained.preprocessing.policy.no_forms == "ras"
    changed = volumediff.load(tmp_path / "b", device="cpu", read={"no_forms": "las"})
    assert changed.trained.preprocessing.policy.no_forms == "las"
