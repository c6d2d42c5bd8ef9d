"""Kernels: composition, Bayes' rule and conversions; per-sample times everywhere."""

import pytest
import torch
from oracles import state_like

from volumediff.config import available, build
from volumediff.kernels._base import Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule

LINEAR = LinearSchedule()
ZERO = LinearSchedule(zero_terminal_snr=True)
PAIRS = [
    (s, t) for s in (0.0, 0.001, 0.009, 0.1, 0.299) for t in (0.001, 0.01, 0.3, 0.7, 1.0) if s < t
]


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(seed, b=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((b, 2, 3, 2, 4), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(), ZERO, Cosine(shift=8.0)], ids=repr)
def test_steps_compose_to_the_marginal(schedule):
    kernel = Gaussian(schedule)
    grid = torch.linspace(0, 1, 1001).double()
    zero, one = state_like(*[0.0] * 1000), state_like(*[1.0] * 1000)
    # A step is affine: gain and deviation are what it makes of a state and of noise of 1.
    gains = kernel.renoise(one, grid[:-1], grid[1:], zero).flatten().tolist()
    deviations = kernel.renoise(zero, grid[:-1], grid[1:], one).flatten().tolist()
    alpha = kernel.corrupt(one, grid[1:], zero).flatten().tolist()
    sigma = kernel.corrupt(zero, grid[1:], one).flatten().tolist()
    gain, variance = 1.0, 0.0
    for k in range(1000):
        gain, variance = gain * gains[k], variance * gains[k] ** 2 + deviations[k] ** 2
        assert gain == pytest.approx(alpha[k], abs=1e-12)
        assert variance == pytest.approx(sigma[k] ** 2, abs=1e-12)
    assert kernel.corrupt(zero, grid[1:], zero).abs().max() == 0


@pytest.mark.parametrize("schedule", [LINEAR, ZERO], ids=["linear", "zero"])
@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_posterior_is_bayes_rule(schedule, s, t):
    # Joint law of (z_s, z_t) given z_0, from the definition of the two forward kernels.
    alpha, sigma = (x.tolist() for x in schedule(at(s, t)))
    ratio = alpha[1] / alpha[0]
    cov, var = ratio * sigma[0] ** 2, sigma[1] ** 2
    z_0, z_t = 0.7, -1.3
    mean = alpha[0] * z_0 + cov / var * (z_t - alpha[1] * z_0)
    deviation = max(sigma[0] ** 2 - cov**2 / var, 0) ** 0.5
    found, spread = Gaussian(schedule).posterior(state_like(z_0), state_like(z_t), at(t), at(s))
    assert found.item() == pytest.approx(mean, abs=1e-12)
    assert spread.item() ** 2 == pytest.approx(deviation**2, abs=1e-12)
    if s == 0:
        assert found.item() == z_0
        assert spread.item() == 0


def test_step_draws_from_the_posterior():
    kernel, x0 = Gaussian(LINEAR), state_like(0.4)
    z = state_like(0.9)
    prediction = Prediction.from_x0(x0, z, *LINEAR(at(0.6)))
    mean, spread = kernel.posterior(x0, z, at(0.6), at(0.2))
    found = kernel.step(prediction, z, at(0.6), at(0.2), state_like(2.0))
    assert found.item() == pytest.approx(mean.item() + 2 * spread.item(), abs=1e-14)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [*((s, n) for s in (LINEAR, Cosine()) for n in ("eps", "x0", "v")), (ZERO, "x0"), (ZERO, "v")],
)
def test_the_true_output_gives_the_true_prediction(schedule, name):
    kernel = Gaussian(schedule, prediction=name)
    z_0, noise, t = draw(1), draw(2), at(0.02, 0.5, 1.0)
    alpha, sigma = (x[:, None, None, None, None] for x in schedule(t))
    z_t = kernel.corrupt(z_0, t, noise)
    truth = {"eps": noise, "x0": z_0, "v": alpha * noise - sigma * z_0}
    found = kernel.predict(truth[name], z_t, t)
    for quantity, value in truth.items():
        torch.testing.assert_close(getattr(found, quantity), value, rtol=0, atol=1e-9)
    assert kernel.loss(truth[name], z_0, z_t, t, noise).abs().max() < 1e-28


def test_ends_stay_finite():
    z, output = draw(3, b=1), draw(4, b=1)
    for level in (0.0, 1.0):
        for make in (Prediction.from_x0, Prediction.from_eps, Prediction.from_v):
            found = make(output, z, *ZERO(at(level)))
            for quantity in (found.x0, found.eps, found.v):
                assert bool(quantity.isfinite().all())
    clean = Prediction.from_v(output, z, *ZERO(at(0.0)))
    torch.testing.assert_close(clean.x0, z, rtol=0, atol=0)
    noisy = Prediction.from_v(output, z, *ZERO(at(1.0)))
    torch.testing.assert_close(noisy.eps, z, rtol=0, atol=0)


@pytest.mark.parametrize("weighting", ["eps", "x0", "v"])
def test_weighting_measures_the_same_error_for_every_output(weighting):
    z_0, noise, t = draw(5), draw(6), at(0.1, 0.4, 0.9)
    z_t = Gaussian(LINEAR).corrupt(z_0, t, noise)
    wrong = Gaussian(LINEAR, prediction="v").predict(draw(7), z_t, t)
    expected = {"eps": wrong.eps - noise, "x0": wrong.x0 - z_0}.get(weighting)
    if expected is None:
        alpha, sigma = (x[:, None, None, None, None] for x in LINEAR(t))
        expected = wrong.v - (alpha * noise - sigma * z_0)
    for name in ("eps", "x0", "v"):
        kernel = Gaussian(LINEAR, prediction=name, weighting=build("weighting", weighting))
        loss = kernel.loss(getattr(wrong, name), z_0, z_t, t, noise)
        torch.testing.assert_close(loss, expected.square().mean((1, 2, 3, 4)), rtol=1e-9, atol=0)


def test_loss_is_reduced_in_float32():
    # 2^-9 added 4096 times to 1 is lost in bfloat16, where 1 + 2^-9 = 1.
    z = torch.zeros(1, 1, 16, 16, 17)
    output = torch.full_like(z, 2**-4.5)
    output[..., -1] = 1
    expected = (256 + 4096 * 2**-9) / 4352
    kernel = Gaussian(LINEAR, prediction="x0")
    loss = kernel.loss(output.bfloat16(), z.bfloat16(), z, at(0.5), z)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=5e-3)


def test_eps_is_refused_where_it_says_nothing():
    with pytest.raises(ValueError, match=r"eps does not go with zero_terminal_snr.*v or x0"):
        Gaussian(ZERO, prediction="eps")


def clean(kernel, seed):
    """A state that the kernel may meet: discrete ones are -1 and 1."""
    z = draw(seed)
    return z.sign() if isinstance(kernel, Discrete) else z


@pytest.fixture(params=available("kernel"))
def kernel(request):
    return build("kernel", {"name": request.param, "schedule": {"name": "linear"}})
