"""Training: it converges to what theory says, and arithmetic does not depend on how it is cut."""

import errno
import json
import math
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_runs import SIZE, figures, load_run, tiny, write_data
from torch import nn

import volumediff
from volumediff.config import build
from volumediff.data.augmentation import Augmentation
from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Prediction
from volumediff.model import Model, full_coordinates
from volumediff.optimization.ema import EMA
from volumediff.optimization.metrics_file import read_metrics
from volumediff.optimization.rate import learning_rate
from volumediff.randomness import key, normal
from volumediff.recipes._base import Subject
from volumediff.recipes.class_conditional import ClassConditional
from volumediff.recipes.healthy import Healthy
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samples.dataset import Crop, Keyed, Order, collate, stream
from volumediff.samples.latents import Precomputed
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.settings.sections import Optim
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.storage import checkpoint
from volumediff.storage.cache import Cache, CacheEntry
from volumediff.tasks import _selection as selection
from volumediff.tasks.diffusion import DiffusionTask
from volumediff.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def weights(run, name="weights", kind="last"):
    return checkpoint.find(run, kind).tensors(name)


def largest_difference(a, b):
    assert set(a) == set(b)
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def test_foreground_that_the_shape_cuts_away_is_said(data, tmp_path, capsys):
    """Half of the planes hold less than 95 % of every phantom, all planes hold all of it."""
    words = ("optim.steps=1", "validation.every=1")
    train(tiny(data, tmp_path / "half", "data.preprocessing.shape=[8,8,4]", *words))
    said = capsys.readouterr().err
    (share,) = re.findall(
        r"6 of 6 volumes lose more than 5% of their foreground .*? ([\d.]+)%;", said
    )
    images = [nib.load(path).get_fdata() > 0 for path in sorted(data.glob("*.nii.gz"))]
    kept = [max(x[:, :, k : k + 4].sum() for k in range(5)) / x.sum() for x in images]
    assert float(share) / 100 >= 1 - max(kept)
    train(tiny(data, tmp_path / "whole", *words))
    assert "lose more" not in capsys.readouterr().err


# Closed forms


def test_ema_is_its_closed_form():
    values = [torch.tensor([float(v)]) for v in (3, -1, 4, 1, -5, 9)]
    ema = EMA({"w": torch.tensor([2.0])}, decay=0.5)
    for n, value in enumerate(values, start=1):
        ema.update({"w": value}, step=n)
    betas = [min(0.5, (1 + n) / (10 + n)) for n in range(1, 7)]
    assert betas[0] == pytest.approx(2 / 11)
    expected = 2.0 * math.prod(betas)
    for i, value in enumerate(values):
        expected += float(value) * (1 - betas[i]) * math.prod(betas[i + 1 :])
    assert float(ema.tensors["w"]) == pytest.approx(expected, rel=1e-6)


def test_ema_without_decay_is_the_weights_and_ramps_to_its_decay():
    ema = EMA({"w": torch.zeros(1)}, decay=0.0)
    ema.update({"w": torch.ones(1)}, step=1)
    assert float(ema.tensors["w"]) == 1
    slow = EMA({"w": torch.zeros(1)}, decay=0.999)
    slow.update({"w": torch.ones(1)}, step=100_000)
    assert float(slow.tensors["w"]) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"expected a decay in \[0, 1\), got 1"):
        EMA({}, decay=1.0)


def test_learning_rate_is_its_closed_form():
    optim = Optim(lr=0.4, steps=110, warmup=10, decay=0.25)
    rates = [learning_rate(optim, n) for n in range(110)]
    assert rates[:10] == pytest.approx([0.04 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(0.4)
    # half way down the cosine: the mean of 1 and 0.25
    assert rates[60] == pytest.approx(0.4 * 0.625)
    assert learning_rate(optim, 110) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = Optim(lr=0.4, steps=110, warmup=0, decay=1.0)
    assert {learning_rate(constant, n) for n in range(110)} == {0.4}


def test_training_reaches_the_optimum_of_gaussian_data(tmp_path):
    """White data of unit variance: the best eps-prediction is sigma z_t, with loss alpha^2."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    root.mkdir()
    for i in range(24):
        noise = (1000 + 100 * rng.standard_normal(SIZE)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), root / f"sub-{i:02d}_T1w.nii.gz")
    intensity = "{name: window, center: 1000, width: 800, foreground: nonzero}"
    config = tiny(
        root,
        tmp_path / "run",
        f"data.preprocessing.intensity={intensity}",
        "kernel.prediction=eps",
        "network={name: unet, widths: [8], blocks: 1, groups: 2}",
        "optim={lr: 3e-3, steps: 250, warmup: 10, decay: 0.05, batch_size: 4, ema: 0.97}",
        "validation={every: 250, volumes: 2}",
        "save_every=250",
    )
    run = train(config)
    rows = read_metrics(run / "metrics.jsonl")
    _, model = load_run(run)
    schedule = model.kernel.schedule
    x = torch.from_numpy(rng.standard_normal((16, 1, *SIZE))).float()
    x = x * model.space.scale + model.space.shift
    errors, risks = [], []
    with torch.no_grad():
        for t in (0.2, 0.4, 0.6, 0.8):
            times = torch.full((16,), t, dtype=torch.float64)
            noise = normal(tuple(x.shape), 5, str(t))
            z_t = model.kernel.corrupt(model.encode(x), times, noise)
            errors.append(float((model.denoise(z_t, times).eps - noise).square().mean()))
            risks.append(float(schedule(times)[0][0].square()))
    assert rows[0]["loss"] == pytest.approx(1, abs=0.15), "a zero output has loss 1"
    # never below the Bayes risk (up to the spread of 8192 voxels), and close to it
    assert all(error > 0.96 * risk for error, risk in zip(errors, risks, strict=True))
    assert errors == pytest.approx(risks, abs=0.04)


# The same arithmetic however it is cut


def test_accumulation_equals_one_large_batch(data, tmp_path):
    words = ["optim.batch_size=4", "optim.steps=3", "optim.clip=0.1", "optim.lr=1e-4"]
    whole = train(tiny(data, tmp_path / "whole", *words))
    parts = train(tiny(data, tmp_path / "parts", *words, "optim.accumulate=4"))
    assert largest_difference(weights(whole), weights(parts)) < 1e-6
    assert largest_difference(weights(whole, "ema"), weights(parts, "ema")) < 1e-6
    a, b = (read_metrics(r / "metrics.jsonl")[0] for r in (whole, parts))
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert a["gradient"] == pytest.approx(b["gradient"], rel=1e-5)


def test_accumulation_of_an_autoencoder_with_noise_and_discriminator(data, tmp_path):
    words = [
        "task=autoencoder",
        "autoencoder={name: kl, widths: [4, 8], strides: [[2, 2, 2]], blocks: 1}",
        "autoencoder.adversarial=0.1",
        "optim.steps=2",
        "optim.lr=1e-4",
    ]
    whole = train(tiny(data, tmp_path / "whole", *words))
    parts = train(tiny(data, tmp_path / "parts", *words, "optim.accumulate=2"))
    assert any(n.startswith("discriminator.") for n in weights(whole))
    assert largest_difference(weights(whole), weights(parts)) < 1e-6
    row = read_metrics(whole / "metrics.jsonl")[0]
    # hinge losses of an undecided discriminator: 2 for it
    assert row["loss_discriminator"] == pytest.approx(2, abs=0.3)


def test_each_player_moves_its_own_weights_only(data, tmp_path):
    words = ["task=autoencoder", "optim.steps=1", "optim.warmup=0"]
    codec = "autoencoder={name: kl, widths: [4], strides: [], blocks: 1, latent_channels: 1"
    plain = train(tiny(data, tmp_path / "plain", *words, codec + "}"))
    tricked = train(tiny(data, tmp_path / "tricked", *words, codec + ", adversarial: 1e-30}"))
    a, b = weights(plain), weights(tricked)
    # a discriminator of no weight changes nothing for the autoencoder, though it is trained
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-6


def test_workers_change_nothing(data, tmp_path):
    words = ["data.augmentation={flip: [0, 1], noise: 0.1, affine_degrees: 5}", "crop=[4,4,4]"]
    none = train(tiny(data, tmp_path / "none", *words, "data.workers=0"))
    two = train(tiny(data, tmp_path / "two", *words, "data.workers=2"))
    assert largest_difference(weights(none), weights(two)) == 0
    assert figures(none) == figures(two)


# Keyed samples


@pytest.fixture
def volumes(tmp_path):
    return made(tmp_path, marked=True)


@pytest.fixture
def unmarked(tmp_path):
    """The same volumes without labels: healthy ones."""
    return made(tmp_path, marked=False)


def made(tmp_path, *, marked):
    cache = Cache(tmp_path / "cache", lambda line: None)
    found = []
    for i in range(5):
        x = normal((1, 6, 5, 7), i, "volume").numpy()
        arrays = {"x": x, "foreground": x > -9}
        if marked:
            arrays["label"] = (x > 1).astype(np.uint8) * 2
        info = {"spacing_mm": [1, 2, 3]}
        entry = cache.entry(f"v{i}", {"i": i}, lambda a=arrays, n=info: (a, n))
        found.append(TrainingVolume(f"v{i}", {"age": 20.0 + i, "group": "ab"[i % 2]}, entry))
    return found


def keyed(volumes, **changes):
    base = Keyed(volumes=volumes, recipe=Healthy(), seed=3, statistics=Statistics({}))
    return replace(base, **changes)


def test_every_epoch_is_another_permutation_and_ranks_share_it():
    order = Order(5, 7)
    epochs = [[order.place(5 * e + i) for i in range(5)] for e in range(20)]
    for e, places in enumerate(epochs):
        assert [epoch for epoch, _ in places] == [e] * 5
        assert sorted(index for _, index in places) == list(range(5))
    assert len({tuple(i for _, i in places) for places in epochs}) > 10
    assert [order.place(n) for n in range(5)] != [Order(5, 8).place(n) for n in range(5)]

    def batches(rank, world, accumulate, first=0):
        return list(
            order.batches(first, 6, batch_size=4, accumulate=accumulate, rank=rank, world=world)
        )

    whole = batches(0, 1, 1)
    assert [b[0] for b in whole] == [order.place(4 * s) for s in range(6)]
    ranks = [batches(r, 2, 2) for r in range(2)]
    for step, batch in enumerate(whole):
        parts = [ranks[r][2 * step + a] for r in range(2) for a in range(2)]
        assert [p for part in parts for p in part] == batch
    assert batches(0, 1, 1, first=4) == whole[4:]


def test_samples_depend_on_their_key_alone(volumes):
    dataset = keyed(
        volumes, crop=Crop((2, 2, 2), (1, 1, 1)), augment=Augmentation(noise=0.2), located=True
    )
    once = dataset[(4, 2)]
    torch.rand(10)
    again = dataset[(4, 2)]
    for name in ("x", "coordinates"):
        assert torch.equal(getattr(once, name), getattr(again, name))
    assert once.key == key(3, 4, 2)
    others = [dataset[(4, 3)].x, dataset[(5, 2)].x, replace(dataset, seed=4)[(4, 2)].x]
    assert all(not torch.equal(once.x, other) for other in others)


@pytest.mark.parametrize(
    "space",
    [Voxel(), Wavelet(), Wavelet(levels=2, axes="dw"), Slices(Voxel(), "w"), Slices(Voxel(), "h")],
    ids=["voxel", "wavelet", "anisotropic", "slices-w", "slices-h"],
)
def test_a_crop_is_a_window_of_the_state_with_its_coordinates(space, volumes):
    """The state of the crop is the crop of the state, at the place its coordinates say."""
    from volumediff.samples.dataset import crop_of

    shape = tuple(s * n for s, n in zip(space.stride, (2, 1, 1), strict=True))
    crop = crop_of(space, shape)
    x = volumes[0].x
    z = space.encode(x[None])
    place = full_coordinates(z)[0]
    seen = set()
    for k in range(40):
        part = space.encode(crop.cut(x, k)[None])
        where = crop.coordinates(tuple(x.shape[1:]), k)
        assert where.shape[1:] == part.shape[2:]
        corner = (place - where[:, :1, :1, :1]).abs().amax(0)
        d, h, w = (corner < 1e-6).nonzero()[0].tolist()
        window = tuple(slice(a, a + n) for a, n in zip((d, h, w), part.shape[2:], strict=True))
        torch.testing.assert_close(where, place[(slice(None), *window)])
        torch.testing.assert_close(part[0], z[0][(slice(None), *window)])
        seen.add((d, h, w))
    count = math.prod(a - b + 1 for a, b in zip(z.shape[2:], part.shape[2:], strict=True))
    assert len(seen) >= min(count, 40) * 0.5, "crops come from everywhere"


def test_batches_are_collated_in_order(unmarked):
    volumes = unmarked
    recipe = ClassConditional("group", ("a", "b"), drop=0.0, atlas=True, scalars=("age",))
    statistics = Statistics.measure(recipe, volumes)
    dataset = keyed(volumes, recipe=recipe, statistics=statistics)
    batch = next(stream(dataset, iter([[(0, 1), (0, 4)]]), workers=0))
    assert batch.keys == (key(3, 0, 1), key(3, 0, 4))
    assert torch.equal(batch.x, torch.stack([volumes[1].x, volumes[4].x]))
    assert batch.condition.label.tolist() == [1, 0]
    # ages 20..24: mean 22, standard deviation sqrt(2)
    assert batch.condition.scalars[:, 0].tolist() == pytest.approx([-(0.5**0.5), 2**0.5])
    # the atlas is the mean of group a, the healthy one
    mean = torch.stack([v.x for v in volumes[::2]]).mean(0)
    torch.testing.assert_close(batch.images[0], mean.expand(2, -1, -1, -1, -1))


def test_statistics_come_back_from_the_run_and_damage_is_noticed(unmarked, tmp_path):
    recipe = Healthy(atlas=True, scalars=("age",))
    measured = Statistics.measure(recipe, unmarked)
    measured.save(tmp_path)
    found = Statistics.load(tmp_path)
    assert torch.equal(found.atlas, measured.atlas)
    assert found.standardised({"age": 22.0}).tolist() == [0]
    path = tmp_path / "statistics" / "atlas.npy"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(DataError, match=r"atlas.npy does not match its SHA-256"):
        Statistics.load(tmp_path)


def test_label_diffusion_codes_masks_and_conditions_on_the_scan(volumes):
    recipe = LabelDiffusion(labels=(1, 2))
    x, label = volumes[0].x, volumes[0].array("label")
    target = recipe.target(Subject(x, label), atlas=None, key=0)
    assert torch.equal(target.x[0], torch.full_like(x[0], -1))
    assert torch.equal(target.x[1], torch.where(x[0] > 1, 1.0, -1.0))
    assert [torch.equal(image, x) for image in target.images] == [True]
    assert (recipe.channels(1), recipe.image_channels(1)) == (2, (1,))


@pytest.mark.parametrize("labels", [(), (0, 1), (1, 1), (300,)])
def test_labels_that_cannot_be_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels that differ, each in 1\.\.255"):
        LabelDiffusion(labels=labels)


def test_classes_are_dropped_as_often_as_asked():
    recipe = ClassConditional("group", ("healthy", "ill"), drop=0.2)
    x = torch.zeros(1, 2, 2, 2)

    def label(k, value="ill"):
        return recipe.target(Subject(x, attributes={"group": value}), atlas=None, key=k).label

    labels = [label(k) for k in range(3000)]
    assert set(labels) == {1, recipe.classes}
    assert labels.count(2) / 3000 == pytest.approx(0.2, abs=0.025)
    with pytest.raises(DataError, match="attribute 'group' is 'odd': expected one of healthy"):
        label(0, "odd")


def test_label_diffusion_trains_on_real_labels(tmp_path, capfd):
    root = write_data(tmp_path / "data", labels=True)
    config = tiny(root, tmp_path / "run", "recipe.name=label_diffusion", "optim.steps=2")
    _, model = load_run(train(config))
    assert model.network.image_channels == 1
    assert model.space.scale.tolist() == [1], "codes of +-1 are not normalised"
    assert "calibration volumes" not in capfd.readouterr().err


def test_a_model_of_labels_is_selected_by_the_dice_of_sampled_labels(tmp_path):
    root = write_data(tmp_path / "data", labels=True)
    words = (
        *("recipe.name=label_diffusion", "optim.steps=4", "validation.every=2"),
        *("validation.best={volumes: 1, steps: 2}", "validation.previews=1"),
    )
    run = train(tiny(root, tmp_path / "run", *words))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures = [row["dice"] for row in rows if "dice" in row]
    assert len(figures) == 2
    assert (run / "previews" / "step-00000004.png").is_file()
    # the same volume, sampled with the stored weights, has the figure of the best step
    loaded = volumediff.load(run, device="cpu").trained
    (case,) = loaded.cases("validation")
    ready = loaded.preprocessing.prepare(case)
    found = Composed(sampler=DPMSolverPP(2), samples=1).segment(
        loaded.model,
        ready.x[None],
        foreground=ready.foreground[None],
        spacing_mm=ready.spacing_mm,
        key=key(loaded.config.seed, "selection", 0),
        condition=loaded.condition(case.attributes),
    )
    truth = torch.as_tensor(ready.label).reshape(found.labels.shape)
    a, b = found.labels == 1, truth == 1
    dice = 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))
    assert max(figures) == pytest.approx(dice, abs=1e-6)


# Latents computed once


def wavelet_model(space):
    spec = {"name": "unet", "widths": [4], "groups": 2}
    network = build("network", spec, in_channels=8, out_channels=8)
    return Model(space, build("kernel", {"name": "gaussian", "schedule": "cosine"}), network)


def test_precomputed_states_give_the_loss_of_the_real_space(volumes, tmp_path):
    """The training model on raw states and the real model on voxels agree."""
    space = Wavelet()
    model = wavelet_model(space)
    nn.init.normal_(next(reversed(list(model.network.parameters()))))
    task = DiffusionTask(tiny(tmp_path, tmp_path / "run"), model, digest="x")
    task.states = Precomputed()
    raw = [space.analysis(v.x[None]) for v in volumes]
    task.normalise(raw)
    direct = Wavelet()
    direct.fit(v.x[None] for v in volumes)
    torch.testing.assert_close(space.shift, direct.shift)
    torch.testing.assert_close(space.scale, direct.scale)
    torch.testing.assert_close(
        task._seen.encode(raw[0]), model.encode(volumes[0].x[None]), rtol=0, atol=0
    )
    batch = collate([keyed(volumes)[(0, 0)]])
    state = replace(batch, x=space.analysis(batch.x))
    assert torch.isfinite(task.loss("network", state)).all()
    assert set(task.state()) == set(model.state_dict())


# Selection


def test_the_one_step_map_is_the_residual_to_the_denoised_volume(volumes, monkeypatch):
    model = wavelet_model(Wavelet())
    healthy, x = volumes[0].x[None], volumes[0].x[None].clone()
    x[..., 2:4, 2:4, 3:5] += 1.5
    levels = []

    def oracle(z_t, t, condition):
        levels.append(float(t))
        alpha, sigma = model.kernel.schedule(t)
        return Prediction.from_x0(model.encode(healthy), z_t, alpha, sigma)

    monkeypatch.setattr(model, "denoise", oracle)
    residual = selection.one_step_map(
        model, x, condition=collate([keyed(volumes)[(0, 0)]]).condition, levels=(0.3, 0.6), key=1
    )
    assert levels == [0.3, 0.6]
    torch.testing.assert_close(residual, (x - healthy).abs(), atol=1e-5, rtol=0)
    truth = x != healthy
    arguments = {"spacing_mm": (1.0, 1.0, 1.0), "smooth_mm": 0.0}
    everywhere = torch.ones_like(truth)
    assert selection.voxel_ap(residual, truth, everywhere, **arguments) == pytest.approx(1)
    worst = selection.voxel_ap(-residual, truth, everywhere, **arguments)
    assert worst < float(truth.float().mean()), "the reversed map is worse than chance"


def test_the_best_checkpoint_is_the_best_validation(data, tmp_path):
    root = write_data(tmp_path / "data", cases=8, size=(16, 16, 16))
    config = tiny(
        root,
        tmp_path / "run",
        "data.preprocessing.shape=[16,16,16]",
        "data.split.validation=0.3",
        "optim.steps=5",
        "validation={every: 1, volumes: 2, previews: 1, preview_steps: 2, best: {volumes: 2}}",
    )
    run = train(config)
    rows = [r for r in read_metrics(run / "metrics.jsonl") if "localization_ap" in r]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    assert all(0 < r["localization_ap"] <= 1 for r in rows)
    best = max(rows, key=lambda r: (r["localization_ap"], -r["step"]))
    found = checkpoint.find(run, "best")
    assert found.step == best["step"]
    assert found.state["best"]["score"] == best["localization_ap"]
    assert len(list((run / "previews").glob("*.png"))) == 5
    assert (run / "progress.png").stat().st_size > 1000
    _, model = load_run(run, which="best", weights="ema")
    stored = found.tensors("ema")
    assert all(torch.equal(t, stored[n]) for n, t in model.state_dict().items())


def test_the_manifest_says_what_ran(data, tmp_path):
    run = train(tiny(data, tmp_path / "run", "optim.steps=1"))
    session = json.loads((run / "manifest.json").read_text())["sessions"][0]
    assert session["threads"] == torch.get_num_threads()
    assert session["processes"] == 1
    assert session["volumes"] == {"train": 5, "validation": 1}
    assert session["versions"]["torch"] == torch.__version__
    split = json.loads((run / "splits.json").read_text())
    assert not set(split["train"]) & set(split["validation"])
    for damaged in ("{", "[1]"):
        (run / "manifest.json").write_text(damaged)
        with pytest.raises(DataError, match=r"manifest\.json: damaged .*; remove it"):
            train(tiny(data, run, "optim.steps=1"))


def test_a_full_disk_is_said_by_the_lock(data, tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    def opened(*args, **options):
        file = open(*args, **options)
        file.flush = full
        return file

    monkeypatch.setattr("volumediff.storage.locks.open", opened, raising=False)
    with pytest.raises(DataError, match=r"run: cannot be written \(No space left .*output=DIR"):
        train(tiny(data, tmp_path / "run"))


# Not finite


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(data, tmp_path, monkeypatch, where):
    clean = train(tiny(data, tmp_path / "clean"))
    config = tiny(data, tmp_path / "run", "save_every=1")
    original, count = DiffusionTask.loss, 0
    guilty = []

    def broken(self, player, batch):
        nonlocal count
        losses = original(self, player, batch)
        count += self.module.training
        if count != 4 or not self.module.training:
            return losses
        guilty.append(batch.keys[1])
        if where == "loss":
            return losses * torch.tensor([1.0, math.nan])
        zero = next(self.model.network.parameters()).sum() * 0
        return losses + zero.sqrt()  # value 0, derivative inf * 0

    monkeypatch.setattr(DiffusionTask, "loss", broken)
    with pytest.raises(DataError, match=r"step 4: not finite \(loss .*volumediff check") as caught:
        train(config)
    names = {
        key(0, e, i): f"{cid} (epoch {e})"
        for e in range(3)
        for i, cid in enumerate(json.loads((config.output / "splits.json").read_text())["train"])
    }
    assert names[guilty[0]] in str(caught.value)
    assert str(caught.value).count("sub-") == (1 if where == "loss" else 2)
    assert checkpoint.find(config.output, "last").step == 3
    monkeypatch.setattr(DiffusionTask, "loss", original)
    train(config)
    assert largest_difference(weights(clean), weights(config.output)) == 0


def test_a_lost_entry_of_the_cache_is_no_crash(volumes):
    assert CacheEntry(volumes[0].entry.folder, {}).load("nothing") is None


def test_values_of_an_attribute_are_named_where_none_fits(tmp_path):
    from volumediff.data.survey import find_cases
    from volumediff.samples.sources import cases_of
    from volumediff.settings.sections import Data

    root = write_data(tmp_path / "data", cases=2)
    ids = [case.id for case in find_cases(root)]
    rows = ["participant_id\tgroup\tage", f"{ids[0]}\tdepr\t30", f"{ids[1]}\tcontrol\t40"]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(UsageError, match=r"attributes are age, group \(depr: 1, control: 1\)\."):
        cases_of(Data(root=str(root), only={"group": "healthy"}))
