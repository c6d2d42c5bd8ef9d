"""Autoencoders of masks: their loss, their oracle Dice by lesion size, runs in their space."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from tiny_runs import figures, phantom, tiny, write_data
from torch import nn

from volumediff.api.loading import load
from volumediff.autoencoders._base import Autoencoder
from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._readouts import ClassReadout, IntensityReadout, MaskReadout
from volumediff.codings.one_hot import OneHot
from volumediff.codings.signed import Signed
from volumediff.errors import UsageError
from volumediff.image_codecs.strided import Strided
from volumediff.metrics.lesion_dice import lesion_dice
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.recipes.label_maps import LabelMapRecipe
from volumediff.runs.trained import load_trained
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.segmentation.result import label_map
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.spaces.latent import Latent
from volumediff.storage import checkpoint
from volumediff.storage.records import read
from volumediff.tasks import build_task, load_task
from volumediff.tasks._oracle import OracleDice, OracleMeasure
from volumediff.training.loop import train
from volumediff.training.run_folder import sessions_of


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- scores of masks --------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_reading_takes_the_weight_back(weight):
    """Where the loss is least, the reading is the true share, whatever the weight."""
    p = torch.rand((2, 3, 4, 4, 4), generator=torch.Generator().manual_seed(0)).clamp(0.05, 0.95)
    for output, shares, scores in (
        (MaskReadout(weight), p, torch.logit(p) + math.log(weight)),
        (
            ClassReadout(weight),
            p / p.sum(1, keepdim=True),
            (p * torch.tensor([1.0, weight, weight]).view(1, 3, 1, 1, 1)).log(),
        ),
    ):
        a = scores.clone().requires_grad_(True)
        output.loss(a, 2 * shares - 1).backward()
        assert float(a.grad.abs().max()) < 1e-8, "it is the minimum"
        torch.testing.assert_close(output.read(scores), 2 * shares - 1, atol=1e-5, rtol=0)


def test_the_losses_are_the_weighted_cross_entropies_of_torch():
    a = random(1, 3, 4, 4, 4)
    classes = torch.randint(3, (1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    codes = 2 * F.one_hot(classes, 3).movedim(-1, 1).float() - 1
    weights = torch.tensor([1.0, 7.0, 7.0])
    wanted = F.cross_entropy(a, classes, weight=weights)
    torch.testing.assert_close(ClassReadout(7.0).loss(a, codes), wanted)
    p = (codes + 1) / 2
    weighed = F.binary_cross_entropy_with_logits(
        a, p, pos_weight=torch.tensor(7.0), reduction="sum"
    )
    torch.testing.assert_close(MaskReadout(7.0).loss(a, codes), weighed / (7 * p + 1 - p).sum())
    assert float(IntensityReadout().loss(a, codes)) == pytest.approx(
        float((a - codes).abs().mean())
    )


def test_a_sample_weighs_the_same_whatever_is_in_it():
    """The mean over samples, each with the weights of its own voxels."""
    x = -torch.ones(2, 1, 4, 4, 4)
    x[1, :, 0] = 1
    a = random(2, 1, 4, 4, 4)
    each = [MaskReadout(9.0).loss(a[i : i + 1], x[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(MaskReadout(9.0).loss(a, x), torch.stack(each).mean())


# --- Dice of lesions --------------------------------------------------------------------------


def distances(truth, spacing):
    """From every voxel to the nearest one of each piece of the truth, by all distances."""
    pieces, count = ndimage.label(truth, structure=np.ones((3, 3, 3)))
    places = np.argwhere(np.ones_like(truth)) * spacing
    near = [
        np.linalg.norm(places[:, None] - np.argwhere(pieces == i)[None] * spacing, axis=-1).min(1)
        for i in range(1, count + 1)
    ]
    return pieces, np.stack(near).reshape(count, *truth.shape)


def test_lesion_dice_is_that_by_hand():
    spacing = (1.0, 1.3, 0.71)
    rng = np.random.default_rng(3)
    truth = np.zeros((12, 10, 9), dtype=bool)
    truth[1:3, 1:3, 1:3] = truth[6:11, 2:6, 2:7] = truth[2, 8, 7] = True
    pieces, near = distances(truth, np.array(spacing))
    apart = np.sort(near, axis=0)
    # voxels in the middle between two pieces belong to either
    found = (truth ^ (rng.random(truth.shape) < 0.08)) & (apart[1] - apart[0] > 1e-9)
    owner = near.argmin(0) + 1
    wanted = []
    for i in (1, 2, 3):
        piece, mine = pieces == i, found & (owner == i)
        wanted.append((int(piece.sum()), 2 * (piece & found).sum() / (piece.sum() + mine.sum())))
    ours = lesion_dice(torch.from_numpy(found), torch.from_numpy(truth), spacing_mm=spacing)
    assert [each.voxels for each in ours] == [n for n, _ in wanted]
    assert [each.dice for each in ours] == pytest.approx([dice for _, dice in wanted])
    nothing = torch.zeros(4, 4, 4, dtype=torch.bool)
    assert lesion_dice(nothing, nothing, spacing_mm=spacing) == []


def test_what_small_lesions_lose_is_said_by_size():
    truth = torch.zeros(16, 16, 16, dtype=torch.uint8)
    truth[0:5, 0:5, 0:5], truth[10, 10, 10], truth[14, 2, 2] = 1, 1, 1
    found = truth.clone()
    found[10, 10, 10] = 0
    measure = OracleMeasure((1, 2))
    measure.add(found, truth, spacing_mm=(2.0, 1.0, 1.0))
    measure.add(torch.zeros_like(truth), torch.zeros_like(truth), spacing_mm=(2.0, 1.0, 1.0))
    result = measure.result(checkpoint="best-1", digest="0" * 64)
    label = result.labels["1"]
    assert (result.volumes, result.voxel_mm3, label.volumes) == (2, 2.0, 1)
    assert label.dice == pytest.approx(2 * 126 / (126 + 127))
    sizes = {s.least: (s.lesions, s.dice, s.worst) for s in label.sizes}
    assert sizes == {
        1: (2, 0.5, 0.0),
        8: (0, None, None),
        64: (1, 1.0, 1.0),
        512: (0, None, None),
        4096: (0, None, None),
    }
    assert "1 to 7 0.500 (2), 64 to 511 1.000 (1)" in result.lines()[0]
    assert "in none of 2 validation volumes" in result.lines()[1]


# --- a perfect autoencoder --------------------------------------------------------------------


class Scaled(nn.Module):
    """Multiplies, so that codes become scores that leave no doubt."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


class Perfect(Autoencoder):
    """Gives everything back: the latent is the volume."""

    def __init__(self, channels, factor=60.0):
        codec = Codec(Scaled(1.0), Scaled(factor), (1, 1, 1))
        super().__init__(channels, channels, codec=codec, adversarial=0.0)
        self.readout = MaskReadout(10.0)

    def code(self, features):
        return features

    def restore(self, latent):
        return latent

    def bottleneck(self, features, generator):
        return features, torch.zeros(()), {}


@pytest.mark.parametrize("coding", [Signed(), OneHot()])
def test_a_perfect_autoencoder_gives_every_label_back(coding):
    values = (2, 5)
    recipe = LabelMapRecipe(values, coding)
    codec = Perfect(recipe.channels(1))
    if coding.grouped:
        codec.readout = ClassReadout(10.0)
    space = Latent(codec)
    label = torch.randint(3, (1, 6, 5, 4), generator=torch.Generator().manual_seed(2))
    label = torch.tensor([0, *values], dtype=torch.uint8)[label]
    masks = torch.cat([label == v for v in values])
    x = coding.encode(masks, spacing_mm=(1.0, 1.0, 1.0))[None]
    space.fit([x])
    back = space.decode(space.encode(x), (6, 5, 4))
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)
    memberships = coding.decode(back, spacing_mm=(1.0, 1.0, 1.0))
    assert torch.equal(label_map(memberships, values), label)


# --- runs -------------------------------------------------------------------------------------

CODEC = "autoencoder={name: kl, latent_channels: 3, widths: [4, 8], strides: [[2, 2, 2]]}"
LABELS = "recipe.labels=[1]"
QUICK = ("--method", "lsegdiff", "sampler.steps=2", "samples=2", "post=[]")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("masks"), cases=6, labels=True)


def coder(data, output, *words):
    recipe = "recipe={name: label_maps, labels: [1]}"
    return train(tiny(data, output, "task=autoencoder", CODEC, recipe, *words))


@pytest.fixture(scope="module")
def masks(data, tmp_path_factory):
    return coder(data, tmp_path_factory.mktemp("coder") / "run", "optim.steps=40")


def test_the_oracle_dice_of_a_run_is_that_of_its_best_weights(masks, data, capsys):
    trained = load_trained(masks, device="cpu")
    written = read(masks / "oracle_dice.json", OracleDice)
    assert (written.checkpoint, written.weights_sha256) == (trained.checkpoint, trained.digest)
    names = json.loads((masks / "splits.json").read_text())["validation"]
    assert len(names) == written.volumes
    dice = []
    for case in trained.cases("validation"):
        prepared = trained.preprocessing.prepare(case)
        truth = prepared.label > 0
        back = trained.model.reconstruct(truth[None].float() * 2 - 1)[0] > 0
        dice.append(2 * float((back & truth).sum()) / float(back.sum() + truth.sum()))
    assert written.labels["1"].dice == pytest.approx(float(np.mean(dice)))
    best = checkpoint.find(masks, "best").state["best"]
    assert best["oracle_dice"] == pytest.approx(float(np.mean(dice))), "it selects the checkpoint"
    train(tiny(data, masks, *_words(masks)))  # it is finished: the same command says it again
    said = capsys.readouterr().err
    assert "oracle Dice of best-" in said
    assert f"label 1: {np.mean(dice):.3f} in {len(dice)} volumes" in said


def _words(masks):
    recipe = "recipe={name: label_maps, labels: [1]}"
    return "task=autoencoder", CODEC, recipe, "optim.steps=40"


def test_an_autoencoder_of_masks_resumes_exactly(data, tmp_path):
    words = ["validation.every=1", "crop=[4, 4, 4]"]
    whole = coder(data, tmp_path / "whole", *words, "optim.steps=4")
    coder(data, tmp_path / "parts", *words, "optim.steps=2")
    parts = coder(data, tmp_path / "parts", *words, "optim.steps=4")
    assert figures(whole) == figures(parts)
    digests = {checkpoint.find(run, "last").digest for run in (whole, parts)}
    assert len(digests) == 1
    assert read(whole / "oracle_dice.json", OracleDice) == read(
        parts / "oracle_dice.json", OracleDice
    )


def latent(masks, *words):
    space = f"space={{name: latent, autoencoder: {masks}, image: {{name: strided, widths: 4}}}}"
    return [space, "recipe.name=label_diffusion", LABELS, *words]


@pytest.fixture(scope="module")
def segmenting(data, masks, tmp_path_factory):
    return train(tiny(data, tmp_path_factory.mktemp("latent") / "run", *latent(masks)))


def test_a_run_in_the_space_of_masks_says_and_records_its_bound(segmenting, masks, data, capsys):
    oracle = read(masks / "oracle_dice.json", OracleDice)
    (session,) = sessions_of(segmenting)
    assert session["oracle_dice"] == oracle.model_dump(mode="json")
    train(tiny(data, segmenting, *latent(masks)))
    said = capsys.readouterr().err
    assert "space.autoencoder: its oracle Dice" in said
    assert oracle.lines()[0] in said
    assert load_task(segmenting).oracle == oracle, "the run stands alone"


def test_it_segments_and_the_image_is_coded_once(segmenting, monkeypatch):
    calls = []
    before = Strided.forward
    monkeypatch.setattr(Strided, "forward", lambda s, x: (calls.append(x), before(s, x))[1])
    task = load_task(segmenting)
    x = torch.from_numpy(phantom(3))[None, None] / 100 - 1
    found = Composed(sampler=DPMSolverPP(3), samples=4).segment(
        task.model,
        x,
        foreground=torch.ones_like(x, dtype=torch.bool),
        spacing_mm=(3.0, 3.0, 3.0),
        key=1,
    )
    assert len(calls) == 1
    assert found.labels.shape == x.shape
    assert found.samples.shape == (4, 8, 8, 8)


def test_images_of_any_size_are_segmented(segmenting):
    image = phantom(9, (7, 9, 8)), np.diag([3.0, 3.0, 3.0, 1.0])
    result = load(segmenting, device="cpu").segment(image, samples=2)
    assert set(np.unique(result.labels)) <= {0, 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.labels=[1, 2]"], r"of masks, labels \[1\] with Signed.*got labels \[1, 2\]"),
        (["recipe.coding=one_hot"], r"got labels \[1\] with OneHot"),
        (["recipe={name: healthy}"], "expected an autoencoder of volumes for healthy, got one of"),
    ],
)
def test_what_an_autoencoder_of_masks_is_not_for(words, message, masks, data, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(tiny(data, tmp_path / "run", *latent(masks), *words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["autoencoder={name: vae}"], "expected one with a latent grid for label_maps"),
        (["recipe={name: label_diffusion}"], "expected healthy or label_maps"),
        (["recipe={name: inpainting}"], "expected healthy or label_maps"),
        (["label_weight=0"], "label_weight: expected a number above 0"),
    ],
)
def test_autoencoders_that_cannot_code_masks_say_why(words, message, data, tmp_path):
    with pytest.raises(UsageError, match=message):
        coder(data, tmp_path / "run", *words)


def test_an_autoencoder_of_masks_does_nothing_else(masks):
    for use in ("localizes", "segments", "samples"):
        with pytest.raises(UsageError, match="sees no image; train a latent pipeline"):
            getattr(load_trained(masks, device="cpu"), use)()


def test_labels_of_a_plan_are_those_of_the_run():
    """An autoencoder that is not trained yet has the labels of the run that will use it."""
    recipe = "recipe={name: label_diffusion, labels: [1, 2, 3, 4, 5], coding: one_hot}"
    space = "space={name: latent, autoencoder: runs/masks_64, image: {name: strided}}"
    with torch.device("meta"):
        task = build_task(tiny("nowhere", "runs/x", space, recipe))
    assert task.model.space.autoencoder.channels == 6
    assert isinstance(task.model.space.autoencoder.readout, ClassReadout)
    assert task.recipe == LabelDiffusion((1, 2, 3, 4, 5), OneHot())
