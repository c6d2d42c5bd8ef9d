"""Time grids: against the papers' formulas and other libraries."""

import numpy as np
import pytest
import torch

from volumediff.config import available, build
from volumediff.errors import UsageError
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.time_grids import (
    KarrasTimeGrid,
    LogSNRTimeGrid,
    ShiftedTimeGrid,
    UniformTimeGrid,
)


def test_all_are_named():
    assert set(available("time_grid")) == {"karras", "log_snr", "shifted", "uniform"}


def test_karras_is_the_grid_of_the_paper():
    i, n = np.arange(18), 18
    sigmas = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for schedule in (Exploding(), Cosine(zero_terminal_snr=True), Rectified()):
        start = float(schedule.time(torch.tensor([-2 * np.log(80)]).double()))
        times = KarrasTimeGrid().times(schedule, n, start)
        alpha, sigma = schedule(times[:-1])
        np.testing.assert_allclose((sigma / alpha).numpy(), sigmas, rtol=1e-9)
        assert float(times[-1]) == 0
    # from all noise, the start comes before it
    times = KarrasTimeGrid().times(Rectified(), n + 1)
    alpha, sigma = Rectified()(times[1:-1])
    np.testing.assert_allclose((sigma / alpha).numpy(), sigmas, rtol=1e-9)
    assert float(times[0]) == 1
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    theirs.set_timesteps(n)
    np.testing.assert_allclose(theirs.sigmas[:-1].numpy(), sigmas, rtol=1e-5)


def test_shifted_is_the_grid_of_the_shifted_schedule():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 10, 10))
    times = ShiftedTimeGrid(9.0).times(Rectified(), 10)
    np.testing.assert_allclose(times.numpy(), theirs.sigmas.numpy(), atol=1e-6)
    shifted = Rectified(shift=9.0)(UniformTimeGrid().times(Rectified(), 10))[1]
    torch.testing.assert_close(times, shifted, rtol=1e-12, atol=0)
    # a walk from the middle takes the last part of it
    half = ShiftedTimeGrid(9.0).times(Rectified(), 5, float(times[5]))
    torch.testing.assert_close(half, times[5:], rtol=1e-12, atol=0)
    same = ShiftedTimeGrid(1.0).times(Rectified(), 10)
    torch.testing.assert_close(same, UniformTimeGrid().times(Rectified(), 10), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "log_snr", "low": 3.0, "high": -3.0}, "expected low below high, got 3.0 and -3"),
        ({"name": "log_snr", "low": 3.0}, "needs high"),
        ({"name": "karras", "sigma_min": 90.0}, "0 < sigma_min < sigma_max"),
        ({"name": "karras", "rho": 0.0}, "rho >= 1"),
        ({"name": "shifted", "shift": 0.0}, "expected a positive shift, got 0.0"),
    ],
)
def test_errors_say_what_was_expected(spec, message):
    with pytest.raises(UsageError, match=message):
        build("sampler", {"name": "ddim", "steps": 5, "grid": spec})


def test_a_start_that_is_cleaner_than_the_grid_is_refused():
    for grid in (LogSNRTimeGrid(-6.0, 6.0), KarrasTimeGrid()):
        with pytest.raises(ValueError, match="expected less than the upper limit"):
            grid.times(LinearSchedule(), 5, 1e-9)
