"""Residual segmenters (SADM): what they see, how they train, and what the method makes of them."""

import hashlib
import json
import math
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from anomaly_models import (
    KERNEL,
    SCHEDULE,
    SHAPE,
    SPACES,
    SPACING,
    foreground,
    states,
    wiener,
)
from probe_models import VALUE, residual_of_halves
from test_resume import digests
from tiny_app import base, program, run, write_cases
from tiny_runs import SIZE, figures, load_run, tiny, write_data

from volumediff.anomaly import method_files
from volumediff.anomaly.maps.posterior import Posterior
from volumediff.anomaly.maps.ssim import SSIM
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.scan import Scan
from volumediff.batch import Batch
from volumediff.calibration.of_run import load_method
from volumediff.condition import Condition
from volumediff.config import available, build
from volumediff.errors import DataError, UsageError
from volumediff.inference.cost import counted
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.planning.planner import trace
from volumediff.randomness import normal, uniform
from volumediff.recipes.healthy import Healthy
from volumediff.residual_segmentation import ResidualSegmentation, VoxelPosterior
from volumediff.residual_segmenters import ResidualSegmenter
from volumediff.residual_segmenters.siamese import Siamese
from volumediff.runs.auxiliary_models import Borrowed
from volumediff.runs.trained import load_trained
from volumediff.samples.landmarks import load_landmarks
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.method_files import load_segmenter
from volumediff.segmentation.predictors._base import Image
from volumediff.segmentation.predictors.residual import ResidualLabels
from volumediff.settings.run_config import load_run_config, parse, saved_config
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task, load_task, resolved, warm_start
from volumediff.tasks.residual_segmenter import ResidualSegmenterTask
from volumediff.times.uniform import Uniform
from volumediff.training.loop import train

_ = base, program, run  # fixtures
INSIDE = foreground()


def volumes(n=1, c=1, shape=SHAPE):
    return torch.stack([0.3 * normal((c, *shape), "volume", i) for i in range(n)])


def siamese(channels=1, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Siamese(channels, widths=(4, 8), groups=2, **more)
        for parameter in made.parameters():  # none of the zeros that training starts from
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    return made


class Sees(ResidualSegmenter):
    """Remembers what it is shown; the logit is w r + v x."""

    def __init__(self):
        super().__init__(1)
        self.weight = torch.nn.Parameter(torch.tensor([0.7, -0.4]))
        self.seen = []

    def body(self, pair):
        self.seen.append(pair.detach().clone())
        return (self.weight[:, None, None, None] * pair).sum(1, keepdim=True)


# the network


@pytest.mark.parametrize("name", available("residual_segmenter"))
def test_residual_segmenters_give_a_logit_per_voxel_at_any_size(name):
    made = build("residual_segmenter", name, channels=2)
    for size in ((8, 8, 8), (5, 9, 6), (1, 7, 3)):
        a, b = torch.randn(2, 2, 2, *size)
        out = made(a, b)
        assert out.shape == (2, 1, *size)
        assert bool((out == 0).all()), "training starts from even odds"
    with pytest.raises(UsageError, match=r"residual_segmenter\.channels: is derived"):
        build("residual_segmenter", {"name": name, "channels": 2}, channels=2)
    with pytest.raises(UsageError, match="at least one level of positive width"):
        build("residual_segmenter", {"name": name, "widths": []}, channels=2)


def features_of(made, residual, x):
    """What the first and second encoder find per level, recorded on the way."""
    found, inner = [], made.features
    made.features = lambda h: found.append(inner(h)) or found[-1]
    out = made(residual, x)
    del made.features
    first, second = found
    return first, second, out


@pytest.mark.parametrize("channels", [1, 3])
def test_both_encoders_are_one(channels):
    made = siamese(channels, blocks=2)
    a, b = volumes(2, channels).split(1)
    first, second, out = features_of(made, a, b)
    for found, x in ((first, a), (second, b)):
        for level, alone in zip(found, made.features(made.stem(x)), strict=True):
            torch.testing.assert_close(level, alone, rtol=1e-5, atol=1e-5)
    swapped = features_of(made, b, a)
    for one, other in ((first, swapped[1]), (second, swapped[0])):
        for p, q in zip(one, other, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, swapped[2], atol=1e-3), "the decoder tells them apart"
    names = {n.split(".")[0] for n, _ in made.named_parameters()}
    assert names == {"stem", "encoder", "down", "decoder", "up", "act", "head"}


def test_the_decoder_takes_features_side_by_side():
    made = siamese(blocks=2)
    a, b = volumes(2).split(1)
    r, s = made.features(made.stem(a)), made.features(made.stem(b))
    low = made.decoder[1][1](made.decoder[1][0](torch.cat((r[1], s[1]), 1)))
    up = made.up[0](low, SHAPE)
    high = made.decoder[0][1](made.decoder[0][0](torch.cat((up, r[0], s[0]), 1)))
    expected = made.head(made.act(high))
    torch.testing.assert_close(made(a, b), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", [{"slab": 4}, {"checkpoint": True}])
def test_slabs_and_recomputation_change_nothing(policy):
    made, again = siamese(), siamese()
    MemoryPolicy(**policy).apply(again)
    assert ("body" in vars(again)) == ("slab" in policy)
    a, b = volumes(4).split(2)
    outs = [m(a, b) for m in (made, again)]
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    for out in outs:
        out.square().mean().backward()
    for p, q in zip(made.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


# what it is shown, and its loss


def batch_of(n=2, amounts=None):
    m = torch.zeros(n, 1, *SHAPE)
    m[..., 3:6, 4:7, 3:6] = 1 if amounts is None else amounts
    return Batch(2 * m - 1, tuple(range(n)), images=(volumes(n),))


def by_hand(model, x, key, times=(0.0, 1.0)):
    """x̂ of one volume from its key."""
    low, high = times
    t = torch.tensor([high - (high - low) * uniform(key, "t")], dtype=torch.float64)
    size = (1, *model.space.padded(SHAPE))
    noise = model.space.noise(normal(size, key, "loss")[None])
    z_t = KERNEL.corrupt(model.encode(x), t, noise)
    return model.decode(model.denoise(z_t, t).x0, SHAPE)


@pytest.mark.parametrize("space", SPACES)
def test_the_residual_is_that_of_a_one_step_estimate(space):
    space = SPACES[space]()
    module = ResidualSegmentation(states(space), Sees(), time_density=Uniform(0.2, 0.9))
    batch = batch_of()
    loss = module.loss(batch)
    x = batch.images[0]
    (seen,) = module.residual_segmenter.seen
    for i in range(2):
        with torch.no_grad():
            healthy = by_hand(module.model, x[i : i + 1], i, (0.2, 0.9))
        torch.testing.assert_close(seen[i : i + 1, :1], healthy - x[i : i + 1])
        torch.testing.assert_close(seen[i, 1:], x[i])
        logit = 0.7 * (healthy - x[i : i + 1]) - 0.4 * x[i : i + 1]
        p, m = torch.sigmoid(logit), (batch.x[i : i + 1] + 1) / 2
        expected = -(m * p.log() + (1 - m) * (1 - p).log()).mean()
        torch.testing.assert_close(loss[i], expected, rtol=1e-5, atol=1e-6)
        alone = Batch(batch.x[i : i + 1], (i,), images=(x[i : i + 1],))
        torch.testing.assert_close(module.loss(alone)[0], loss[i])


def test_an_oracle_of_one_healthy_volume_gives_the_anomaly_itself():
    healthy = wiener(std=0.1).network.sample(0)
    module = ResidualSegmentation(
        wiener(mean=healthy, std=1e-4), Sees(), time_density=Uniform(0.5, 1.0)
    )
    lesion = 0.5 * torch.zeros_like(healthy).index_fill(2, torch.tensor([4]), 1.0)
    module.loss(Batch(healthy, (7,), images=(healthy + lesion,)))
    (seen,) = module.residual_segmenter.seen
    torch.testing.assert_close(seen[:, :1], -lesion, rtol=0, atol=1e-4)


def test_gradients_reach_the_residual_segmenter_alone():
    k = Voxel().channels(1)
    model = Model(Voxel(), KERNEL, UNet(k, k, widths=(4, 8), blocks=1, groups=2))
    module = ResidualSegmentation(model, Sees())
    module.loss(batch_of()).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert bool((module.residual_segmenter.weight.grad != 0).all())
    tree = {"residual_segmenter": {"name": "siamese", "of": "x"}, "recipe": "synthetic_anomalies"}
    config = parse({"task": "residual_segmenter", **tree})
    task = ResidualSegmenterTask(config, module, recipe=build("recipe", "synthetic_anomalies"))
    assert set(task.trained()) == set(task.state()) == {"residual_segmenter.weight"}
    before = {n: t.clone() for n, t in model.state_dict().items()}
    task.load({"residual_segmenter.weight": torch.zeros(2)})
    assert bool((module.residual_segmenter.weight == 0).all())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_the_loss_is_least_at_the_amount_of_change(amount):
    module = ResidualSegmentation(states(), Sees())
    batch = batch_of(1, amounts=amount)

    class Says(ResidualSegmenter):
        def body(self, pair):
            # the whole amount where something changed, or another share of it
            m = ((batch.x + 1) / 2 * self.share).clamp(1e-4, 1 - 1e-4)
            return torch.logit(m)

    module.residual_segmenter = Says(1)
    losses = {}
    for share in (0.8, 1.0, 1.2):
        module.residual_segmenter.share = share
        losses[share] = float(module.loss(batch))
    assert losses[1.0] <= min(losses.values()) + 1e-7
    assert losses[0.8] > losses[1.0] + 1e-4


def test_labels_of_any_kind_are_what_is_found():
    module = ResidualSegmentation(states(), Sees())
    one = batch_of(1)
    first, second = -torch.ones(2, 1, 1, *SHAPE)
    first[..., 3, 4:7, 3:6] = 1
    second[..., 4:6, 4:7, 3:6] = 1
    both = Batch(torch.cat((first, second), 1), (0,), images=one.images)
    torch.testing.assert_close(module.loss(both), module.loss(one))


class Remembers(UNet):
    def forward(self, z_t, t, condition=None):
        self.told = condition
        return super().forward(z_t, t, condition)


@pytest.mark.parametrize("kind", ["image", "classes", "reference", "scalars"])
def test_the_model_is_told_what_it_was_trained_with(kind):
    extra = {
        "image": {"image_channels": 1},
        "classes": {"classes": 2},
        "reference": {"reference_channels": 1},
        "scalars": {"scalars": 1},
    }[kind]
    network = Remembers(1, 1, widths=(4, 8), blocks=1, groups=2, **extra)
    recipe = Healthy(reference=kind == "reference")
    module = ResidualSegmentation(Model(Voxel(), KERNEL, network, recipe=recipe), Sees())
    x, atlas = volumes(2), volumes(4)[2:]
    images = (atlas, x) if kind == "image" else (x,)
    ages = torch.tensor([[0.5], [-1.0]])
    condition = Condition(scalars=ages if kind == "scalars" else None)
    module.loss(Batch(-torch.ones_like(x), (0, 1), condition, images))
    told = network.told
    torch.testing.assert_close(module.residual_segmenter.seen[0][:, 1:], x)
    if kind == "image":
        assert torch.equal(told.image, atlas)
    if kind == "classes":
        assert told.label.tolist() == [0, 0], "as healthy ones"
    if kind == "reference":
        assert torch.equal(told.reference, x), "what it was given, anomalies and all"
    if kind == "scalars":
        assert torch.equal(told.scalars, ages)


# the map and the row


def lent(supervision="self"):
    def probability(x, healthy):
        return torch.sigmoid(3 * (healthy - x) + x)

    return VoxelPosterior(probability, supervision, "0123456789abcdef" * 4)


def sadm(supervision="self"):
    """The method with a residual_segmenter."""
    row = method_files.read_method("sadm", overrides=["map.run=there"])
    (request,) = row.requests()
    assert (request.name, request.run, request.loan.kind) == (
        "map.run",
        "there",
        "residual_segmenter",
    )
    return row.bind(lambda request: lent(supervision))


PLACE = {"foreground": INSIDE, "spacing_mm": SPACING}


def test_the_map_is_the_probability_plus_dissimilarity():
    x, healthy = volumes(2).split(1)
    p = torch.sigmoid(3 * (healthy - x) + x)
    ssim = SSIM(3.0)(x, healthy, **PLACE)
    found = Posterior(residual_segmenter=lent(), plus=SSIM(3.0))(x, healthy, **PLACE)
    torch.testing.assert_close(found, torch.where(INSIDE, p + ssim, 0.0))
    torch.testing.assert_close(
        Posterior(residual_segmenter=lent())(x, healthy, **PLACE), p * INSIDE
    )
    # for the same volume twice there is no dissimilarity
    same = Posterior(residual_segmenter=lent(), plus=SSIM(3.0))(x, x, **PLACE)
    torch.testing.assert_close(same, torch.sigmoid(x) * INSIDE, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_the_row_is_the_mean_over_the_levels(space):
    model = states(SPACES[space]())
    row = sadm()
    assert isinstance(row, Localizer)
    assert isinstance(row.map, Posterior)
    assert len(row.route.log_snrs) == 3
    x, total = volumes(), 0.0
    found = row.find(model, Example(x, INSIDE, SPACING), key=5)
    seen = []
    keep = replace(
        row,
        map=Posterior(
            residual_segmenter=replace(lent(), probability=lambda x, h: seen.append(h) or h)
        ),
    )
    keep.find(model, Example(x, INSIDE, SPACING), key=5)
    assert len(seen) == 3
    for healthy, log_snr in zip(seen, row.route.log_snrs, strict=True):
        t = SCHEDULE.time(torch.tensor([log_snr], dtype=torch.float64))
        assert 0 < float(t) < 1
        p = torch.sigmoid(3 * (healthy - x) + x)
        total = total + p + SSIM(3.0)(x, healthy, **PLACE)
    assert not torch.equal(seen[0], seen[1])
    # nothing is subtracted, in latents neither
    torch.testing.assert_close(found.map, total / 3 * INSIDE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.healthy, sum(seen) / 3)


def test_the_estimates_of_the_row_are_those_of_training():
    """The same state gives the same estimate at localization and in training."""
    model = states()
    x = volumes()
    t = 1 - uniform(3, "t")
    noise = normal((1, *SHAPE), 3, "loss")[None]
    module = ResidualSegmentation(model, Sees())
    trained = module.reconstruct(x, (3,), Condition())
    model.noise = lambda keys, shape: lambda step: noise
    seen = []
    spy = replace(lent(), probability=lambda x, h: seen.append(h) or h)
    Localizer(
        route=Scan(levels=(t,)), map=Posterior(residual_segmenter=spy), supervision="self"
    ).find(model, Example(x, INSIDE, SPACING), key=0)
    torch.testing.assert_close(seen[0], trained)


def test_what_a_row_needs_is_said():
    model = states()
    bare = method_files.read_method("sadm")
    with pytest.raises(
        ValueError, match=r"map\.run: expected the run of a residual segmenter .* got none"
    ):
        bare.check(model)
    given = sadm()
    given.check(model)
    assert given.fingerprint != bare.fingerprint
    full = sadm("full")
    with pytest.raises(ValueError, match=r"supervision: expected full, .* got self; use superv"):
        full.check(model)
    replace(full, supervision="full").check(model)
    with pytest.raises(ValueError, match=r"expected a trained model, got none"):
        given.check(None)


# runs


def config_in(folder, of):
    def config(name, **changes):
        tree = {
            "task": "residual_segmenter",
            "residual_segmenter": {
                "name": "siamese",
                "of": str(of),
                "widths": [4, 8],
                "groups": 2,
            },
            "recipe": {"name": "synthetic_anomalies", "corruption": "texture_patch"},
            "optim": {"lr": 1e-2, "steps": 4, "warmup": 1, "batch_size": 2, "ema": 0.5},
            "validation": {"every": 2, "volumes": 1},
            "save_every": 1,
            "output": str(folder / name),
        }
        return parse({**tree, **changes})

    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A diffusion run of two steps that knows ages and the atlas, and its residual_segmenter."""
    folder = tmp_path_factory.mktemp("residual_segmenter")
    data = write_data(folder / "data", cases=8)
    words = ["data.split={validation: 0.2, calibration: 0.5}", "optim.steps=2"]
    words.append("recipe={name: healthy, atlas: true, scalars: [age]}")
    of = train(tiny(data, folder / "run", *words))
    config = config_in(folder, of)
    recipe = {"name": "synthetic_anomalies", "corruption": "texture_patch"}
    recipe |= {"atlas": True, "scalars": ["age"]}
    return data, of, lambda name, **changes: config(name, **{"recipe": recipe, **changes})


@pytest.fixture(scope="module")
def residual_segmenter(runs):
    return train(runs[2]("residual_segmenter"))


def test_a_residual_segmenter_trains_on_its_run_and_resumes_bit_by_bit(runs, residual_segmenter):
    _, of, config = runs
    saved, module = load_run(residual_segmenter)
    assert isinstance(module, ResidualSegmentation)
    theirs, model = load_run(of)
    assert saved.data == theirs.data
    for name, tensor in model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], tensor), name
    assert (residual_segmenter / "splits.json").read_text() == (of / "splits.json").read_text()
    (state,) = residual_segmenter.glob("checkpoints/best-*/state.json")
    (weights,) = of.glob("checkpoints/best-*/ema.safetensors")
    assert json.loads(state.read_text())["borrowed"] == digest_of(weights)
    lines = figures(residual_segmenter)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[-1]["validation_loss"] < math.log(2)
    train(config("again", optim={**saved.optim.model_dump(), "steps": 2}))
    again = train(config("again"))
    assert digests(again) == digests(residual_segmenter)


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_statistics_are_those_of_the_run_and_not_of_other_volumes(runs):
    _, of, config = runs
    section = {**saved_config(of).data.model_dump(mode="json"), "split": {"validation": 0.5}}
    optim = {"lr": 1e-2, "steps": 1, "warmup": 1, "batch_size": 1}
    other = train(config("other_split", data=section, optim=optim))
    assert (other / "splits.json").read_text() != (of / "splits.json").read_text()
    for name in ("atlas.npy", "statistics.json"):
        assert digest_of(other / "statistics" / name) == digest_of(of / "statistics" / name)


def test_until_its_first_checkpoint_a_residual_segmenter_takes_what_the_run_measured_last(
    tmp_path,
):
    data = write_data(tmp_path / "data", cases=6)
    words = ["recipe={name: healthy, atlas: true}", "optim.steps=1"]
    words.append("data.preprocessing.intensity=histogram")
    of = train(tiny(data, tmp_path / "run", *words, "data.split={seed: 1, validation: 0.3}"))
    recipe = {"name": "synthetic_anomalies", "corruption": "texture_patch", "atlas": True}
    config = config_in(tmp_path, of)("residual_segmenter", recipe=recipe)
    ResidualSegmenterTask.keep(config, config.output)  # and then the process was killed
    shutil.rmtree(of)
    train(tiny(data, of, *words, "data.split={seed: 2, validation: 0.3}"))
    config = config_in(tmp_path, of)("residual_segmenter", recipe=recipe)
    optim = {"lr": 1e-2, "steps": 1, "warmup": 1, "batch_size": 1}
    run = train(config.model_copy(update={"optim": config.optim.model_copy(update=optim)}))
    for name in ("statistics/atlas.npy", "landmarks.json"):
        assert digest_of(run / name) == digest_of(of / name), name
    # those of a trained one stay
    (of / "landmarks.json").write_text("{")
    ResidualSegmenterTask.keep(config, run)
    assert load_landmarks(run)


def test_the_loaded_residual_segmenter_is_the_trained_one(runs, residual_segmenter):
    _, of, _ = runs
    trained = load_trained(of, device="cpu")
    found = Borrowed(trained).load("residual_segmenter", residual_segmenter)
    _, module = load_run(residual_segmenter)
    x, healthy = volumes(2, shape=SIZE).split(1)
    with torch.no_grad():
        expected = torch.sigmoid(module.residual_segmenter(healthy - x, x))
        torch.testing.assert_close(found.probability(x, healthy), expected)
    assert not bool((expected == 0.5).all())
    assert found.supervision == "self"
    assert found.digest in repr(found)


def test_a_residual_segmenter_is_good_for_the_weights_of_its_training_alone(
    runs, residual_segmenter, tmp_path
):
    data, of, _ = runs
    with pytest.raises(UsageError, match=r"trains a residual segmenter, .* map\.run=RUN"):
        load_trained(residual_segmenter, device="cpu").localizes()
    with pytest.raises(
        UsageError, match="expected the run of a residual segmenter; train one with"
    ):
        load_method(load_trained(of, device="cpu"), "sadm", [f"map.run={of}"])
    words = ["data.split={validation: 0.2, calibration: 0.5}", "optim.steps=1"]
    other = train(tiny(data, tmp_path / "other", *words))
    with pytest.raises(
        UsageError, match=r"was trained for weights of .*; train one with residual_segmenter.of"
    ):
        load_method(load_trained(other, device="cpu"), "sadm", [f"map.run={residual_segmenter}"])
    # nor does training go on where the weights have changed meanwhile
    short = config_in(tmp_path, other)
    optim = {"lr": 1e-2, "steps": 1, "warmup": 1, "batch_size": 2, "ema": 0.5}
    train(short("short", optim=optim))
    train(tiny(data, other, "data.split={validation: 0.2, calibration: 0.5}", "optim.steps=3"))
    with pytest.raises(DataError, match="was trained with other frozen weights"):
        train(short("short"))


def test_labelled_cases_in_place_of_synthetic_ones(tmp_path):
    data = write_data(tmp_path / "data", labels=True)
    plain = train(tiny(data, tmp_path / "run", "optim.steps=1"))
    own = config_in(tmp_path, plain)
    marked = train(own("marked", recipe="label_diffusion"))
    trained = load_trained(plain, device="cpu")
    with pytest.raises(UsageError, match="supervision: expected full"):
        load_method(trained, "sadm", [f"map.run={marked}"])
    words = [f"map.run={marked}", "supervision=full"]
    assert load_method(trained, "sadm", words).map.supervision == "full"
    # and from the ones to the others: its own weights, whatever model they were for
    first, task = load_run(train(own("drawn")))[1], load_task(marked)
    second = task.module
    before = {n: t.zero_().clone() for n, t in second.model.state_dict().items()}
    warm_start(task, tmp_path / "drawn")
    for name, tensor in second.residual_segmenter.state_dict().items():
        assert torch.equal(tensor, first.residual_segmenter.state_dict()[name]), name
    assert all(torch.equal(t, before[n]) for n, t in second.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"residual_segmenter": {"name": "siamese"}},
            "residual_segmenter: needs the key of: the folder of a diff",
        ),
        (
            {"residual_segmenter": "siamese"},
            r"residual_segmenter: needs the key of: .* \(got 'siamese'\)",
        ),
        (
            {"residual_segmenter": {"name": "siamese", "of": "nowhere"}},
            "of = nowhere: no such run and no",
        ),
        (
            {"network": "unet"},
            r"network: unknown key for task residual_segmenter .*task=.*diffusion.*\)",
        ),
        ({"recipe": "healthy"}, "recipe: expected synthetic_anomalies, or label_diffusion"),
        (
            {"recipe": {"name": "label_diffusion", "coding": {"name": "signed", "absent": 0}}},
            "with the code -1 and 1 and without ignored",
        ),
        ({"recipe": "synthetic_anomalies"}, r"recipe\.atlas: expected that of .*, True, got Fals"),
        ({"times": {"name": "uniform", "low": 0.5, "high": 0.2}}, "times: .* low < high <= 1"),
        (
            {"data": {"root": "x", "preprocessing": {"shape": [16, 16, 16]}}},
            r"data\.preprocessing",
        ),
    ],
)
def test_mistakes_in_residual_segmenters_are_named(runs, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        build_task(runs[2]("mistake", **changes))
    assert "\n" not in str(caught.value)


def test_models_that_reconstruct_nothing_are_refused(runs, tmp_path):
    data, *_ = runs
    untrained = config_in(tmp_path, "wavelet_64")("untrained", data={"root": str(data)})
    with pytest.raises(UsageError, match="has no checkpoint yet; train it first"):
        train(untrained)
    words = ("recipe=synthetic_anomalies", "optim.steps=1")
    maps = train(tiny(data, tmp_path / "maps", *words))
    with pytest.raises(UsageError, match="expected a model of whole volumes under Gaussian noise"):
        train(config_in(tmp_path, maps)("residual_segmenter"))
    times = train(
        tiny(data, tmp_path / "times", "times={name: uniform, high: 0.8}", "optim.steps=1")
    )
    config = config_in(tmp_path, times)
    with pytest.raises(UsageError, match=r"times: expected times within .*\[0, 0\.8\], got \[0,"):
        build_task(config("late"))
    build_task(config("early", times={"name": "uniform", "high": 0.8}))


def test_the_shipped_residual_segmenter_builds_for_every_pipeline():
    for name in ("wavelet_64", "latent_64", "patch_64", "pseudo3d_64"):
        config = load_run_config("siamese_64", [f"residual_segmenter.of=runs/{name}"])
        with torch.device("meta"):
            task = build_task(config)
        pipeline = load_run_config(name)
        assert resolved(config).data == pipeline.data
        assert all(n.startswith("residual_segmenter.") for n in task.state())
    words = ["data.preprocessing.shape=[8,8,8]", "data.root=x", "residual_segmenter.widths=[4,8]"]
    words.append("residual_segmenter.of=runs/mine")
    with pytest.raises(UsageError, match="no such run and no shipped"):
        build_task(load_run_config("siamese_64", words))


def test_memory_is_planned(runs):
    config = runs[2]("planned")
    assert {"forward", "backward", "optimizer"} <= set(trace(config, mode="train").stages)
    assert {"reconstruct", "compare"} == set(trace(config, mode="infer").stages)


def test_crops_say_where_they_are(runs, tmp_path, monkeypatch):
    data, *_ = runs
    words = ["crop=[4,4,4]", "network.coordinates=true", "optim.steps=1"]
    of = train(tiny(data, tmp_path / "run", *words))
    told, inner = [], ResidualSegmentation.reconstruct

    def spy(self, x, keys, condition, images=()):
        told.append((x.shape, condition.coordinates))
        return inner(self, x, keys, condition, images)

    monkeypatch.setattr(ResidualSegmentation, "reconstruct", spy)
    train(config_in(tmp_path, of)("crops", crop=[4, 4, 4]))
    assert {shape[2:] for shape, _ in told} == {(4, 4, 4)}
    for _, place in told:
        steps = place[:, 0, 1:, 0, 0] - place[:, 0, :-1, 0, 0]
        torch.testing.assert_close(steps, torch.full_like(steps, 2 / 7))


LATENT = ("task=autoencoder",)
KL = "autoencoder={name: kl, latent_channels: 2, widths: [4, 4], strides: [[2, 2, 2]], blocks: 1}"


@pytest.mark.parametrize("kind", ["voxel", "latent", "crops"])
def test_from_training_to_files(kind, tmp_path, program):
    data = write_data(tmp_path / "data", cases=8)
    words = ["data.split={validation: 0.2, calibration: 0.5}", "optim.steps=1"]
    more = []
    if kind == "latent":
        encoder = train(tiny(data, tmp_path / "kl", *words, *LATENT, KL))
        words.append(f"space={{name: latent, autoencoder: {encoder}}}")
    if kind == "crops":
        words += ["crop=[4,4,4]", "network.coordinates=true", "network.norm=voxel"]
        more = ["crop=[4,4,4]", "residual_segmenter.norm=voxel"]
    of = train(tiny(data, tmp_path / "run", *words))
    made = tmp_path / "residual_segmenter"
    code, _, said = program(
        *("train", "siamese_64", f"residual_segmenter.of={of}", f"output={made}", "optim.steps=2"),
        *(
            "residual_segmenter.widths=[4,8]",
            "residual_segmenter.groups=2",
            "data.root=null",
            "validation.volumes=1",
        ),
        *("recipe.corruption=mood", *more),
    )
    assert code == 0, said
    files = write_cases(tmp_path / "in", 1)
    words = ("localize", files, "--run", of, "--method", "sadm", "--device", "cpu", "post=[]")
    code, _, said = program(*words, "-o", tmp_path / "none")
    assert code == 2
    assert "map.run: expected the run of a residual segmenter" in said
    assert said.count("\n") == 1
    out = tmp_path / "out"
    code, _, said = program(*words, "-o", out, f"map.run={made}", "threshold=best")
    assert code == 0, said
    assert any("map" in p.name for p in out.glob("*.nii.gz"))
    code, _, said = program(
        "localize", files, "--run", of, "-o", out, "--method", "ddpm", "map.run=x"
    )
    assert code == 2
    assert said.count("\n") == 1


# segmentation


def test_members_are_the_probabilities_of_their_times_and_keys():
    module, x = residual_of_halves(weight=3.0), volumes()
    model, predictor = module.model, ResidualLabels(time=0.7)
    predictor.check(module)
    assert predictor.labels(module) == (VALUE,)
    prepared = predictor.prepare(module, Image(x, INSIDE, SPACING, Condition()))
    draws = [Draw(0, 5, time=0.3), Draw(1, 6)]
    y = predictor.memberships(module, prepared, draws)
    for draw, t, got in zip(draws, (0.3, 0.7), y, strict=True):
        noise = model.noise((draw.key,), (1, *SHAPE))(0)
        time = torch.tensor([t], dtype=torch.float64)
        z_t = model.kernel.corrupt(model.encode(x), time, noise)
        healthy = model.decode(model.denoise(z_t, time).x0, SHAPE)
        expected = torch.sigmoid(3 * (healthy - x) + 50 * x)
        torch.testing.assert_close(got[None], expected)
    assert not torch.equal(y[0], y[1])


def test_one_label_is_found_and_no_two():
    with pytest.raises(ValueError, match=r"of one label, got one of \[1, 2\] together"):
        ResidualLabels().check(residual_of_halves(labels=(1, 2)))
    with pytest.raises(ValueError, match="expected a residual segmenter; train with"):
        ResidualLabels().check(states())
    with pytest.raises(ValueError, match=r"expected a time in \(0, 1\], got 0"):
        ResidualLabels(time=0.0)


def test_a_run_of_labels_segments(tmp_path, program):
    data = write_data(tmp_path / "data", cases=5, labels=True)
    of = train(tiny(data, tmp_path / "run", "optim.steps=2"))
    config = config_in(tmp_path, of)
    recipe = {"name": "label_diffusion", "labels": [1]}
    run = train(config("labels", recipe=recipe))
    code, _, err = program(
        "segment", data, "--run", run, "-o", tmp_path / "out", "--method", "sadm"
    )
    assert code == 0, err
    assert len(list((tmp_path / "out").glob("*_label-1_probseg.nii.gz"))) == 5
    trained = load_trained(run, device="cpu")
    with counted(trained.model) as cost:
        load_segmenter("sadm").segment(
            trained.model,
            volumes(shape=SIZE),
            foreground=torch.ones(1, 1, *SIZE) > 0,
            spacing_mm=SPACING,
            key=1,
        )
    assert cost.network_calls == 3, "one per time"
    for file in data.glob("*_label.nii.gz"):
        image = nib.load(file)
        both = np.asarray(image.dataobj).astype(np.uint8)
        both[: len(both) // 2][both[: len(both) // 2] == 1] = 2
        nib.save(nib.Nifti1Image(both, image.affine), file)
    two = train(config("both", recipe={**recipe, "labels": [1, 2]}))
    code, _, err = program(
        "segment", data, "--run", two, "-o", tmp_path / "no", "--method", "sadm"
    )
    assert code != 0
    assert "was trained to find the labels 1, 2 as one" in err
