"""Self-supervised pre-training: closed forms of the pretexts, resuming, what begins with a run."""

import math
from itertools import product

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny, write_data

from volumediff.errors import UsageError
from volumediff.networks.unet import UNet
from volumediff.pretexts._momentum import MomentumCopy
from volumediff.pretexts._projection import unit
from volumediff.pretexts._views import Views
from volumediff.pretexts.byol import BYOL
from volumediff.pretexts.jigsaw import Jigsaw, orders
from volumediff.pretexts.mae import MAE
from volumediff.pretexts.moco import MoCo
from volumediff.pretexts.rotation import WAYS, Rotation, cube, turned
from volumediff.pretexts.simclr import SimCLR, contrast
from volumediff.pretraining import NetworkEncoder, Pretraining
from volumediff.runs.trained import load_trained
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import build_task, load_task, warm_start
from volumediff.tasks.pretraining import PretrainingTask
from volumediff.training.loop import train

UNET = "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}"
WORDS = ["task=pretraining", "space=voxel", UNET]
PRETEXTS = {
    "rotation": "pretext=rotation",
    "jigsaw": "pretext={name: jigsaw, orders: 5, hidden: 8}",
    "simclr": "pretext={name: simclr, places: 2, width: 6}",
    "moco": "pretext={name: moco, queue: 6, width: 6, momentum: 0.9}",
    "byol": "pretext={name: byol, width: 6, momentum: 0.9}",
    "mae": "pretext={name: mae, cell: 2}",
}
SEGMENTS = [
    "task=segmentation",
    "space=voxel",
    UNET,
    "recipe={name: label_diffusion, labels: [1], coding: one_hot}",
]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("pretraining"), cases=8, labels=True)


def encoder(space=None, channels=1):
    space = space or Voxel()
    k = space.channels(channels)
    network = UNet(k, k, widths=(4, 8), blocks=1, groups=2)
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=source))
    return NetworkEncoder(space, network, dtype=torch.float32)


# Rotations and pieces


def test_rotations_are_ten_and_invertible():
    x = draw(2, 5, 5, 5)
    every = [turned(x, way) for way in range(len(WAYS))]
    assert len(WAYS) == 10
    for a, b in product(range(10), repeat=2):
        assert (a == b) == torch.equal(every[a], every[b])
    for way, (i, j, times) in enumerate(WAYS):
        assert torch.equal(every[way].rot90(-times, (i + 1, j + 1)), x)
    assert torch.equal(cube(draw(1, 5, 7, 6)), draw(1, 5, 7, 6)[:, :, 1:6, :5])


def test_a_head_that_knows_the_way_has_no_loss():
    pretext = Rotation(8)
    seen = []

    class Knows(NetworkEncoder):
        def forward(self, x):
            seen.extend(x)
            return torch.zeros(len(x), 8)

    known = encoder()
    known.__class__ = Knows
    x = draw(4, 1, 4, 4, 4)
    keys = (1, 2, 3, 4)
    with torch.no_grad():
        pretext.head.weight.zero_()
        pretext.head.bias.zero_()
        uniform = pretext.loss(known, x, keys)
    torch.testing.assert_close(uniform, torch.full((4,), math.log(10)))
    ways = [w for v, s in zip(x, seen, strict=True) for w in range(10) if turned(v, w).equal(s)]
    assert len(ways) == 4, "each volume was turned one way"
    with torch.no_grad():
        pretext.head.bias[ways[0]] = 50.0
        assert pretext.loss(known, x[:1], keys[:1]) < 1e-6


def test_orders_are_far_from_each_other():
    found = orders(60)
    assert found[0] == tuple(range(8))
    assert all(sorted(order) == list(range(8)) for order in found)
    least = min(
        sum(a != b for a, b in zip(one, two, strict=True))
        for i, one in enumerate(found)
        for two in found[:i]
    )
    assert len(set(found)) == 60
    assert least >= 5, "of random orders some pair would agree in four places or more"
    assert orders(10) == found[:10]


def test_pieces_without_gaps_are_the_volume():
    pretext = Jigsaw(8, orders=3, gap=0.0)
    x = draw(2, 6, 4, 8)
    pieces = pretext.pieces(x, key=1)
    rows = [
        torch.cat([pieces[4 * i + 2 * j + k] for k in range(2)], dim=3)
        for i in range(2)
        for j in range(2)
    ]
    planes = [torch.cat(rows[2 * i : 2 * i + 2], dim=2) for i in range(2)]
    assert torch.equal(torch.cat(planes, dim=1), x)
    shorter = Jigsaw(8, orders=3, gap=0.5).pieces(x, key=1)
    assert shorter.shape == (8, 2, 2, 1, 2)
    with pytest.raises(ValueError, match="expected 2 to 400 orders"):
        Jigsaw(8, orders=1)


# Contrast


def test_the_contrast_is_that_of_the_paper_by_brute_force():
    z, tau = unit(draw(2, 6, 5)), 0.3
    found = contrast(z, temperature=tau)
    for b in range(2):
        total = 0.0
        for i in range(6):
            j = i + 1 if i % 2 == 0 else i - 1
            exps = {k: math.exp(float(z[b, i] @ z[b, k]) / tau) for k in range(6) if k != i}
            total += -math.log(exps[j] / sum(exps.values()))
        assert float(found[b]) == pytest.approx(total / 6, rel=1e-5)


def test_simclr_contrasts_the_places_of_one_volume():
    pretext, known = SimCLR(8, places=3, width=5), encoder()
    x, key = draw(1, 1, 10, 9, 8).clamp(-1, 1), 7
    views = pretext.views
    made = []
    for place in range(3):
        start = views.start(x[0], key, place)
        made += [views.view(x[0], start, key, place, i) for i in range(2)]
    z = unit(pretext.head(known(torch.stack(made))))[None]
    expected = contrast(z, temperature=0.1)
    torch.testing.assert_close(pretext.loss(known, x, (key,)), expected)


def test_views_keep_the_background_and_show_the_same():
    x = draw(1, 12, 10, 8).clamp(-1, 1)
    x[:, :4] = -1
    plain = Views(share=0.5, change=0.0, noise=0.0, erased=0.0, flips=False)
    start = plain.start(x, 3)
    a, b, c = start
    seen = plain.view(x, start, 3)
    torch.testing.assert_close(seen, x[:, a : a + 6, b : b + 5, c : c + 4])
    full = Views(share=1.0, erased=0.0, flips=False).view(x, (0, 0, 0), 3)
    assert bool((full[:, :4] == -1).all())
    assert full.min() >= -1
    assert full.max() <= 1
    erased = Views(share=1.0, change=0.0, noise=0.0, erased=0.5, flips=False)
    inside = (erased.view(x, (0, 0, 0), 3) == -1) & (x > -1)
    assert 0 < int(inside.sum()) <= 6 * 5 * 4
    assert torch.equal(Views().view(x, start, 3), Views().view(x, start, 3))
    assert not torch.equal(Views().view(x, start, 3), Views().view(x, start, 4))
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        Views(share=0.0)


# Averaged copies


def test_the_copy_follows_in_closed_form():
    module, copy = torch.nn.Linear(2, 2), MomentumCopy()
    copy.follow(module)
    first = module.weight.detach().clone()
    steps = [draw(2, 2, seed=i) for i in range(4)]
    expected = first
    for step in steps:
        with torch.no_grad():
            module.weight.copy_(step)
        copy.update(module, 0.8)
        expected = 0.8 * expected + 0.2 * step
    torch.testing.assert_close(copy.get_buffer("weight"), expected)
    x = draw(1, 2)
    torch.testing.assert_close(copy.called(module, x), x @ expected.T + module.bias)
    assert torch.equal(module.weight, steps[-1]), "the weights themselves stay"
    assert not list(copy.parameters())


def test_moco_is_the_cross_entropy_against_its_queue():
    pretext, known = MoCo(8, queue=5, width=6, momentum=0.5, temperature=0.3), encoder()
    module = Pretraining(known, pretext).train()
    x, keys = draw(2, 1, 8, 8, 8).clamp(-1, 1), (5, 6)
    queue = pretext.queue.clone()
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(5))
    found = pretext.loss(known, x, keys)
    with torch.no_grad():
        positives, vectors = [], []
        for volume, key in zip(x, keys, strict=True):
            one, two = (
                pretext.views.view(volume, pretext.views.start(volume, key, i), key, i)[None]
                for i in range(2)
            )
            q, k = (unit(pretext.head(known(v)))[0] for v in (one, two))
            positives.append(k)
            exps = [math.exp(float(q @ other) / 0.3) for other in (k, *queue)]
            vectors.append(-math.log(exps[0] / sum(exps)))
    torch.testing.assert_close(found, torch.tensor(vectors), rtol=1e-4, atol=1e-5)
    module.stepped(0.1, lambda rows: rows)
    expected = torch.cat([torch.stack(positives).flip(0), queue[:3]])
    torch.testing.assert_close(pretext.queue, expected)
    pretext.eval()
    pretext.loss(known, x, keys)
    assert not pretext.fresh, "validation leaves the queue alone"


def test_byol_compares_both_ways_and_slows_down():
    pretext, known = BYOL(8, width=6, momentum=0.9), encoder()
    module = Pretraining(known, pretext).train()
    x, keys = draw(1, 1, 8, 8, 8).clamp(-1, 1), (5,)
    with torch.no_grad():
        views = [
            pretext.views.view(x[0], pretext.views.start(x[0], 5, i), 5, i)[None] for i in range(2)
        ]
        heads = [pretext.head(known(v)) for v in views]
        p, t = [unit(pretext.predictor(h)) for h in heads], [unit(h) for h in heads]
        expected = (p[0] - t[1]).square().sum() + (p[1] - t[0]).square().sum()
        torch.testing.assert_close(pretext.loss(known, x, keys)[0], expected)
        name = "layers.0.weight"
        before = pretext.head_copy.get_buffer(name.replace(".", "/")).clone()
        pretext.head.layers[0].weight += 1
    for share, momentum in ((0.0, 0.9), (0.5, 0.95), (1.0, 1.0)):
        module.stepped(share, lambda rows: rows)
        expected = momentum * before + (1 - momentum) * pretext.head.layers[0].weight
        before = pretext.head_copy.get_buffer("layers/0/weight").clone()
        torch.testing.assert_close(before, expected.detach())


# Masked autoencoding


def test_hidden_cells_are_a_share_of_all():
    pretext = MAE(8, cell=3, share=0.25)
    m = pretext.hidden((7, 6, 9), key=1)
    cells = m[0, ::3, ::3, ::3]
    assert cells.shape == (3, 2, 3)
    assert int(cells.sum()) == round(0.25 * 18)
    grown = cells.repeat_interleave(3, 0).repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert torch.equal(m[0], grown[:7, :6, :9])
    assert not torch.equal(m, pretext.hidden((7, 6, 9), key=2))


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_masked_autoencoding_looks_at_hidden_voxels_alone(space):
    """A network that gives zeros has the mean square of what is hidden as its loss."""
    known = encoder(space())
    with torch.no_grad():
        known.network.hourglass.head.weight.zero_()
        known.network.hourglass.head.bias.zero_()
    pretext = MAE(8, cell=4, share=0.5)
    x = draw(2, 1, 8, 8, 8).clamp(-1, 1)
    found = pretext.loss(known, x, (1, 2))
    for i, key in enumerate((1, 2)):
        m = pretext.hidden((8, 8, 8), key) > 0
        torch.testing.assert_close(found[i], x[i][m].square().mean())
    # and it does not see them
    changed = x.clone()
    m = pretext.hidden((8, 8, 8), 1) > 0
    changed[0][m] = -changed[0][m]
    seen = []
    known.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pretext.loss(known, x[:1], (1,))
    pretext.loss(known, changed[:1], (1,))
    assert torch.equal(*seen)


# Runs


def weights(run, which="last"):
    (path, *_) = sorted(run.glob(f"checkpoints/{which}-*"), reverse=True)
    return {f.name: load_file(f) for f in path.glob("*.safetensors")}


@pytest.mark.parametrize("name", PRETEXTS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(name, data, tmp_path, monkeypatch):
    words = [*WORDS, PRETEXTS[name], "save_every=1", "optim.lr=1e-2", "optim.accumulate=2"]
    whole = train(tiny(data, tmp_path / "whole", *words, "optim.steps=3"))

    def killed(task, step, accelerator):
        if step == 3:
            raise RuntimeError("killed")
        stepped(task, step, accelerator)

    stepped = PretrainingTask.stepped
    with monkeypatch.context() as patch:
        patch.setattr(PretrainingTask, "stepped", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny(data, tmp_path / "parts", *words, "optim.steps=3"))
    parts = train(tiny(data, tmp_path / "parts", *words, "optim.steps=3"))
    one, two = weights(whole), weights(parts)
    for file, tensors in one.items():
        assert set(tensors) == set(two[file])
        for tensor in tensors:
            assert torch.equal(tensors[tensor], two[file][tensor]), f"{file}: {tensor}"
    decoder = [n for n in one["weights.safetensors"] if ".decoder." in n]
    assert bool(decoder) == (name == "mae"), "what is not trained is not saved"


@pytest.mark.parametrize("name", ["rotation", "moco", "mae"])
def test_a_segmentation_begins_with_the_encoder(name, data, tmp_path):
    run = train(tiny(data, tmp_path / "run", *WORDS, PRETEXTS[name], "optim.lr=1e-2"))
    trained = load_trained(run, device="cpu")
    with pytest.raises(UsageError, match="was pre-trained without labels; begin another run"):
        trained.segments()
    task = build_task(tiny(data, tmp_path / "segments", *SEGMENTS))
    fresh = {n: t.clone() for n, t in task.model.network.state_dict().items()}
    said = []
    warm_start(task, run, said.append)
    source = load_task(run).backbone.network.state_dict()
    new = ["act", "head"] if name == "mae" else ["act", "decoder", "head", "up"]
    for tensor, found in task.model.network.state_dict().items():
        other = tensor.startswith(tuple(f"hourglass.{part}." for part in new))
        assert torch.equal(found, fresh[tensor] if other else source[tensor]), tensor
    assert said[0].endswith("new: " + ", ".join(f"hourglass.{part}" for part in new))
    assert not torch.equal(source["hourglass.stem.weight"], fresh["hourglass.stem.weight"])
    # end to end, and nothing is fitted anew
    words = [*SEGMENTS, f"start_from={run}", "optim.steps=1", "optim.lr=1e-9"]
    after = load_task(train(tiny(data, tmp_path / "end", *words)))
    assert torch.equal(after.model.space.scale, load_task(run).backbone.space.scale)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe={name: healthy, atlas: true}"], "recipe: expected healthy without atlas"),
        (["pretext=rotations"], "pretext.name = 'rotations'"),
        (["pretext={name: byol, momentum: 1.0}"], r"momentum in \[0, 1\), got 1"),
        (["pretext={name: mae, share: 1.0}"], r"share in \(0, 1\), got 8 and 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(data, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        build_task(tiny(data, tmp_path / "run", *WORDS, "pretext=rotation", *words))


@pytest.mark.parametrize("pipeline", ["patch_64", "wavelet_64", "pseudo3d_64", "latent_64"])
def test_pipelines_are_taken_as_they_are(pipeline):
    """Their noise is not used; where they have coordinates, the network goes without."""
    config = load_run_config(pipeline, ["task=pretraining", "pretext=byol"])
    if pipeline == "latent_64":
        with pytest.raises(UsageError, match=r"^space: expected voxels, wavelets or slices"):
            build_task(config)
        return
    with torch.device("meta"):
        task = build_task(config)
    assert not task.backbone.network.coordinates
    with torch.device("meta"):
        segments = build_task(load_run_config(pipeline, ["method=ssl_byol"]))
    mine = dict(segments.backbone.network.named_parameters())
    shared = {n for n, p in task.backbone.network.named_parameters() if p.requires_grad}
    assert shared <= set(mine), "what is learnt has the same names in the segmentation"
