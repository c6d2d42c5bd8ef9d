"""Classifiers of noisy states: what they compute, how they train, and whose states they know."""

import hashlib
import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from anomaly_models import KERNEL
from test_resume import digests
from tiny_app import base, program, save, write_cases
from tiny_runs import figures, load_run, phantom, tiny, write_data

from volumediff.batch import Batch
from volumediff.classification import ClassPosterior, StateClassifier
from volumediff.classifiers.encoder import Encoder
from volumediff.condition import Condition
from volumediff.config import available, build
from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.planning.planner import trace
from volumediff.randomness import normal, uniform
from volumediff.runs.auxiliary_models import Borrowed
from volumediff.runs.trained import load_trained
from volumediff.settings.run_config import load_run_config, parse, saved_config
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import build_task, resolved
from volumediff.training.loop import train

RECIPE = {"name": "class_conditional", "attribute": "group", "values": ["control", "patient"]}
RECIPE["drop"] = 0.0
_ = base, program  # fixtures


def encoder(k=1, classes=2, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Encoder(k, classes, widths=(4, 8), groups=2, **more)
        for parameter in made.parameters():  # none of the zeros that training starts from
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return made


def batch_of(*labels, size=8, difference=1.0):
    """Volumes of two classes whose means differ."""
    x = [
        0.3 * normal((1, size, size, size), "volume", i) + difference * (label - 0.5)
        for i, label in enumerate(labels)
    ]
    return Batch(torch.stack(x), tuple(range(len(labels))), Condition(label=torch.tensor(labels)))


# what it computes


@pytest.mark.parametrize("name", available("classifier"))
def test_classifiers_give_a_logit_per_class_at_any_size(name):
    made = build("classifier", name, in_channels=3, classes=4)
    for size in ((8, 8, 8), (5, 9, 6)):
        z = torch.randn(2, 3, *size)
        out = made(z, torch.tensor([0.2, 0.7]))
        assert out.shape == (2, 4)
        assert bool((out == 0).all()), "training starts from equal probabilities"
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        type(made)(3, 1)
    with pytest.raises(UsageError, match=r"classifier\.in_channels: is derived"):
        build("classifier", {"name": name, "in_channels": 2}, in_channels=3, classes=2)


def test_the_pooling_is_a_mean_and_a_log_mean_exp():
    made = encoder(sharpness=3.0)
    h = torch.randn(2, 8, 2, 3, 2)
    found = made.pool(h)
    for i in range(2):
        columns = h[i].flatten(1).T  # voxels, features
        each = columns @ made.evidence.weight.T + made.evidence.bias
        mean = columns.mean(0) @ made.mean.weight.T + made.mean.bias
        expected = mean + torch.log(torch.exp(3 * each).mean(0)) / 3
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_small_lesion_counts_more_than_in_the_mean():
    made = encoder(sharpness=5.0)
    for layer in (made.mean, made.evidence):
        layer.weight.zero_()
        layer.bias.zero_()
    made.evidence.weight[1, 0] = made.mean.weight[1, 1] = 1.0
    h = torch.zeros(1, 8, 8, 8, 8)
    h[:, :2, 4, 4, 4] = 5.0  # one voxel of 512, for either pooling
    peak = float(made.pool(h)[0, 1]) - 5 / 512
    assert peak > 5 - math.log(512) / 5 - 1e-4 > 100 * 5 / 512


def test_the_loss_is_the_cross_entropy_at_a_keyed_time():
    module = StateClassifier(Voxel(), KERNEL, encoder())
    batch = batch_of(0, 1, 1)
    losses = module.loss(batch)
    for i, label in enumerate((0, 1, 1)):
        t = torch.tensor([1 - uniform(i, "t")], dtype=torch.float64)
        z_t = KERNEL.corrupt(batch.x[i : i + 1], t, normal((1, 8, 8, 8), i, "loss")[None])
        logits = module.classifier(z_t, t.float())[0]
        expected = torch.logsumexp(logits, 0) - logits[label]
        torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-6)
    part = module.loss(Batch(batch.x[1:2], (1,), Condition(label=torch.tensor([1]))))
    torch.testing.assert_close(part[0], losses[1])
    with pytest.raises(ValueError, match="the classes; got none"):
        module.loss(replace(batch, condition=Condition()))


@pytest.mark.parametrize("space", [Voxel, Wavelet, lambda: Slices(Wavelet(axes="hw"))])
def test_it_learns_what_is_separable(space):
    space = space()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Encoder(space.channels(1), 2, widths=(4, 8), groups=2, norm="voxel")
    module = StateClassifier(space, KERNEL, made)
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    losses = []
    for step in range(30):
        batch = batch_of(0, 1, 0, 1, size=4, difference=2.0)
        keys = tuple(4 * step + i for i in range(4))
        loss = module.loss(replace(batch, keys=keys)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert sum(losses[-5:]) / 5 < 0.6 * math.log(2)
    # and guidance takes a sick state to where it is healthier
    posterior = ClassPosterior(module.log_probability, KERNEL.schedule, 2, "tiny")
    z, t = space.encode(batch_of(1, size=4, difference=2.0).x), torch.tensor([0.2]).double()
    step = posterior.gradient(z, t, label=0)
    with torch.no_grad():
        moved = z + 0.2 * step / step.norm()  # far enough for float32 to tell
        before, after = (module.log_probability(a, t)[0, 0] for a in (z, moved))
    assert float(after) > float(before)


def test_gradients_in_slabs_are_those_of_the_whole():
    module = StateClassifier(Voxel(), KERNEL, encoder()).requires_grad_(False)
    posterior = ClassPosterior(module.log_probability, KERNEL.schedule, 2, "tiny")
    z, t = torch.randn(1, 1, 12, 8, 8), torch.tensor([0.4], dtype=torch.float64)
    whole = posterior.gradient(z, t, label=0)
    MemoryPolicy(slab=4).apply(module)
    torch.testing.assert_close(posterior.gradient(z, t, label=0), whole, rtol=1e-4, atol=1e-6)


# runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A diffusion run of two steps, and how to make configurations of its classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    data = write_data(folder / "data", cases=8)
    words = ("data.split={validation: 0.2, calibration: 0.5}", "optim.steps=2")
    run = train(tiny(data, folder / "run", *words))

    def config(name, of=run, **changes):
        tree = {
            "task": "state_classifier",
            "classifier": {"name": "encoder", "of": str(of), "widths": [4, 8], "groups": 2},
            "recipe": RECIPE,
            "optim": {"lr": 1e-2, "steps": 4, "warmup": 1, "batch_size": 2, "ema": 0.5},
            "validation": {"every": 2, "volumes": 1},
            "save_every": 1,
            "output": str(folder / name),
        }
        return parse({**tree, **changes})

    return data, run, config


@pytest.fixture(scope="module")
def classifier(runs):
    return train(runs[2]("classifier"))


def test_a_classifier_takes_the_states_of_its_run(runs, classifier):
    _, run, config = runs
    saved, module = load_run(classifier)
    theirs, model = load_run(run)
    assert (saved.space, saved.kernel, saved.noise) == (theirs.space, theirs.kernel, theirs.noise)
    assert saved.data == theirs.data
    assert isinstance(module, StateClassifier)
    assert not bool((model.space.scale == 1).all())
    for name in ("shift", "scale"):
        assert torch.equal(getattr(module.space, name), getattr(model.space, name))
    facts = json.loads((classifier / "borrowed" / "states" / "facts.json").read_text())
    (weights,) = run.glob("checkpoints/best-*/ema.safetensors")
    assert facts["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    splits = [json.loads((r / "splits.json").read_text()) for r in (run, classifier)]
    assert splits[0] == splits[1], "no volume changes sides"
    rows = figures(classifier)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert all("validation_loss" in row for row in rows if "loss" not in row)
    # it goes on where it stopped, bit by bit
    train(config("again", optim={**saved.optim.model_dump(), "steps": 2}))
    again = train(config("again"))
    assert digests(again) == digests(classifier)


def test_a_classifier_serves_the_run_of_its_states_alone(runs, classifier, tmp_path):
    data, run, config = runs
    trained = load_trained(run, device="cpu")
    found = Borrowed(trained).load("classifier", classifier)
    assert found.classes == 2
    assert found.facts["of"]["run"] == str(run.resolve())
    assert found.digest in repr(found)
    # later checkpoints have the same states
    Borrowed(load_trained(run, which="last", device="cpu")).load("classifier", classifier)
    words = ("optim.steps=1", "data.split={validation: 0.2, calibration: 0.5}")
    other = train(tiny(data, tmp_path / "other", *words, "kernel.schedule=linear"))
    with pytest.raises(UsageError, match=r"was trained on the states of .*run, which are not"):
        Borrowed(load_trained(other, device="cpu")).load("classifier", classifier)
    with pytest.raises(UsageError, match="expected the run of a classifier; train one with"):
        Borrowed(trained).load("classifier", run)
    with pytest.raises(UsageError, match="trains a classifier, expected the run of a"):
        load_trained(classifier, device="cpu").localizes()
    kernel = {"name": "gaussian", "schedule": "linear"}
    wrong = config("wrong", space="voxel", kernel=kernel)
    with pytest.raises(UsageError, match=r"kernel: expected that of classifier\.of = "):
        train(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier": {"name": "encoder"}}, "classifier: needs the key of: the folder of a di"),
        ({"classifier": "encoder"}, r"classifier: needs the key of: .* \(got 'encoder'\)"),
        ({"classifier": {"name": "encoder", "of": "nowhere"}}, "of = nowhere: no such run and"),
        ({"network": "unet"}, "network: unknown key for task state_classifier"),
        ({"times": "uniformm"}, "times.name = 'uniformm': choose from .*'uniform'"),
        ({"crop": [4, 4, 4]}, "takes crop: null with a classifier"),
        ({"recipe": "healthy"}, "recipe: expected classes without drop, atlas and scalars"),
        ({"recipe": {**RECIPE, "drop": 0.1}}, "recipe: expected classes without drop"),
    ],
)
def test_mistakes_in_classifiers_are_named(runs, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_task(runs[2]("mistake", **changes))
    assert "\n" not in str(caught.value)


def test_the_shipped_classifier_builds_for_every_pipeline():
    for name in ("wavelet_64", "latent_64", "patch_64", "pseudo3d_64"):
        config = load_run_config("encoder_64", [f"classifier.of=runs/{name}"])
        with torch.device("meta"):
            task = build_task(config)
        pipeline = load_run_config(name)
        assert resolved(config).space == pipeline.space
        space = task.module.space
        assert task.module.classifier.in_channels == space.channels(1)
    words = ["data.preprocessing.shape=[8,8,8]", "data.root=x", "classifier.widths=[4,8]"]
    config = load_run_config("encoder_64", [*words, "classifier.groups=2"])
    assert {"forward", "backward", "optimizer"} <= set(trace(config, mode="train").stages)
    assert {"encode", "guide"} == set(trace(config, mode="infer").stages)


def test_rows_take_a_classifier_from_the_command_line(runs, classifier, program, tmp_path):
    _, run, _ = runs
    files = write_cases(tmp_path / "in", 1)
    quick = ("--method", "wolleb_ddpm", "sampler.steps=2", "--device", "cpu")
    out = tmp_path / "out"
    words = ("localize", files, "--run", run, "-o", out)
    code, _, err = program(*words, *quick)
    assert code == 2
    assert "does not suit" in err
    assert "got none; give its run" in err
    assert err.count("\n") == 1
    code, _, err = program(*words, "--method", "ddpm", "--classifier", classifier)
    assert code == 2
    assert "classifier: the method 'ddpm' uses none" in err
    code, _, err = program(*words, *quick, "--classifier", classifier)
    assert code == 0, err
    (path,) = out.glob("*_desc-anomaly_map.json")
    facts = json.loads(path.read_text())
    digest = Borrowed(load_trained(run, device="cpu")).load("classifier", classifier).digest
    assert {f["weights_sha256"] for f in facts["borrowed"].values()} == {digest}
    # another classifier is another job
    again = program(*words, *quick, "--classifier", classifier)
    assert "already finished" in again[1]
    # a map from elsewhere, on another grid than the volume's
    (image,) = files.glob("*.nii.gz")
    flipped = np.diag([-3.0, 3, 3, 1])
    flipped[0, 3] = 21.0  # the same field of view, the first axis the other way
    brought = save(tmp_path / "map.nii.gz", phantom(3) + 1, flipped)
    fused = ("--method", "dif_fuse", "sampler.steps=2", "post=[]", "--device", "cpu")
    out = tmp_path / "fused"
    code, _, err = program(
        "localize", image, "--run", run, "-o", out, *fused, "--saliency", brought
    )
    assert code == 0, err
    (path,) = out.glob("*_desc-first_map.nii.gz")
    first = np.asarray(nib.load(path).dataobj)
    inside = first > 0
    assert inside.any()
    np.testing.assert_allclose(first[inside], (phantom(3) + 1)[::-1][inside], rtol=1e-3)
    code, _, err = program(
        "localize", image, "--run", run, "-o", out, *fused, "--saliency", tmp_path
    )
    assert code == 2
    assert "no such file; every case needs its map" in err
    assert saved_config(classifier).classifier["of"] == str(run)
