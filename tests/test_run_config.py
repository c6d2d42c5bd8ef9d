"""Run configurations: every shipped file builds and trains, and errors say what to do."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import load_run, tiny, write_data

from volumediff.errors import UsageError
from volumediff.settings.run_config import changes, load_run_config, parse, saved_config
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.tasks import build_task
from volumediff.training.loop import train
from volumediff.training.run_folder import keep_config

ROOT = Path(__file__).parents[1] / "configs"
FILES = sorted([*(ROOT / "pipelines").glob("*.yaml"), *(ROOT / "autoencoders").glob("*.yaml")])
DEPENDENT = sorted(
    [
        *(ROOT / "classifiers").glob("*.yaml"),
        *(ROOT / "residual_segmenters").glob("*.yaml"),
        *(ROOT / "probes").glob("*.yaml"),
        *(ROOT / "students").glob("*.yaml"),
    ]
)
SIZES = ("64", "128", "256")


def test_all_pipelines_and_sizes_are_there():
    names = {p.stem for p in FILES}
    pipelines = {f"{p}_{n}" for p in ("patch", "wavelet", "latent", "pseudo3d") for n in SIZES}
    assert pipelines | {f"{a}_{n}" for a in ("kl", "vq") for n in SIZES} <= names


@pytest.mark.parametrize("path", [*FILES, *DEPENDENT], ids=lambda p: p.stem)
def test_every_file_builds_on_the_meta_device(path):
    config = load_run_config(path)
    with torch.device("meta"):
        task = build_task(config)
    assert {p.device.type for p in task.trained().values()} == {"meta"}
    # every key is written out, so that a file is complete documentation
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(tree) >= {"data", "crop", "memory", "optim", "validation", "save_every", "output"}
    assert str(config.output) == f"runs/{path.stem}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=4, size=(16, 16, 16))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return write_data(folder, cases=4, size=(16, 16, 16), labels=True)


def small(path, data, output, *words):
    """The file's own pipeline at 16^3 with narrow layers; float32, as d = 2 levels occur."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    part = "autoencoder" if "autoencoder" in tree else "network"
    extra = ["network.groups=4"] if part == "network" else []
    if "widths" in tree[part]:
        extra.append(f"{part}.widths={[8] * len(tree[part]['widths'])}")
    if tree["crop"]:
        crop = [16, 16, 8] if tree["crop"][0] != tree["crop"][2] else [8, 8, 8]
        extra.append(f"crop={crop}")
    return load_run_config(
        path,
        [
            f"data.root={data}",
            "data.preprocessing.shape=[16,16,16]",
            "data.preprocessing.spacing_mm=3",
            "data.workers=0",
            "memory.dtype=float32",
            "optim.steps=1",
            "validation.volumes=1",
            "validation.preview_steps=2",
            "validation.previews=1",
            f"data.cache={output.parent / 'cache'}",
            f"output={output}",
            *extra,
            *words,
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_file_runs_one_training_step_at_small_size(path, data, labelled, tmp_path):
    words = []
    wanted = load_run_config(path)
    if path.stem.startswith("masks"):
        data = labelled
    for key, source in wanted.borrows().items():
        first = ROOT / "autoencoders" / f"{source.name}.yaml"
        words = [f"{key}={train(small(first, data, tmp_path / 'autoencoder'))}"]
    config = small(path, data, tmp_path / "run", *words)
    before = build_task(config).trained()
    run = train(config)
    _, trained = load_run(run, which="last", weights="weights")
    after = dict(trained.named_parameters())
    assert any(not torch.equal(p, after[n]) for n, p in before.items()), "nothing was learnt"
    assert list((run / "previews").glob("*.png"))
    if "space.autoencoder" in wanted.borrows():
        space = trained.space.inner if isinstance(trained.space, Slices) else trained.space
        assert isinstance(space, Latent)
        assert len(space.digest) == 64


def test_a_complete_file_of_another_task_says_how_to_write_one_of_the_method(tmp_path):
    path = tmp_path / "complete.yaml"
    path.write_text(load_run_config("wavelet_64").to_yaml())
    message = "times: unknown key for task segmentation.*give method=unet to the command that"
    with pytest.raises(UsageError, match=message):
        load_run_config(path, ["method=unet"])
    path.write_text(load_run_config("wavelet_64", ["method=unet"]).to_yaml())
    assert load_run_config(path, ["method=unet"]).task == "segmentation"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lrr=1"], "config: optim.lrr: unknown key; choose from lr, steps.*'lr'"),
        (
            ["opim.lr=1"],
            "config: opim: unknown key for task diffusion; choose from task, .*data.*mean 'optim'",
        ),
        (["optim.lr=fast"], "config: optim.lr: expected a number, got 'fast'"),
        (["optim.steps=0"], "config: optim.steps: expected a number above 0, got 0"),
        (
            ["memory.dtype=float8"],
            "config: memory.dtype: expected float32, tf32, bfloat16 or",
        ),
        (
            ["memory.dtype=float16", "processes.shard=true"],
            "float16 scales losses, .* use bfloat16, or processes.shard=false",
        ),
        (["memory.slab=true"], "memory.slab: expected a whole number"),
        (["memory.chekpoint=true"], "config: memory: unknown key chekpoint.*mean 'checkpoint'"),
        (["data.augmentation.flop=[0]"], "config: data.augmentation: unknown key flop"),
        (["data.split.seeds=1"], "config: data.split.seeds: unknown key.*Did you mean 'seed'"),
        (["network=null"], r"config: needs network for task diffusion\.$"),
        (
            ["autoencoder.name=kl"],
            r"autoencoder: unknown key for task diffusion \(it is one of task=autoencoder\)",
        ),
        (["task=difusion"], "task.name = 'difusion': choose from autoencoder, .*'diffusion'"),
        (["task=3"], "config: task: expected a name, got 3; choose from autoencoder, .*diffusion"),
        (["task=autoencoder"], r"config: needs autoencoder for task autoencoder\.$"),
        *(
            (["task=autoencoder", "autoencoder=kl", word], "unknown key for task autoencoder")
            for word in ("kernel=gaussian", "noise=gaussian", "times=[0, 0.5]", "space=voxel")
        ),
        (["optim.accumulate=3"], r"config: needs optim.batch_size \(2\) to be a multiple"),
        (["crop=[8, 8]"], "config: crop.*got"),
        (["times=[0, 1]"], r"config: times"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(tmp_path, words, message):
    with pytest.raises(UsageError, match=message) as caught:
        tiny(tmp_path, tmp_path / "run", *words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space.name=voxels"], "space.name = 'voxels': choose from .*'voxel'"),
        (["network.width=[8]"], "network.width: UNet takes"),
        (["recipe.name=healthyy"], "recipe.name = 'healthyy': choose from .*healthy"),
        (["space.name=latent"], "space.autoencoder: expected the folder of an autoencoder's run"),
        (["space={name: latent, autoencoder: runs/nope}"], "no such run and no shipped"),
    ],
)
def test_components_that_cannot_be_built_name_their_key(tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        build_task(tiny(tmp_path, tmp_path / "run", *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=null"], "data.root: expected the folder of the volumes"),
        (["data.root=population", "data.preprocessing.shape=null"], "needs data.preprocessing"),
        (["data.split.validation=0.6", "data.split.test=0.4"], "nothing is left for training"),
        (["data.channels=[FLAIR]"], "missing channel 'FLAIR'"),
        (["crop=[16,8,8]"], r"crop \[16, 8, 8\] is larger than case sub-0"),
        (["space.name=wavelet", "crop=[3,4,4]"], r"crop \[3, 4, 4\]: expected multiples"),
        (
            ["recipe={name: healthy, scalars: [weight]}"],
            "recipe.scalars: case sub-0. has 'weight' = None",
        ),
        (["recipe.name=label_diffusion"], "needs a label map for every case"),
        (["processes.number=3"], "processes.number: 3 requested, 1 launched, 1 joined"),
        (
            ["validation.best={volumes: 1}", "data.preprocessing.spacing_mm=0.5"],
            "validation.best: no lesion fits into case sub-0",
        ),
        (["trackers=[nosuchtracker]"], "trackers: nosuchtracker is not installed"),
        (
            ["space={name: latent, autoencoder: runs/kl_64}"],
            "no such run; train it first: volumediff train configs/autoencoders/kl_64.yaml",
        ),
    ],
)
def test_what_the_data_or_the_launch_contradicts_fails_before_the_first_step(
    data, tmp_path, words, message
):
    config = tiny(data, tmp_path / "run", "data.preprocessing.shape=[8,8,8]", *words)
    with pytest.raises(Exception, match=message) as caught:
        train(config)
    assert type(caught.value).__name__ in {"UsageError", "DataError"}
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_saved_configuration_is_the_same_configuration(tmp_path):
    words = ["data.augmentation.flip=[0]", "crop=[4,4,4]", "data.preprocessing.spacing_mm=3"]
    config = tiny(tmp_path, tmp_path / "run", *words)
    keep_config(tmp_path, config)
    assert saved_config(tmp_path) == config
    assert parse(config.dump()) == config
    assert config.data.preprocessing.spacing() == (3.0, 3.0, 3.0)


def test_changes_name_every_setting_but_those_that_are_free(tmp_path):
    old = tiny(tmp_path, tmp_path / "run")
    new = tiny(
        tmp_path,
        tmp_path / "other",
        "optim.lr=0.5",
        "optim.steps=99",
        "data.workers=2",
        "network.widths=[4]",
        "trackers=[x]",
    )
    assert sorted(changes(old, new)) == ["network.widths: [4, 8] -> [4]", "optim.lr: 0.001 -> 0.5"]
    assert changes(old, old) == []
