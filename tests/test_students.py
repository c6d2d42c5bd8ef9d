"""Students: runs that were distilled to few steps, and how methods walk them."""

import pytest
import torch
from oracles import flow, gaussian, state_like

from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.inversion import Inversion
from volumediff.contracts.scenes import example, network_model
from volumediff.inference.cost import counted
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.spans import Spans
from volumediff.samplers.student import Student
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.spaces.voxel import Voxel

SCHEDULE = Cosine(zero_terminal_snr=True)
KERNEL = Gaussian(SCHEDULE)
MEAN, STD = 0.3, 0.5


def student(steps):
    """A model of volumes that says it is a student of so many steps."""
    model = network_model()
    model.walk = Spans(steps)
    return model


def label_student(steps):
    torch.manual_seed(0)
    network = UNet(1, 1, widths=(4,), blocks=1, groups=2, image_channels=1)
    recipe = LabelDiffusion(labels=(1,))
    return Model(Voxel(), KERNEL, network, recipe=recipe, walk=Spans(steps)).eval()


# --- the walk ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "start", "expected"),
    [
        (1, 1.0, [1.0, 0.0]),
        (1, 0.3, [0.3, 0.0]),
        (4, 1.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
        (4, 0.6, [0.6, 0.35, 0.1, 0.0]),
        (4, 0.5, [0.5, 0.25, 0.0]),
        (10, 0.3, [0.3, 0.2, 0.1, 0.0]),  # 0.3 * 10 is more than 3 in floating point
    ],
)
def test_spans_have_one_length_and_end_at_zero(steps, start, expected):
    times = Spans(steps).times(SCHEDULE, start)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(times, wanted, atol=1e-9, rtol=0)
    assert float(times[-1]) == 0


def test_spans_take_the_first_order_step():
    z, denoise = state_like(-1.0, 0.2, 1.3), gaussian(SCHEDULE, MEAN, STD)
    times = Spans(8).times(SCHEDULE)
    ours = Spans(8).sample(denoise, KERNEL, z, times)
    torch.testing.assert_close(ours, DDIM(8).sample(denoise, KERNEL, z, times), atol=0, rtol=0)
    fine = Spans(2000)
    exact = flow(SCHEDULE, MEAN, STD, z, 0.37, 0.0)
    found = fine.sample(denoise, KERNEL, z, fine.times(SCHEDULE, 0.37))
    torch.testing.assert_close(found, exact, atol=2e-3, rtol=0)


# --- methods that ask for a student --------------------------------------------------------------


def calls_of(method, model):
    method.check(model)
    with counted(model) as cost:
        found = method.find(model, example(), key=1)
    return cost.network_calls, found


@pytest.mark.parametrize(("steps", "level", "calls"), [(1, 1.0, 1), (1, 0.4, 1), (4, 0.4, 2)])
def test_a_method_takes_the_steps_of_the_run(steps, level, calls):
    model = student(steps)
    spent, found = calls_of(Localizer(route=Diffuse(level=level), sampler=Student()), model)
    assert spent == calls
    named = Localizer(route=Diffuse(level=level), sampler=Spans(steps))
    assert torch.equal(found.map, named.find(model, example(), key=1).map)


def test_a_run_that_is_no_student_is_refused():
    method = Localizer(route=Diffuse(level=0.5), sampler=Student())
    with pytest.raises(ValueError, match="expected a run that was distilled to few steps") as info:
        method.check(network_model())
    assert "sampler=dpmpp" in str(info.value)
    assert "\n" not in str(info.value)


def test_a_student_is_walked_as_it_was_distilled_and_not_otherwise():
    for sampler in (DDIM(50), DPMSolverPP(20), Spans(2)):
        method = Localizer(route=Diffuse(level=0.5), sampler=sampler)
        with pytest.raises(ValueError, match="use sampler=student"):
            method.check(student(1))
    Localizer(route=Diffuse(level=0.5), sampler=Spans(1)).check(student(1))


def test_students_are_not_inverted():
    with pytest.raises(ValueError, match="expected a sampler that can be inverted"):
        Localizer(route=Inversion(level=0.5), sampler=Student())


@pytest.mark.parametrize("steps", [1, 4])
def test_labels_are_drawn_in_the_steps_of_the_run(steps):
    model, one = label_student(steps), example()
    found = {}
    for sampler in (None, Student(), Spans(steps)):
        method = Composed(sampler=sampler, samples=1)
        method.check(model)
        with counted(model) as cost:
            given = {"foreground": one.foreground, "spacing_mm": one.spacing_mm, "key": 1}
            found[sampler] = method.segment(model, one.x, **given).probabilities
        assert cost.network_calls == steps
    assert torch.equal(found[None], found[Spans(steps)])
    assert torch.equal(found[Student()], found[Spans(steps)])
    with pytest.raises(ValueError, match="use sampler=student"):
        Composed(sampler=DPMSolverPP(20), samples=1).check(model)
