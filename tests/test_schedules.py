"""Schedules: every file in `schedules/` is tested; tables against the papers' own recursions."""

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch

from volumediff.config import available, build
from volumediff.schedules._base import global_mean_snr, shift_for
from volumediff.schedules._preserving import VariancePreserving
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.schedules.scaled_linear import ScaledLinear

T = 1000
STEPS = (torch.arange(T, dtype=torch.float64) + 1) / T
VARIANTS = [
    {},
    {"zero_terminal_snr": True},
    {"shift": 8.0},
    {"shift": 8.0, "zero_terminal_snr": True},
]


PRESERVING = [
    n for n in available("schedule") if isinstance(build("schedule", n), VariancePreserving)
]


@pytest.fixture(params=PRESERVING)
def name(request):
    return request.param


@pytest.fixture(params=VARIANTS, ids=["plain", "zero", "shifted", "both"])
def schedule(name, request):
    return build("schedule", {"name": name, **request.param})


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def paper_betas(name):
    if name == "linear":
        return np.linspace(1e-4, 0.02, T)
    if name == "scaled_linear":
        return np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2

    def abar(t):
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    k = np.arange(T)
    return np.minimum(1 - abar((k + 1) / T) / abar(k / T), 0.999)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_levels_are_the_papers_products(name):
    alpha, _ = build("schedule", name)(STEPS)
    expected = torch.from_numpy(np.cumprod(1 - paper_betas(name)))
    torch.testing.assert_close(alpha**2, expected, rtol=2e-12, atol=1e-14)


def test_signal_and_noise_are_on_the_circle(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 501).double())
    assert alpha.dtype == sigma.dtype == torch.float64
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(501).double(), rtol=0, atol=1e-14)


def test_noise_keeps_its_relative_accuracy_near_zero():
    # 1 - alpha^2 in float64 would have three digits here.
    getcontext().prec = 50
    abar = (Decimal(1) - Decimal("1e-4")) ** (Decimal(2.0**-30) * 1000)
    expected = float((1 - abar).sqrt())
    sigma = float(LinearSchedule()(at(2.0**-30))[1])
    assert sigma == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr_is_lins_rescale(name):
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = torch.from_numpy(paper_betas(name))
    expected = (1 - scheduling.rescale_zero_terminal_snr(betas)).cumprod(0).sqrt()
    schedule = build("schedule", {"name": name, "zero_terminal_snr": True})
    alpha, sigma = schedule(STEPS)
    # Lin et al. keep alpha at t = 1/T, we keep it at t = 0: a known factor.
    first, last = (float(a) for a in (1 - betas).cumprod(0).sqrt()[[0, -1]])
    factor = first * (1 - last) / (first - last)
    assert factor == pytest.approx(1, abs=4e-5)
    torch.testing.assert_close(alpha * factor, expected, rtol=1e-8, atol=1e-12)
    assert (float(alpha[-1]), float(sigma[-1])) == (0.0, 1.0)
    assert float(schedule.log_snr(at(1.0))) == -math.inf


def test_shift_divides_the_snr(name):
    times = torch.linspace(0.01, 1, 50).double()
    plain, shifted = build("schedule", name), build("schedule", {"name": name, "shift": 64.0})
    moved = plain.log_snr(times) - shifted.log_snr(times)
    torch.testing.assert_close(moved, torch.full_like(moved, math.log(64)), rtol=1e-12, atol=0)


def test_families_of_schedules():
    others = set(available("schedule")) - set(PRESERVING)
    assert others == {"exploding", "rectified", "trigonometric"}
    on_the_circle = {n for n in others if build("schedule", n).variance_preserving}
    assert on_the_circle == {"trigonometric"}


def test_trigonometric_is_a_quarter_of_a_circle():
    t = torch.linspace(0, 1, 501).double()
    alpha, sigma = build("schedule", "trigonometric")(t)
    angle = torch.atan2(sigma, alpha)
    torch.testing.assert_close(angle, t * math.pi / 2, rtol=0, atol=1e-14)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(501).double(), rtol=0, atol=1e-14)
    # the signal keeps its relative accuracy where it vanishes
    small = build("schedule", "trigonometric")(at(1 - 2.0**-40))[0]
    assert float(small) == pytest.approx(math.pi / 2 * 2.0**-40, rel=1e-12)


def test_rectified_is_a_straight_line_however_it_is_shifted():
    t = torch.linspace(0, 1, 11).double()
    alpha, sigma = Rectified()(t)
    assert torch.equal(alpha, 1 - t)
    assert torch.equal(sigma, t)
    # eq. 23 of Esser et al., and FlowMatchEulerDiscreteScheduler, with shift 3
    scheduling = pytest.importorskip("diffusers")
    alpha, sigma = Rectified(shift=9.0)(t)
    torch.testing.assert_close(sigma, 3 * t / (1 + 2 * t), rtol=1e-14, atol=0)
    torch.testing.assert_close(alpha + sigma, torch.ones(11).double(), rtol=0, atol=1e-15)
    theirs = scheduling.FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.double()
    t = (torch.arange(1000, 0, -1).double()) / 1000
    torch.testing.assert_close(Rectified(shift=9.0)(t)[1], theirs, rtol=0, atol=1e-6)
    assert [float(x) for x in Rectified(shift=9.0)(at(1.0))] == [0.0, 1.0]
    # of 100 times as many voxels, the mean is seen as well as without
    snr = [global_mean_snr(Rectified(shift=s), n) for s, n in ((1.0, 8), (100.0, 800))]
    assert snr == [0.0, 0.0]
    levels = [
        n * s(at(0.7))[0] ** 2 / s(at(0.7))[1] ** 2
        for s, n in ((Rectified(), 8), (Rectified(shift=shift_for(800, reference=8)), 800))
    ]
    assert float(levels[0]) == pytest.approx(float(levels[1]), rel=1e-12)


def test_exploding_has_the_steps_of_karras_and_a_clean_start():
    schedule, steps = Exploding(sigma_max=50.0, sigma_min=0.01, rho=5.0), 40
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    alpha, sigma = schedule(t)
    assert bool((alpha == 1).all())
    # eq. 5 of the paper, moved to 0 and stretched back to the largest noise
    i = np.arange(steps, -1, -1)
    karras = (50 ** (1 / 5) + i / steps * (0.01 ** (1 / 5) - 50 ** (1 / 5))) ** 5
    expected = (karras - 0.01) * 50 / (50 - 0.01)
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-12, atol=1e-15)
    assert float(sigma[0]) == 0
    assert float(sigma[-1]) == pytest.approx(50, rel=1e-14)
    # 1 - 1 would have no digits here
    getcontext().prec = 50
    c = (Decimal(5000)).ln() / 5
    growth = c.exp() - 1
    exact = (((1 + growth * Decimal(2.0**-40)).ln() * 5).exp() - 1) / (Decimal(5000) - 1) * 50
    assert float(schedule(at(2.0**-40))[1]) == pytest.approx(float(exact), rel=1e-12)


def test_global_mean_is_what_the_linear_schedule_leaves_of_it():
    # alpha_1^2 = 4.04e-5: the mean of 16^3, 32^3, 64^3 voxels has this share of its deviation.
    assert float(LinearSchedule()(at(1.0))[0] ** 2) == pytest.approx(4.04e-5, rel=2e-3)
    shares = [
        1 / math.sqrt(1 + global_mean_snr(LinearSchedule(), n**3)) for n in (16, 32, 64, 256)
    ]
    assert shares == pytest.approx([0.926, 0.656, 0.294, 0.038], abs=1e-3)


def test_shift_for_keeps_the_visibility_of_the_mean():
    reference = global_mean_snr(LinearSchedule(), 32**2)
    for n in (32, 128, 256):
        shifted = LinearSchedule(shift=shift_for(n**3))
        assert global_mean_snr(shifted, n**3) == pytest.approx(reference, rel=1e-9)
    assert shift_for(4096, reference=512) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearSchedule(shift=0.0), "expected a positive shift, got 0.0"),
        (lambda: LinearSchedule(beta_last=1.5), "in .0, 1., got 0.0001 and 1.5"),
        (lambda: ScaledLinear(levels=1), "expected levels >= 2, got 1"),
        (lambda: Cosine(offset=-1.0), "offset in .0, 1., got 1000 and -1.0"),
        (lambda: LinearSchedule().time(at(-20.0)), "at least -10.1.*noisier schedule"),
        (lambda: Rectified(shift=-1.0), "expected a positive shift, got -1.0"),
        (lambda: Exploding(sigma_min=90.0), "0 < sigma_min < sigma_max.*got 90.0, 80.0 and 7"),
        (lambda: Exploding(rho=0.5), "rho >= 1"),
    ],
)
def test_errors_say_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
