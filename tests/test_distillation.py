"""Distillation: targets in closed form, and runs that are distilled from a teacher's run."""

from itertools import count

import pytest
import torch
from accelerate import Accelerator
from oracles import class_gaussian, flow, gaussian, gradual, state_like, white
from tiny_runs import figures, tiny, write_data

from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.api.loading import load
from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.contracts.closed_form import KnownDenoiser, gaussian_ends
from volumediff.contracts.scenes import example as scene
from volumediff.errors import UsageError
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.guidance.embedded import Embedded
from volumediff.inference.cost import counted
from volumediff.kernels._base import UNCONDITIONAL, Prediction
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.planning.planner import trace
from volumediff.runs.trained import load_trained
from volumediff.samplers.consistency import ConsistencySteps
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.spans import Spans
from volumediff.samplers.student import Student
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.settings.run_config import parse
from volumediff.spaces.voxel import Voxel
from volumediff.storage import checkpoint
from volumediff.tasks import build_task, load_task
from volumediff.tasks._student import distance, euler_step
from volumediff.tasks.consistency import ConsistencyTask
from volumediff.tasks.guided import guided
from volumediff.tasks.progressive import ProgressiveTask, leap
from volumediff.tasks.reflow import ReflowTask, coupled, curvature
from volumediff.training.loop import train

MEAN, STD = 0.3, 0.5
KERNELS = (Gaussian(Cosine(zero_terminal_snr=True)), Gaussian(LinearSchedule()))
FLOWS = (*KERNELS, Gaussian(Rectified(), prediction="u"), EDM(Exploding()))


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


@pytest.mark.parametrize("kernel", FLOWS)
def test_a_leap_ends_where_it_should(kernel):
    z_t, z_s = state_like(-1.0, 0.3, 1.2), state_like(0.4, -0.2, 0.9)
    for t, s in ((1.0, 0.5), (0.6, 0.55), (0.3, 0.0)):
        t, s = (torch.full((len(z_t),), u, dtype=torch.float64) for u in (t, s))
        x0 = leap(kernel.schedule, z_t, z_s, t, s)
        said = Prediction.from_x0(x0, z_t, *kernel.schedule(t))
        torch.testing.assert_close(kernel.corrupt(x0, s, said.eps), z_s, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", FLOWS)
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
    batch = Batch(batch.x.double(), tuple(range(6)))
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
    batch = Batch(batch.x.double(), tuple(range(8)))
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


# --- consistency and reflow in closed form -------------------------------------------------------


class Composed(Network):
    """The end of the walk of an exact teacher, weighted and shifted, read as v."""

    stride = (1, 1, 1)

    def __init__(self, kernel, steps):
        super().__init__(1, 1)
        self.kernel, self.spans = kernel, Spans(steps)
        self.a = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def body(self, x, e):
        raise NotImplementedError

    def forward(self, z_t, t, condition=None):
        teacher, t = exact(self.kernel), t.double()
        z, now = z_t, t
        for _ in range(self.spans.steps):
            s = self.spans.ahead(now)
            # where a walk has ended its step goes nowhere
            at = torch.where(now > 0, now, t)
            z = euler_step(
                teacher.denoise, self.kernel, z, at, torch.where(now > 0, s, t), UNCONDITIONAL
            )
            now = s
        x0 = self.a * z + self.b
        return Prediction.from_x0(x0, z_t, *self.kernel.schedule(t)).v


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_consistency_loss_is_zero_at_the_end_of_the_walk_and_nowhere_else(kernel):
    section = {"steps": 1, "from_steps": 8, "target_ema": 0.0}
    config = parse({"task": "consistency", "teacher": "wavelet_64", "student": section})
    model = Model(Voxel(), kernel, Composed(kernel, 8), dtype=torch.float64)
    task = ConsistencyTask(config, model)
    task.training_only["teacher"] = ExactTeacher(kernel).requires_grad_(False)
    batch = Batch(task.batch((2, 3, 4), 1).x.double().expand(6, -1, -1, -1, -1), tuple(range(6)))
    assert float(task.loss("network", batch).detach().max()) < 1e-12
    with torch.no_grad():
        model.network.b.fill_(0.01)
        seen = model.corrupted(batch)
    # the target is shifted as well but for the last spans, whose end is no network's
    loss, last = task.loss("network", batch).detach(), seen.t <= 1 / 8
    expected = (0.01**2 + 0.00054**2) ** 0.5 - 0.00054
    assert bool(last.any()), "some samples see the end"
    torch.testing.assert_close(
        loss[last], torch.full_like(loss[last], expected), rtol=1e-6, atol=0
    )
    assert float(loss[~last].max()) < 1e-12


def test_an_average_follows_the_student():
    section = {"steps": 1, "from_steps": 8, "target_ema": 0.75}
    config = parse({"task": "consistency", "teacher": "wavelet_64", "student": section})
    model = Model(Voxel(), KERNELS[0], Composed(KERNELS[0], 1), dtype=torch.float64)
    task = ConsistencyTask(config, model)
    task.training_only["target"] = Composed(KERNELS[0], 1).requires_grad_(False)
    with torch.no_grad():
        model.network.a.fill_(5.0)
    for expected in (2.0, 2.75, 3.3125):
        task.stepped(1, Accelerator(cpu=True))
        assert float(task.training_only["target"].a) == pytest.approx(expected)
    assert float(task.training_state()["a"]) == pytest.approx(3.3125)


@pytest.mark.parametrize("kernel", FLOWS)
def test_multistep_consistency_keeps_the_law_and_one_step_is_the_flow(kernel):
    denoise = gaussian_ends(kernel.schedule, MEAN, STD)
    z = state_like(-1.0, 0.3, 1.4)
    one = ConsistencySteps(1)
    found = one.sample(denoise, kernel, z, one.times(kernel.schedule, 0.6))
    torch.testing.assert_close(found, flow(kernel.schedule, MEAN, STD, z, 0.6, 0.0))
    z = kernel.prior(gradual(6000))
    for steps in (1, 2, 5):
        sampler = ConsistencySteps(steps)
        times = sampler.times(kernel.schedule)
        out = sampler.sample(denoise, kernel, z, times, noise=white(z))
        assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert out.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("kernel", FLOWS)
def test_pairs_begin_and_end_where_they_should(kernel):
    z_0, z_1 = state_like(0.4, -0.2, 0.9), state_like(-1.0, 0.3, 1.2)
    noise = coupled(kernel, z_0, z_1)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(kernel.corrupt(z_0, one, noise), z_1, atol=1e-12, rtol=0)
    torch.testing.assert_close(kernel.corrupt(z_0, 0 * one, noise), z_0, atol=1e-12, rtol=0)


def test_coupled_paths_of_gaussian_data_are_straight_and_others_are_not():
    kernel = Gaussian(Rectified(), prediction="u")
    z_1 = gradual(4000)

    def one_to_one(z_t, t, condition):
        # z_t = (1 - t)(mean + std e) + t e gives e, and with it the clean state
        level = per_sample(t, z_t)
        e = (z_t - (1 - level) * MEAN) / ((1 - level) * STD + level)
        return Prediction.from_x0(MEAN + STD * e, z_t, *kernel.schedule(t))

    straight = curvature(one_to_one, kernel, z_1, UNCONDITIONAL)
    assert float(straight.max()) < 1e-20
    independent = gaussian(kernel.schedule, MEAN, STD)
    bent = float(curvature(independent, kernel, z_1, UNCONDITIONAL, steps=400))
    # along the exact flow, with v = (1 - t)^2 s^2 + t^2, x0 = mean + (1 - t) s^2 e / sqrt(v)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    v = (1 - t) ** 2 * STD**2 + t**2
    expected = float(((1 - t) * STD**2 / v.sqrt() - STD).square().mean())
    assert bent == pytest.approx(expected, rel=0.02)


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), cases=6)


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "t"
    return train(tiny(data, folder, "data.split.calibration=0.2", "crop=[8,8,8]"))


SECTIONS = {
    "progressive": {"steps": 1, "from_steps": 8, "round_steps": 2},
    "consistency": {"steps": 1, "from_steps": 8},
    "reflow": {"steps": 2, "from_steps": 3},
}
WALKS = {"progressive": Spans(1), "consistency": ConsistencySteps(1), "reflow": DDIM(2)}
CLASSES = {
    "progressive": ProgressiveTask,
    "consistency": ConsistencyTask,
    "reflow": ReflowTask,
}


def taught(teacher, output, task="progressive", *, steps=6, **sections):
    return parse(
        {
            "task": task,
            "teacher": str(teacher),
            "student": SECTIONS[task],
            "optim": {"lr": 1e-3, "steps": steps, "warmup": 0, "batch_size": 2, "ema": 0.5},
            "validation": {"every": 3, "volumes": 1},
            "save_every": 1,
            "output": str(output),
            **sections,
        }
    )


@pytest.fixture(scope="module")
def students(teacher, tmp_path_factory):
    """An uninterrupted run of each task."""
    folder = tmp_path_factory.mktemp("students")
    return {name: train(taught(teacher, folder / name, name)) for name in SECTIONS}


@pytest.fixture
def student(students):
    return students["progressive"]


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


@pytest.mark.parametrize("task", SECTIONS)
def test_training_moves_the_student_and_not_the_teacher(teacher, students, task):
    student = students[task]
    theirs, kept = weights(teacher, "best", "ema"), load_task(student)
    kept.begin_training(student, fresh=False)
    copy = kept.training_only["teacher"].state_dict()
    for name, tensor in copy.items():
        assert torch.equal(tensor, theirs[f"network.{name}"])
    moved = weights(student)
    assert any(not torch.equal(moved[n], theirs[n]) for n in theirs)
    rows = [r["agreement_db"] for r in figures(student) if "agreement_db" in r]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("task", "stop"),
    [("progressive", 1), ("progressive", 3), ("consistency", 3), ("reflow", 3)],
)
def test_a_resumed_student_is_the_uninterrupted_one(teacher, students, tmp_path, task, stop):
    """Within the first round of a progressive one, and in a later one with another teacher."""
    config, losses = taught(teacher, tmp_path / "s", task), count()
    before = CLASSES[task].loss

    class Stop(Exception):
        pass

    def loss(self, player, batch):
        if self.module.training and next(losses) == stop:
            raise Stop
        return before(self, player, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLASSES[task], "loss", loss)
        with pytest.raises(Stop):
            train(config)
    assert checkpoint.find(config.output, "last").step == stop
    run = train(config)
    groups = ("weights", "ema") if task == "reflow" else ("weights", "ema", "training")
    for which in groups:
        whole = weights(students[task], "last", which)
        for name, tensor in weights(run, "last", which).items():
            assert torch.equal(tensor, whole[name]), (which, name)
    assert figures(run)[-1] == figures(students[task])[-1]


@pytest.mark.parametrize("task", SECTIONS)
def test_a_student_stands_alone(students, task):
    trained = load_trained(students[task], device="cpu")
    assert trained.diffusion.walk == WALKS[task]
    assert not trained.task.training_only
    assert set(trained.task.state()) == set(weights(students[task]))


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


LABELS = "recipe={name: label_diffusion, labels: [1]}"


@pytest.mark.parametrize("task", ["progressive", "consistency"])
def test_a_student_of_labels_segments_in_one_call(tmp_path, task):
    data = write_data(tmp_path / "data", cases=6, labels=True)
    teacher = train(tiny(data, tmp_path / "t", LABELS, "space=wavelet", "optim.steps=2"))
    run = train(taught(teacher, tmp_path / "s", task))
    volume = next(iter(sorted(data.glob("*_T1w.nii.gz"))))
    student = load(run, device="cpu")
    found = student.segment(volume, samples=1)  # the method's own five steps are the teacher's
    assert found.segmented.cost.network_calls == 1
    with pytest.raises(UsageError, match="use sampler=student"):
        student.segment(volume, samples=1, overrides=["sampler={name: ddim, steps: 2}"])
    taught_by = load(teacher, device="cpu").segment(volume, samples=1)
    assert taught_by.segmented.cost.network_calls == 5


# --- guided students -----------------------------------------------------------------------------


def test_two_calls_are_those_of_classifier_free_guidance():
    kernel = KERNELS[0]
    denoise = class_gaussian(kernel.schedule, [-0.4, 0.6, 0.1], STD)
    z = state_like(-1.0, 0.3, 1.2)
    t = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    label = torch.tensor([0, 1, 0])
    for weight in (0.0, 1.0, 3.0):
        told = Condition(label=label, guidance=torch.full((3,), weight))
        ours = guided(denoise, classes=2)(z, t, told)
        free = ClassifierFree(weight=weight, classes=2)(denoise)(z, t, Condition(label=label))
        for name in ("x0", "eps", "v"):
            torch.testing.assert_close(
                getattr(ours, name), getattr(free, name), atol=1e-12, rtol=0
            )


@pytest.fixture(scope="module")
def classes(data, tmp_path_factory):
    """A class-conditional teacher and its guided student, whose weights are no longer zero."""
    folder = tmp_path_factory.mktemp("guided")
    values = "values: [control, patient], drop: 0.3"
    recipe = f"recipe={{name: class_conditional, attribute: group, {values}}}"
    teacher = train(tiny(data, folder / "t", recipe))
    student = train(
        parse(
            {
                "task": "guided",
                "teacher": str(teacher),
                "guidance": [1.0, 4.0],
                "optim": {"lr": 1e-2, "steps": 4, "warmup": 0, "batch_size": 2, "ema": 0.0},
                "validation": {"every": 4, "volumes": 1},
                "output": str(folder / "g"),
            }
        )
    )
    return teacher, student


def test_a_guided_student_begins_as_its_teacher_without_guidance(classes):
    _, student = classes
    task = build_task(load_task(student).config, run=student)
    task.begin_training(student, fresh=True)
    batch = task.batch((8, 8, 8), 2)
    seen = task.model.corrupted(batch)
    assert bool(((seen.condition.guidance >= 1) & (seen.condition.guidance <= 4)).all())
    assert float(seen.condition.guidance[0]) != float(seen.condition.guidance[1])
    ours = task.model.denoise(seen.z_t, seen.t, seen.condition).x0
    plain = seen.condition.replace(guidance=None)
    theirs = task.teacher.denoise(seen.z_t, seen.t, plain).x0
    assert torch.equal(ours, theirs)
    with torch.no_grad():  # where the classes make no difference, that is what it learns
        target = task.denoiser(task.teacher)(seen.z_t, seen.t, seen.condition).x0
        gap = (target - theirs).square().flatten(1).mean(1)
    snr = task.model.kernel.schedule(seen.t)
    weight = (snr[0] / snr[1]).square().clamp(min=1).float()
    torch.testing.assert_close(task.loss("network", batch), weight * gap)


def test_a_weight_costs_one_call_and_must_have_been_learnt(classes):
    teacher, student = (load_trained(run, device="cpu").diffusion for run in classes)
    route, sampler = Diffuse(level=0.5), DDIM(2)
    maps = []
    for weight in (1.0, 3.0):
        method = Localizer(route=route, sampler=sampler, guidance=Embedded(weight=weight))
        method.check(student)
        with counted(student) as cost:
            maps.append(method.find(student, scene(), key=1).map)
        assert cost.network_calls == 2
    assert not torch.equal(*maps)
    plain = Localizer(route=route, sampler=sampler).find(student, scene(), key=1).map
    assert torch.equal(plain, maps[0]), "1 is told where nothing is said"
    with pytest.raises(ValueError, match=r"expected a weight from 1 to 4.*got 6"):
        Localizer(route=route, sampler=sampler, guidance=Embedded(weight=6.0)).check(student)
    with pytest.raises(ValueError, match="expected a run that is told the weight"):
        Localizer(route=route, sampler=sampler, guidance=Embedded(weight=2.0)).check(teacher)


def test_a_guided_student_is_distilled_to_few_steps(classes, tmp_path):
    run = train(taught(classes[1], tmp_path / "s"))
    trained = load_trained(run, device="cpu")
    model = trained.diffusion
    assert model.guided == (1.0, 4.0)
    assert model.walk == Spans(1)
    method = Localizer(route=Diffuse(level=0.5), sampler=Student(), guidance=Embedded(weight=3.0))
    method.check(model)
    with counted(model) as cost:
        method.find(model, scene(), key=1)
    assert cost.network_calls == 1


def test_only_models_with_classes_that_are_hidden_at_times_are_guided(teacher, tmp_path):
    with pytest.raises(UsageError, match="expected class_conditional with drop above 0"):
        train(taught_guided(teacher, tmp_path / "s"))
    with pytest.raises(UsageError, match=r"guidance: .low, high. with 0 <= low < high"):
        taught_guided(teacher, tmp_path / "s", guidance=[3.0, 1.0])


def taught_guided(teacher, output, **more):
    return parse({"task": "guided", "teacher": str(teacher), "output": str(output), **more})
