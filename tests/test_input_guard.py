"""What a run was trained on, and inputs that are unlike it: said, or refused unless forced."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_app import PLAIN, oblique, program, save
from tiny_runs import phantom, tiny

from volumediff.data.intensity import Percentile
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError
from volumediff.samples.input_guard import Difference, InputGuard, accepted, looks_like_ct
from volumediff.samples.input_measures import LEVELS, coarse, likeness, measured
from volumediff.samples.input_profile import InputProfile, Range
from volumediff.samples.preparation_record import RunPreparation, told_preparation
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import CacheEntry
from volumediff.training.loop import train

__all__ = ["program"]  # fixture

SIZE = (16, 16, 16)
GRID = np.diag([3.0, 3, 3, 1])
T1W = InputGuard(("T1w",), None, None)


def volume(tmp_path, values, affine=None, name="a.nii.gz") -> Volume:
    affine = oblique("RAS", 0.0) if affine is None else affine
    return read(save(tmp_path / name, values.astype(np.float32), affine))


def texts(differences: list[Difference]) -> str:
    return " | ".join(("! " if d.absurd else "") + d.text for d in differences)


# Measures, by hand.


def test_measures_of_a_volume_are_those_of_its_foreground():
    x = torch.full((1, 4, 5, 5), -1.0)
    inside = torch.zeros((1, 4, 5, 5), dtype=torch.bool)
    inside[0, 0] = True
    x[0, 0] = torch.linspace(0, 1, 25).reshape(5, 5)
    found = measured(x, inside, (2.0, 2.0, 10.0))
    assert found.foreground_ml == pytest.approx(25 * 40 / 1000)
    assert found.quantiles[0] == pytest.approx(LEVELS, abs=1e-6)


def test_coarse_voxels_are_means_of_blocks():
    x = torch.arange(5 * 4 * 3, dtype=torch.float32).reshape(1, 5, 4, 3)
    inside = x % 2 == 0
    blocks, shown = coarse(x, inside, (1.5, 3.0, 0.9))
    assert blocks.shape == (1, 3, 4, 1)
    # the last block has the one plane that is left
    assert blocks[0, 0, 1, 0] == pytest.approx(float(x[0, :2, 1].mean()))
    assert blocks[0, 2, 3, 0] == pytest.approx(float(x[0, 4, 3].mean()))
    assert shown[0, 2, 0, 0] == (inside[0, 4, 0].float().mean() >= 0.5)


def test_likeness_is_correlation_and_overlap_where_both_show():
    draw = np.random.default_rng(0)
    mean = torch.from_numpy(draw.uniform(-0.5, 1, (1, 8, 8, 8))).float()
    inside = torch.ones((1, 8, 8, 8), dtype=torch.bool)
    assert likeness(-2 * mean, inside, mean).correlation == pytest.approx(-1)
    assert likeness(0.5 * mean, inside, mean).tissue == pytest.approx(1)
    half = inside.clone()
    half[:, 4:] = False
    assert likeness(mean, half, mean).overlap == pytest.approx(0.5)
    x = torch.from_numpy(draw.normal(size=(1, 8, 8, 8))).float()
    a, b = (t[0, :4].flatten().double().numpy() for t in (x, mean))
    found = likeness(x, half, mean)
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    bright = b >= np.sort(b)[(b.size - 1) // 2]
    assert found.tissue == pytest.approx(np.corrcoef(a[bright], b[bright])[0, 1])


def cohort(folder, images, spacing_mm=(3.0, 3.0, 3.0)) -> list[TrainingVolume]:
    """Prepared training volumes, of files with voxels of 1 x 1 x 1.2 mm."""
    info = {"spacing_mm": list(spacing_mm), "file_spacing_mm": [1.0, 1.0, 1.2]}
    found = []
    for i, image in enumerate(images):
        place = folder / f"cohort-{i}"
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / "x.npy", image[None] / 110 - 1)
        np.save(place / "foreground.npy", image[None] > 0)
        found.append(TrainingVolume(str(i), {}, CacheEntry(place, info), ("T1w",)))
    return found


def phantoms(*seeds) -> list[np.ndarray]:
    return [phantom(seed, SIZE) for seed in seeds]


def test_a_profile_is_the_range_of_its_volumes_and_each_is_held_against_the_others(tmp_path):
    volumes = cohort(tmp_path, phantoms(*range(5)))
    profile = InputProfile.measure(volumes)
    record = profile.record
    sizes = [int(v.foreground.sum()) * 27 / 1000 for v in volumes]
    assert record.foreground_ml == Range(low=min(sizes), median=sorted(sizes)[2], high=max(sizes))
    assert record.channels == ("T1w",)
    assert record.voxel_mm == Range(low=1.2, median=1.2, high=1.2)
    others = torch.stack([v.x for v in volumes[1:]]).mean(0)
    alone = likeness(volumes[0].x, volumes[0].foreground, others)
    each = [
        likeness(v.x, v.foreground, torch.stack([o.x for o in volumes if o is not v]).mean(0))
        for v in volumes
    ]
    assert alone.overlap == pytest.approx(each[0].overlap)
    assert record.likeness.correlation.low == pytest.approx(
        min(alike.correlation for alike in each), abs=1e-5
    )
    profile.save(tmp_path)
    again = InputProfile.load(tmp_path)
    assert again.record == record
    torch.testing.assert_close(again.mean, profile.mean, atol=1e-3, rtol=1e-3)
    (tmp_path / "inputs/profile.json").write_text("{}")
    with pytest.raises(DataError, match="profile"):
        InputProfile.load(tmp_path)


def test_volumes_on_several_grids_have_no_mean(tmp_path):
    volumes = cohort(tmp_path, [phantom(0, (8, 8, 8)), phantom(1, SIZE)])
    profile = InputProfile.measure(volumes)
    assert profile.mean is None
    assert profile.record.likeness is None


# Files.


def test_ct_is_told_by_its_air(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(40, 20, (10, 10, 10))
    assert not looks_like_ct(volume(tmp_path, x))
    x[0, :5] = -1000  # 5 % air
    assert looks_like_ct(volume(tmp_path, x))
    x[0, :1, :1] = 40
    assert not looks_like_ct(volume(tmp_path, x))  # 4.9 %


def test_only_a_run_that_names_contrasts_of_mri_objects_to_ct(tmp_path):
    ct = [volume(tmp_path, np.full((8, 8, 8), -1000.0))]
    said = texts(T1W.files(ct))
    assert said.startswith("! a.nii.gz looks like CT")
    assert "trained on T1w" in said
    for channels in (None, ("CT",), ("T1w", "CT"), ("image",)):
        assert InputGuard(channels, None, None).files(ct) == []
    assert T1W.files([volume(tmp_path, np.ones((8, 8, 8)))]) == []


def test_a_file_that_is_named_as_another_contrast_is_said(tmp_path):
    ones = np.ones((4, 4, 4))
    flair = volume(tmp_path, ones, name="p1_FLAIR.nii.gz")
    assert "named FLAIR, and the run was trained on T1w" in texts(T1W.files([flair]))
    for same in ("p1_T1.nii.gz", "p1.nii.gz", "t1_p1.nii.gz", "p1_MR.nii.gz"):
        assert T1W.files([volume(tmp_path, ones, name=same)]) == []
    two = InputGuard(("T1w", "FLAIR"), None, None)
    t1 = volume(tmp_path, ones, name="p1_T1w.nii.gz")
    assert two.files([t1, flair]) == []
    assert len(two.files([flair, t1])) == 2
    assert two.of_channels([1]).files([flair]) == []


@pytest.mark.parametrize("theirs", [True, False])
def test_a_preparation_that_differs_is_said(tmp_path, theirs):
    told = {"template": {"name": "mni152 at 1.5 mm"}, "mask": "none", "strip": False, "n4": theirs}
    (tmp_path / "prepared.json").write_text(json.dumps(told))
    assert told_preparation(tmp_path) == RunPreparation(
        template="mni152", stripped=True, n4=theirs, source="prepared.json"
    )
    given = [volume(tmp_path / "p1", np.ones((4, 4, 4)), name="p1_T1w.nii.gz")]
    own = {"template": "mni152", "stripped": True, "source": "prepared.json"}
    for ours in (True, False):
        guard = InputGuard(("T1w",), None, RunPreparation(n4=ours, **own))
        said = texts(guard.files(given))
        assert ("bias-corrected" in said) == (ours != theirs)
        assert "template" not in said
        assert ("was not bias" in said) == (ours and not theirs)
    head = InputGuard(None, None, RunPreparation(n4=theirs, **{**own, "stripped": False}))
    assert "was stripped" in texts(head.files(given))
    other = InputGuard(None, None, RunPreparation(n4=theirs, **{**own, "template": "other"}))
    assert "was not aligned to the template other" in texts(other.files(given))
    (tmp_path / "prepared.json").write_text("{}")
    with pytest.raises(DataError, match="prepare the data set again"):
        guard.files(given)


def test_thick_slices_are_said(tmp_path):
    guard = InputGuard(("T1w",), InputProfile.measure(cohort(tmp_path, phantoms(0))), None)
    thick = volume(tmp_path, np.ones((4, 4, 4)), np.diag([1, 1, 5, 1.0]))
    assert "up to 5 mm long, those of the run's training volumes 1.2 to 1.2 mm" in texts(
        guard.files([thick])
    )
    assert guard.files([volume(tmp_path, np.ones((4, 4, 4)), np.diag([1, 1, 2.3, 1.0]))]) == []


# Prepared volumes.


@pytest.mark.parametrize(("size", "lost"), [(20, 0.0), (19, 0.05), (18, 0.1)])
def test_the_cropped_share_is_the_share_of_lost_voxels(tmp_path, size, lost):
    x = np.random.default_rng(0).uniform(1, 2, (20, 8, 8))
    rule = Percentile(foreground="nonzero")
    ready = Preprocessing(shape=(size, 8, 8), intensity=rule).prepare_volumes(
        [volume(tmp_path, x)]
    )
    assert ready.cropped == pytest.approx(lost)
    said = texts(T1W.volume(ready))
    assert said.startswith("! The run's") == (lost > 0.05)
    assert (f"{lost:.1%} of the foreground" in said) == (lost > 0.05)


def test_an_absurd_input_stops_unless_it_is_forced():
    said, absurd = Difference("Odd."), Difference("Absurd.", absurd=True)
    taken = accepted([said], force=False)
    assert (taken.warnings, taken.forced) == (("Odd.",), ())
    with pytest.raises(DataError, match=r"Absurd\. The option force"):
        accepted([said, absurd], force=False)
    taken = accepted([said, absurd], force=True)
    assert (taken.warnings, taken.forced) == (("Odd.", "Absurd."), ("Absurd.",))


def test_a_cohort_of_four_tells_no_spread(tmp_path):
    small = Preprocessing().prepare_volumes([volume(tmp_path, phantom(0, SIZE) ** 2)])
    for count in (4, 5):
        volumes = cohort(tmp_path, phantoms(*range(count)), (30.0, 30.0, 30.0))
        guard = InputGuard(None, InputProfile.measure(volumes), None)
        assert bool(guard.volume(small)) == (count == 5)


def test_another_cohort_is_held_against_a_run_like_a_volume_with_its_medians(tmp_path):
    own = InputProfile.measure(cohort(tmp_path, phantoms(*range(6))))
    same = InputProfile.measure(cohort(tmp_path / "same", phantoms(*range(10, 15))))
    guard = InputGuard(("T1w",), own, None)
    assert guard.cohort(same) == []
    inverted = cohort(tmp_path / "inverted", [_inverted(i) for i in range(5)])
    assert "brighter tissues do not" in texts(guard.cohort(InputProfile.measure(inverted)))


def _inverted(seed: int) -> np.ndarray:
    """The phantom with a dark core, as another contrast shows it."""
    x = phantom(seed, SIZE)
    return np.where(x > 0, 260 - x, 0).astype(np.float32)


# A run, and the list of wrong inputs through every command.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of seven phantoms, one of them for validation and one for calibration."""
    base = tmp_path_factory.mktemp("guarded")
    for i in range(7):
        save(base / f"data/sub-{i}/sub-{i}_T1w.nii.gz", phantom(i, SIZE), GRID)
    told = {"template": {"name": "own"}, "mask": "given", "strip": False, "n4": False}
    (base / "data/prepared.json").write_text(json.dumps(told))
    words = (
        *("data.split={validation: 0.15, calibration: 0.0, least_calibration: 0}",),
        *(f"data.preprocessing.shape={list(SIZE)}", "optim.steps=1", "save_every=1"),
        "data.channels=[T1w]",
    )
    return train(tiny(base / "data", base / "run", *words))


def wrong(folder) -> dict:
    """File by what is wrong with it, and a word that says so."""
    head = np.where(phantom(50, SIZE) > 0, phantom(50, SIZE), -1000).astype(np.float32)
    small = np.pad(phantom(51, (8, 8, 8)), 4)
    noise = np.random.default_rng(0).uniform(50, 200, (20, 20, 20)).astype(np.float32)
    wide = np.diag([4.5, 4.5, 4.5, 1])
    return {
        "looks like CT": save(folder / "ct_T1w.nii.gz", head, GRID),
        "next to nothing in common": save(folder / "inverted_T1w.nii.gz", _inverted(52), GRID),
        "shows less than they do": save(folder / "third_T1w.nii.gz", small, GRID),
        "shows more than they do": save(folder / "thrice_T1w.nii.gz", phantom(53, SIZE), wide),
        "cut away": save(folder / "large_T1w.nii.gz", noise, GRID),
    }


def test_a_run_knows_what_it_was_trained_on(trained):
    guard = InputGuard.of_run(trained, None)
    assert guard.channels == ("T1w",)
    assert guard.preparation == RunPreparation(
        template="own", stripped=False, n4=False, source="prepared.json"
    )
    assert guard.profile.record.volumes == 6
    assert guard.profile.record.voxel_mm.high == 3
    assert guard.profile.mean.shape == (1, *SIZE)
    inside = sum(int((phantom(i, SIZE) > 0).sum()) for i in range(7)) / 7
    assert guard.profile.record.foreground_ml.median == pytest.approx(inside * 27 / 1000, rel=0.05)


def test_every_wrong_input_is_refused_by_every_command_unless_forced(trained, program, tmp_path):
    files = wrong(tmp_path)
    words = ("localize", *files.values(), "--run", trained, "-o", tmp_path / "out", *PLAIN)
    code, _, said = program(*words)
    assert code == 1
    for word, path in files.items():
        case = path.name.removesuffix("_T1w.nii.gz")
        line = next(row for row in said.splitlines() if row.startswith(f"volumediff: {case}: "))
        assert word in line
        assert line.count(case) <= 2  # the case, and perhaps its file
        assert "option force" in line
    code, _, said = program(*words, "--force", "--overwrite")
    assert code == 0, said
    for word, path in files.items():
        case = path.name.removesuffix("_T1w.nii.gz")
        facts = json.loads((tmp_path / f"out/{case}_desc-anomaly_map.json").read_text())
        assert any(word in text for text in facts["forced"])
        assert set(facts["forced"]) <= set(facts["warnings"])
        assert word in (tmp_path / "out/findings.html").read_text()
    code, out, _ = program("check", *files.values(), "--run", trained)
    assert code == 1
    for word in files:
        assert word in out
    ct = files["looks like CT"]
    words = ("calibrate", "--run", trained, "--method", "intensity", "--healthy", ct)
    code, _, said = program(*words)
    assert (code, "looks like CT" in said) == (1, True)
    assert not (trained / "calibration/healthy.json").exists()


def test_what_is_only_odd_is_said_and_done(trained, program, tmp_path):
    place = save(tmp_path / "p1" / "p1_FLAIR.nii.gz", phantom(60, SIZE), GRID)
    told = {"template": {"name": "own"}, "mask": "given", "strip": False, "n4": True}
    (tmp_path / "prepared.json").write_text(json.dumps(told))
    code, _, said = program(
        *("localize", place, "--run", trained, "-o", tmp_path / "out", *PLAIN),
        "--channels",
        "FLAIR",
    )
    assert code == 0, said
    facts = json.loads((tmp_path / "out/p1_desc-anomaly_map.json").read_text())
    for words in ("is named FLAIR", "bias-corrected"):
        assert words in said
        assert any(words in text for text in facts["warnings"])
        assert words in (tmp_path / "out/findings.html").read_text()
    assert facts["forced"] == []


def test_training_that_goes_on_from_another_contrast_says_so(trained, capsys, tmp_path):
    for i in range(6):
        nib.save(nib.Nifti1Image(_inverted(i), GRID), tmp_path / f"s{i}_T1w.nii.gz")
    words = (
        *("data.split={validation: 0.15, calibration: 0.0, least_calibration: 0}",),
        *(f"data.preprocessing.shape={list(SIZE)}", "optim.steps=1", "save_every=1"),
        *("data.channels=[T1w]", f"start_from={trained}"),
    )
    train(tiny(tmp_path, tmp_path / "run", *words))
    lines = capsys.readouterr().err.splitlines()
    assert any("new to it" in line and "nothing in common" in line for line in lines)
