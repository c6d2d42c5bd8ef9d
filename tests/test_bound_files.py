"""Files of a run that are whole but not its own are refused, by training and by what loads it."""

import json
import shutil

import numpy as np
import pytest
from artefacts import RULE, SHARES
from tiny_app import save
from tiny_runs import phantom, tiny, write_data

from volumediff.errors import DataError, UsageError
from volumediff.runs.trained import load_trained
from volumediff.settings.bound_files import bound_of
from volumediff.storage import checkpoint, folder, records, seal
from volumediff.training.loop import train

FILES = ("splits.json", "sources.json", "seen.json", "landmarks.json", "statistics")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=6)


def config(data, output, *words):
    own = (RULE, SHARES, "recipe={name: healthy, scalars: [age]}", "optim.steps=1")
    return tiny(data, output, *own, *words)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(config(data, tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """Another split, and so other landmarks and statistics."""
    return train(config(data, tmp_path_factory.mktemp("other") / "run", "data.split.seed=1"))


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def put(source, place):
    if place.is_dir():
        shutil.rmtree(place)
        shutil.copytree(source, place)
    else:
        shutil.copyfile(source, place)


def test_all_files_are_bound(run):
    bound = checkpoint.find(run, "best").bound
    assert bound == bound_of(run)
    assert set(bound.files) == {*FILES[:-1], "inputs/manifest.json", "statistics/manifest.json"}
    assert bound.settings["optim.lr"] == "0.001"
    assert not {"optim.steps", "output", "data.workers"} & set(bound.settings)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_refused(copy, run, other, data, name):
    put(other / name, copy / name)
    with pytest.raises(DataError, match=rf"{name}.* differs from the one that the run was"):
        load_trained(copy)
    if name == "landmarks.json":  # fitted again on the training part, and so its own again
        train(config(data, copy, "optim.steps=2"))
        assert (copy / name).read_bytes() == (run / name).read_bytes()
        return
    with pytest.raises((DataError, UsageError), match=rf"{name}|is not the volume"):
        train(config(data, copy, "optim.steps=2"))
    assert checkpoint.find(copy, "last").step == 1


@pytest.mark.parametrize("name", ["seen.json", "splits.json"])
def test_a_file_that_is_gone_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: is gone: it is the one that the run was"):
        load_trained(copy)


def test_a_file_that_was_not_there_is_refused(copy):
    shutil.copytree(copy / "statistics", copy / "borrowed" / "states")
    with pytest.raises(DataError, match=r"borrowed/states/manifest.json: was not there"):
        load_trained(copy)


@pytest.mark.parametrize("name", ["files", "settings"])
def test_a_checkpoint_that_is_bound_to_nothing_is_refused(copy, name):
    for path in list((copy / "checkpoints").iterdir()):
        files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != folder.MANIFEST}
        state = json.loads(files["state.json"])
        state["bound"][name] = {}
        folder.discard(path)
        folder.publish(path, {**files, "state.json": json.dumps(state).encode()})
    with pytest.raises(DataError, match=rf"state\.json: bound\.{name} is empty"):
        load_trained(copy)


def test_an_edited_setting_is_named_though_its_seal_fits(copy):
    body = seal.open_text((copy / "config.yaml").read_bytes())
    records.write_text(copy / "config.yaml", body.replace("lr: 0.001", "lr: 0.003"))
    with pytest.raises(DataError, match=r"says optim.lr: '0.003', and the run .* with '0.001'"):
        load_trained(copy)
    # what may change between two starts may
    records.write_text(copy / "config.yaml", body.replace("workers: 0", "workers: 1"))
    load_trained(copy, device="cpu")


def test_a_volume_that_changed_is_refused_on_resume(data, copy, tmp_path):
    moved = shutil.copytree(data, tmp_path / "data")
    run = train(config(moved, tmp_path / "fresh"))
    (name, *_) = json.loads((run / "splits.json").read_text())["train"]
    (image,) = moved.glob(f"{name}*.nii.gz")
    before = image.read_bytes()
    save(image, phantom(0) * 2, np.diag([3.0, 3, 3, 1]))
    with pytest.raises(UsageError, match=rf"case {name} is not the volume that the run began"):
        train(config(moved, run, "optim.steps=2"))
    image.write_bytes(before)
    train(config(moved, run, "optim.steps=2"))
    assert checkpoint.find(run, "last").step == 2
