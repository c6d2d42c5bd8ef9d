"""A run in one file: what is in it, what is not, and that it localizes as the run does."""

import re

import numpy as np
import pytest
import torch
from tiny_app import program
from tiny_runs import phantom, tiny, write_data

import volumediff
from volumediff.config import config_path, shipped_models
from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import mni152
from volumediff.data.grid import Grid
from volumediff.data.intensity import Window
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.seen import Seen
from volumediff.data.volume import Volume, read, write
from volumediff.errors import DataError, UsageError
from volumediff.inference.raw_scan import ScannerGrid
from volumediff.outputs.input_grid import InputGrid
from volumediff.runs import model_file
from volumediff.runs.preparation import lies_in
from volumediff.storage import checkpoint
from volumediff.storage.digests import sha256_of_file
from volumediff.storage.tensors import load_plain, stream
from volumediff.training.loop import train

__all__ = ["program"]  # fixtures

CARD = {
    "about": "Phantoms.",
    "data": ["six phantoms"],
    "licence": "CC0-1.0",
    "limits": ["phantoms alone"],
    "metrics": {"AP": "none"},
}

WORDS = ("threshold.min_volumes=2",)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("secret-place")
    data = write_data(root / "data", cases=8)
    words = ("data.split={validation: 0.25, calibration: 0.25}",)
    return train(tiny(data, root / "run", *words))


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    target = tmp_path_factory.mktemp("model") / "phantoms.safetensors"
    volumediff.export(run, target, card=CARD, method="intensity", overrides=WORDS)
    return target


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_weights_are_those_of_the_run_rounded(run, file):
    mine = checkpoint.find(run, "best").tensors("ema")
    loaded = volumediff.load(file)
    theirs = checkpoint.find(loaded.folder, "best").tensors("ema")
    assert set(mine) == set(theirs)
    parameters = {n for n, p in loaded.trained.task.module.named_parameters() if p.ndim > 1}
    assert parameters
    for name, value in mine.items():
        wanted = value.bfloat16().float() if name in parameters else value
        torch.testing.assert_close(theirs[name], wanted, rtol=0, atol=0)


def test_it_is_calibrated_and_needs_no_data(file):
    result = volumediff.load(file).localize((phantom(9), np.diag([3.0, 3, 3, 1])))
    assert result.facts["method"] == "intensity"
    assert np.isfinite(result.map).all()
    assert result.threshold is not None


def test_a_method_of_ones_own_goes_along(run, file, tmp_path, monkeypatch):
    own = tmp_path / "here" / "mine.yaml"
    own.parent.mkdir()
    own.write_bytes(config_path("anomaly", "intensity").read_bytes())
    target = tmp_path / "own.safetensors"
    card = volumediff.export(run, target, card=CARD, method=own, overrides=WORDS)
    assert card.method == "method/mine.yaml"
    own.unlink()
    monkeypatch.chdir(own.parent)
    image = (phantom(9), np.diag([3.0, 3, 3, 1]))
    found, wanted = (volumediff.load(model).localize(image) for model in (target, file))
    assert found.threshold == wanted.threshold is not None
    np.testing.assert_array_equal(found.map, wanted.map)


def test_names_and_places_stay_behind_and_hashes_go_along(run, file):
    content = file.read_bytes()
    for word in (b"secret-place", b"sub-0"):
        assert word not in content
    folder = volumediff.load(file).folder
    seen = Seen.load(folder / "seen.json")
    images = sorted((run.parent / "data").glob("*_T1w.nii.gz"))
    found = [seen.find(digests=[sha256_of_file(image)], patients=[], names=[]) for image in images]
    assert all(match is not None and match.of == "the model phantoms" for match in found)
    assert sum(volumediff.load(file).card.seen.values()) == len(images)


def test_a_damaged_file_is_refused(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    with pytest.raises(DataError, match="does not match its SHA-256"):
        volumediff.load(bad)


def test_it_is_unpacked_once_and_whole(file):
    first = volumediff.load(file).folder
    times = {p: p.stat().st_mtime_ns for p in first.rglob("*.safetensors")}
    assert volumediff.load(file).folder == first
    assert times == {p: p.stat().st_mtime_ns for p in first.rglob("*.safetensors")}
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_without_a_shipped_model_a_line_says_what_to_do(program, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_models, "SHIPPED", tmp_path / "none")
    image = Volume.from_array(phantom(1), np.diag([3.0, 3, 3, 1])).save(tmp_path / "a.nii.gz")
    code, _, said = program("localize", image, "-o", tmp_path / "out")
    assert code == 2
    assert "t1w: no folder, no model file, and no model that ships" in said


def test_a_name_that_does_not_ship_names_those_that_do(monkeypatch, tmp_path):
    (tmp_path / "t1w.safetensors").touch()
    monkeypatch.setattr(shipped_models, "SHIPPED", tmp_path)
    with pytest.raises(UsageError, match=r"t2w: no folder.* \(t1w\)"):
        volumediff.load("t2w")


def test_info_shows_the_card(program, file):
    code, said, _ = program("info", file)
    assert code == 0
    assert "six phantoms" in said
    assert "CC0-1.0" in said


def test_an_incomplete_card_is_refused(run, tmp_path):
    with pytest.raises(DataError, match="licence"):
        volumediff.export(
            run, tmp_path / "x.safetensors", card={**CARD, "licence": None}, method="intensity"
        )


@pytest.mark.parametrize("file", sorted(model_file.SHIPPED.glob("*.safetensors")))
def test_shipped_models_are_whole_and_small(file):
    assert file.stat().st_size <= 16e6
    card = model_file.card_of_file(file)
    assert card.name == file.stem
    assert card.seen
    # no path of the machine that it was made on, in no text of the file
    assert not re.search(rb"[\" ]/[A-Za-z]{2,}/", file.read_bytes())
    loaded = volumediff.load(file)
    assert loaded.trained.channels == card.channels


def test_a_map_goes_home_as_restore_brings_it():
    """On a run whose grid is the template's, the way home is the alignment's own way back."""
    template = Grid((12, 14, 10), np.diag([2.0, 2, 2, 1]))
    matrix = np.eye(4)
    matrix[:3, :3] = [[1.1, 0.1, 0], [-0.1, 0.95, 0], [0, 0, 1.05]]
    matrix[:3, 3] = (1.0, -2.0, 0.5)
    native = Grid((9, 11, 10), np.diag([-2.5, 2.5, 2.0, 1]) + 10 * np.eye(4, k=3))
    alignment = Alignment(native, template, matrix)
    x = np.random.default_rng(0).uniform(1, 2, (1, *template.shape)).astype(np.float32)
    plan = Preprocessing(intensity=Window(center=1.0, width=2.0))
    ready = plan.prepare_volumes([Volume(x, template.affine, "image", template)])
    grid = ScannerGrid(InputGrid(plan, ready.record), alignment)
    values = torch.from_numpy(x - 3)
    np.testing.assert_allclose(
        grid.image(values), alignment.back(x - 3, fill=float((x - 3).min())), atol=1e-6
    )
    np.testing.assert_allclose(
        grid.image(values, beyond=1.0), alignment.back(x - 3, fill=1.0), atol=1e-6
    )
    mask = torch.from_numpy(x > 1.5)
    np.testing.assert_array_equal(
        grid.label(mask), alignment.back_labels(mask.numpy() * np.uint8(1))
    )
    assert grid.record.native is native


def test_the_template_lies_in_its_space_and_a_shifted_one_does_not():
    coarse = mni152().at(4.0)
    here = Volume(coarse.x[None], coarse.grid.affine, "image", coarse.grid)
    assert lies_in(here, mni152())
    affine = coarse.grid.affine + 25 * np.eye(4, k=3)
    there = Volume(coarse.x[None], affine, "image", Grid(coarse.grid.shape, affine))
    assert not lies_in(there, mni152())


def test_a_raw_scan_is_localized_on_its_own_grid(tmp_path, program):
    """The shipped model, given the template's head where no template lies, by one command."""
    head = mni152().at(3.0)
    affine = np.diag([-1.0, 1, 1, 1]) @ head.grid.affine + 25 * np.eye(4, k=3)
    write(
        tmp_path / "head_T1w.nii.gz",
        head.x[None],
        like=Grid(head.grid.shape, affine),
        kind="image",
    )
    words = ("localize", tmp_path / "head_T1w.nii.gz", "-o", tmp_path / "out", "--no-report")
    code, _, err = program(*words)
    assert code == 0, err
    found = read(tmp_path / "out" / "head_desc-anomaly_map.nii.gz")
    assert found.native.shape == head.grid.shape
    np.testing.assert_allclose(found.native.affine, affine, atol=1e-4)
    assert np.isfinite(found.array).all()
    assert found.array.max() > found.array.min()


@pytest.mark.parametrize("count", [0, 1])
def test_tensors_of_one_number_or_none_are_written(tmp_path, count):
    """They count as contiguous with a stride of 0, which has no view as bytes."""
    value = torch.full((count,), 7).as_strided((count,), (0,))
    with open(tmp_path / "x.safetensors", "wb") as target:
        stream(target, {"a": value})
    tensors, _ = load_plain(tmp_path / "x.safetensors", advice="none")
    assert tensors["a"].tolist() == [7] * count


def test_a_place_on_the_hub_is_fetched_first():
    with pytest.raises(UsageError, match=r"hf:me/brain: .*volumediff pull hf:me/brain -o RUN"):
        volumediff.load("hf:me/brain")


def test_only_a_folder_a_file_or_a_name_is_a_run(tmp_path):
    (tmp_path / "a.txt").write_text("no model")
    with pytest.raises(UsageError, match="expected the folder of a run"):
        volumediff.load(tmp_path / "a.txt")
