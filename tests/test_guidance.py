"""Guidance, by contract and on classes whose score is known."""

import pytest
import torch
from oracles import class_gaussian, state_like

from volumediff.condition import Condition
from volumediff.config import available, build
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.kernels.gaussian import Gaussian
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.linear import Linear

SCHEDULE = Linear(zero_terminal_snr=True)
MEANS, STD = [-0.5, 0.5], 0.4
DENOISE = class_gaussian(SCHEDULE, MEANS, STD)
LABEL = Condition(label=torch.tensor([0, 1, 1]))
NULL = Condition(label=torch.tensor([2, 2, 2]))


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def recorded(asked):
    def denoise(z_t, t, condition):
        asked.append(condition.label.tolist())
        return DENOISE(z_t, t, condition)

    return denoise


@pytest.mark.parametrize("name", available("guidance"))
def test_guided_denoisers_are_denoisers(name):
    guided = build("guidance", name, classes=2)(DENOISE)
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 1.0)
    found = guided(z, t, LABEL)
    alpha, sigma = (x[:, None, None, None, None] for x in SCHEDULE(t))
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(alpha * found.eps - sigma * found.x0, found.v, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("weight", "condition"), [(1.0, LABEL), (0.0, NULL)])
def test_weights_one_and_zero_are_single_passes(weight, condition):
    asked = []
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    found = ClassifierFree(weight, classes=2)(recorded(asked))(z, t, LABEL)
    expected = DENOISE(z, t, condition)
    assert torch.equal(found.eps, expected.eps)
    assert torch.equal(found.x0, expected.x0)
    assert torch.equal(found.v, expected.v)
    assert asked == [condition.label.tolist()]


def test_other_weights_extrapolate_in_two_passes():
    asked = []
    z, t = state_like(0.3, -0.2, 1.5), at(0.3, 0.6, 0.9)
    found = ClassifierFree(2.5, classes=2)(recorded(asked))(z, t, LABEL)
    away, towards = DENOISE(z, t, NULL), DENOISE(z, t, LABEL)
    expected = away.eps + 2.5 * (towards.eps - away.eps)
    torch.testing.assert_close(found.eps, expected, rtol=0, atol=1e-12)
    assert sorted(asked) == [[0, 1, 1], [2, 2, 2]]


def test_other_conditions_pass_through():
    seen = []

    def denoise(z_t, t, condition):
        seen.append(condition)
        return DENOISE(z_t, t, condition)

    scalars = torch.randn(3, 2)
    condition = LABEL.replace(scalars=scalars)
    guided = ClassifierFree(2.0, classes=2)(denoise)
    guided(state_like(0.0, 0.0, 0.0), at(0.5, 0.5, 0.5), condition)
    assert len(seen) == 2
    assert all(c.scalars is scalars for c in seen)
    assert condition.label.tolist() == [0, 1, 1]


def test_weight_moves_samples_away_from_the_other_class():
    z = state_like(*torch.linspace(-1.5, 1.5, 33).tolist())
    healthy = Condition(label=torch.zeros(33, dtype=torch.int64))
    sampler, kernel = DDIM(60), Gaussian(SCHEDULE)
    means = []
    for weight in (0.0, 1.0, 3.0):
        denoise = ClassifierFree(weight, classes=2)(DENOISE)
        times = sampler.times(SCHEDULE)
        means.append(sampler.sample(denoise, kernel, z, times, condition=healthy).mean().item())
    assert means[0] == pytest.approx(0.0, abs=1e-6)
    assert means[1] == pytest.approx(MEANS[0], abs=1e-2)
    assert means[2] < MEANS[0] - 0.1


def test_errors_say_what_is_missing():
    with pytest.raises(ValueError, match=r"needs Condition\.label"):
        ClassifierFree(2.0, classes=2)(DENOISE)(state_like(0.0), at(0.5), Condition())
    with pytest.raises(
        ValueError, match="got classes = 0; train with the class_conditional recipe"
    ):
        ClassifierFree(2.0, classes=0)
    with pytest.raises(ValueError, match=r"expected weight >= 0, got -1\.0"):
        ClassifierFree(-1.0, classes=2)
