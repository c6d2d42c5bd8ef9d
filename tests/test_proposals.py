"""Configurations that are proposed for data sets: nothing is cropped, and they train at once."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_app import program
from tiny_runs import phantom, write_data

import volumediff
from volumediff.config.yaml_text import parse_yaml
from volumediff.errors import DataError, UsageError
from volumediff.optimization.metrics_file import read_metrics
from volumediff.proposals.commented import commented
from volumediff.proposals.data_choices import FEW
from volumediff.proposals.geometry import target_grid, thick_axis
from volumediff.proposals.measured import measure
from volumediff.samples.sources import cases_of, plan_of, split_of
from volumediff.settings.run_config import load_run_config

__all__ = ["program"]  # a fixture

SMALL = (
    *("network.widths=[4,8]", "network.groups=2", "network.blocks=1", "optim.steps=2"),
    *("optim.warmup=1", "optim.batch_size=1", "validation.every=2", "validation.volumes=1"),
    *("validation.previews=0", "validation.best=null", "memory.dtype=float32"),
)


def save(path: Path, array: np.ndarray, spacing=(3.0, 3.0, 3.0), origin=(0.0, 0.0, 0.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    nib.save(nib.Nifti1Image(array, affine), path)


def head(seed: int, size=(16, 18, 16), *, margin=3) -> np.ndarray:
    """A phantom in a larger field of view."""
    return np.pad(phantom(seed, size), margin)


def one_modality(root):
    return write_data(root, cases=4, size=(12, 12, 12))


def two_channels(root):
    for i in range(4):
        for name in ("T1w", "FLAIR"):
            save(root / f"sub-{i}_{name}.nii.gz", head(i), origin=(i * 20.0, 0, 0))
    return root


def labels(root):
    return write_data(root, cases=4, size=(12, 12, 12), labels=True)


def ct(root):
    for i in range(3):
        x = head(i)
        save(root / f"p{i}_ct.nii.gz", np.where(x > 0, x / 2, -1000 + i).astype(np.float32))
    return root


def one_case(root):
    return write_data(root, cases=1, size=(12, 12, 12))


def mixed_spacing(root):
    for i in range(3):
        step = 3.0 if i else 6.0
        save(root / f"sub-{i}_T1w.nii.gz", head(i, (12, 14, 12)), spacing=(step, step, step))
    return root


def thick_slices(root):
    for i in range(3):
        save(root / f"sub-{i}_T2w.nii.gz", head(i, (20, 10, 20)), spacing=(1.0, 5.0, 1.0))
    return root


SETS = {
    "one_modality": (one_modality, "localization"),
    "two_channels": (two_channels, "localization"),
    "labels": (labels, "segmentation"),
    "ct": (ct, "localization"),
    "one_case": (one_case, "localization"),
    "mixed_spacing": (mixed_spacing, "localization"),
    "thick_slices": (thick_slices, "localization"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_proposal_crops_nothing_and_trains_as_it_is(name, program, tmp_path):
    make, goal = SETS[name]
    root, file = make(tmp_path / "data"), tmp_path / "proposed.yaml"
    code, out, said = program("init", root, "-o", file, "--for", goal)
    assert (code, out) == (0, "")
    assert f"next: read {file}" in said
    text = file.read_text()
    config = load_run_config(file)
    assert text.startswith("# yaml-language-server: $schema=volumediff.schema.json\n# Proposed by")
    assert max(map(len, text.splitlines())) <= 120
    recipe, cases = plan_of(config.data), cases_of(config.data)
    for case in cases:
        prepared = recipe.prepare(case)
        assert prepared.cropped == 0
        assert prepared.foreground.any()
    assert split_of(cases, config.data).note(config.data.split.least_calibration).partition(";")[
        0
    ].partition(":")[2].strip().split(",")[0] in text.replace("\n  # ", " ")
    assert (len(cases) < FEW) == (" few: the model will know little" in said)
    # what a user edits is what is read
    file.write_text(text.replace("seed: 0", "seed: 7"))
    assert load_run_config(file).seed == 7
    run = tmp_path / "run"
    code, _, said = program("train", file, f"output={run}", *SMALL)
    assert code == 0, said
    assert sum("loss" in row for row in read_metrics(run / "metrics.jsonl")) == 2


def test_what_is_proposed_follows_from_the_data(tmp_path):
    found = {
        name: volumediff.propose(make(tmp_path / name), goal=goal).config
        for name, (make, goal) in SETS.items()
    }
    assert found["one_modality"].data.channels is None
    assert found["one_modality"].data.only == {"group": "control"}
    assert set(found["two_channels"].data.channels) == {"T1w", "FLAIR"}
    # volumes lie in different places: nothing holds them together but their foreground
    assert found["two_channels"].data.preprocessing.centre == "foreground"
    assert isinstance(found["one_modality"].data.preprocessing.centre, tuple)
    assert found["labels"].recipe["labels"] == [1]
    assert found["labels"].data.split.calibration == 0
    assert found["ct"].data.preprocessing.intensity["name"] == "window"
    assert found["mixed_spacing"].data.preprocessing.spacing_mm == 3.0
    thick = found["thick_slices"]
    assert thick.space["name"] == "slices"
    assert thick.space["axis"] == "h"
    assert thick.data.preprocessing.spacing_mm == (1.0, 5.0, 1.0)


def test_a_card_gets_a_finer_grid_and_a_policy_that_fits(tmp_path):
    for i in range(2):
        save(tmp_path / "d" / f"sub-{i}_T1w.nii.gz", head(i, (90, 96, 90)), spacing=(2.0,) * 3)
    small = volumediff.propose(tmp_path / "d").config
    large = volumediff.propose(tmp_path / "d", vram_gb=16.0).config
    assert small.data.preprocessing.spacing_mm > large.data.preprocessing.spacing_mm == 2.0
    assert large.data.preprocessing.shape[0] * 2.0 >= 90 * 2.0 * 0.9
    planned = volumediff.plan(large.dump(), vram_gb=16.0)
    assert planned.fits
    assert vars(planned.chosen.policy) == vars(large.memory)


def test_few_voxels_get_a_small_network_on_any_card(tmp_path):
    # 32 × 40 × 32 voxels: three planes at the coarsest level of the 128³ network would be 96³
    for i in range(2):
        save(tmp_path / "d" / f"sub-{i}_T1w.nii.gz", head(i, (32, 40, 32)), spacing=(5.0,) * 3)
    config = volumediff.propose(tmp_path / "d", vram_gb=24.0).config
    assert config.data.preprocessing.spacing_mm == 5.0
    assert config.data.preprocessing.shape == (32, 40, 32)
    assert config.network["widths"] == load_run_config("wavelet_64").network["widths"]


def test_a_choice_of_healthy_cases_is_said(tmp_path):
    root = write_data(tmp_path / "d", cases=9, size=(12, 12, 12))
    rows = [
        f"sub-{i:02d}\t{'control' if i < 7 else 'depr'}\t{'calibration' if i < 5 else 'train'}"
        for i in range(9)
    ]
    table = "\n".join(["participant_id\tgroup\tsplit", *rows])
    (root / "participants.tsv").write_text(table + "\n")
    proposal = volumediff.propose(root)
    assert proposal.config.data.only == {"group": "control"}
    chosen, few = proposal.remarks
    assert chosen.startswith("7 of 9 cases are used, those with {group: control}")
    assert "set data.only={}" in chosen
    assert "7 of 9 cases are chosen as healthy" in proposal.comments["data.only"]
    # five calibrate already: no more are asked for
    assert few.startswith("7 patients are few")
    assert "calibrate" not in few
    assert "more than" not in proposal.comments["data.split"]


def test_the_grid_is_the_formula(tmp_path):
    found = measure(mixed_spacing(tmp_path / "data"))
    assert thick_axis(found) is None
    grid = target_grid(found, 64, (8, 8, 8), thick=None)
    extent = np.max([c.size_mm for c in found.cases], axis=0)
    np.testing.assert_allclose(grid.extent_mm, extent)
    spacing = max(3.0, extent.max() / 62)
    assert grid.spacing_mm == (spacing,) * 3
    assert grid.shape == tuple(max(math.ceil((e / spacing + 2) / 8), 3) * 8 for e in extent)
    tight = target_grid(found, 12, (8, 8, 8), thick=None)
    assert tight.spacing_mm[0] == math.ceil(extent.max()) / 10
    # foregrounds as they were drawn: the outermost voxels of the phantom
    inside = head(1, (12, 14, 12)) != 0
    assert found.cases[1].box[0] == tuple(np.flatnonzero(inside.any((1, 2)))[[0, -1]])
    assert found.cases[1].foreground_ml == pytest.approx(inside.sum() * 0.027)


def test_data_that_do_not_suit_are_refused_with_what_to_do(program, tmp_path):
    both = ct(tmp_path / "both")
    save(both / "p8_ct.nii.gz", head(8))
    code, _, said = program("init", both, "-o", tmp_path / "a.yaml")
    assert code == 1
    assert "3 of 4 cases look like CT in Hounsfield units (such as p0)" in said
    with pytest.raises(DataError, match="label map for every case; 4 of 4 have none"):
        volumediff.propose(one_modality(tmp_path / "bare"), goal="segmentation")
    apart = tmp_path / "apart"
    for i, name in enumerate(("T1w", "FLAIR")):
        save(apart / f"sub-{i}_{name}.nii.gz", head(i))
    with pytest.raises(DataError, match=r"no image .* every one of 2 cases; there are"):
        volumediff.propose(apart)
    with pytest.raises(UsageError, match="above 0"):
        volumediff.propose(apart, vram_gb=-1.0)
    assert not (tmp_path / "a.yaml").exists()


def test_init_never_replaces_a_file_unasked(program, tmp_path):
    root, file = one_case(tmp_path / "data"), tmp_path / "a.yaml"
    file.write_text("mine: true\n")
    code, _, said = program("init", root, "-o", file)
    assert code == 2
    assert "give --force" in said
    assert file.read_text() == "mine: true\n"
    assert program("init", root, "-o", tmp_path / "a.json")[0] == 2
    assert program("init", root, "-o", file, "--force")[0] == 0
    assert "data:" in file.read_text()


def test_comments_change_no_value():
    tree = {"a": {"b": [1, 2.5], "c": {"d": None, "e": "x: # y"}}, "f": True, "g": {}, "h": "no"}
    text = commented(tree, {"a.c.e": "why\nso " * 30, "f": "because"})
    assert parse_yaml(text) == tree
    assert json.loads(json.dumps(parse_yaml(commented(tree, {})))) == tree
    assert "    # why" in text
    assert "# because\nf: true" in text
