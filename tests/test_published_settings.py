"""Settings and licences that tools publish beside their weights: read, and never run."""

import json

import pytest
import safetensors.torch
from monai_networks import autoencoder, unet

from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint
from volumediff.importers._files import checkpoint_of
from volumediff.importers._published import Published, agreed, published_with
from volumediff.importers.monai_unet import MonaiUNetImporter
from volumediff.runs.trained import load_trained
from volumediff.samples.preparation_record import NAME, RunPreparation
from volumediff.settings.import_record import import_records_of
from volumediff.storage.records import read
from volumediff.training.imported import import_run

# What a bundle looks like: two files, of which one refers to the other.
MODEL = {
    "channels": 4,
    "groups": "@sizes#groups",
    "sizes": {"groups": 4, "heads": [2, "@channels"]},
    "net": {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "in_channels": "@channels",
        "channels": [8, 16],
        "norm_num_groups": "@groups",
        "num_head_channels": "@sizes::heads",
    },
    "schedule": {
        "_target_": "monai.networks.schedulers.ddim.DDIMScheduler",
        "schedule": "scaled_linear_beta",
        "beta_start": 0.002,
        "beta_end": 0.03,
        "num_train_timesteps": 500,
        "prediction_type": "v_prediction",
    },
}
CODER = {
    "autoencoder": {
        "_target_": "AutoencoderKL",
        "in_channels": 1,
        "channels": [8, 16],
        "norm_num_groups": 4,
    },
    "transforms": [
        {"_target_": "Orientationd", "axcodes": "RAS"},
        {"_target_": "Spacingd", "pixdim": [1.5, 1.25, 1.0]},
        {"_target_": "CenterSpatialCropd", "roi_size": [100, 120, 90]},
        {"_target_": "ScaleIntensityRangePercentilesd", "lower": 1, "upper": 99, "b_min": -1},
    ],
    "data": {"_target_": "monai.apps.DecathlonDataset", "task": "Task01_BrainTumour"},
}


def written(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def bundle(tmp_path):
    """Two checkpoints and the settings of both, as a bundle has them."""
    files = {"configs/inference.json": MODEL, "configs/train_autoencoder.json": CODER}
    files |= {"LICENSE": "Apache License\nVersion 2.0, January 2004\n"}
    files |= {"configs/metadata.json": {"name": "Small brains", "version": "1"}}
    folder = written(tmp_path / "bundle", files)
    (folder / "models").mkdir()
    for name, module in (("coder", autoencoder(latent_channels=4)), ("net", unet())):
        tensors = {n: t.float() for n, t in module.state_dict().items()}
        safetensors.torch.save_file(tensors, folder / "models" / f"{name}.safetensors")
    return folder


def test_a_bundle_says_what_no_tensor_tells(bundle, tmp_path):
    coder = import_run(
        "monai_autoencoder", bundle / "models/coder.safetensors", tmp_path / "coder"
    )
    run = import_run(
        "monai_unet",
        bundle / "models/net.safetensors",
        tmp_path / "run",
        overrides=[f"space.autoencoder={coder}", "importer.head_size=8"],
    )
    told = import_run(
        "monai_unet",
        bundle / "models/net.safetensors",
        tmp_path / "told",
        overrides=[f"space.autoencoder={coder}"],
    )
    for folder in (coder, run):
        preprocessing = load_trained(folder, device="cpu").config.data.preprocessing
        assert preprocessing.spacing_mm == (1.5, 1.25, 1.0)
        assert preprocessing.shape == (100, 120, 90)
        # one percent of a volume of 1.08 million voxels of 1.875 mm³, in a brain of 1400 ml
        high = 100 - 1 / (1400 / (1.08e3 * 1.875))
        assert preprocessing.intensity == {
            "name": "percentile", "low": 1, "high": pytest.approx(high, abs=0.01)
        }  # fmt: skip
        assert read(folder / NAME, RunPreparation) == RunPreparation(
            template="sri24", stripped=True, n4=False, source="Small brains"
        )
        found = import_records_of(folder)[0]
        assert (found.name, found.licence) == ("Small brains", "Apache-2.0")
        assert found.address == "https://github.com/Project-MONAI/model-zoo"
    assert load_trained(coder, device="cpu").config.autoencoder["interval"] == [-1, 1]
    config = load_trained(told, device="cpu").config
    assert config.network["groups"] == 4
    assert config.network["head_size"] == [2, 4]
    assert config.network["steps"] == 500
    assert config.kernel["prediction"] == "v"
    assert config.kernel["schedule"] == {
        "name": "scaled_linear", "levels": 500, "beta_first": 0.002, "beta_last": 0.03
    }  # fmt: skip
    assert load_trained(run, device="cpu").config.network["head_size"] == 8


def test_a_folder_with_two_checkpoints_is_asked_about(bundle):
    with pytest.raises(UsageError, match=r"has 2 checkpoints \(models/coder.safetensors, models/"):
        checkpoint_of(bundle)
    (bundle / "models/coder.safetensors").unlink()
    assert checkpoint_of(bundle) == bundle / "models/net.safetensors"
    with pytest.raises(UsageError, match=r"has no checkpoint .* give one"):
        checkpoint_of(bundle / "configs")


@pytest.mark.parametrize(
    "code",
    [
        "$__import__('os').system('touch ran')",
        "%other.json::x",
        "@made",
        "@nowhere",
        "@a",
        [1, "$2"],
    ],
)
def test_code_is_never_run_and_its_word_asked_for(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = {"net": {"heads": code}, "made": "$open('ran', 'w')", "a": "@b", "b": "@a"}
    (part,) = Published({"c.json": tree}).holding("heads")
    with pytest.raises(
        UsageError, match=r"c.json: net: heads .* never run; give head=N"
    ) as caught:
        part.value("heads", word="head=N")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    # a word of the user, or of the section around it, makes the setting unneeded
    for said in ("head", "a.head"):
        word = f"{said}=N"
        (part,) = Published({"c.json": tree}, said=[said.partition(".")[0]]).holding("heads")
        assert part.value("heads", word=word, default=7) == 7


def test_references_go_to_their_own_file_first():
    one = {"x": 1, "net": {"_target_": "a.b.Net", "k": "@x", "far": "@y#1"}}
    two = {"x": 2, "y": [3, 4], "list": [{"_target_": "Net", "k": "@x"}]}
    parts = Published({"one.json": one, "two.json": two}).parts("Net")
    assert [part.place for part in parts] == ["one.json: net", "two.json: list#0"]
    assert [part.value("k", word="k=N") for part in parts] == [1, 2]
    assert parts[0].value("far", word="k=N") == 4
    assert parts[0].value("absent", word="k=N", default=5) == 5
    with pytest.raises(
        UsageError, match=r"one.json: net has k 1, and two.json: list#0 has 2; give k="
    ):
        agreed(parts, "k", word="k=N")
    assert agreed(parts[:1], "k", word="k=N") == 1
    assert agreed([], "k", word="k=N", default=6) == 6


def test_settings_of_another_network_are_refused(bundle):
    tensors = unet(channels=(8, 8)).state_dict()
    found = ForeignCheckpoint(tensors, published=published_with(bundle))
    with pytest.raises(DataError, match=r"has widths \[8, 8\] and 4 input channels, and .*net"):
        MonaiUNetImporter().config(found)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"schedule": "cosine"}, "schedule 'cosine' has no name here.*give kernel.schedule="),
        ({"prediction_type": "noise"}, "prediction_type 'noise' .*give kernel.prediction="),
        (
            {"beta_end": "$1 / 50"},
            r"beta_end is given by the code '\$1 / 50'.*give kernel.schedule=",
        ),
    ],
)
def test_schedules_without_a_name_are_asked_for(schedule, message):
    tree = {"s": {"_target_": "DDPMScheduler"} | schedule}
    source = ForeignCheckpoint(unet().state_dict(), published=Published({"x.json": tree}))
    with pytest.raises(UsageError, match=message):
        MonaiUNetImporter(4).config(source)


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"LICENSE": "\n  MIT License\n\nCopyright"}, "MIT"),
        ({"LICENSE.txt": "                Apache License\n        Version 2.0\n"}, "Apache-2.0"),
        ({"COPYING": "\nNVIDIA   Open Model License\n"}, "NVIDIA Open Model License"),
        ({"README.md": "---\nlicense: mit\ntags: [a]\n---\nA model\n"}, "mit"),
        ({"README.md": "---\nlicense: &x mit\n---\n"}, None),
        ({"README.md": "license: mit\n"}, None),
        ({}, None),
    ],
)
def test_licences(files, licence, tmp_path):
    assert published_with(written(tmp_path, files)).licence == licence


def test_where_settings_lie(tmp_path):
    """In the folder, in configs and config, above a folder of weights; data are left alone."""
    files = {"a.json": {"x": 1}, "configs/b.yaml": "x: 2\n", "config/model/c.yml": "x: 3\n"}
    files |= {
        "list.json": [1, 2],
        "configs/big.json": {"x": "." * 2**20},
        "other/d.json": {"x": 4},
    }
    folder = written(tmp_path / "t", files)
    expected = {"a.json": 1, "config/model/c.yml": 3, "configs/b.yaml": 2}
    for path in (folder, folder / "w.pt", folder / "models" / "w.pt"):
        assert {n: tree["x"] for n, tree in published_with(path).files.items()} == expected
    for text in ("{", '{"x": ' + "[" * 10**5, "\xff"):
        (folder / "a.json").write_text(text, encoding="latin-1")
        with pytest.raises(
            DataError, match=r"a.json: cannot be read as settings .*repair it"
        ) as e:
            published_with(folder)
        assert "\n" not in str(e.value)


def test_axes_in_another_order_are_refused():
    state = unet(resblock_updown=True).state_dict()
    tree = {"t": [{"_target_": "Orientationd", "axcodes": "SLP"}]}
    with pytest.raises(DataError, match=r"other axes .*got 'SLP'.*give importer.axes=RAS") as e:
        MonaiUNetImporter(4).config(
            ForeignCheckpoint(state, published=Published({"x.json": tree}))
        )
    assert "\n" not in str(e.value)
    told = Published({"x.json": tree}, said=["importer.axes"])
    MonaiUNetImporter(4, axes="RAS").config(ForeignCheckpoint(state, published=told))
