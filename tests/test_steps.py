"""One update of the weights: numbers that are read late, kernels that read memory in order."""

import copy
import math
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator

from volumediff.errors import DataError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.unet import UNet
from volumediff.optimization.ema import EMA
from volumediff.optimization.state import TrainingState, _optimizer
from volumediff.settings.sections import Optim
from volumediff.training.journal import TrainingJournal
from volumediff.training.setup import TrainingSetup
from volumediff.training.steps import StepQueue, TrainingStep, _ArrivingNumbers


class Numbers(_ArrivingNumbers):
    """Numbers on a device, and whether the host has asked for them."""

    def __init__(self, norm, loss, signal):
        self.values, self.asked = [norm, loss, signal], False

    def read(self):
        self.asked = True
        return list(self.values)


def queue(device, patience=None):
    """The rows that are recorded, and the queue."""
    rows = []
    prepared, journal = Mock(spec=TrainingSetup), Mock(spec=TrainingJournal)
    prepared.name = lambda key, step: f"sub-{key} of step {step}"
    journal.record = rows.append
    state, accelerator = Mock(spec=TrainingState), Mock(spec=Accelerator)
    state.task, state.scaler = Mock(main="network"), torch.amp.GradScaler("cpu", enabled=False)
    accelerator.device, accelerator.num_processes = torch.device(device), 1
    return rows, StepQueue(Optim(patience=patience), prepared, state, accelerator, journal)


def step(number, norm, loss, signal=0):
    losses = {"network": torch.tensor([loss, 1.0])}
    return TrainingStep(number, 0.0, 1e-3, (7, 8), losses, Numbers(norm, loss, signal))


def test_numbers_of_a_gpu_are_read_while_the_next_step_runs():
    rows, steps = queue("cuda")
    first, second = step(0, 1.0, 2.0), step(1, 3.0, 4.0)
    steps.add(first)
    assert not first.numbers.asked
    steps.add(second)
    assert first.numbers.asked
    assert not second.numbers.asked
    steps.finish()
    assert [(r["step"], r["loss"], r["gradient"]) for r in rows] == [(1, 2.0, 1.0), (2, 4.0, 3.0)]


@pytest.mark.parametrize(("device", "patience"), [("cpu", None), ("cuda", 3)])
def test_numbers_are_read_at_once_where_nothing_is_gained_or_the_end_depends_on_them(
    device, patience
):
    rows, steps = queue(device, patience)
    steps.add(step(0, 1.0, 2.0))
    assert [row["step"] for row in rows] == [1]


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (1.0, math.inf)])
def test_what_is_not_finite_is_refused_before_its_weights_may_be_written(numbers):
    rows, steps = queue("cuda")
    steps.add(step(0, 1.0, 2.0))
    steps.add(step(1, *numbers))
    named = "sub-7 of step 1" if math.isinf(numbers[1]) else "sub-7 of step 1, sub-8 of step 1"
    with pytest.raises(DataError, match="step 2: not finite") as caught:
        steps.finish()
    assert [row["step"] for row in rows] == [1]
    names = str(caught.value).partition("with samples ")[2].partition(";")[0]
    assert names == named


def test_a_stop_signal_is_known_with_the_numbers_of_its_step():
    _, steps = queue("cuda")
    steps.add(step(0, 1.0, 2.0, 15))
    assert steps.stopped == 0
    steps.add(step(1, 1.0, 2.0))
    assert steps.stopped == 15


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_the_optimizer_is_that_of_the_formula_in_both_layouts(last, momentum):
    """Its kernels read memory in order: gradients must have the strides of their weights."""

    torch.manual_seed(0)
    network = UNet(1, 1, widths=(4, 6), blocks=1)
    MemoryPolicy(dtype="bfloat16", channels_last=last).apply(network)
    x = torch.randn(1, 1, 8, 8, 8)
    (network(x.bfloat16(), torch.tensor([0.5])).float() - x).square().mean().backward()
    twin = copy.deepcopy(network)
    for mine, other in zip(network.parameters(), twin.parameters(), strict=True):
        other.grad = mine.grad.clone()
    optimizer = _optimizer(Optim(lr=1e-2, momentum=momentum), list(network.parameters()))
    assert optimizer.defaults["fused"]
    told = {k: v for k, v in optimizer.defaults.items() if k != "decoupled_weight_decay"}
    told |= {"fused": None, "foreach": False}
    optimizer.step()
    type(optimizer)(twin.parameters(), **told).step()
    for mine, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_average_takes_all_tensors_at_once():
    tensors = {"a": torch.ones(3), "b": torch.full((2,), 2.0, dtype=torch.bfloat16)}
    average = EMA({n: torch.zeros_like(t) for n, t in tensors.items()}, decay=0.9)
    average.update(tensors, step=1)
    beta = 2 / 11
    for name, tensor in tensors.items():
        torch.testing.assert_close(average.tensors[name], (1 - beta) * tensor.float())
