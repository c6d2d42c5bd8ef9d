"""Supervised segmentation: losses against MONAI, levels, crops, folds, what a run begins with."""

import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_runs import figures, tiny, write_data

from volumediff.data.cases import Case
from volumediff.data.foreground_crops import ForegroundCrops
from volumediff.data.splits import split_cases
from volumediff.errors import DataError, UsageError
from volumediff.inference.options import SegmentOptions
from volumediff.inference.segment import segment, segmenting
from volumediff.kernels.gaussian import Gaussian
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.optimization.rate import learning_rate
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.runs.trained import load_trained
from volumediff.samples.dataset import Crop
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation.method_files import load_segmenter
from volumediff.settings.run_config import load_run_config
from volumediff.settings.sections import Optim, SplitRule
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.supervised_segmentation import (
    DiceCrossEntropy,
    SupervisedSegmentation,
    averaged,
    level_weights,
)
from volumediff.tasks import build_task, load_task, warm_start
from volumediff.training.loop import train

UNET = "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}"
LABELS = "recipe={name: label_diffusion, labels: [1], coding: one_hot}"
WORDS = ["task=segmentation", "space=voxel", UNET, LABELS, "optim.lr=1e-2"]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_hot(labels, classes):
    return F.one_hot(labels, classes).movedim(-1, 1).double()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("supervised"), cases=8, labels=True)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    words = [*WORDS, "optim.steps=30", "validation.previews=1"]
    return train(tiny(data, tmp_path_factory.mktemp("trained") / "run", *words))


def moved(task):
    """Weights as after training."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in task.module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=source))
    return task


# The loss


def test_dice_of_regions_is_that_of_the_sums_of_their_classes():
    logits, labels = draw(2, 3, 4, 5, 6).float(), torch.arange(240).view(2, 4, 5, 6) * 7 % 3
    q = one_hot(labels, 3)
    found = DiceCrossEntropy(1.0, 0.0, regions=((1, 2), (2,)))(logits, q)
    p = logits.softmax(1)
    expected = []
    for truth, guess in ((labels > 0, p[:, 1] + p[:, 2]), (labels == 2, p[:, 2])):
        t, g = truth.float().flatten(1), guess.flatten(1)
        expected.append(1 - (2 * (t * g).sum(1) + 1e-5) / (t.sum(1) + g.sum(1) + 1e-5))
    torch.testing.assert_close(found, torch.stack(expected).mean(0))


@pytest.mark.parametrize("background", [True, False])
def test_the_loss_is_that_of_monai(background):
    from monai.losses import DiceCELoss

    logits = draw(3, 4, 5, 6, 7)
    labels = torch.randint(4, (3, 5, 6, 7), generator=torch.Generator().manual_seed(1))
    found = DiceCrossEntropy(0.7, 1.3, background)(logits, one_hot(labels, 4))
    monai = DiceCELoss(
        include_background=background,
        to_onehot_y=True,
        softmax=True,
        lambda_dice=0.7,
        lambda_ce=1.3,
    )
    for i in range(3):
        expected = monai(logits[i : i + 1].float(), labels[i : i + 1, None])
        torch.testing.assert_close(found[i].double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_weights_of_the_background_are_those_of_torch():
    logits, labels = draw(1, 3, 4, 4, 4), torch.arange(64).view(1, 4, 4, 4) % 3
    weight = torch.tensor([0.25, 1.0, 1.0], dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weight=weight)
    found = DiceCrossEntropy(0.0, 1.0, False, 0.25)(logits, one_hot(labels, 3))
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_readers_who_disagree_are_best_answered_by_their_shares():
    shares = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1, 1).expand(-1, -1, 2, 2, 2)
    logits = shares.log().clone().requires_grad_()
    DiceCrossEntropy(0.0, 1.0)(logits, shares).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


def test_levels_weigh_half_of_the_next_finer_one():
    assert level_weights(0) == [1.0]
    assert level_weights(2) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_shares_are_averaged_over_cells_and_what_is_left_of_them():
    shares = draw(1, 2, 5, 4, 3).softmax(1)
    found = averaged(shares, (2, 4, 2))
    assert found.shape == (1, 2, 3, 1, 2)
    torch.testing.assert_close(found[0, :, 0, 0, 0], shares[0, :, :2, :, :2].mean((1, 2, 3)))
    torch.testing.assert_close(found[0, :, 2, 0, 1], shares[0, :, 4:, :, 2:].mean((1, 2, 3)))
    torch.testing.assert_close(found.sum(1), torch.ones_like(found[:, 0]))


SPACES = {
    "voxel": lambda: Voxel(),
    "wavelet": lambda: Wavelet(),
    "slices": lambda: Slices(Wavelet(axes="hw"), axis="w"),
}


@pytest.mark.parametrize("name", SPACES)
def test_the_loss_is_the_weighted_sum_over_levels(name):
    """Heads that give one class everywhere have its constant logits at their level."""
    space, recipe = SPACES[name](), LabelDiffusion(labels=(1,))
    planar = name == "slices"
    kind, shape = Pseudo3D if planar else UNet, (8, 6, 4)
    k = space.channels(2)
    network = kind(space.channels(1), k, widths=(4, 4, 4), blocks=1, groups=2)
    model = SupervisedSegmentation(space, network, recipe, deep_supervision=2)
    # Slices are stacked along w, where the network does not change the grid.
    sizes = [shape, (4, 3, 4 if planar else 2), (2, 2, 4 if planar else 1)]
    body, constants = network.hourglass, (2.0, 0.5, -1.0)
    heads = (body.head, *body.sides.heads)
    for constant, size, head in zip(constants, sizes, heads, strict=True):
        logits = torch.zeros(1, 2, *size)
        logits[:, 1] = constant
        bias = head.in_plane.bias if planar and head is body.head else head.bias
        with torch.no_grad():
            bias.copy_(space.analysis(logits).mean((0, 2, 3, 4)))
    x = draw(1, 1, *shape).float()
    z = model.encode(x)
    found = model.logits(z, shape, keys=(1,), levels=[0.0])
    assert [tuple(each.shape[2:]) for each in found] == sizes
    for each, constant in zip(found, constants, strict=True):
        expected = torch.tensor([0.0, constant]).view(1, 2, 1, 1, 1)
        torch.testing.assert_close(each, expected.expand_as(each))
    batch = build_batch(x, labels=(x > 0)[:, 0].long())
    shares = model.shares(batch.x)
    cells = [(1, 1, 1), *((f, f, 1 if planar else f) for f in (2, 4))]
    single = [
        model.criterion(each, averaged(shares, cell))
        for each, cell in zip(found, cells, strict=True)
    ]
    assert abs(float((single[0] - single[1]).detach())) > 0.1
    expected = (4 * single[0] + 2 * single[1] + single[2]) / 7
    torch.testing.assert_close(model.loss(batch), expected)
    model.eval()
    assert len(model.logits(z, shape, keys=(1,), levels=[0.0])) == 1


def build_batch(x, labels):
    from volumediff.batch import Batch

    return Batch(2 * one_hot(labels, 2)[:, 1:].float() - 1, tuple(range(len(x))), images=(x,))


def test_noise_levels_are_drawn_by_key_and_averaged_in_use():
    kernel = Gaussian(Cosine(), prediction="x0")
    network = UNet(1, 2, widths=(4,), blocks=1, groups=2)
    levels = (0.1, 0.6)
    model = SupervisedSegmentation(
        Voxel(), network, LabelDiffusion(), levels=levels, kernel=kernel
    )
    assert {model._drawn_level(key) for key in range(40)} == set(levels)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=source))
    z = draw(1, 1, 4, 4, 4).float()
    each = [model.memberships(z, (4, 4, 4), keys=[3], levels=[t]) for t in levels]
    assert not torch.allclose(*each)
    both = model.memberships(z, (4, 4, 4), keys=[3])
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    assert not torch.equal(both, model.memberships(z, (4, 4, 4), keys=[4]))
    with pytest.raises(ValueError, match=r"expected a kernel for the levels \(0\.5,\)"):
        SupervisedSegmentation(Voxel(), network, LabelDiffusion(), levels=(0.5,))


# Crops, folds, learning rates


def test_a_third_of_the_crops_is_centred_on_a_label():
    label = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    label[0, 3, 4, 5], label[0, 17, 16:18, 2] = 1, 2
    label[0, 10, 10, 10] = 7  # no label of the run
    rule = ForegroundCrops(1 / 3, (1, 2))
    centres = [rule.centre(label, key) for key in range(3000)]
    counts = Counter(centres)
    assert counts[None] / 3000 == pytest.approx(2 / 3, abs=0.03)
    # labels are as likely as each other, and so are the voxels of one
    assert counts[3, 4, 5] / 3000 == pytest.approx(1 / 6, abs=0.03)
    assert counts[17, 16, 2] / 3000 == pytest.approx(1 / 12, abs=0.03)
    assert set(counts) == {None, (3, 4, 5), (17, 16, 2), (17, 17, 2)}
    assert ForegroundCrops(1.0, (3,)).centre(label, 0) is None
    crop = Crop((8, 8, 8), (2, 2, 2))
    for centre in set(counts) - {None}:
        marked = torch.zeros(1, 20, 20, 20)
        marked[(0, *centre)] = 1
        cut = crop.cut(marked, 5, crop.around(centre, (20, 20, 20)))
        assert cut.shape == (1, 8, 8, 8)
        assert cut.sum() == 1
    inner = torch.zeros(1, 20, 20, 20)
    inner[0, 10, 10, 10] = 1
    cut = crop.cut(inner, 5, crop.around((10, 10, 10), (20, 20, 20)))
    assert cut[0, 4, 4, 4] == 1, "in the middle"
    with pytest.raises(ValueError, match="share of crops"):
        ForegroundCrops(1.1, (1,))


def test_folds_validate_every_patient_once():
    cases = [Case(f"c{i}", f"p{i // 2}", {}) for i in range(24)]
    parts = [
        split_cases(cases, (0.7, 0.1, 0.0, 0.2), fold=fold, folds=5, seed=3) for fold in range(5)
    ]
    assert len({part.test for part in parts}) == 1
    validated = Counter(case for part in parts for case in part.validation)
    assert set(validated.values()) == {1}
    for part in parts:
        assert not set(part.train) & set(part.validation)
        together = {*part.train, *part.validation, *part.test}
        assert together == {case.id for case in cases}
    with pytest.raises(DataError, match=r"as many patients .* as folds, 5, got 2"):
        split_cases(cases[:4], (1.0, 0.0, 0.0, 0.0), fold=0)
    with pytest.raises(ValueError, match="takes a fold from 0 to 4, got 5"):
        SplitRule(fold=5)


def test_the_learning_rate_can_fall_as_a_polynomial():
    optim = Optim(lr=0.01, steps=1000, warmup=0, decay=0.0, power=0.9)
    assert learning_rate(optim, 0) == 0.01
    assert learning_rate(optim, 500) == pytest.approx(0.01 * 0.5**0.9)


# Runs


def weights(run, which="last"):
    (path, *_) = sorted(run.glob(f"checkpoints/{which}-*"), reverse=True)
    return {f.name: load_file(f) for f in path.glob("*.safetensors")}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(data, tmp_path):
    words = [
        *WORDS,
        "crop=[4,4,4]",
        "supervision={deep_supervision: 1, foreground_crops: 0.5}",
        "data.augmentation={flip: [0], gamma: 0.2}",
        "optim={momentum: 0.9, power: 0.9, lr: 1e-2, warmup: 0, batch_size: 2, ema: 0.9}",
        "network.coordinates=true",
        "save_every=1",
    ]
    whole = train(tiny(data, tmp_path / "whole", *words, "optim.steps=4"))
    train(tiny(data, tmp_path / "parts", *words, "optim.steps=2"))
    parts = train(tiny(data, tmp_path / "parts", *words, "optim.steps=4"))
    one, two = weights(whole), weights(parts)
    assert any("momentum_buffer" in name for name in one["optimizer.safetensors"])
    for file, tensors in one.items():
        assert set(tensors) == set(two[file])
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two[file][name]), f"{file}: {name}"


def test_it_learns_and_selects_by_dice(trained, data):
    rows = [row for row in figures(trained) if "dice" in row]
    assert rows[-1]["dice"] > 0.8
    (state,) = trained.glob("checkpoints/best-*/state.json")
    best = json.loads(state.read_text())["best"]
    assert best["score"] == max(row["dice"] for row in rows)
    assert list((trained / "previews").glob("*.png"))
    run = load_trained(trained, device="cpu")
    run.segments()
    with pytest.raises(UsageError, match="was trained to segment labels"):
        run.localizes()


def test_the_method_asks_the_network_once_per_volume_and_flip(trained):
    run = load_trained(trained, device="cpu")
    x = draw(1, 1, 8, 7, 6).float().clamp(-1, 1)
    inside, calls = torch.ones(1, 1, 8, 7, 6, dtype=torch.bool), []
    hook = run.model.network.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for words in ([], ["ensemble=[flips]"]):
        calls.clear()
        segmenter = load_segmenter("unet", words)
        segmenter.check(run.model)
        found[len(words)] = segmenter.segment(
            run.model, x, foreground=inside, spacing_mm=(1.0, 1.0, 1.0), key=1
        )
        assert len(calls) == (8 if words else 1)
    hook.remove()
    mean = torch.zeros(1, 1, 8, 7, 6)
    for number in range(8):
        axes = [i + 2 for i in range(3) if number >> i & 1]
        z = run.model.encode(x.flip(axes))
        mean += run.model.memberships(z, (8, 7, 6), keys=[0]).flip(axes) / 8
    torch.testing.assert_close(found[1].probabilities, mean)
    with pytest.raises(UsageError, match="expected 1 for the predictor Direct"):
        load_segmenter("unet", ["samples=2"])


@pytest.mark.parametrize("pipeline", ["patch_64", "wavelet_64", "pseudo3d_64", "latent_64"])
def test_the_method_on_every_pipeline(pipeline):
    config = load_run_config(pipeline, ["method=unet", "recipe.labels=[1,2]"])
    if pipeline == "latent_64":
        with pytest.raises(UsageError, match=r"^space: expected voxels, wavelets or slices"):
            build_task(config)
        return
    assert config.kernel is None
    with torch.device("meta"):
        task = build_task(config)
    load_segmenter("unet").check(task.result)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recipe=healthy"],
            "recipe: expected label_diffusion, which says the labels, got healthy",
        ),
        (["recipe.raters=consensus"], r"recipe\.raters: expected raters that say no level"),
        (["supervision={dice: 0, cross_entropy: 0}"], "supervision: expected dice or cross_ent"),
        (["supervision.levels=[0.1]"], r"supervision\.levels: expected a kernel .* got \[0.1\]"),
        (["supervision.deep_supervision=2"], "network: expected 1 to 1 heads below the finest"),
        (["supervision.levels=[]"], "supervision.levels"),
        (["supervision.dise=1"], "supervision.dise: unknown key"),
    ],
)
def test_what_cannot_be_trained_is_refused(data, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        build_task(tiny(data, tmp_path / "run", *WORDS, *words))


# What a run begins with

DIFFUSION = ["space=voxel", UNET, "kernel={name: gaussian, schedule: cosine}"]
RECIPES = {
    "healthy": ["recipe=healthy"],
    "class_conditional": [
        "recipe={name: class_conditional, attribute: group, values: [control, patient]}"
    ],
    "label_diffusion": [LABELS],
    "inpainting": ["recipe=inpainting"],
}


@pytest.fixture(scope="module", params=RECIPES)
def diffusion(request, data, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    words = ["task=diffusion", *DIFFUSION, *RECIPES[request.param], "optim.steps=2"]
    return train(tiny(data, out, *words))


def test_fine_tuning_begins_with_the_network_of_a_diffusion_run(diffusion, data, tmp_path):
    other = load_task(diffusion)
    start = [f"start_from={diffusion}", "supervision.deep_supervision=1"]
    task = build_task(tiny(data, tmp_path / "run", *WORDS, *start))
    fresh = {n: t.clone() for n, t in task.model.network.state_dict().items()}
    said = []
    warm_start(task, diffusion, said.append)
    source = other.model.network.state_dict()
    for name, tensor in task.model.network.state_dict().items():
        if name == "hourglass.stem.weight":
            first = other.backbone.first
            assert torch.equal(tensor, source[name][:, first : first + 1])
        elif name.startswith(("hourglass.head", "hourglass.act", "hourglass.sides")):
            assert torch.equal(tensor, fresh[name])
        else:
            assert torch.equal(tensor, source[name]), name
    new = "new: hourglass.act, hourglass.head, hourglass.sides"
    assert said[0].endswith(new)
    assert f"start_from = {diffusion}: took " in said[0]
    for name in ("shift", "scale"):
        assert torch.equal(getattr(task.model.space, name), getattr(other.model.space, name))


def test_the_first_input_is_where_the_volume_goes_in(data, tmp_path):
    """On the volume alone, the stem gives what it gave with zeros beside it."""
    words = ["task=diffusion", *DIFFUSION, LABELS]
    other = moved(build_task(tiny(data, tmp_path / "other", *words)))
    assert other.backbone.first == 2, "after the codes of background and label"
    other = build_task(tiny(data, tmp_path / "other", *words[:-1], "recipe=healthy"))
    assert other.backbone.first == 0


def test_an_encoder_that_is_frozen_is_saved_and_never_trained(data, tmp_path):
    words = ["task=diffusion", *DIFFUSION, "recipe=healthy", "optim.steps=2"]
    of = train(tiny(data, tmp_path / "of", *words))
    words = [*WORDS, f"start_from={of}", "supervision.freeze_encoder=true", "optim.steps=3"]
    run = train(tiny(data, tmp_path / "run", *words))
    before, after = load_task(of).model.network, load_task(run).model.network
    names = {
        f"hourglass.{n}"
        for n in before.hourglass.state_dict()
        if n.startswith(("stem", "encoder", "down", "middle"))
    }
    assert len(names) > 20
    source, found = before.state_dict(), after.state_dict()
    for name in names:
        assert torch.equal(found[name], source[name]), name
    decoder = [n for n in found if n.startswith("hourglass.decoder")]
    assert any(not torch.equal(found[n], source[n]) for n in decoder)
    with pytest.raises(UsageError, match="freeze_encoder: expected start_from"):
        train(tiny(data, tmp_path / "x", *WORDS, "supervision.freeze_encoder=true"))


def test_another_network_cannot_be_begun_with(diffusion, data, tmp_path):
    words = [*WORDS, f"start_from={diffusion}"]
    wide = "network={name: unet, widths: [4, 12], blocks: 1, groups: 2}"
    with pytest.raises(UsageError, match=r"does not fit .*: expected \(12,\), got \(8,\)"):
        train(tiny(data, tmp_path / "wide", *words, wide))
    with pytest.raises(UsageError, match="space: expected that of start_from"):
        train(tiny(data, tmp_path / "space", *words, "space=wavelet"))
    noisy = ["supervision.levels=[0.1]", "kernel={name: gaussian, schedule: linear}"]
    with pytest.raises(UsageError, match="kernel: expected that of start_from"):
        train(tiny(data, tmp_path / "kernel", *words, *noisy))


def test_a_segmentation_of_as_many_labels_gives_its_last_layers_too(trained, data, tmp_path):
    other = load_task(trained)
    task = build_task(tiny(data, tmp_path / "same", *WORDS))
    said = []
    warm_start(task, trained, said.append)
    assert "new" not in said[0]
    for name, tensor in other.model.network.state_dict().items():
        assert torch.equal(task.model.network.state_dict()[name], tensor)
    more = LABELS.replace("[1]", "[1, 2]")
    task = build_task(tiny(data, tmp_path / "more", *WORDS, more))
    warm_start(task, trained, said.append)
    assert said[1].endswith("recipe.labels is [1, 2] here and [1] there.")
    assert said[2].endswith("new: hourglass.act, hourglass.head")
    assert bool(task.loss("network", task.batch((8, 8, 8), 1)).isfinite().all())


@pytest.mark.parametrize("name", ["unet", "unet_ensemble", "rousseau", "alshenoudy_finetune"])
def test_the_methods_are_trained_and_used_as_their_files_say(name, data, tmp_path):
    words = ["network={name: unet, widths: [4, 8], blocks: 1, groups: 2}", "memory.dtype=float32"]
    words += ["data.preprocessing={shape: [8, 8, 8]}", "crop=null", f"data.root={data}"]
    words += ["optim.steps=2", "optim.warmup=0", "validation={every: 2}", "data.split.folds=2"]
    if name in ("rousseau", "alshenoudy_finetune"):
        of = train(load_run_config("patch_64", [*words, f"output={tmp_path / 'of'}"]))
        words.append(f"start_from={of}")
    words = [f"method={name}", *words, f"output={tmp_path / 'run'}"]
    run = load_trained(train(load_run_config("patch_64", words)), device="cpu")
    assert run.config.method == name
    segmenter = load_segmenter(name)
    segmenter.check(run.model)
    found = segmenter.segment(
        run.model,
        draw(1, 1, 8, 8, 8).float().clamp(-1, 1),
        foreground=torch.ones(1, 1, 8, 8, 8, dtype=torch.bool),
        spacing_mm=(3.0, 3.0, 3.0),
        key=1,
    )
    assert found.probabilities.isfinite().all()


def test_runs_of_several_folds_segment_together(trained, data, tmp_path):
    other = train(tiny(data, tmp_path / "other", *WORDS, "seed=1", "optim.steps=8"))
    runs = [load_trained(run, device="cpu") for run in (trained, other)]
    words = (f"ensemble=[{{name: members, runs: [{other}]}}]",)
    work = segmenting(runs[0], SegmentOptions(method="unet", overrides=words))
    x = draw(1, 1, 8, 8, 8).float().clamp(-1, 1)
    inside = torch.ones(1, 1, 8, 8, 8, dtype=torch.bool)
    found = work.segmenter.segment(
        runs[0].model, x, foreground=inside, spacing_mm=(3.0, 3.0, 3.0), key=1
    )
    each = [r.model.memberships(r.model.encode(x), (8, 8, 8), keys=[0]) for r in runs]
    assert not torch.allclose(*each)
    torch.testing.assert_close(found.probabilities, (each[0] + each[1]) / 2)
    assert runs[1].digest in work.settings["method"], "results depend on the weights of all"
    summary = segment(
        runs[0],
        data / "sub-00_T1w.nii.gz",
        tmp_path / "out",
        SegmentOptions(method="unet", overrides=words),
        report=lambda line: None,
    )
    assert not summary.failed
    (sidecar,) = (tmp_path / "out").rglob("*_dseg.json")
    facts = json.loads(sidecar.read_text())
    assert facts["network_calls"] == 2
    assert [m["weights_sha256"] for m in facts["members"]] == [runs[1].digest]
    # refused: the run again, and runs that see other volumes
    again = (f"ensemble=[{{name: members, runs: [{trained}]}}]",)
    with pytest.raises(UsageError, match="which is a member by itself"):
        segmenting(runs[0], SegmentOptions(method="unet", overrides=again))
    low = "data.preprocessing.intensity={name: percentile, low: 1.0}"
    unlike = train(tiny(data, tmp_path / "unlike", *WORDS, low, "optim.steps=1"))
    words = (f"ensemble=[{{name: members, runs: [{unlike}]}}]",)
    with pytest.raises(UsageError, match=r"unlike: expected the data\.preprocessing of .*run, "):
        segmenting(runs[0], SegmentOptions(method="unet", overrides=words))
    with pytest.raises(UsageError, match="expected runs that differ, at least one"):
        load_segmenter("unet", ["ensemble=[{name: members, runs: []}]"])
