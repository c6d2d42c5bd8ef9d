"""Distillation: targets in closed form, and runs that are distilled from a teacher's run."""

from itertools import count

import pytest
import torch
from oracles import flow, gaussian, state_like
from tiny_runs import figures, tiny, write_data

from volumediff.contracts.closed_form import KnownDenoiser
from volumediff.errors import UsageError
from volumediff.kernels._base import UNCONDITIONAL, Prediction
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.planning.planner import trace
from volumediff.runs.trained import load_trained
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.spans import Spans
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.settings.run_config import parse
from volumediff.spaces.voxel import Voxel
from volumediff.storage import checkpoint
from volumediff.tasks import build_task, load_task
from volumediff.tasks._student import distance, euler_step
from volumediff.tasks.progressive import ProgressiveTask, leap
from volumediff.training.loop import train

MEAN, STD = 0.3, 0.5
KERNELS = (Gaussian(Cosine(zero_terminal_snr=True)), Gaussian(LinearSchedule()))


class Denoising:
    """A denoiser with its kernel, as steps of distillation ask for them."""

    def __init__(self, kernel, denoise):
        self.kernel, self.denoise = kernel, denoise


def exact(kernel):
    return Denoising(kernel, gaussian(kernel.schedule, MEAN, STD))


def halved(teacher, steps):
    """The student of so many steps that predicts the target itself."""
    spans, kernel = Spans(2 * steps), teacher.kernel

    def denoise(z_t, t, condition):
        middle = spans.ahead(t)
        end = spans.ahead(middle)
        z = euler_step(teacher.denoise, kernel, z_t, t, middle, condition)
        z = euler_step(teacher.denoise, kernel, z, middle, end, condition)
        x0 = leap(kernel.schedule, z_t, z, t, end)
        return Prediction.from_x0(x0, z_t, *kernel.schedule(t))

    return Denoising(kernel, denoise)


# --- targets in closed form ----------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_leap_ends_where_it_should(kernel):
    z_t, z_s = state_like(-1.0, 0.3, 1.2), state_like(0.4, -0.2, 0.9)
    for t, s in ((1.0, 0.5), (0.6, 0.55), (0.3, 0.0)):
        t, s = (torch.full((len(z_t),), u, dtype=torch.float64) for u in (t, s))
        x0 = leap(kernel.schedule, z_t, z_s, t, s)
        said = Prediction.from_x0(x0, z_t, *kernel.schedule(t))
        torch.testing.assert_close(kernel.corrupt(x0, s, said.eps), z_s, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("start", [1.0, 0.613, 0.3])
def test_six_halvings_of_64_steps_end_where_the_64_steps_do(kernel, start):
    student = exact(kernel)
    z = state_like(-1.1, 0.2, 1.4)
    spans = Spans(64)
    walked = spans.sample(student.denoise, kernel, z, spans.times(kernel.schedule, start))
    if start == 1.0:
        ddim = DDIM(64).sample(student.denoise, kernel, z, DDIM(64).times(kernel.schedule))
        torch.testing.assert_close(walked, ddim, atol=1e-12, rtol=0)
    for steps in (32, 16, 8, 4, 2, 1):
        student = halved(student, steps)
    one = Spans(1).times(kernel.schedule, start)
    assert len(one) == 2
    found = Spans(1).sample(student.denoise, kernel, z, one)
    torch.testing.assert_close(found, walked, atol=1e-11, rtol=0)
    # which is the flow itself, up to the error of 64 first-order steps
    exactly = flow(kernel.schedule, MEAN, STD, z, start, 0.0)
    torch.testing.assert_close(found, exactly, atol=0.05, rtol=0)


class AffineStudent(Network):
    """Weights a and b over the exact student: x0 = a * target + b, read as v."""

    def __init__(self, kernel, steps):
        super().__init__(1, 1)
        self.known, self.kernel = halved(exact(kernel), steps), kernel
        self.a = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    stride = (1, 1, 1)

    def body(self, x, e):
        raise NotImplementedError

    def forward(self, z_t, t, condition=None):
        said = self.known.denoise(z_t, t.double(), UNCONDITIONAL)
        x0 = self.a * said.x0 + self.b
        return Prediction.from_x0(x0, z_t, *self.kernel.schedule(t.double())).v


class ExactTeacher(KnownDenoiser):
    """The posterior mean, read as v."""

    def __init__(self, kernel):
        super().__init__(kernel.schedule, means=(MEAN,), std=STD)
        self.kernel = kernel
        self.means = torch.full((2,), MEAN, dtype=torch.float64)

    def forward(self, z_t, t, condition=None):
        x0 = super().forward(z_t, t.double())
        return Prediction.from_x0(x0, z_t, *self.kernel.schedule(t.double())).v


def exact_task(kernel, words=()):
    config = parse({"task": "progressive", "teacher": "wavelet_64", **dict(words)})
    student = AffineStudent(kernel, 8)
    task = ProgressiveTask(config, Model(Voxel(), kernel, student, dtype=torch.float64))
    task.training_only["teacher"] = ExactTeacher(kernel).requires_grad_(False)
    return task


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_loss_is_zero_at_the_composed_map_and_nowhere_else(kernel):
    words = {"student": {"steps": 1, "from_steps": 16, "round_steps": 1}}
    task = exact_task(kernel, words)
    assert task.steps == 8
    batch = task.batch((2, 3, 4), 6)
    batch = type(batch)(batch.x.double(), tuple(range(6)))
    assert float(task.loss("network", batch).detach().max()) < 1e-16
    network = task.model.network
    for name, wrong in (("a", 1.01), ("b", 0.01)):
        with torch.no_grad():
            getattr(network, name).fill_(wrong)
        assert float(task.loss("network", batch).detach().min()) > 1e-6
        task.loss("network", batch).mean().backward()
        assert float(getattr(network, name).grad) > 0, "the loss falls towards the composed map"
        with torch.no_grad():
            network.a.fill_(1)
            network.b.fill_(0)
    assert not any(p.requires_grad for p in task.training_only.parameters())


def test_the_loss_is_weighted_by_the_truncated_snr():
    task = exact_task(KERNELS[0], {"student": {"steps": 1, "from_steps": 16, "round_steps": 1}})
    batch = task.batch((2, 2, 2), 8)
    batch = type(batch)(batch.x.double(), tuple(range(8)))
    with torch.no_grad():
        task.model.network.b.fill_(0.1)
        seen = task.model.corrupted(batch)
        alpha, sigma = KERNELS[0].schedule(seen.t)
        expected = 0.01 * (alpha / sigma).square().clamp(min=1)
        torch.testing.assert_close(task.loss("network", batch), expected, rtol=1e-9, atol=1e-12)


def test_masked_distances_are_means_over_the_mask():
    a, b = torch.rand(2, 3, 2, 2, 4), torch.rand(2, 3, 2, 2, 4)
    m = torch.zeros(2, 1, 2, 2, 4)
    m[..., :2] = 1
    inside = (a - b)[..., :2].square().flatten(1).mean(1)
    torch.testing.assert_close(distance(a, b, m), inside)
    torch.testing.assert_close(distance(a, b, None), (a - b).square().flatten(1).mean(1))


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=6)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "t"
    return train(tiny(data, folder, "data.split.calibration=0.2", "crop=[8,8,8]"))


def taught(teacher, output, *, steps=6, **sections):
    return parse(
        {
            "task": "progressive",
            "teacher": str(teacher),
            "student": {"steps": 1, "from_steps": 8, "round_steps": 2},
            "optim": {"lr": 1e-3, "steps": steps, "warmup": 0, "batch_size": 2, "ema": 0.5},
            "validation": {"every": 3, "volumes": 1},
            "save_every": 1,
            "output": str(output),
            **sections,
        }
    )


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return train(taught(teacher, tmp_path_factory.mktemp("student") / "s"))


def weights(run, kind="last", which="weights"):
    return checkpoint.find(run, kind).tensors(which)


def test_a_student_needs_its_teacher_and_the_data_of_that_run(teacher, student):
    ours, theirs = load_task(student).config, load_task(teacher).config
    for name in ("space", "kernel", "network", "recipe", "noise", "data", "crop"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("splits.json", "statistics/manifest.json"):
        assert (student / name).read_bytes() == (teacher / name).read_bytes()


def test_a_student_begins_as_its_teacher(teacher, tmp_path):
    run = train(
        taught(
            teacher,
            tmp_path / "s",
            steps=6,
            optim={"lr": 1e-30, "steps": 6, "warmup": 0, "batch_size": 2, "ema": 0.0},
        )
    )
    theirs = checkpoint.find(teacher, "best").tensors("ema")
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-12, rtol=0)


def test_training_moves_the_student_and_not_the_teacher(teacher, student):
    theirs, kept = weights(teacher, "best", "ema"), load_task(student)
    kept.begin_training(student, fresh=False)
    copy = kept.training_only["teacher"].state_dict()
    for name, tensor in copy.items():
        assert torch.equal(tensor, theirs[f"network.{name}"])
    moved = weights(student)
    assert any(not torch.equal(moved[n], theirs[n]) for n in theirs)
    rows = [r["agreement_db"] for r in figures(student) if "agreement_db" in r]
    assert len(rows) == 2


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_student_is_the_uninterrupted_one(teacher, student, tmp_path, stop):
    """Within a round and in a later one, whose teacher is a student."""
    config = taught(teacher, tmp_path / "s")

    class Stop(Exception):
        pass

    before = ProgressiveTask.loss

    losses = count()

    def loss(self, player, batch):
        if self.module.training and next(losses) == stop:
            raise Stop
        return before(self, player, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressiveTask, "loss", loss)
        with pytest.raises(Stop):
            train(config)
    assert checkpoint.find(config.output, "last").step == stop
    run = train(config)
    for which in ("weights", "ema", "training"):
        whole = weights(student, "last", which)
        for name, tensor in weights(run, "last", which).items():
            assert torch.equal(tensor, whole[name]), (which, name)
    assert figures(run)[-1] == figures(student)[-1]


def test_a_student_stands_alone(student, tmp_path):
    trained = load_trained(student, device="cpu")
    assert trained.diffusion.walk == Spans(1)
    assert not trained.task.training_only
    assert set(trained.task.state()) == set(weights(student))


def test_a_student_is_no_teacher_of_the_wrong_kind(teacher, data, tmp_path):
    with pytest.raises(UsageError, match="no such run"):
        train(taught(tmp_path / "nothing", tmp_path / "s"))
    kernel = {"name": "gaussian", "schedule": "linear"}
    with pytest.raises(UsageError, match="kernel: expected that of teacher"):
        train(taught(teacher, tmp_path / "s", kernel=kernel))
    discrete = {
        "kernel": {"name": "discrete", "schedule": "cosine"},
        "recipe": {"name": "label_diffusion", "labels": [1]},
    }
    with pytest.raises(UsageError, match="expected a teacher with a gaussian kernel"):
        build_task(taught("wavelet_64", tmp_path / "s", **discrete))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"steps": 3, "from_steps": 8}, "student.*times 2, 4, 8"),
        ({"steps": 8, "from_steps": 8}, "student.*times 2, 4, 8"),
        ({"steps": 1, "from_steps": 8, "round_steps": 3}, "optim.steps of at least 9"),
    ],
)
def test_rounds_are_checked(section, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        taught("wavelet_64", tmp_path / "s", student=section)


def test_the_planner_counts_the_teacher(tmp_path):
    config = taught("wavelet_64", tmp_path / "s")
    task = build_task(config)
    size = sum(p.numel() * p.element_size() for p in task.model.network.parameters())
    plain = build_task(
        parse(
            {
                "space": task.config.space,
                "kernel": task.config.kernel,
                "network": task.config.network,
                "data": task.config.data.model_dump(),
            }
        )
    )
    config = task.config
    ours = trace(config).stages["optimizer"].parts["weights"]
    theirs = trace(plain.config).stages["optimizer"].parts["weights"]
    assert ours - theirs == pytest.approx(size, rel=0.01)
    assert trace(config, mode="infer").stages["denoise"].parts["weights"] < 1.1 * size
