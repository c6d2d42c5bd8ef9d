"""Probes: what heads learn of features, what is drawn, and runs that borrow a diffusion run."""

import shutil

import numpy as np
import pytest
import torch
from probe_models import VALUE, voxel_probe
from sklearn.linear_model import Ridge
from test_resume import digests
from tiny_app import program
from tiny_runs import SIZE, figures, load_run, rebind, tiny, write_data
from torch import nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.contracts.scenes import SPACING
from volumediff.errors import DataError, UsageError
from volumediff.features.heads import Head, HeadEnsemble
from volumediff.features.points import drawn_voxels, voxel_points
from volumediff.features.probe import BLOCK, Probe, ridge_recall
from volumediff.inference.cost import counted
from volumediff.planning.planner import plan, trace
from volumediff.randomness import normal
from volumediff.runs.trained import load_trained
from volumediff.samples.features import class_index
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.label_ensembles import Heads, Times
from volumediff.segmentation.label_fusions import Vote
from volumediff.segmentation.predictors._base import Image
from volumediff.segmentation.predictors.probe import ProbeLabels
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.settings.run_config import load_run_config, parse, saved_config
from volumediff.tasks import build_task, load_task
from volumediff.tasks.probe import ProbeSection, ProbeTask
from volumediff.training.loop import train

__all__ = ["program"]  # a fixture

SHAPE = (6, 9, 7)


def volume(i=0, shape=SHAPE):
    return normal((1, 1, *shape), i, "probe volume")


def trained_on(probe, x, classes, *, steps=200, each=40, lr=0.05):
    """Adam on drawn voxels of one volume, as a run would."""
    index, sound = drawn_voxels(classes, probe.classes, each, key=1)
    index = index[sound]
    rows = probe.rows(x, Condition(), voxel_points(index, tuple(x.shape[2:])))
    y = classes.flatten()[index]
    voxels = torch.bincount(classes.flatten(), minlength=probe.classes)
    probe.measure(
        rows, torch.bincount(y, minlength=probe.classes), voxels, prior=1.0, background=1.0
    )
    probe.train()
    optimizer = torch.optim.Adam(probe.heads.parameters(), lr=lr)
    flat = rows.flatten(1).T[None, :, :, None, None]
    label = torch.tensor([0, *probe.recipe.labels], dtype=torch.uint8)[y][None, :, None, None]
    code = probe.recipe.coding.encode(probe.recipe.masks(label), spacing_mm=(1.0, 1.0, 1.0))
    for step in range(steps):
        loss = probe.loss(Batch(code[None], (step,), images=(flat,)), pooled=True).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return probe.eval()


def segmented(probe, x, **arguments):
    segmenter = Composed(ProbeLabels(), samples=1, **arguments)
    segmenter.check(probe)
    inside = torch.ones_like(x, dtype=torch.bool)
    return segmenter.segment(probe, x, foreground=inside, spacing_mm=SPACING, key=5)


# --- what is drawn -------------------------------------------------------------------------------


def test_as_many_voxels_of_every_class_are_drawn_without_repetition():
    classes = torch.zeros(SHAPE, dtype=torch.int64)
    classes[2:4, 3:7, 1:5] = 1
    classes[0, 0, :3] = 2
    index, sound = drawn_voxels(classes, 3, 20, key=7)
    found = classes.flatten()[index].view(3, 20)
    assert (found[0] == 0).all()
    assert (found[1] == 1).all()
    assert sound.view(3, 20).sum(1).tolist() == [20, 20, 3], "there are three voxels of class 2"
    assert (classes.flatten()[index[sound]] == torch.arange(3).repeat_interleave(20)[sound]).all()
    assert len(set(index[sound].tolist())) == int(sound.sum())
    fewer, _ = drawn_voxels(classes, 3, 5, key=7)
    assert torch.equal(fewer.view(3, 5)[:2], index.view(3, 20)[:2, :5]), "some of the same voxels"
    other, _ = drawn_voxels(classes, 3, 20, key=8)
    assert not torch.equal(index[:20], other[:20])
    places = voxel_points(index, SHAPE).long()
    assert torch.equal(classes[tuple(places.T)], classes.flatten()[index])


def test_every_voxel_is_as_likely():
    classes = torch.zeros((2, 2, 3), dtype=torch.int64)
    counts = torch.zeros(12)
    for k in range(600):
        counts[drawn_voxels(classes, 1, 3, key=k)[0]] += 1
    assert (counts - 150).abs().max() < 45  # 4 standard deviations


def test_labels_become_positions():
    label = torch.tensor([0, 7, 3, 9], dtype=torch.uint8).view(1, 4, 1, 1)
    assert class_index(label, (3, 7)).flatten().tolist() == [0, 2, 1, 0]


# --- heads ---------------------------------------------------------------------------------------


def test_a_head_is_linear_relu_norm_layer_by_layer():
    head = Head(5, 3, (8, 4))
    kinds = [type(layer) for layer in head.layers]
    hidden = [nn.Linear, nn.ReLU, nn.BatchNorm1d]
    assert kinds == [*hidden, *hidden, nn.Linear]
    assert [m.out_features for m in head.layers if isinstance(m, nn.Linear)] == [8, 4, 3]
    assert [type(layer) for layer in Head(5, 3, ()).layers] == [nn.Linear]
    with pytest.raises(ValueError, match=r"and two classes, got 1, 5, \[\] and 1"):
        HeadEnsemble(1, 5, 1, ())


@pytest.mark.parametrize("shared", [False, True])
def test_a_linearly_separable_structure_is_found_exactly(shared):
    """Three classes by intensity: x < -0.3, between, x > 0.5; linear in (x, x²)."""
    x = volume()
    x[(x - 0.5).abs() < 0.05] += 0.2  # no voxel on the border
    x[(x + 0.3).abs() < 0.05] -= 0.2
    classes = torch.zeros(SHAPE, dtype=torch.int64)
    classes[x[0, 0] > 0.5], classes[x[0, 0] < -0.3] = 1, 2
    probe = voxel_probe((3, 9), levels=["decoder"], times=[0.2, 0.4], shared=shared)
    trained_on(probe, x, classes, steps=400)
    truth = torch.tensor([0, 3, 9], dtype=torch.uint8)[classes]
    assert torch.equal(segmented(probe, x).labels[0, 0], truth)
    y = volume(1)
    y[(y - 0.5).abs() < 0.1] = 1.0
    y[(y + 0.3).abs() < 0.1] = -1.0
    truth = torch.where(y > 0.5, 3, torch.where(y < -0.3, 9, 0)).to(torch.uint8)
    assert torch.equal(segmented(probe, y).labels, truth), "and in another volume"


def test_a_perceptron_finds_what_no_linear_probe_can():
    x = volume()
    x[(x.abs() - 0.8).abs() < 0.1] = 0.0
    classes = (x[0, 0].abs() > 0.8).long()
    linear = trained_on(voxel_probe(), x, classes)
    deep = trained_on(voxel_probe(hidden=(16, 8)), x, classes, each=100)
    right = [
        float(((segmented(p, x).labels[0, 0] > 0) == (classes > 0)).float().mean())
        for p in (linear, deep)
    ]
    assert right[0] < 0.9
    assert right[1] > 0.98


def test_the_loss_is_that_of_all_voxels_in_expectation():
    """Classes are drawn in equal numbers and weighed back to their shares."""
    x = volume(3, (16, 16, 16))
    classes = (x[0, 0] > 1.2).long()
    share = float(classes.float().mean())
    assert 0.05 < share < 0.2
    probe = voxel_probe().requires_grad_(False)
    index, sound = drawn_voxels(classes, 2, 400, key=2)
    y = classes.flatten()[index]
    assert bool(sound.all())
    rows = probe.rows(x, Condition(), voxel_points(index, (16, 16, 16)))
    counts = torch.bincount(classes.flatten())
    found = {}
    for prior in (0.0, 1.0):
        probe.measure(rows, torch.bincount(y), counts, prior=prior, background=1.0)
        found[prior] = float(probe._entropy(0, rows, y, sound))
    everything = torch.arange(classes.numel())
    every = probe.rows(x, Condition(), voxel_points(everything, (16, 16, 16)))
    logits = probe.heads[0](probe._inputs(every))
    each = nn.functional.cross_entropy(logits, classes.flatten(), reduction="none")
    assert found[1.0] == pytest.approx(float(each.mean()), rel=0.1)
    balanced = (each[classes.flatten() == 0].mean() + each[classes.flatten() == 1].mean()) / 2
    assert found[0.0] == pytest.approx(float(balanced), rel=0.1)
    assert found[0.0] != pytest.approx(found[1.0], rel=0.02)
    probe.measure(rows, torch.bincount(y), counts, prior=0.0, background=0.25)
    assert probe.weights.tolist() == pytest.approx([0.25, 1.0])


def test_a_sample_is_learnt_from_by_itself_and_every_head_by_its_own_voxels():
    probe = voxel_probe(hidden=(4,), members=3).train()
    rows = normal((2, 1, 60, 1, 1), "rows")
    codes = torch.where(rows > 0, 1.0, -1.0)
    both = probe.loss(Batch(codes, (4, 5), images=(rows,)), pooled=True)
    for i in range(2):
        alone = Batch(codes[i : i + 1], (4 + i,), images=(rows[i : i + 1],))
        assert torch.equal(probe.loss(alone, pooled=True), both[i : i + 1])
    seen = []
    probe.heads[0].register_forward_pre_hook(lambda head, told: seen.append(told[0]))
    probe.heads[1].register_forward_pre_hook(lambda head, told: seen.append(told[0]))
    probe.loss(Batch(codes[:1], (4,), images=(rows[:1],)), pooled=True)
    assert not torch.equal(*seen)
    assert all(len(told) == 256 for told in seen)


# --- inference -----------------------------------------------------------------------------------


@pytest.fixture
def learnt():
    x = volume()
    classes = (x[0, 0] > 0.2).long()
    probe = voxel_probe(hidden=(8, 4), members=3, levels=["encoder", "decoder"])
    return trained_on(probe, x, classes, steps=30)


def test_chunks_change_nothing(learnt):
    x = volume(2, (17, 16, 13))  # 3536 voxels: no multiple of a block
    told = [learnt.probabilities(x, Condition(), chunk=n * BLOCK) for n in (1, 2, 16)]
    assert told[0].shape == (3, 1, 2, 17, 16, 13)
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])
    with pytest.raises(ValueError, match="expected a multiple of 1024 voxels, got 1000"):
        learnt.probabilities(x, Condition(), chunk=1000)
    with pytest.raises(ValueError, match="expected a multiple of 1024 voxels, got 1000"):
        ProbeLabels(chunk=1000)


def test_members_at_once_change_nothing(learnt):
    x = volume(2)
    one, three = (segmented(learnt, x, ensemble=(Heads(3),), batch=b) for b in (1, 3))
    assert torch.equal(one.probabilities, three.probabilities)
    assert torch.equal(one.samples, three.samples)


def test_what_heads_say_is_what_the_perceptrons_compute(learnt):
    x = volume(2)
    points = voxel_points(torch.arange(x.numel()), SHAPE)
    rows = learnt._inputs(learnt.rows(x, Condition(), points))
    told = learnt.probabilities(x, Condition())
    for head, p in zip(learnt.heads, told, strict=True):
        expected = head(rows).softmax(1).T.view(2, *SHAPE)
        torch.testing.assert_close(p[0].float(), expected, rtol=0, atol=1e-3)
    mean = told[:, 0, 1].float().mean(0)
    torch.testing.assert_close(segmented(learnt, x).probabilities[0, 0], mean, atol=1e-3, rtol=0)


def test_heads_vote(learnt):
    x = volume(2)
    found = segmented(learnt, x, ensemble=(Heads(3),), fusion=Vote())
    each = torch.stack([segmented_by(learnt, x, i) for i in range(3)])
    assert torch.equal(found.samples, each)
    share = (each > 0).float().mean(0)
    torch.testing.assert_close(found.probabilities[0, 0], share)
    assert torch.equal(found.labels[0, 0] > 0, share > 0.5)
    with pytest.raises(ValueError, match=r"expected at most 3 heads, .*, got 4"):
        segmented(learnt, x, ensemble=(Heads(4),))
    with pytest.raises(ValueError, match=r"samples: expected 1 for the predictor ProbeLabels"):
        Composed(ProbeLabels(), samples=2)


def test_members_that_a_probe_lacks_are_refused_before_the_first_volume(learnt):
    message = r"at most 3 heads.*probe\.members.*got 4; segment with .*name: heads, count: 3"
    with pytest.raises(ValueError, match=message):
        Composed(ProbeLabels(), samples=1, ensemble=(Heads(4),)).check(learnt)
    with pytest.raises(ValueError, match="which sees all at once"):
        Composed(ProbeLabels(), samples=1, ensemble=(Times((0.2,)),)).check(learnt)
    Composed(ProbeLabels(), samples=1, ensemble=(Heads(3),)).check(learnt)


def segmented_by(probe, x, head):
    predictor = ProbeLabels()
    image = Image(x, torch.ones_like(x, dtype=torch.bool), SPACING, Condition())
    y = predictor.memberships(probe, predictor.prepare(probe, image), [Draw(0, 1, head=head)])
    return torch.where(y[0, 0] > 0.5, VALUE, 0).to(torch.uint8)


def test_heads_that_disagree_have_the_jensen_shannon_divergence_of_their_answers(learnt):
    x = volume(2)
    found = segmented(learnt, x, ensemble=(Heads(3),))
    p = learnt.probabilities(x, Condition())[:, 0].float().double()
    p = p / p.sum(1, keepdim=True)
    from scipy.stats import entropy

    expected = entropy(p.mean(0).numpy(), axis=0) - entropy(p.numpy(), axis=1).mean(0)
    got = found.mutual_information[0, 0].double().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert got.max() > 1e-3
    assert segmented(learnt, x).mutual_information is None


def test_a_shared_head_is_averaged_over_its_times():
    probe = voxel_probe(times=[0.2, 0.5], shared=True, members=2)
    assert len(probe.heads[0].layers[-1].weight[0]) == 1, "one time at a time"
    x = volume()
    told = probe.probabilities(x, Condition())
    assert told.shape == (2, 2, 2, *SHAPE)
    found = segmented(probe, x)
    mean = told.float().mean((0, 1))[1]
    torch.testing.assert_close(found.probabilities[0, 0], mean, atol=1e-3, rtol=0)
    later = segmented(probe, x, ensemble=(Times((0.5,)),)).probabilities[0, 0]
    torch.testing.assert_close(later, told[:, 1, 1].float().mean(0), atol=1e-3, rtol=0)
    with pytest.raises(
        ValueError, match=r"one of the times of the probe, 0\.200, 0\.500, got 0\.3"
    ):
        segmented(probe, x, ensemble=(Times((0.3,)),))
    with pytest.raises(ValueError, match="which sees all at once"):
        segmented(voxel_probe(), x, ensemble=(Times((0.2,)),))


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="expected a probe, heads on the features"):
        Composed(ProbeLabels(), samples=1).check(nn.Linear(1, 1))


# --- the grid search -----------------------------------------------------------------------------


def test_the_closed_form_probe_is_scikit_learns():
    rows, held = normal((80, 3), "rows").double(), normal((50, 3), "held").double()
    y, truth = (rows[:, 0] > 0.3).long() + (rows[:, 1] > 0.8), (held[:, 0] > 0.3).long()
    weight = (1 / torch.bincount(y, minlength=3).double())[y].numpy()
    mean, scale = rows.mean(0), rows.std(0)
    # a penalised constant column, as ours
    a, b = (
        np.concatenate([((r - mean) / scale).numpy(), np.ones((len(r), 1))], 1)
        for r in (rows, held)
    )
    ridge = Ridge(alpha=1e-3, fit_intercept=False).fit(a, np.eye(3)[y.numpy()], weight)
    said = ridge.predict(b).argmax(1)
    expected = np.mean([(said[truth.numpy() == k] == k).mean() for k in (0, 1)])
    assert ridge_recall(rows, y, held, truth, classes=3) == pytest.approx(expected)


def test_the_search_keeps_the_level_and_the_time_that_tell_the_classes_apart():
    """|x| > 0.8 is linear in x², which the second level alone has."""
    x = volume(0, (12, 12, 12))
    classes = (x[0, 0].abs() > 0.8).long()
    probe = voxel_probe(levels=["encoder", "decoder"], times=[0.2, 0.4], hidden=())
    index, _ = drawn_voxels(classes, 2, 300, key=1)
    rows = probe.rows(x, Condition(), voxel_points(index, (12, 12, 12)))
    rows[:, 0] += 3 * normal(tuple(rows[:, 0].shape), "noise")  # the first time is of no use
    y = classes.flatten()[index]
    table = probe.search(rows[::2], y[::2], rows[1::2], y[1::2])
    assert table[0][:2] == ("decoder.0", 0.4)
    assert table[0][2] > 0.85
    assert max(score for _, _, score in table[1:]) < 0.75
    assert len(table) == 4
    assert probe.used.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert probe.reads == [[], ["decoder.0"]]
    kept = probe.rows(x, Condition(), voxel_points(index, (12, 12, 12)))
    assert not bool(kept[:, 0].any())
    assert not bool(kept[:, 1, 0].any())
    assert torch.equal(kept[:, 1, 2], kept[:, 1, 1].square())
    again = voxel_probe(levels=["encoder", "decoder"], times=[0.2, 0.4], hidden=())
    again.load_state_dict(probe.state_dict())
    assert again.reads == probe.reads
    told = [p.probabilities(x, Condition()) for p in (probe, again)]
    assert torch.equal(*told)


# --- runs ----------------------------------------------------------------------------------------

HEADS = {"levels": ["decoder"], "times": [0.1, 0.3], "hidden": [8], "members": 2, "points": 40}


def config_in(folder, of, data):
    """Configurations of probes of a run."""

    def config(name, **changes):
        tree = {
            "task": "probe",
            "probe": {"of": str(of), **HEADS, "batch": 64},
            "recipe": {"name": "label_diffusion", "labels": [1]},
            "data": {**saved_config(of).data.model_dump(mode="json"), "root": str(data)},
            "optim": {"lr": 1e-2, "steps": 6, "warmup": 1, "batch_size": 2, "ema": 0.0},
            "validation": {"every": 3, "volumes": 2},
            "save_every": 1,
            "output": str(folder / name),
        }
        return parse({**tree, **changes})

    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A diffusion run of a few steps that knows ages, and configurations of probes for it."""
    folder = tmp_path_factory.mktemp("probe")
    data = write_data(folder / "data", cases=6, labels=True)
    words = ["recipe={name: healthy, scalars: [age]}", "optim.steps=3"]
    of = train(tiny(data, folder / "run", *words))
    config = config_in(folder, of, data)
    recipe = {"name": "label_diffusion", "labels": [1], "scalars": ["age"]}
    return data, of, lambda name, **changes: config(name, **{"recipe": recipe, **changes})


@pytest.fixture(scope="module")
def probed(runs):
    return train(runs[2]("probe"))


def test_a_probe_trains_on_its_run_and_resumes_bit_by_bit(runs, probed, tmp_path):
    _, of, config = runs
    saved, module = load_run(probed)
    assert isinstance(module, Probe)
    _, model = load_run(of)
    for name, tensor in model.state_dict().items():
        assert torch.equal(module.model.state_dict()[name], tensor), name
    state = load_task(probed).state()
    assert not any(name.startswith("model.") for name in state)
    assert {"mean", "scale", "used", "weights"} <= set(state)
    lines = figures(probed)
    assert lines[-1]["validation_loss"] < lines[3]["validation_loss"] < 1
    first = config("again", optim={**saved.optim.model_dump(), "steps": 3})
    train(first)
    shutil.rmtree(probed.parent / "cache")  # features are made again, the same ones
    again = train(config("again"))
    assert digests(again) == digests(probed)


def test_a_probe_finds_the_core_of_new_phantoms(runs, tmp_path, program):
    data, _, config = runs
    optim = {"lr": 1e-2, "steps": 150, "warmup": 1, "batch_size": 2, "ema": 0.0}
    validation = {"every": 150, "volumes": 1}
    probed = train(config("long", optim=optim, validation=validation, save_every=150))
    out = tmp_path / "out"
    code, _, err = program(
        "segment",
        data,
        "--run",
        probed,
        "-o",
        out,
        "--method",
        "ledm",
        "ensemble=[{name: heads, count: 2}]",
    )
    assert code == 0, err
    import nibabel as nib

    dice = []
    for path in sorted(out.glob("*_dseg.nii.gz")):
        case = path.name.removesuffix("_dseg.nii.gz")
        found = np.asarray(nib.load(path).dataobj) > 0
        truth = np.asarray(nib.load(data / f"{case}_label.nii.gz").dataobj) > 0
        dice.append(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))
    assert len(dice) == 6
    assert np.mean(dice) > 0.8, dice
    assert (out / "sub-00_desc-mutualinformation_map.nii.gz").is_file()
    trained = load_trained(probed, device="cpu")
    with counted(trained.model) as cost:
        trained.model.probabilities(volume(0, SIZE), trained.condition({"age": 30.0}))
    assert cost.network_calls == 2, "one per time, whatever the number of heads"


def test_features_are_those_of_the_volume_at_the_drawn_voxels(probed):
    assert isinstance(load_task(probed), ProbeTask)
    cache = probed.parent / "cache"
    entries = [p for p in cache.iterdir() if "-features-" in p.name and p.name.startswith("sub-")]
    assert entries
    labels = np.concatenate([np.load(p / "label.npy").ravel() for p in entries])
    assert set(labels) == {0, 1}
    rows = np.load(entries[0] / "x.npy")
    assert rows.shape[0] == 2 * (4 + 8), "two times, two levels of the decoder"
    assert rows.shape[1:] == (len(np.load(entries[0] / "label.npy").ravel()), 1, 1)


def test_other_weights_of_the_run_are_refused(runs, probed, tmp_path):
    data, of, _ = runs
    away = tmp_path / "away"
    shutil.copytree(of.parent, away)
    shutil.rmtree(away / "run")
    words = ["recipe={name: healthy, scalars: [age]}", "optim.steps=2", "seed=1"]
    train(tiny(data, away / "run", *words))
    config = config_in(tmp_path, away / "run", data)(
        "moved", recipe={"name": "label_diffusion", "labels": [1], "scalars": ["age"]}
    )
    moved = tmp_path / "moved"
    shutil.copytree(probed, moved)
    (moved / "config.yaml").unlink()
    from volumediff.storage.seal import seal_text

    (moved / "config.yaml").write_bytes(seal_text(config.to_yaml()))
    with pytest.raises(DataError, match=r"says probe\.of: .* restore the file from a backup"):
        load_task(moved)
    rebind(moved)
    with pytest.raises(DataError, match="are not those that it was trained with"):
        load_task(moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "healthy"}, "recipe: expected label_diffusion, which says the labels"),
        (
            {"recipe": {"name": "label_diffusion", "coding": "distance", "scalars": ["age"]}},
            "recipe.coding: expected signed or one_hot",
        ),
        ({"recipe": {"name": "label_diffusion"}}, "recipe.scalars: expected that of probe.of"),
        (
            {"memory": {"slab": 4}},
            "memory: expected slab null and offload false for a probe",
        ),
    ],
)
def test_what_does_not_fit_is_said(runs, changes, message, tmp_path):
    config = runs[2]("refused", **changes)
    with pytest.raises(UsageError, match=message):
        build_task(config, run=tmp_path)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"levels": ["decodr"]}, "probe.levels: expected some of encoder.0, .* got decodr"),
        ({"hidden": [0]}, "probe.hidden.0: expected a number above 0"),
        ({"times": []}, r"takes times or log_snrs, got \[\] and \[\]"),
        ({"log_snrs": [1.0]}, r"takes times or log_snrs, got \[0.1, 0.3\] and \[1.0\]"),
        ({"search": True, "shared": True}, "takes search: false with a shared head"),
        ({"membres": 3}, "probe.membres: unknown key"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(runs, section, message, tmp_path):
    _, of, config = runs
    with pytest.raises(UsageError, match=message):
        build_task(config("refused", probe={"of": str(of), **HEADS, **section}), run=tmp_path)


def test_data_and_crops_that_change_features_are_refused(runs):
    data, _, config = runs
    with pytest.raises(UsageError, match="takes crop: null with a probe"):
        config("refused", crop=[4, 4, 4])
    section = {"root": str(data), "augmentation": {"flip": [0]}}
    with pytest.raises(UsageError, match=r"takes data\.augmentation: null with a probe"):
        config("refused", data=section)


def test_a_label_that_no_volume_has_is_refused(runs):
    recipe = {"name": "label_diffusion", "labels": [1, 9], "scalars": ["age"]}
    with pytest.raises(UsageError, match=r"label.* 9"):
        train(runs[2]("nine", recipe=recipe))


def test_level_and_time_are_searched_before_the_first_step(runs, capfd):
    _, of, config = runs
    section = {"of": str(of), **HEADS, "levels": ["encoder", "decoder"], "search": True}
    run = train(config("searched", probe={**section, "hidden": []}))
    _, module = load_run(run)
    reads = [levels for levels in module.reads if levels]
    assert len(reads) == len(reads[0]) == 1
    text = capfd.readouterr()
    assert "mean recall" in text.out + text.err
    section = {"validation": 0.0, "calibration": 0.0}
    data = {**saved_config(of).data.model_dump(mode="json"), "split": section}
    with pytest.raises(UsageError, match=r"probe\.search: expected validation volumes"):
        train(config("unsearched", probe={**section_of(of), "search": True}, data=data))


def section_of(of):
    return {"of": str(of), **HEADS}


def test_times_may_be_said_as_noise():
    found = ProbeSection(of="x", log_snrs=(3.48, 0.0))
    from volumediff.schedules.cosine import Cosine

    schedule = Cosine()
    times = found.levels_of(schedule)
    alpha, sigma = schedule(torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(2 * (alpha / sigma).log(), torch.tensor([3.48, 0.0]).double())


def test_the_planner_sees_features_and_heads():
    words = ["method=ledm", "memory.dtype=float32"]
    config = load_run_config("wavelet_64", words)
    assert config.task == "probe"
    stages = trace(config, mode="infer").stages
    assert set(stages) == {"features", "heads"}
    assert plan(config, vram_gb=40.0).fits


PIPELINES = {
    "patch": ["crop=[4,4,4]", "network.norm=voxel", "network.coordinates=true"],
    "wavelet": ["space=wavelet"],
    "pseudo3d": [
        "space={name: slices, inner: voxel, axis: w}",
        "network={name: pseudo3d, widths: [4, 8], blocks: 1, groups: 2}",
    ],
    "latent": ["space={name: latent, autoencoder: CODEC}"],
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("shared", [False, True])
def test_every_pipeline_can_be_probed(pipeline, shared, tmp_path):
    data = write_data(tmp_path / "data", cases=5, labels=True)
    words = PIPELINES[pipeline]
    if pipeline == "latent":
        codec = "autoencoder={name: kl, widths: [4, 4], strides: [[2, 2, 2]], blocks: 1}"
        run = train(tiny(data, tmp_path / "codec", "task=autoencoder", codec, "optim.steps=2"))
        words = [word.replace("CODEC", str(run)) for word in words]
    of = train(tiny(data, tmp_path / "of", "optim.steps=2", *words))
    section = {"of": str(of), **HEADS, "shared": shared}
    probed = train(config_in(tmp_path, of, data)("probed", probe=section))
    trained = load_trained(probed, device="cpu")
    found = segmented(trained.model, volume(0, SIZE))
    assert found.probabilities.shape == (1, 1, *SIZE)
    assert bool(found.probabilities.isfinite().all())
    assert float(found.probabilities.std()) > 0
    again = segmented(load_trained(probed, device="cpu").model, volume(0, SIZE))
    assert torch.equal(again.probabilities, found.probabilities)


def test_a_run_ends_when_its_loss_no_longer_falls(runs):
    _, _, config = runs
    optim = {"lr": 0.3, "warmup": 2, "batch_size": 2, "ema": 0.0, "patience": 3}
    whole = train(config("patient", optim={**optim, "steps": 60}))
    losses = [row["loss"] for row in figures(whole) if "loss" in row]
    least, waited = float("inf"), 0
    for step, loss in enumerate(losses):
        if step >= 2:
            waited = 0 if loss < least else waited + 1
            least = min(least, loss)
        assert (waited == 3) == (step + 1 == len(losses)), "it ends there and nowhere else"
    assert 5 < len(losses) < 60
    assert "validation_loss" in figures(whole)[-1], "the last weights are validated"
    train(config("stopped", optim={**optim, "steps": 4}))
    again = train(config("stopped", optim={**optim, "steps": 60}))
    assert digests(again) == digests(whole)
    train(config("stopped", optim={**optim, "steps": 60}))
    assert len([row for row in figures(again) if "loss" in row]) == len(losses), "it stays ended"
