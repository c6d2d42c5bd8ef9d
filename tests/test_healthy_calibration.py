"""Healthy volumes of a calibration: counted first, added to a finished run, never seen before."""

import json
import re
import shutil

import numpy as np
import pytest
from tiny_app import base, program, run, save
from tiny_runs import phantom

import volumediff
from volumediff.anomaly.baselines import IntensityBaseline
from volumediff.anomaly.threshold import Conformal, HealthyFPR
from volumediff.calibration import of_run
from volumediff.calibration.collect_maps import least_volumes
from volumediff.data.seen import Seen
from volumediff.errors import DataError, UsageError
from volumediff.runs.added_healthy import added_cases

__all__ = ["base", "program", "run"]  # fixtures

WORDS = ("--method", "intensity", "threshold={name: healthy_fpr, min_volumes: 6}")


def healthy_folder(folder, count=3, first=70):
    for i in range(first, first + count):
        save(folder / f"more-{i}_T1w.nii.gz", phantom(i), np.diag([3.0, 3, 3, 1]))
    return folder


def test_what_a_method_needs_is_known_before_it_runs():
    assert least_volumes(IntensityBaseline(threshold=HealthyFPR(min_volumes=5))) == 5
    # the smallest n with ceil((n + 1) p) <= n, counted out
    for p in (0.5, 0.8, 0.9, 0.95):
        n = next(n for n in range(1, 99) if np.ceil(round((n + 1) * p, 9)) <= n)
        assert Conformal(probability=p).least_volumes == n


def test_counts_are_checked_before_anything_is_computed(run, program, tmp_path, monkeypatch):
    def computes(*args, **words):
        raise AssertionError("computed before it counted")

    monkeypatch.setattr(of_run, "fit", computes)
    shutil.copytree(run, tmp_path / "run")
    source = healthy_folder(tmp_path / "in", 1)
    for command in (("calibrate",), ("localize", source, "-o", tmp_path / "out")):
        code, _, said = program(*command, "--run", tmp_path / "run", *WORDS)
        assert code == 2
        assert "expected at least 6 healthy calibration volumes, got 4" in said
        assert said.count("\n") == 1


def test_volumes_are_added_to_a_finished_run(run, program, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("calibration"))
    folder = healthy_folder(tmp_path / "more")
    command = ("calibrate", "--run", place, *WORDS)
    code, out, said = program(*command, "--healthy", folder)
    assert code == 0, said
    assert "3 healthy volumes are added" in said
    assert "on 7 healthy volumes (4 of the calibration split, 3 added)" in said
    assert "calibrated on 7 volumes" in out
    assert re.search(r"findings in \d of 7 healthy volumes, .* in new ones like them in \d", said)
    # the same volumes, even under other names, are not counted twice
    shutil.copytree(folder, tmp_path / "again")
    (tmp_path / "again" / "more-70_T1w.nii.gz").rename(tmp_path / "again" / "x_T1w.nii.gz")
    code, out, said = program(*command, "--healthy", tmp_path / "again")
    assert code == 0, said
    assert "0 healthy volumes are added" in said
    assert "calibrated on 7 volumes" in out
    # localize uses the calibration that is there
    source = healthy_folder(tmp_path / "in", 1, first=90)
    code, _, said = program("localize", source, "--run", place, "-o", tmp_path / "out", *WORDS)
    assert code == 0, said
    assert "calibrating" not in said
    # and what it was calibrated on is known to evaluations
    facts = json.loads((tmp_path / "out" / "more-90_desc-anomaly_map.json").read_text())
    seen = Seen.load(tmp_path / "out" / facts["seen"])
    match = seen.find(digests=[], patients=["more-70"], names=[])
    assert match is not None
    assert match.part == "calibration"
    assert "added" in match.of
    # more volumes are another calibration
    loaded = volumediff.load(place)
    words = {"threshold": {"name": "healthy_fpr", "min_volumes": 6}}
    found = loaded.calibrate("intensity", healthy=healthy_folder(tmp_path / "b", 2, 80), **words)
    assert found.volumes == 9
    assert len(list((place / "calibration" / "intensity").glob("*.safetensors"))) == 2
    # a file that has changed since is refused
    save(folder / "more-71_T1w.nii.gz", phantom(99), np.diag([3.0, 3, 3, 1]))
    with pytest.raises(DataError, match="is another file than was added"):
        loaded.calibrate("intensity", **words)
    (folder / "more-71_T1w.nii.gz").unlink()
    with pytest.raises(DataError, match="is gone; bring it back"):
        loaded.calibrate("intensity", **words)


def test_volumes_that_the_run_has_seen_are_refused(run, program, base, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    split = json.loads((place / "splits.json").read_text())
    loaded = volumediff.load(place)
    for part in ("train", "validation", "calibration"):
        case = next(iter(split[part]))
        copied = tmp_path / f"{part}-folder"
        copied.mkdir()
        shutil.copy(base / "data" / f"{case}_T1w.nii.gz", copied / "renamed_T1w.nii.gz")
        with pytest.raises(UsageError, match=f"renamed was seen before .its file in {part} of"):
            loaded.calibrate("intensity", healthy=copied)
    # the patient alone is enough
    same = tmp_path / "same" / f"{split['train'][0]}_T1w.nii.gz"
    save(same, phantom(123), np.diag([3.0, 3, 3, 1]))
    code, _, said = program("calibrate", "--run", place, *WORDS, "--healthy", same)
    assert code == 2
    assert "its patient in train of" in said
    code, _, said = program("calibrate", "--run", place, "--healthy", same, "--site", same.parent)
    assert code == 2
    assert "give one of them" in said
    assert added_cases(place) == ()
