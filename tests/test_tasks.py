"""The family of tasks: what the loop, the planner and the loader ask of one, also from outside."""

import ast
import inspect
import json
from pathlib import Path

import foreign_tasks
import pytest
import torch
from foreign.foreign_volumes.tasks import Supervised
from safetensors.torch import load_file
from tiny_runs import figures, tiny, write_data

import volumediff
from volumediff.config import available, component
from volumediff.errors import DataError, UsageError
from volumediff.model import Model
from volumediff.planning.planner import plan, trace
from volumediff.randomness import normal, uniform
from volumediff.runs.trained import load_trained
from volumediff.samples.sources import cases_of, preprocessing
from volumediff.settings.run_config import load_run_config, parse, saved_config
from volumediff.tasks import build_task, keep, kept, load_task, resolved, task_of
from volumediff.training.loop import train

NETWORK = "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("tasks"), cases=8, labels=True)


OUTSIDE = {"Distillation": "foreign_tasks", "Supervised": "foreign.foreign_volumes.tasks"}


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    words = ["data.split={validation: 0.3, calibration: 0.2}", "optim.steps=2"]
    return train(tiny(data, tmp_path_factory.mktemp("teacher") / "run", *words))


def words_of(kind, teacher):
    split = "data.split={validation: 0.3, calibration: 0.2}"
    task = f"task={OUTSIDE[kind]}:{kind}"
    words = [task, split, "optim.steps=3", "save_every=1", "optim.lr=1e-2"]
    if kind == "Distillation":
        return [*words, f"teacher={teacher}", NETWORK]
    return words


def weights(run, which="last"):
    (path, *_) = sorted(run.glob(f"checkpoints/{which}-*"), reverse=True)
    return {f.name: load_file(f) for f in path.glob("*.safetensors")}


@pytest.mark.parametrize("kind", ["Distillation", "Supervised"])
def test_a_task_from_outside_is_as_good_as_one_of_the_package(kind, data, teacher, tmp_path):
    words = [*words_of(kind, teacher), "validation.every=1"]
    before = build_task(tiny(data, tmp_path / "whole", *words)).trained()
    whole = train(tiny(data, tmp_path / "whole", *words))
    train(tiny(data, tmp_path / "parts", *words, "optim.steps=2"))
    parts = train(tiny(data, tmp_path / "parts", *words))
    one, two = weights(whole), weights(parts)
    assert {"weights.safetensors", "ema.safetensors", "optimizer.safetensors"} == set(one)
    for file, tensors in one.items():
        assert set(tensors) == set(two[file])
        for name, tensor in tensors.items():
            assert torch.equal(tensor, two[file][name]), f"{file}: {name}"
    assert figures(whole) == figures(parts)
    last = one["weights.safetensors"]
    assert any(not torch.equal(p.detach(), last[n]) for n, p in before.items()), "it learns"
    # the planner knows it by the contract alone
    found = plan(saved_config(whole), mode="train")
    assert {"forward", "backward", "optimizer"} <= set(found.chosen.stages)
    own = sum(p.numel() for p in build_task(saved_config(whole)).trained().values())
    assert found.chosen.peak_gb >= 4 * 4 * own / 1e9, "weights, average and two moments"
    assert trace(saved_config(whole), mode="infer").peak_gb > 0
    # and so does the loader
    trained = load_trained(whole, device="cpu")
    average = weights(whole, "best")["ema.safetensors"]
    loaded = trained.task.state()
    assert set(loaded) == set(average)
    assert all(torch.equal(loaded[n], t) for n, t in average.items())
    assert not any(p.requires_grad for p in trained.task.module.parameters())


def test_a_distilled_run_is_a_diffusion_run_for_those_who_use_one(data, teacher, tmp_path):
    run = train(tiny(data, tmp_path / "run", *words_of("Distillation", teacher)))
    trained = load_trained(run, device="cpu")
    assert isinstance(trained.model, Model)
    assert trained.diffusion is trained.model is trained.task.module["student"]
    trained.localizes()
    trained.samples()
    with pytest.raises(UsageError, match=r"run: was not trained to segment\.$"):
        trained.segments()
    # its checkpoints hold the student, and bind the teacher
    names = weights(run)["weights.safetensors"]
    assert names
    assert all(name.startswith("student.") for name in names)
    (state,) = run.glob("checkpoints/best-*/state.json")
    of = load_trained(teacher, device="cpu")
    assert json.loads(state.read_text())["borrowed"] == of.digest
    # the teacher is the one that was trained, in its own state space
    for name, tensor in of.model.state_dict().items():
        assert torch.equal(trained.task.module["teacher"].state_dict()[name], tensor), name


def test_a_teacher_that_knows_one_volume_is_distilled_to_this_volume(data, teacher, tmp_path):
    """Two steps of x0 = c, from any state, are one step of x0 = c."""
    task = build_task(tiny(data, tmp_path / "run", *words_of("Distillation", teacher)))
    c = 0.3
    task.module["teacher"].kernel = kernel = task.result.kernel

    class Knows(torch.nn.Module):
        coordinates = False

        def forward(self, z_t, t, condition=None):
            alpha, sigma = (a.view(-1, 1, 1, 1, 1).to(z_t) for a in kernel.schedule(t.double()))
            # v of x0 = c
            return (alpha * z_t - c) / sigma

    task.module["teacher"].network = Knows()
    batch = task.batch((8, 8, 8), 3)
    found = task.loss("student", batch)
    # a fresh network gives v = 0, so that its x0 is alpha z_t
    for i, key in enumerate(batch.keys):
        t = torch.tensor([(1 + int(4 * uniform(key, "t"))) / 4], dtype=torch.float64)
        alpha, sigma = (float(a) for a in kernel.schedule(t))
        z_t = alpha * batch.x[i] + sigma * normal((1, 8, 8, 8), key, "loss")
        expected = (alpha * z_t - c).square().mean()
        torch.testing.assert_close(found[i], expected, rtol=1e-3, atol=1e-5)


def test_a_criterion_selects_checkpoints(data, tmp_path):
    run = train(tiny(data, tmp_path / "run", *words_of("Supervised", None)))
    rows = [row for row in figures(run) if "dice" in row]
    assert [row["step"] for row in rows] == [3]
    (state,) = run.glob("checkpoints/best-*/state.json")
    best = json.loads(state.read_text())["best"]
    assert best["score"] == best["dice"] == rows[0]["dice"] != -rows[0]["validation_loss"]
    # the Dice coefficient of the averaged weights, by hand
    task = load_task(run, which="last")
    assert isinstance(task, Supervised)
    splits = json.loads((run / "splits.json").read_text())
    cases = {case.id: case for case in cases_of(task.config.data)}
    prepare, scores = preprocessing(task.config.data, run).prepare, []
    for prepared in (prepare(cases[name]) for name in splits["validation"]):
        with torch.no_grad():
            p = task.module(prepared.x[None]).sigmoid()
        m = (prepared.label == 1).float()
        scores.append(float((2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)))
    assert len(scores) == 2
    assert rows[0]["dice"] == pytest.approx(sum(scores) / 2, abs=1e-6)


def test_a_borrowed_run_stays_what_it_was(data, teacher, tmp_path):
    split = "data.split={validation: 0.3, calibration: 0.2}"
    of = train(tiny(data, tmp_path / "of", split, "optim.steps=1"))
    words = words_of("Distillation", of)
    run = train(tiny(data, tmp_path / "run", *words, "optim.steps=1"))
    train(tiny(data, of, split, "optim.steps=3"))
    with pytest.raises(DataError, match=r"was trained with other frozen weights \(of teacher\)"):
        train(tiny(data, run, *words))
    named = rf"other runs that it uses \(teacher = {of}\) are not"
    with pytest.raises(DataError, match=named):
        load_task(run)
    # one that was never trained is named before anything is written
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"teacher = .*empty: has no checkpoint yet; train it"):
        train(tiny(data, tmp_path / "x", *words, f"teacher={tmp_path / 'empty'}"))


def test_what_a_run_keeps_of_another_is_verified(teacher, tmp_path):
    tensors = {"a": torch.arange(3.0)}
    keep(tmp_path, "part", of=teacher, tensors=tensors, where="part")
    found = kept(tmp_path, "part")
    assert torch.equal(found.tensors["a"], tensors["a"])
    assert found.config == saved_config(teacher)
    assert found.facts.run == str(teacher.resolve())
    assert kept(tmp_path, "other") is None
    file = tmp_path / "borrowed" / "part" / "weights.safetensors"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(bytes(body))
    with pytest.raises(DataError, match=r"part: damaged: .*; restore it from a backup"):
        kept(tmp_path, "part")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["teachr=x"], "teachr: unknown key for task foreign_tasks:Distillation; .*'teacher'"),
        (["steps=two"], "steps: expected a whole number"),
        (
            ["space=voxel"],
            r"space: unknown key .*\(it is one of task=[^)]*diffusion, [^)]* and [^)]*\)",
        ),
    ],
)
def test_the_keys_of_a_task_from_outside_are_checked(words, message, tmp_path, teacher):
    with pytest.raises(UsageError, match=message) as caught:
        tiny(tmp_path, tmp_path / "run", *words_of("Distillation", teacher), *words)
    assert "\n" not in str(caught.value)


def test_its_missing_keys_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"needs teacher, network for task foreign_tasks:Dist"):
        tiny(tmp_path, tmp_path / "run", "task=foreign_tasks:Distillation")


# The tasks of the package


SHIPPED = {
    "diffusion": "wavelet_64",
    "autoencoder": "kl_64",
    "state_classifier": "encoder_64",
    "residual_segmenter": "siamese_64",
    "probe": "perceptrons_64",
    "denoising_gan": "denoising_gan",
    "feature_distillation": "feature_distillation",
    **{name: name for name in ("consistency", "guided", "progressive", "reflow", "trajectory")},
}


def test_every_task_ships_a_configuration():
    # These two take the file of any pipeline.
    over = {"segmentation": ["method=unet"], "pretraining": ["task=pretraining", "pretext=mae"]}
    assert set(SHIPPED) | set(over) == set(available("task"))
    for name, file in SHIPPED.items():
        assert load_run_config(file).task == name
    for name, words in over.items():
        assert load_run_config("wavelet_64", words).task == name


@pytest.mark.parametrize("name", SHIPPED)
def test_parsing_reads_no_other_run(name, monkeypatch):
    """What a configuration borrows is looked for when it is resolved, and not before."""
    gone = list(load_run_config(SHIPPED[name]).borrows())
    words = [f"{key}=runs/gone" for key in gone]
    tree = load_run_config(SHIPPED[name], words).dump()

    def refuse(*arguments, **keywords):
        raise AssertionError("a file was read")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    parsed = parse(tree)
    monkeypatch.undo()
    assert parsed.dump() == tree
    if gone:
        with pytest.raises(UsageError, match=rf"{gone[0]} = runs/gone: no such run"):
            resolved(parsed)
    else:
        assert resolved(parsed) == parsed


@pytest.mark.parametrize("name", SHIPPED)
def test_resolving_twice_is_resolving_once(name):
    once = resolved(load_run_config(SHIPPED[name]))
    assert resolved(once) == once
    assert parse(once.dump()) == once


@pytest.mark.parametrize("name", SHIPPED)
def test_a_random_batch_is_one_that_the_loss_takes(name):
    small = {
        "diffusion": ["network.widths=[4, 8]", "network.groups=2"],
        "autoencoder": ["autoencoder.widths=[4, 8]"],
        "state_classifier": ["classifier.widths=[4, 8]", "classifier.groups=2"],
        "residual_segmenter": ["residual_segmenter.widths=[4, 8]", "residual_segmenter.groups=2"],
        "probe": ["probe.hidden=[8]", "probe.members=2", "probe.log_snrs=[1.0]"],
        "denoising_gan": ["network.widths=[4, 8]", "network.groups=2", "gan.widths=[4]"],
        "consistency": [NETWORK],
        "feature_distillation": ["network={name: unet, widths: [4, 4, 8], blocks: 1, groups: 2}"],
        "guided": [NETWORK],
        "progressive": [NETWORK],
        "reflow": [NETWORK, "student.from_steps=4"],
        "trajectory": [NETWORK, "student={states: 2, modes: 2, teacher_steps: 4}"],
    }[name]
    task = build_task(load_run_config(SHIPPED[name], small))
    task.begin_training(None, fresh=True)
    for parameter in task.trained().values():
        if not parameter.any():  # a network that starts at zero may agree with its teacher
            torch.nn.init.normal_(parameter, std=0.1)
    assert type(task) is component("task", name) is task_of(task.config)
    batch = task.batch((16, 16, 16), 2)
    for player, parameters in task.parameters().items():
        losses = task.loss(player, batch)
        assert losses.shape == (2,)
        assert losses.isfinite().all()
        losses.mean().backward()
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    assert task.shapes().keys() == task.state().keys()
    frozen = [p for part in task.frozen for p in part.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)


def test_an_autoencoder_that_is_not_trained_yet_has_the_channels_of_the_run(tmp_path):
    two = "data.channels=[FLAIR,T2w]"
    with torch.device("meta"):
        assert (
            build_task(load_run_config("latent_64", [two])).module.space.autoencoder.channels == 2
        )
        assert build_task(load_run_config("latent_64")).module.space.autoencoder.channels == 1
    mine = tmp_path / "mine.yaml"  # what it says itself is what it is
    mine.write_text(load_run_config("kl_64", ["data.channels=[T1w]"]).to_yaml())
    words = [two, f"space={{name: latent, autoencoder: {mine}}}"]
    with (
        torch.device("meta"),
        pytest.raises(UsageError, match="was trained on 1 channels, got 2; use the channels"),
    ):
        build_task(load_run_config("latent_64", words))


def test_only_the_contract_is_asked():
    """Nobody outside the tasks themselves asks of which kind a task or its module is."""
    kinds = {"Model", "Reconstructor", "Autoencoder", "StateClassifier", "ResidualSegmentation"}
    kinds |= {
        "Classifier",
        "ResidualSegmenter",
        "Network",
        "LabelDiffusion",
        "SyntheticAnomalies",
        "Task",
    }
    kinds |= {component("task", name).__name__ for name in SHIPPED}
    folders = ("tasks", "training", "planning", "samples", "optimization", "runs", "memory")
    files = [f for n in folders for f in (Path(volumediff.__file__).parent / n).rglob("*.py")]
    assert len(files) > 40
    asked = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                asked += [f"{file.name}: {ast.unparse(node)}"] if names & kinds else []
    assert not asked


def test_the_task_from_outside_is_short():
    source = inspect.getsource(foreign_tasks).splitlines()
    starts = [i for i, line in enumerate(source) if line.startswith("class ")]
    assert len(starts) == 2, "a task after its configuration"
    assert len(source) - starts[0] <= 60
