"""Histogram standardisation: landmarks by hand and by TorchIO, what is undone, where it lies."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchio
from test_resume import digests
from tiny_app import PLAIN, program, save
from tiny_runs import phantom, rebind, tiny, write_data

from volumediff.config import build
from volumediff.data.cases import Case
from volumediff.data.intensity import HistogramIntensity, Percentile, landmarks_of
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.splits import Split
from volumediff.errors import DataError, UsageError
from volumediff.runs.auxiliary_models import Borrowed
from volumediff.runs.trained import load_trained
from volumediff.samples.landmarks import load_landmarks
from volumediff.storage import records
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

AFFINE = np.diag([3.0, 3, 3, 1])
DECILES = (1.0, *(10.0 * i for i in range(1, 10)), 99.0)  # those that TorchIO uses
RULE = "data.preprocessing.intensity={name: histogram, foreground: nonzero}"
SPLIT = "data.split={seed: 0, validation: 0.2, calibration: 0.2}"


def brain(seed, gain=100.0, power=1.0):
    """Voxels of three tissues, and zeros around."""
    rng = np.random.default_rng(seed)
    tissue = rng.choice([0.3, 0.6, 0.8], p=[0.2, 0.4, 0.4], size=(16, 14, 12))
    x = gain * np.clip(tissue + 0.08 * rng.standard_normal(tissue.shape), 0.02, 1.2) ** power
    x[:2] = 0
    return x.astype(np.float32)


def fitted(volumes, **options):
    rule = HistogramIntensity(foreground="nonzero", **options)
    limits = [rule.limits(x, x != 0) for x in volumes]
    return HistogramIntensity(foreground="nonzero", landmarks=(landmarks_of(limits),), **options)


def standard(rule, x):
    return rule.apply(x, x != 0, limits=rule.limits(x, x != 0))


# the map


def test_landmarks_and_map_by_hand():
    rule = HistogramIntensity(percentiles=(0.0, 50.0, 100.0))
    x = np.array([10, 20, 30, 40, 90], np.float32).reshape(5, 1, 1)
    limits = rule.limits(x, np.ones(x.shape, bool))
    assert limits == (10, 30, 90)
    # 2 (30 - 10) / 80 - 1 = -1/2, and 2 (8 - 0) / 10 - 1 = 3/5 of another volume
    assert landmarks_of([limits, (0.0, 8.0, 10.0)]) == pytest.approx((-1, 0.05, 1))
    rule = HistogramIntensity(percentiles=(0.0, 50.0, 100.0), landmarks=((-1.0, 0.05, 1.0),))
    values = np.array([0, 10, 20, 30, 60, 90, 200], np.float32).reshape(7, 1, 1)
    mask = np.ones(values.shape, bool)
    mask[2] = False
    y = rule.apply(values, mask, limits=limits)
    assert y.ravel() == pytest.approx([-1, -1, -1, 0.05, 0.525, 1, 1])
    back = rule.invert(y, limits=limits).ravel()
    assert back == pytest.approx([10, 10, 10, 30, 60, 90, 90], rel=1e-6)


def test_it_is_that_of_torchio(tmp_path):
    train_on = [brain(i, gain=50 + 30 * i, power=1 + 0.1 * i) for i in range(4)]
    paths = [save(tmp_path / f"{i}.nii", x, AFFINE) for i, x in enumerate(train_on)]
    theirs = torchio.HistogramStandardization.train(
        paths, masking_function=lambda x: x != 0, progress=False
    )
    used = [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12]  # they keep the quartiles and do not use them
    rule = fitted(train_on, percentiles=DECILES)
    np.testing.assert_allclose(rule.landmarks[0], theirs[used] / 50 - 1, atol=1e-6)
    x = brain(9, gain=700, power=0.7)
    transform = torchio.HistogramStandardization(
        {"t1": theirs}, masking_method=lambda values: values != 0
    )
    subject = torchio.Subject(t1=torchio.ScalarImage(tensor=torch.from_numpy(x)[None]))
    expected = transform(subject)["t1"].numpy()[0] / 50 - 1
    inside = x != 0
    # they go on beyond the ends, where [-1, 1] ends
    assert (np.abs(expected[inside]) > 1).any()
    y = standard(rule, x)
    np.testing.assert_allclose(y[inside], np.clip(expected[inside], -1, 1), atol=1e-5)
    assert (y[~inside] == -1).all()


def test_the_tone_curve_of_a_scanner_is_undone():
    train_on = [brain(i) for i in range(6)]
    rule, plain = fitted(train_on), Percentile(foreground="nonzero")
    x = brain(20)
    inside = x != 0
    first = standard(rule, x)
    # gain and offset: exactly
    moved = np.where(inside, 3.7 * x + 250, 0).astype(np.float32)
    np.testing.assert_allclose(standard(rule, moved), first, atol=1e-5)
    # a curve that bends at the percentiles: exactly, where these are voxels (2000 q is whole)
    values = 1 + np.sort(np.random.default_rng(0).normal(50, 10, (2001, 1, 1)), 0)
    limits = rule.limits(values, values != 0)
    bent = np.interp(values, limits, np.cumsum(np.arange(1, len(limits) + 1.0)))
    np.testing.assert_allclose(standard(rule, bent), standard(rule, values), atol=1e-6)
    # a power, which bends everywhere: between the percentiles it is not undone
    curved = np.where(inside, 900 * (x / 100) ** 1.8, 0).astype(np.float32)
    left = np.abs(standard(rule, curved) - first)[inside].mean()
    before = np.abs(standard(plain, curved) - standard(plain, x))[inside].mean()
    assert left < 0.05 * before
    # more percentiles leave less
    fine = {"percentiles": (0.5, *np.arange(2.0, 99, 2).tolist(), 99.9)}
    rule = fitted(train_on, **fine)
    assert np.abs(standard(rule, curved) - standard(rule, x))[inside].mean() < 0.3 * left


@pytest.mark.parametrize("kind", ["continuous", "few values", "one value"])
def test_it_never_falls(kind):
    x = brain(3)
    if kind == "few values":
        x = np.where(x == 0, 0, np.round(x / 40) * 40 + 5).astype(np.float32)
    if kind == "one value":
        x = np.where(x == 0, 0, 7).astype(np.float32)
    rule = fitted([brain(i) for i in range(3)])
    limits = rule.limits(x, x != 0)
    line = np.linspace(-300, 500, 20_000, dtype=np.float32).reshape(-1, 1, 1)
    y = rule.apply(line, np.ones(line.shape, bool), limits=limits).ravel()
    assert (np.diff(y) >= 0).all()
    assert np.isfinite(y).all()
    assert (-1 <= y.min()) & (y.max() <= 1)
    if kind == "continuous":
        assert (y[0], y[-1]) == (-1, 1)
    back = rule.invert(y.reshape(-1, 1, 1), limits=limits).ravel()
    assert (np.diff(back) >= 0).all()
    assert (limits[0] <= back.min()) & (back.max() <= limits[-1])


def test_every_channel_has_its_own_landmarks(tmp_path):
    a, b = fitted([brain(0)]).landmarks[0], fitted([brain(0, power=3.0)]).landmarks[0]
    assert np.abs(np.subtract(a, b)).max() > 0.2
    images = {
        "T1w": save(tmp_path / "T1w.nii", brain(1), AFFINE),
        "FLAIR": save(tmp_path / "FLAIR.nii", brain(1), AFFINE),
    }
    plan = Preprocessing(intensity=HistogramIntensity(foreground="nonzero", landmarks=(a, b)))
    prepared = plan.prepare(Case("c", "c", images))
    for channel, landmarks in zip(prepared.x.numpy(), (a, b), strict=True):
        rule = HistogramIntensity(foreground="nonzero", landmarks=(landmarks,))
        np.testing.assert_array_equal(channel, standard(rule, brain(1)))
    native = plan.to_intensity(prepared.x.numpy(), prepared.record)
    limits = prepared.record.limits[0]
    inside = brain(1) != 0
    for channel in native:
        clipped = np.clip(brain(1), limits[0], limits[-1])
        np.testing.assert_allclose(channel[inside], clipped[inside], atol=1e-3)
    with pytest.raises(ValueError, match="landmarks of 1 channels, got channel 2; give volumes"):
        Preprocessing(intensity=fitted([brain(0)])).prepare(Case("c", "c", images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentiles": [10, 10, 90]}, "two or more increasing percentiles in"),
        ({"percentiles": [50]}, "two or more increasing percentiles in"),
        ({"percentiles": [1, 101]}, "two or more increasing percentiles in"),
        ({"landmarks": [[-1, 1]]}, "intensity.landmarks: is derived, not configured"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        build("intensity", {"name": "histogram", **options}, landmarks=())


@pytest.mark.parametrize(
    "values", [(-1.0, 0.5, 0.4, 1.0), (-1.0, 0.0, 1.0), (-0.9, 0.0, 0.1, 1.0)]
)
def test_landmarks_rise_from_end_to_end(values):
    with pytest.raises(ValueError, match="takes 4 landmarks that rise from -1 to 1"):
        HistogramIntensity(percentiles=(1.0, 30.0, 60.0, 99.0), landmarks=(values,))


# in a run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("histogram") / "data", cases=10)


@pytest.fixture(scope="module")
def run(data):
    return train(tiny(data, data.parent / "run", RULE, SPLIT, "optim.steps=2"))


def by_hand(data, names):
    rule = HistogramIntensity(foreground="nonzero")
    limits = []
    for name in names:
        x = phantom(int(name.removeprefix("sub-")))
        limits.append(rule.limits(x, x != 0))
    return landmarks_of(limits)


def test_landmarks_are_those_of_the_training_patients_alone(data, run):
    split = Split.load(run / "splits.json")
    assert len(split.train) == 6
    (found,) = load_landmarks(run)
    assert found == pytest.approx(by_hand(data, split.train), abs=1e-9)
    assert found != pytest.approx(by_hand(data, [f"sub-{i:02d}" for i in range(10)]), abs=1e-3)
    assert json.loads((run / "landmarks.json").read_text())["cases"] == list(split.train)
    assert load_trained(run, device="cpu").preprocessing.intensity.landmarks == (found,)


def test_a_run_goes_on_bit_by_bit_with_the_landmarks_it_began_with(data, run, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    words = (RULE, SPLIT)
    half = train(tiny(copy, tmp_path / "run", *words, "optim.steps=1"))
    before = (half / "landmarks.json").read_bytes()
    save(copy / "sub-77_T1w.nii.gz", 9 * phantom(77), AFFINE)  # new: not of the split
    train(tiny(copy, half, *words, "optim.steps=2"))
    assert (half / "landmarks.json").read_bytes() == before
    assert digests(half) == digests(run)
    # no step was kept: the split is drawn anew, and so are they
    shutil.rmtree(half / "checkpoints")
    train(tiny(copy, half, *words, "optim.steps=2"))
    split = Split.load(half / "splits.json")
    assert len(split.train) == 7
    assert json.loads((half / "landmarks.json").read_text())["cases"] == list(split.train)


def test_a_volume_of_another_scanner_is_seen_as_one_of_the_training(run, program, tmp_path):
    x = phantom(50)
    save(tmp_path / "in" / "a_T1w.nii.gz", x, AFFINE)
    save(tmp_path / "in" / "b_T1w.nii.gz", np.where(x > 0, 40 * x + 3000, 0), AFFINE)
    out = tmp_path / "out"
    code, _, said = program("localize", tmp_path / "in", "--run", run, "-o", out, *PLAIN)
    assert code == 0, said
    trained = load_trained(run, device="cpu")
    (rule,) = [trained.preprocessing.intensity]
    maps = [torchio.ScalarImage(out / f"{n}_desc-anomaly_map.nii.gz").numpy()[0] for n in "ab"]
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-4)
    np.testing.assert_allclose(maps[0], (1 + standard(rule, x)) / 2, atol=1e-5)


def test_pseudo_healthy_volumes_have_the_intensities_of_the_file(run, program, tmp_path):
    x = np.where(phantom(51) > 0, 40 * phantom(51) + 3000, 0).astype(np.float32)
    source = save(tmp_path / "b_T1w.nii.gz", x, AFFINE)
    words = ("--method", "smoothing", "baseline.sigma_mm=0.001", "threshold=best", "post=[]")
    code, _, said = program("localize", source, "--run", run, "-o", tmp_path / "out", *words)
    assert code == 0, said
    (path,) = (tmp_path / "out").glob("*pseudohealthy*")
    healthy = torchio.ScalarImage(path).numpy()[0]
    low, *_, high = HistogramIntensity(foreground="nonzero").limits(x, x > 0)
    inside = x > 0
    np.testing.assert_allclose(healthy[inside], np.clip(x, low, high)[inside], rtol=1e-4)
    np.testing.assert_allclose(healthy[~inside], low, rtol=1e-5)


def test_a_classifier_sees_with_the_landmarks_of_its_run(run, data, tmp_path):
    trained = load_trained(run, device="cpu")
    words = ["task=state_classifier", "optim.steps=1", RULE]
    words += ["recipe={name: class_conditional, attribute: group, values: [control, patient]}"]
    words += ["recipe.drop=0", "data.split={seed: 5, validation: 0.5}"]

    def classifier(of, name):
        spec = f"classifier={{name: encoder, of: {of}, widths: [4, 8], groups: 2}}"
        return train(tiny(data, tmp_path / name, *words, spec))

    found = classifier(run, "classifier")
    assert load_landmarks(found) == load_landmarks(run), "not those of its own training part"
    Borrowed(trained).load("classifier", found)
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "landmarks.json").read_text())
    content["landmarks"][0][3] += 0.01
    del content["sha256"]
    records.write(other / "landmarks.json", content)
    with pytest.raises(DataError, match=r"landmarks\.json: differs from the one that the run"):
        load_trained(other, device="cpu")
    rebind(other)
    with pytest.raises(UsageError, match="was trained on the states of"):
        Borrowed(load_trained(other, device="cpu")).load("classifier", found)


def test_what_cannot_be_fitted_is_refused(data, run, tmp_path):
    config = tiny(
        "population",
        tmp_path / "a",
        RULE,
        "data.preprocessing.spacing_mm=20",
        "data.population.subjects=3",
    )
    with pytest.raises(UsageError, match="histogram is fitted on files"):
        train(config)
    flat = shutil.copytree(data, tmp_path / "data")
    for path in flat.glob("*.nii.gz"):
        x = torchio.ScalarImage(path).numpy()[0]
        save(path, (x > 0).astype(np.float32), AFFINE)
    with pytest.raises(DataError, match=r"case sub-\d+: its foreground has a single intensity"):
        train(tiny(flat, tmp_path / "b", RULE, SPLIT))
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "landmarks.json").write_text("{")
    rebind(bare)
    with pytest.raises(DataError, match="damaged"):
        _ = load_trained(bare, device="cpu").preprocessing
    for damaged in ("{", "[1]", '{"landmarks": []}'):
        (bare / "landmarks.json").write_text(damaged)
        with pytest.raises(DataError, match=r"landmarks\.json: damaged .*from a backup"):
            train(tiny(data, bare, RULE, SPLIT, "optim.steps=3"))
    (bare / "landmarks.json").unlink()
    rebind(bare)
    with pytest.raises(UsageError, match=r"has no landmarks\.json, so its intensities are not"):
        _ = load_trained(bare, device="cpu").preprocessing
