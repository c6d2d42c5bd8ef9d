"""Features of a diffusion run, distilled: gradients by enumeration, the choice of times, runs."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny, write_data

from volumediff.batch import Batch
from volumediff.errors import UsageError
from volumediff.features.distillation import FeatureDistillation, standardised, teacher_features
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.runs.trained import load_trained
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import build_task, load_task, warm_start
from volumediff.tasks.feature_distillation import FeatureDistillationTask
from volumediff.training.loop import train

UNET = "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}"
LABELS = "recipe={name: label_diffusion, labels: [1], coding: one_hot}"
SIZE = (8, 8, 8)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(k, seed):
    made = UNet(k, k, widths=(4, 8), blocks=1, groups=2)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=source))
    return made


def pair(*, times=(0.1, 0.9), space=None, entropy=0.0, own=False):
    """A teacher, and a student with the teacher's network or with one of its own."""
    space = space or Voxel()
    k = space.channels(1)
    teacher = Model(space, Gaussian(Cosine()), network(k, 3)).requires_grad_(False).eval()
    student = network(k, 5)
    if not own:
        student.load_state_dict(teacher.network.state_dict())
    module = FeatureDistillation(
        space,
        student,
        LabelDiffusion(labels=(1,)),
        width=8,
        times=times,
        entropy=entropy,
        dtype=torch.float32,
    )
    return teacher, module


def batch(n=2, seed=0):
    x = draw(n, 1, *SIZE, seed=seed)
    mask = torch.zeros(n, 1, *SIZE)
    mask[:, :, :2] = 1
    return Batch(2 * mask - 1, tuple(range(seed, seed + n)), images=(x,))


def test_standardised_features_are_those_of_a_layer_norm():
    f = 3 + 2 * draw(2, 6, 2, 3, 4)
    expected = torch.nn.functional.layer_norm(f.movedim(1, -1), (6,)).movedim(-1, 1)
    torch.testing.assert_close(standardised(f), expected)


def test_a_student_that_is_the_teacher_has_nothing_to_learn_where_there_is_no_noise():
    teacher, module = pair(times=(1e-8,))
    with torch.no_grad():  # P = 1
        module.projection.weight.copy_(torch.eye(8)[:, :, None, None, None])
        module.projection.bias.zero_()
    given = batch()
    z = given.images[0]
    seen = teacher_features(teacher, z, torch.full((2,), 1e-8, dtype=torch.float64), given)
    mine = module.features(z, given.condition)
    torch.testing.assert_close(mine, seen, rtol=1e-2, atol=1e-2)
    error = module.read_error(seen, [0, 0], given.x)
    with torch.no_grad():
        module.policy.baseline.weight.zero_()
        module.policy.baseline.bias.fill_(float(-error.mean()))
    rest = module.loss(given, teacher) - error
    assert rest.abs().max() < 1e-2
    noisy, _ = pair(times=(0.9,))
    far = teacher_features(noisy, z, torch.full((2,), 0.9, dtype=torch.float64), given)
    assert (standardised(mine) - standardised(far)).square().mean() > 0.1


def test_the_mean_gradient_of_the_policy_is_that_of_the_mean_reward(monkeypatch):
    """sum_j pi_j grad(-(R_j - b) log pi_j) = -grad sum_j pi_j R_j, by enumeration of the draws."""
    teacher, module = pair(times=(0.05, 0.5, 0.95))
    with torch.no_grad():
        module.policy.choice.weight.copy_(draw(3, 8, seed=4))
    given = batch(1)
    pooled = standardised(module.features(given.images[0], given.condition).detach())
    log_p, _ = module.policy(pooled.flatten(2).mean(2))
    rewards, total = [], torch.zeros_like(module.policy.choice.weight)
    for j, t in enumerate(module.times):
        time = torch.tensor([t], dtype=torch.float64)
        seen = teacher_features(teacher, given.images[0], time, given)
        rewards.append(-module.read_error(seen, [j], given.x).detach())
        monkeypatch.setattr(FeatureDistillation, "_drawn", staticmethod(lambda p, key, j=j: j))
        module.zero_grad()
        module.loss(given, teacher).sum().backward()
        total += log_p[0, j].exp().detach() * module.policy.choice.weight.grad
    module.zero_grad()
    (-(log_p.exp() * torch.stack(rewards, 1)).sum()).backward()
    torch.testing.assert_close(total, module.policy.choice.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_teacher_sees_the_volume_behind_the_noise_of_its_key():
    teacher, _ = pair()
    given = batch()
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    alpha, sigma = (each.float()[:, None, None, None, None] for each in teacher.kernel.schedule(t))
    z_t = alpha * given.images[0] + sigma * teacher.noise(given.keys, (1, *SIZE))(0)
    expected = teacher.network.features(z_t, t.float())
    found = teacher_features(teacher, given.images[0], t, given)
    torch.testing.assert_close(found, expected)


def test_every_time_has_a_head_and_the_baseline_follows_the_reward(monkeypatch):
    teacher, module = pair(times=(0.2, 0.8))
    monkeypatch.setattr(FeatureDistillation, "_drawn", staticmethod(lambda p, key: key))
    given = batch()  # of the keys 0 and 1: the first sample takes the first time
    t = torch.tensor(module.times, dtype=torch.float64)
    seen = standardised(teacher_features(teacher, given.images[0], t, given))
    # On cells of 2 voxels, of which those below 1 along d are the label.
    truth = torch.zeros(4, 4, 4, dtype=torch.int64)
    truth[:1] = 1
    rewards = [
        -torch.nn.functional.cross_entropy(head(seen[i : i + 1]), truth[None])
        for i, head in enumerate(module.heads)
    ]
    pooled = standardised(module.features(given.images[0], given.condition)).flatten(2).mean(2)
    _, baseline = module.policy(pooled)
    module.loss(given, teacher).sum().backward()
    expected = 2 * (baseline - torch.stack(rewards)).sum()
    torch.testing.assert_close(module.policy.baseline.bias.grad[0], expected)


def test_labels_and_policy_do_not_reach_the_student():
    teacher, module = pair(entropy=0.1)
    given = batch()
    other = Batch(-given.x, given.keys, images=given.images)
    found = []
    for each in (given, other):
        module.zero_grad()
        module.loss(each, teacher).sum().backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        same = torch.equal(gradient, found[1][name])
        assert same == name.startswith(("network.", "projection.")), name
    assert any(name.startswith("network.") for name in found[0])
    assert not any(p.grad is not None for p in teacher.parameters())


@pytest.mark.parametrize("space", [Voxel(), Wavelet()], ids=["voxel", "wavelet"])
def test_the_loss_of_a_sample_is_its_own(space):
    teacher, module = pair(space=space, own=True)
    given = batch(3)
    whole = module.loss(given, teacher)
    for i in range(3):
        one = Batch(
            given.x[i : i + 1], given.keys[i : i + 1], images=(given.images[0][i : i + 1],)
        )
        torch.testing.assert_close(module.loss(one, teacher), whole[i : i + 1])


def test_draws_have_the_shares_of_the_policy():
    log_p = torch.tensor([0.2, 0.0, 0.7, 0.1]).log()
    drawn = torch.tensor([FeatureDistillation._drawn(log_p, key) for key in range(2000)])
    counts = torch.bincount(drawn, minlength=4) / 2000
    torch.testing.assert_close(counts, log_p.exp(), rtol=0, atol=0.04)


def test_the_policy_finds_the_time_that_says_most_about_the_labels():
    """Bright voxels are the label, which a teacher sees at t = .05 and cannot at t = 1."""
    teacher, module = pair(times=(1.0, 0.05))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for step in range(60):
        mask = (draw(4, 1, 2, 2, 2, seed=step) > 0).float().repeat_interleave(4, 2)
        mask = mask.repeat_interleave(4, 3).repeat_interleave(4, 4)
        given = Batch(2 * mask - 1, tuple(range(4 * step, 4 * step + 4)), images=(2 * mask - 1,))
        optimizer.zero_grad()
        module.loss(given, teacher).mean().backward()
        optimizer.step()
    log_p, _ = module.policy(
        standardised(module.features(given.images[0], given.condition)).flatten(2).mean(2)
    )
    assert log_p.exp()[:, 1].min() > 0.8


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("features"), cases=6, labels=True)


@pytest.fixture(scope="module")
def diffusion(data, tmp_path_factory):
    return train(tiny(data, tmp_path_factory.mktemp("diffusion") / "run", "optim.steps=1"))


def words(diffusion, *more):
    task = ["task=feature_distillation", f"teacher={diffusion}", LABELS, "optim.lr=1e-2"]
    return [*task, "validation.previews=0", *more]


def test_a_killed_run_ends_as_one_that_was_not_and_a_segmentation_begins_with_it(
    data, diffusion, tmp_path, monkeypatch
):
    mine = words(diffusion, "save_every=1", "optim.steps=3")
    whole = train(tiny(data, tmp_path / "whole", *mine))

    def killed(task, step, accelerator):
        if step == 2:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(FeatureDistillationTask, "stepped", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tiny(data, tmp_path / "parts", *mine))
    parts = train(tiny(data, tmp_path / "parts", *mine))
    one, two = (
        load_file(sorted(run.glob("checkpoints/last-*"))[-1] / "weights.safetensors")
        for run in (whole, parts)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not [name for name in one if ".decoder." in name], "what is not trained is not saved"

    source = load_task(whole).backbone
    teacher = load_task(diffusion)
    assert torch.equal(source.space.scale, teacher.module.space.scale)
    with pytest.raises(UsageError, match="has learnt features, and no labels"):
        load_trained(whole, device="cpu").segments()
    segments = ["task=segmentation", "space=voxel", UNET, LABELS]
    task = build_task(tiny(data, tmp_path / "segments", *segments))
    fresh = {n: t.clone() for n, t in task.model.network.state_dict().items()}
    said = []
    warm_start(task, whole, said.append)
    for name, found in task.model.network.state_dict().items():
        new = name.startswith(tuple(f"hourglass.{p}." for p in ("act", "decoder", "head", "up")))
        expected = fresh[name] if new else source.network.state_dict()[name]
        assert torch.equal(found, expected), name
    assert not torch.equal(
        source.network.state_dict()["hourglass.stem.weight"],
        teacher.module.network.state_dict()["hourglass.stem.weight"],
    ), "a student of its own, and no copy of the teacher"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("distillation.log_snrs=[]", "distillation.log_snrs"),
        ("recipe=healthy", "recipe: expected label_diffusion"),
        ("recipe.ignored=[9]", r"recipe.ignored: expected none for a feature distillation"),
        (
            "network={name: unet, widths: [4, 8, 8], blocks: 1, groups: 2}",
            r"network: expected as many levels as the teacher",
        ),
        ("teacher=runs/gone", "teacher = runs/gone: no such run"),
    ],
)
def test_what_cannot_be_distilled_is_refused(data, diffusion, tmp_path, word, message):
    with pytest.raises(UsageError, match=message) as caught:
        train(tiny(data, tmp_path / "run", *words(diffusion), word))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_told_more_than_a_volume_is_refused(data, tmp_path):
    scalars = "recipe={name: healthy, scalars: [age]}"
    told = train(tiny(data, tmp_path / "told", scalars, "optim.steps=1"))
    with pytest.raises(UsageError, match="expected a diffusion model of volumes and nothing"):
        train(tiny(data, tmp_path / "run", *words(told)))
