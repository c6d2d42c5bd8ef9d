"""Operators of trajectories: mixing over time, the teacher's states, closed forms, training."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from oracles import flow, gaussian
from tiny_runs import figures, tiny, write_data
from torch import nn

from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.condition import Condition
from volumediff.config import overridden
from volumediff.contracts.scenes import example
from volumediff.errors import UsageError
from volumediff.inference.cost import counted
from volumediff.kernels.gaussian import Gaussian
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks._spectral_mixing import SpectralMixing, mixed
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.runs.trained import load_trained
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.student import Student
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.settings.run_config import parse, saved_config
from volumediff.spaces.voxel import Voxel
from volumediff.storage.cache import Cache
from volumediff.tasks import build_task, load_task
from volumediff.training.loop import train
from volumediff.trajectories import (
    trajectory_loss,
    trajectory_steps,
    trajectory_times,
    walked,
)

KERNEL = Gaussian(Cosine(zero_terminal_snr=True))
MEAN, STD = 0.3, 0.5
NETWORKS = (UNet, Guided, MonaiUNet, Pseudo3D)


def identity(states, modes, channels=3):
    layer = SpectralMixing(channels, states=states, modes=modes).double()
    with torch.no_grad():
        layer.real.copy_(torch.eye(channels).expand(modes, -1, -1))
    return layer


# --- mixing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("states", [1, 2, 4, 5, 6])
def test_all_frequencies_with_r_equal_to_one_are_the_identity(states):
    weight = identity(states, states // 2 + 1).weight()
    torch.testing.assert_close(weight, torch.eye(3 * states, dtype=torch.float64))


@pytest.mark.parametrize(("states", "modes"), [(1, 1), (2, 1), (4, 2), (4, 3), (5, 2), (5, 3)])
def test_mixing_is_a_product_in_the_fourier_domain(states, modes):
    layer = SpectralMixing(3, states=states, modes=modes).double()
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = normal(tuple(parameter.shape), "R", i, dtype=torch.float64)
    x = normal((2 * states, 3, 2, 3, 1), "x", dtype=torch.float64)
    spectrum = torch.fft.rfft(x.unflatten(0, (2, states)), dim=1)[:, :modes]
    r = torch.complex(layer.real, layer.imaginary).detach()
    product = torch.einsum("foc,bfcdhw->bfodhw", r, spectrum)
    padding = (0, 0) * 4 + (0, states // 2 + 1 - modes)
    expected = torch.fft.irfft(F.pad(product, padding), n=states, dim=1).flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(mixed(x, layer.weight(), states=states), expected)
        torch.testing.assert_close(layer(x), x + F.leaky_relu(expected, 0.01))
    assert all(p.grad is None for p in layer.parameters())


def test_mixing_of_low_frequencies_alone_smooths_over_time():
    """R = 1 at frequency 0 is the mean over the states."""
    x = normal((8, 3, 2, 2, 2), "x", dtype=torch.float64)
    found = mixed(x, identity(4, 1).weight(), states=4)
    expected = x.unflatten(0, (2, 4)).mean(1, keepdim=True).expand(-1, 4, *x.shape[1:])
    torch.testing.assert_close(found.detach(), expected.flatten(0, 1))


def test_more_frequencies_than_there_are_states_for_are_refused():
    with pytest.raises(ValueError, match="expected 1 to 3, the frequencies of 4 states, got 4"):
        SpectralMixing(3, states=4, modes=4)


# --- networks ------------------------------------------------------------------------------------


def network(cls, *, randomised=True, **named):
    torch.manual_seed(0)
    net = cls(2, 2, widths=(4, 8), blocks=1, groups=2, **named).double()
    net.take_trajectory((0.9, 0.5, 0.25, 0.0), modes=2)
    net.double()
    for name, parameter in net.named_parameters():
        if randomised or "mixing" not in name:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.mark.parametrize("cls", NETWORKS)
def test_a_network_gives_all_states_of_each_sample(cls):
    z, t = normal((2, 2, 4, 5, 3), "z", dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    net, plain = network(cls, randomised=False), cls(2, 2, widths=(4, 8), blocks=1, groups=2)
    plain.double().load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        found = net(z, t).unflatten(0, (2, 4))
        # unmixed, it is the network without trajectories at every time
        for m, time in enumerate(net.times):
            torch.testing.assert_close(found[:, m], plain(z, time * t))
        net = network(cls)
        found = net(z, t).unflatten(0, (2, 4))
        torch.testing.assert_close(net(z[1:], t[1:]), found[1])
        assert not torch.isclose(found[:, 0], plain(z, 0.9 * t)).any()
    y = net(z, t)
    y[0].sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for n, p in net.named_parameters() if "real" in n
    )


@pytest.mark.parametrize("slab", [1, 3])
@pytest.mark.parametrize("cls", [UNet, Guided])
def test_slabs_of_a_trajectory_are_the_whole(cls, slab):
    net = network(cls, image_channels=1)
    z, t = normal((1, 2, 8, 4, 4), "z", dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    condition = Condition(image=normal((1, 1, 8, 4, 4), "i", dtype=torch.float64))

    def gradients():
        net.zero_grad()
        y = net(z, t, condition)
        y.square().sum().backward()
        return [y.detach(), *(p.grad.clone() for p in net.parameters())]

    whole = gradients()
    MemoryPolicy(slab=slab).apply(net)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# --- the teacher's trajectory --------------------------------------------------------------------


def test_the_times_are_quadratic():
    assert trajectory_steps(4, 512) == tuple(2 * i**2 for i in (4, 8, 12, 16))
    assert [512 - k for k in trajectory_steps(4, 512)] == [480, 384, 224, 0]
    expected = torch.tensor([480, 384, 224, 0], dtype=torch.float64) / 512
    torch.testing.assert_close(trajectory_times(4), expected)
    with pytest.raises(ValueError, match="expected a multiple of 16, the square of the 4 states"):
        trajectory_steps(4, 50)


class Teacher(Model):
    """The exact denoiser of Gaussian data."""

    def __init__(self, kernel):
        super().__init__(Voxel(), kernel, UNet(1, 1, widths=(4,), blocks=1, groups=2))
        self.exact = gaussian(kernel.schedule, MEAN, STD)

    def denoise(self, z_t, t, condition=None):
        return self.exact(z_t, t, condition)


def noise(count=2):
    return normal((count, 1, 2, 3, 2), "noise", dtype=torch.float64)


def test_the_states_are_those_of_the_whole_walk_and_converge_to_the_flow():
    teacher, z_1 = Teacher(KERNEL), noise()
    found = walked(teacher, z_1, Condition(), states=4, steps=64)
    walk = DDIM(64)
    end = walk.sample(teacher.denoise, KERNEL, z_1, walk.times(KERNEL.schedule))
    torch.testing.assert_close(found[:, -1], end, rtol=1e-12, atol=1e-12)
    fine = walked(teacher, z_1, Condition(), states=4, steps=512)
    for j, t in enumerate(trajectory_times(4).tolist()):
        exact = flow(KERNEL.schedule, MEAN, STD, z_1, 1.0, t)
        torch.testing.assert_close(fine[:, j], exact, rtol=0, atol=8e-3)
        assert (found[:, j] - exact).abs().max() > (fine[:, j] - exact).abs().max()


def test_the_loss_by_hand():
    schedule = Cosine()
    found = noise(8).reshape(2, 4, 1, 2, 3, 2)
    target = 1.5 * found + 0.1
    alpha, sigma = schedule(trajectory_times(4))
    ratios = (alpha / sigma).tolist()
    assert ratios[0] < 1 < ratios[2] < 1e4 < ratios[3]
    weights = [1.0, max(1.0, ratios[1]), ratios[2], 1e4]
    errors = (target - found).abs().flatten(2).mean(2)
    expected = sum(w * errors[:, j] for j, w in enumerate(weights))
    torch.testing.assert_close(trajectory_loss(found, target, schedule), expected)


class Affine(nn.Module):
    """Outputs of a network of trajectories that are affine in the noise, by time."""

    coordinates = False

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, z_1, t, condition=None):
        shape = (-1, *(1,) * z_1.ndim)
        slope, offset = self.slope.view(shape), self.offset.view(shape)
        return (slope * z_1[None] + offset).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("prediction", ["v", "x0", "u"])
def test_regression_on_gaussian_trajectories_ends_in_the_flow(prediction):
    """On Gaussian data every state is affine in the noise, so that least squares are exact."""
    schedule = LinearSchedule() if prediction == "u" else KERNEL.schedule
    kernel = Gaussian(schedule, prediction=prediction)
    teacher, times = Teacher(kernel), trajectory_times(4)
    student = Model(
        Voxel(), kernel, UNet(1, 1, widths=(4,), blocks=1, groups=2), dtype=torch.float64
    )
    student.network = Affine()
    z_1 = noise(4)
    target = walked(teacher, z_1, Condition(), states=4, steps=16)
    optimizer = torch.optim.LBFGS(
        student.network.parameters(),
        lr=1,
        max_iter=200,
        tolerance_grad=1e-14,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = (student.trajectory(z_1, times) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    unseen = normal((3, 1, 2, 3, 2), "unseen", dtype=torch.float64)
    expected = walked(teacher, unseen, Condition(), states=4, steps=16)
    with torch.no_grad():
        found = student.trajectory(unseen, times)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert trajectory_loss(found, expected, schedule).max() < 1e-2
        said = student.denoise(unseen, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(said.x0, found[:, -1])


# --- training ------------------------------------------------------------------------------------

SECTION = "student={states: 2, modes: 2, teacher_steps: 4, kept: %d, kept_dtype: %s}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=6, labels=True)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """Weights that a few steps moved, and made large enough to see them in every digit."""
    words = ("optim.steps=3", "optim.lr=3e-2", "validation.every=3")
    return train(tiny(data, tmp_path_factory.mktemp("teacher") / "run", *words))


def taught(teacher, output, *, kept=0, dtype="float32", steps=4, words=()):
    tree = {
        "task": "trajectory",
        "teacher": str(teacher),
        "optim": {"lr": 1e-3, "steps": steps, "warmup": 1, "batch_size": 2, "ema": 0.9},
        "validation": {"every": 2, "volumes": 1},
        "save_every": 1,
        "output": str(output),
    }
    return parse(overridden(tree, (SECTION % (kept, dtype), *words)))


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return train(taught(teacher, tmp_path_factory.mktemp("student") / "run", kept=3))


def begun(config):
    task = build_task(config, run=config.output)
    task.begin_training(config.output, fresh=True)
    return task


def test_a_student_begins_as_its_teacher_asked_at_every_time(teacher, student, tmp_path):
    task = begun(saved_config(student))
    original = load_task(teacher).result
    z_1 = normal((2, 1, 8, 8, 8), "z")
    found = task.model.trajectory(z_1, trajectory_times(2))
    for j, time in enumerate(trajectory_times(2).tolist()):
        output = original.network(z_1, torch.full((2,), time))
        said = original.kernel.predict(output, z_1, torch.ones(2, dtype=torch.float64))
        expected = original.kernel.corrupt(said.x0, torch.full((2,), time).double(), said.eps)
        torch.testing.assert_close(found[:, j], expected)


def test_the_loss_compares_with_the_walk_of_the_teacher(teacher, student):
    task, original = begun(saved_config(student)), load_task(teacher).result
    batch = task.batch((8, 8, 8), 2)
    loss = task.loss("network", batch)
    z_1 = original.kernel.prior(
        torch.stack([normal((1, 8, 8, 8), key, "loss") for key in batch.keys])
    )
    target = walked(original, z_1, Condition(), states=2, steps=4)
    found = task.model.trajectory(z_1, trajectory_times(2))
    expected = trajectory_loss(found, target, original.kernel.schedule)
    torch.testing.assert_close(loss, expected)
    loss.mean().backward()
    assert all(p.grad is None for p in task.training_only.parameters())
    mixing = [p for n, p in task.model.network.named_parameters() if "mixing" in n]
    assert mixing
    assert any(p.grad.any() for p in mixing)


def test_a_resumed_student_is_the_uninterrupted_one(teacher, student, tmp_path):
    train(taught(teacher, tmp_path / "parts", kept=3, steps=2))
    parts = train(taught(teacher, tmp_path / "parts", kept=3))
    assert figures(parts) == figures(student)
    mine, other = (load_task(run, which="last").state() for run in (parts, student))
    assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())


def keeping(config, cache, said):
    """The task with its kept trajectories, made without a training."""
    task = begun(config)
    task.kept = task.keep_trajectories(
        (1, 8, 8, 8), cache=Cache(cache, said.append), accelerator=Accelerator(cpu=True)
    )
    return task


def test_kept_trajectories_are_those_that_are_walked(teacher, student, tmp_path):
    said, found = [], {}
    for dtype, tolerance in (("float32", 1e-5), ("float16", 2e-3)):
        words = (f"student.kept_dtype={dtype}",)
        config = saved_config(student, words)
        task = keeping(config, tmp_path / "cache", said)
        found[dtype] = task.kept.read([0, 2])
        z_1 = task._noise(tuple(task._number(n) for n in (0, 2)), (1, 8, 8, 8))
        expected = walked(load_task(teacher).result, z_1, Condition(), states=2, steps=4)
        torch.testing.assert_close(found[dtype], expected, rtol=tolerance, atol=tolerance)
        # the loss takes the one of a sample's key
        batch = replace(task.batch((8, 8, 8), 2), keys=(3, 5))
        states = task.model.trajectory(z_1, trajectory_times(2))
        by_hand = trajectory_loss(states, found[dtype], task.model.kernel.schedule)
        torch.testing.assert_close(task.loss("network", batch), by_hand)
    size = 2 * 8**3  # numbers of a trajectory
    assert f"3 trajectories take {3 * 4 * size / 1e9:.3g} GB" in said[0]
    assert f"3 trajectories take {3 * 2 * size / 1e9:.3g} GB" in said[1]
    assert len(said) == 2
    keeping(saved_config(student), tmp_path / "cache", said)
    assert len(said) == 2, "nothing is missing"


def test_a_disk_without_room_is_refused_before_anything_is_written(
    teacher, student, tmp_path, monkeypatch
):
    usage = SimpleNamespace(free=3 * 4 * 2 * 8**3 - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"student\.kept: 3 trajectories take") as error:
        keeping(saved_config(student), tmp_path / "full", [])
    assert "\n" not in str(error.value)
    assert list((tmp_path / "full").iterdir()) == []


def test_a_trained_student_draws_in_one_call_and_starts_from_noise_alone(student):
    trained = load_trained(student, device="cpu")
    trained.samples()
    trained.localizes()
    model = trained.diffusion
    sampler = Student().of(model)
    noise = model.noise((3, 4), (1, 8, 8, 8))
    with counted(model) as cost:
        z = sampler.sample(
            model.denoise, model.kernel, noise(-1), sampler.times(model.kernel.schedule)
        )
    assert cost.network_calls == 2, "one per volume"
    torch.testing.assert_close(z, model.trajectory(noise(-1), trajectory_times(2))[:, -1])
    with pytest.raises(ValueError, match="expected 1 for an operator of trajectories") as error:
        Localizer(route=Diffuse(level=0.6), sampler=Student()).check(model)
    assert "\n" not in str(error.value)
    Localizer(route=Diffuse(level=1.0), sampler=Student()).check(model)
    for sampler in (DDIM(2), DDIM(1)):
        with pytest.raises(ValueError, match="use sampler=student"):
            Localizer(route=Diffuse(level=1.0), sampler=sampler).check(model)


def test_a_model_of_labels_segments_in_one_call(data, tmp_path):
    words = (
        "recipe={name: label_diffusion, labels: [1]}",
        "network={name: unet, widths: [4, 8], blocks: 1, groups: 2, conditioner: pyramid}",
        "optim.steps=2",
        "validation.every=2",
    )
    of = train(tiny(data, tmp_path / "teacher", *words))
    model = load_trained(train(taught(of, tmp_path / "run", steps=2)), device="cpu").diffusion
    one = example()
    with counted(model) as cost:
        Composed(samples=1).segment(
            model, one.x, foreground=one.foreground, spacing_mm=one.spacing_mm, key=1
        )
    assert cost.network_calls == 1
    with pytest.raises(UsageError, match=r"student.kept: expected 0 for a model with conditions"):
        train(taught(of, tmp_path / "kept", kept=2))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("kernel={name: gaussian, schedule: cosine, prediction: eps}",), "predicts x0, v or u"),
        (("times={name: uniform, high: 0.8}",), "trained on all times"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(data, tmp_path, words, text):
    of = train(tiny(data, tmp_path / "teacher", *words, "optim.steps=1"))
    with pytest.raises(UsageError, match=text) as error:
        train(taught(of, tmp_path / "run"))
    assert "\n" not in str(error.value)


def test_walks_that_miss_the_times_are_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match=r"expected a multiple of 4, the square of the 2 states"):
        taught(teacher, tmp_path, words=("student.teacher_steps=6",))
    with pytest.raises(UsageError, match=r"modes: expected 1 to 2, the frequencies of 2 states"):
        taught(teacher, tmp_path, words=("student.modes=3",))
