"""Voxels that nobody has judged, as `ignore` of nnU-Net, change no loss and no selection."""

import json

import numpy as np
import pytest
import torch
from test_losses import context, draw, masks
from tiny_app import save
from tiny_runs import figures, phantom, tiny

from volumediff.batch import Batch
from volumediff.calibration import segmentation_fits
from volumediff.calibration.segmentation_fits import fitted
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses.cross_entropy import CrossEntropy
from volumediff.losses.dice import Dice
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.runs.trained import load_trained
from volumediff.samples.dataset import Keyed, Sample, collate
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation.method_files import load_segmenter
from volumediff.spaces.voxel import Voxel
from volumediff.supervised_segmentation import DiceCrossEntropy, SupervisedSegmentation, averaged
from volumediff.tasks import load_task
from volumediff.tasks._selection import label_dice
from volumediff.training.loop import train

UNSEEN = 9
SUPERVISED = [
    "task=segmentation",
    "space=voxel",
    "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
    "recipe={name: label_diffusion, labels: [1], coding: one_hot, ignored: [9]}",
]


def right_half(x):
    """1 in the right half along w."""
    hidden = torch.zeros_like(x[:, :1])
    hidden[..., x.shape[-1] // 2 :] = 1
    return hidden


@pytest.mark.parametrize("background", [True, False])
def test_the_supervised_loss_is_that_of_what_is_judged(background):
    logits = draw(2, 3, 4, 5, 6).requires_grad_()
    q = torch.softmax(3 * draw(2, 3, 4, 5, 6, seed=1), dim=1)
    loss = DiceCrossEntropy(0.7, 1.3, background, 0.4)
    found = loss(logits, q, 1 - right_half(q))
    torch.testing.assert_close(found, loss(logits[..., :3], q[..., :3]))
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert float(slope[..., 3:].abs().max()) == 0
    assert float(slope[..., :3].abs().min()) > 0
    assert loss(logits, q, torch.zeros_like(q[:, :1])).abs().max() < 1e-6, "nothing is judged"


def test_cells_have_the_shares_of_what_is_judged_in_them():
    recipe = LabelDiffusion(ignored=(UNSEEN,))
    model = SupervisedSegmentation(Voxel(), UNet(1, 2, widths=(4,), blocks=1, groups=2), recipe)
    seen = []
    model.criterion = lambda logits, q, weight=None: seen.append((q, weight)) or q[:, 0, 0, 0, 0]
    q = torch.zeros((1, 2, 2, 2, 2))
    q[:, 0], hidden = 1, torch.zeros((1, 1, 2, 2, 2))
    q[:, 0, 0, 0], q[:, 1, 0, 0], hidden[..., 1, :, :] = 0, 1, 1
    model._level_loss(torch.zeros((1, 2, 1, 1, 1)), q, hidden, (2, 2, 2))
    assert seen[0][0].flatten().tolist() == pytest.approx([0.5, 0.5]), "2 of 4 judged voxels"
    assert float(seen[0][1]) == pytest.approx(0.5)
    assert averaged(q, (2, 2, 2)).flatten().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    "term", [Dice(smooth=3.0), CrossEntropy(), CrossEntropy(classes=(1.0, 2.0, 3.0))]
)
def test_terms_are_those_of_what_is_judged(term):
    x, guess = masks(), draw(2, 2, 4, 5, 6, seed=5).clamp(-1, 1)
    found = term(context(x, guess, hidden=right_half(x)))
    expected = term(context(x[..., :3].clone(), guess[..., :3].clone()))
    torch.testing.assert_close(found, expected)


def test_the_loss_of_a_diffusion_does_not_look_at_hidden_voxels():
    network = UNet(1, 1, image_channels=1, widths=(4,), blocks=1, groups=2)
    model = Model(
        Voxel(),
        Gaussian(Cosine(), prediction="x0"),
        network,
        recipe=LabelDiffusion(ignored=(UNSEEN,)),
        losses=(Dice(smooth=1.0), CrossEntropy()),
    )
    x, image = masks(1), draw(2, 1, 4, 5, 6, seed=3)
    hidden = right_half(x)
    batch = Batch(x, (3, 4), images=(image,), hidden=hidden)
    said = {}

    def spoil(module, args, output):
        said["output"] = torch.where(hidden > 0, 7.0, output.detach()) + 0 * output
        return said["output"]

    before = model.loss(batch)
    handle = network.register_forward_hook(spoil)
    after = model.loss(batch)
    handle.remove()
    torch.testing.assert_close(after, before)
    plain = model.loss(Batch(x, (3, 4), images=(image,)))
    assert (plain - before).abs().min() > 1e-3, "elsewhere it looks at all of them"


def test_selection_does_not_count_what_is_ignored():
    truth = torch.zeros((1, 1, 2, 2, 2), dtype=torch.uint8)
    found = truth.clone()
    truth[0, 0, 0], truth[0, 0, 1, 0] = 1, UNSEEN
    found[0, 0, 0], found[0, 0, 1, 0, 0] = 1, 1
    assert label_dice(found, truth, LabelDiffusion(ignored=(UNSEEN,))) == 1
    assert label_dice(found, truth, LabelDiffusion()) == pytest.approx(8 / 9)


def write_nnunet(root, *, cases=8):
    """Bright boxes are lesions; a quarter of each volume was not judged."""
    for i in range(cases):
        x = phantom(i)
        label = np.zeros(x.shape, np.uint8)
        label[2:5, 2:6, 1 : 4 + i % 2], label[:, :, -2:] = 1, UNSEEN
        save(root / f"imagesTr/s{i}_0000.nii.gz", x + 200 * (label == 1), np.diag([3.0, 3, 3, 1]))
        save(root / f"labelsTr/s{i}.nii.gz", label, np.diag([3.0, 3, 3, 1]))
    said = {
        "channel_names": {"0": "T1w"},
        "labels": {"background": 0, "lesion": 1, "ignore": UNSEEN},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(said))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nnunet(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture
def samples(monkeypatch):
    """Samples that training sees, as they are drawn."""
    seen, draw_one = [], Keyed.sample

    def sample(self, index, *, key):
        seen.append(draw_one(self, index, key=key))
        return seen[-1]

    monkeypatch.setattr(Keyed, "sample", sample)
    return seen


def test_a_run_trains_selects_and_fits_without_them(data, tmp_path, samples):
    run = train(tiny(data, tmp_path / "run", *SUPERVISED, "optim.steps=3", "data.channels=[T1w]"))
    assert samples
    for each in samples:
        image, hidden, code = each.images[-1], each.hidden, each.x
        assert 0.1 < float(hidden.mean()) < 0.5
        assert float(code[1:][hidden > 0].max()) <= float(code[1:].min()), "no lesion is there"
        assert image.shape[1:] == hidden.shape[1:]
    assert all(0 <= row["dice"] <= 1 for row in figures(run) if "dice" in row)
    trained = load_trained(run, device="cpu")
    method = load_segmenter("unet", ["post=[{name: fitted_threshold}]"])
    assert fitted(trained, method, seed=0, report=lambda line: None).fitted
    for found, truth in segmentation_fits._found(trained, method, 0, lambda line: None):
        unknown = (truth == UNSEEN).expand_as(found.probabilities)
        assert float(found.probabilities[unknown].max()) == 0 < float(found.probabilities.max())


def test_a_diffusion_of_labels_trains_without_them(data, tmp_path, samples):
    words = [
        "recipe={name: label_diffusion, labels: [1], ignored: [9]}",
        "losses=[{name: dice}, {name: cross_entropy}]",
        "optim.steps=2",
        "data.channels=[T1w]",
    ]
    run = train(tiny(data, tmp_path / "run", *words))
    assert all(each.hidden is not None for each in samples)
    assert load_task(run).recipe.ignored == (UNSEEN,)
    assert all(np.isfinite(row["loss"]) for row in figures(run) if "loss" in row)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recipe={name: label_diffusion, labels: [1]}"],
            r"asks to ignore 9.*recipe.ignored=\[9\]",
        ),
        (
            ["recipe={name: label_diffusion, labels: [1], ignored: [1]}"],
            "ignored: expected values",
        ),
        (
            [
                "recipe={name: label_diffusion, labels: [1], ignored: [9]}",
                "kernel={name: discrete, schedule: cosine}",
            ],
            "recipe.ignored: expected the kernel gaussian or cold.*got discrete",
        ),
        (
            [
                "recipe={name: label_diffusion, labels: [1], ignored: [9]}",
                "losses=[{name: boundary}]",
            ],
            "losses, boundary: expected losses that leave voxels out",
        ),
    ],
)
def test_what_would_look_at_them_is_refused(data, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        train(tiny(data, tmp_path / "run", *words, "data.channels=[T1w]"))


def test_samples_without_hidden_voxels_are_as_before():
    plain = Sample(1, torch.zeros((1, 2, 2, 2)), (), None, None, None)
    assert collate([plain, plain]).hidden is None
