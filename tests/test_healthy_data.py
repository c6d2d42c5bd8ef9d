"""Healthy means healthy: held-out patients stay held out, and marked lesions are nobody's norm."""

import json
import shutil

import pytest
import torch
from tiny_runs import load_run, tiny, write_data

from volumediff.autoencoders.kl import KL
from volumediff.errors import UsageError
from volumediff.randomness import generator
from volumediff.recipes._base import Subject
from volumediff.recipes.class_conditional import ClassConditional
from volumediff.recipes.healthy import Healthy
from volumediff.runs.trained import load_trained
from volumediff.samples.sources import gather
from volumediff.samples.statistics import Statistics
from volumediff.training.loop import train

HELD = ("data.split.validation=0.3", "data.split.calibration=0.3")


def split(run):
    return json.loads((run / "splits.json").read_text())


def test_new_cases_do_not_move_held_out_patients(tmp_path, capsys):
    root = write_data(tmp_path / "data", cases=10)
    run = train(tiny(root, tmp_path / "run", *HELD, "optim.steps=1"))
    before = split(run)
    write_data(root, cases=14)
    train(tiny(root, run, *HELD, "optim.steps=2"))
    assert split(run) == before
    assert "4 cases are new since the run began and not used: sub-10" in capsys.readouterr().err
    next(root.glob("sub-03*.nii.gz")).unlink()
    with pytest.raises(UsageError, match=r"case sub-03 of its splits\.json is not in the data"):
        train(tiny(root, run, *HELD, "optim.steps=3"))


def test_marked_lesions_are_left_out_of_the_atlas_and_the_calibration(tmp_path):
    root = write_data(tmp_path / "data", cases=8, labels=True)
    whole = write_data(tmp_path / "clean", cases=8)
    for path in sorted(root.glob("sub-0[0-3]*label.nii.gz")):
        path.unlink()  # four cases without marks remain healthy
    words = (*HELD, "optim.steps=1", "recipe={name: healthy, atlas: true}")
    run = train(tiny(root, tmp_path / "run", *words))
    kept = [i for i in split(run)["train"] if i in {f"sub-0{n}" for n in range(4)}]
    assert 0 < len(kept) < len(split(run)["train"]), "the split must hold both kinds"
    clean = train(tiny(whole, tmp_path / "other", *words))
    recipe = Healthy(atlas=True)
    volumes = {v.id: v for v in _volumes(tiny(whole, clean, *words))}
    expected = torch.stack([volumes[i].x for i in kept]).mean(0)
    torch.testing.assert_close(Statistics.load(run).atlas, expected, rtol=1e-5, atol=1e-5)
    assert recipe.healthy({})
    trained = load_trained(run, which="last")
    marked = [i for i in split(run)["calibration"] if i not in {f"sub-0{n}" for n in range(4)}]
    examples = list(trained.examples("calibration"))
    assert len(examples) == len(split(run)["calibration"]) - len(marked)


def _volumes(config):
    from accelerate import Accelerator

    from volumediff.storage.cache import Cache

    cache = Cache(config.output.parent / "cache", lambda line: None)
    training, validation = gather(config, Accelerator(cpu=True), cache)
    return training + validation


def test_numbers_in_the_table_are_classes_too():
    recipe = ClassConditional("group", ("0", "1"), drop=0.0)
    x = torch.zeros(1, 2, 2, 2)
    labels = [
        recipe.target(Subject(x, attributes={"group": value}), atlas=None, key=0).label
        for value in (0.0, 1.0, "1")
    ]
    assert labels == [0, 1, 1]
    assert recipe.healthy({"group": 0.0})
    assert not recipe.healthy({"group": 1.0})
    assert not recipe.healthy({})


def test_the_discriminator_has_no_vote_in_validation():
    model = KL(
        1, latent_channels=2, widths=(4, 8), strides=((2, 2, 2),), blocks=1, adversarial=5.0
    )
    x = torch.randn(1, 1, 8, 8, 8, generator=generator(0))

    @torch.no_grad()
    def parts(module):
        return module.loss("autoencoder", x, generator=generator(1))

    assert "adversarial" in parts(model.train())
    before = float(parts(model.eval())["loss"])
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.add_(1.0)
    assert float(parts(model)["loss"]) == before


def test_label_diffusion_runs_in_a_latent_space(tmp_path):
    root = write_data(tmp_path / "data", labels=True)
    codec = "autoencoder={name: kl, latent_channels: 2, widths: [4, 8], strides: [[2, 2, 2]]}"
    words = ("task=autoencoder", codec, "optim.steps=1")
    encoder = train(tiny(root, tmp_path / "kl", *words))
    space = f"space={{name: latent, autoencoder: '{encoder}'}}"
    words = (space, "recipe.name=label_diffusion", "optim.steps=2")
    _, model = load_run(train(tiny(root, tmp_path / "run", *words)))
    codes = model.space.analysis(torch.full((1, 1, 8, 8, 8), -1.0))
    assert codes.shape[1] == 2
    assert not torch.equal(model.space.scale, torch.ones(2)), "codes are brought to unit variance"
    shutil.rmtree(tmp_path / "run")
