"""Densities of training times: against closed forms, by key, inside their interval."""

import numpy as np
import pytest
import torch
from scipy import stats

from volumediff.config import available, build
from volumediff.errors import UsageError
from volumediff.randomness import uniform
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.times.grid import GridTimes
from volumediff.times.log_normal import LogNormal
from volumediff.times.logit_normal import LogitNormal
from volumediff.times.uniform import Uniform

KEYS = tuple(range(2000))
DRAWN = torch.tensor([uniform(key, "t") for key in KEYS], dtype=torch.float64)
LINEAR = LinearSchedule()
SCHEDULES = [LINEAR, Cosine(zero_terminal_snr=True), Cosine(shift=8.0)]
INTERVALS = [(0.0, 1.0), (0.2, 0.6), (0.999, 1.0)]
NEEDED = {"grid": {"steps": 5}}


def distance(t, cdf):
    """Kolmogorov-Smirnov distance, in units of its 1 % critical value."""
    return stats.kstest(t.numpy(), cdf).statistic / (1.63 / len(t) ** 0.5)


def cut_normal(score, low, high):
    """The distribution function of times whose standard score is normal, cut to an interval."""

    def scores(t):
        with np.errstate(divide="ignore"):
            return score(np.asarray(t, dtype=np.float64))

    below, up_to = scores([low, high])
    return lambda t: stats.truncnorm.cdf(scores(t), below, up_to)


@pytest.fixture(params=available("times"))
def name(request):
    return request.param


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_times_are_in_the_interval_and_follow_from_the_key(name, schedule, interval):
    low, high = interval
    density = build("times", {"name": name, **NEEDED.get(name, {}), "low": low, "high": high})
    assert density.support == (low, high)
    t = density.at(DRAWN, schedule)
    assert t.dtype == torch.float64
    assert low < float(t.min())
    assert float(t.max()) <= high
    keyed = density.draw(KEYS[:9], schedule)
    torch.testing.assert_close(keyed, t[:9], rtol=1e-9, atol=1e-15)
    for cut in ([3], [8, 0], [2, 3, 4, 5, 6]):
        assert torch.equal(density.draw(cut, schedule), keyed[cut])
    # time falls with the number that is drawn, so that all densities agree on what is noisy
    assert bool((t[DRAWN.argsort()].diff() <= 1e-15).all())
    # u = 0 is the noisy end itself, and the last number below 1 is still above the clean end
    ends = density.at(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), schedule)
    assert float(ends[0]) == pytest.approx(high, abs=1e-7)
    assert low <= float(ends[1]) < high
    assert float(ends[1]) > 0


@pytest.mark.parametrize("interval", INTERVALS)
def test_uniform_times_are_what_they_were(interval):
    low, high = interval
    expected = [high - (high - low) * uniform(key, "t") for key in KEYS]
    assert Uniform(low, high).draw(KEYS, LINEAR).tolist() == expected


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.8, 0.5)])
def test_logit_normal(mean, deviation, interval):
    t = LogitNormal(mean, deviation, *interval).at(DRAWN, LINEAR)

    def score(t):
        return (np.log(t) - np.log1p(-t) - mean) / deviation

    assert distance(t, cut_normal(score, *interval)) < 1
    # and it is neither uniform nor the mirror image
    if interval == (0.0, 1.0):
        assert distance(t, stats.uniform.cdf) > 3
        assert float(t.median()) == pytest.approx(1 / (1 + np.exp(-mean)), abs=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("interval", INTERVALS)
def test_log_normal_noise_levels(schedule, interval):
    mean, deviation = -0.5, 1.2
    t = LogNormal(mean, deviation, *interval).at(DRAWN, schedule)

    def score(t):
        alpha, sigma = schedule(torch.from_numpy(np.atleast_1d(t)))
        return ((torch.log(sigma) - torch.log(alpha)).numpy() - mean) / deviation

    assert distance(t, cut_normal(score, *interval)) < 1
    if interval == (0.0, 1.0):
        level = -schedule.log_snr(t) / 2
        assert float(level.median()) == pytest.approx(mean, abs=0.07)


def test_log_normal_knows_where_the_noise_ends():
    # Nearly all of this density is noisier than the schedule ever is.
    t = LogNormal(mean=12.0, deviation=1.0).at(DRAWN, LINEAR)
    assert bool(torch.isfinite(t).all())
    assert float(t.max()) <= 1
    assert float(t.min()) > 0


def test_an_interval_without_any_times_is_refused():
    with pytest.raises(ValueError, match="some of the density between low and high"):
        LogitNormal(mean=90.0, deviation=1.0, high=0.5).draw(KEYS[:1], LINEAR)


def test_grid_times_are_those_of_a_sampler():
    t = GridTimes(8).at(DRAWN, LINEAR)
    found, counts = t.unique(return_counts=True)
    sampler = build("sampler", {"name": "ddim", "steps": 8})
    torch.testing.assert_close(found, sampler.times(LINEAR).flip(0)[1:], rtol=0, atol=1e-15)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    inner = GridTimes(4, 0.2, 0.6).at(DRAWN, LINEAR).unique()
    torch.testing.assert_close(inner, torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=torch.float64))
    assert GridTimes(1).draw(KEYS[:3], LINEAR).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "uniform", "low": 0.5, "high": 0.2}, "0 <= low < high <= 1, got 0.5 and 0.2"),
        ({"name": "logit_normal", "high": 1.5}, "0 <= low < high <= 1, got 0.0 and 1.5"),
        ({"name": "log_normal", "low": -0.1}, "0 <= low < high <= 1, got -0.1"),
        ({"name": "grid", "steps": 4, "low": 1.0}, "0 <= low < high <= 1"),
        ({"name": "grid", "steps": 0}, "steps: expected at least 1, got 0"),
        ({"name": "logit_normal", "deviation": 0}, "deviation: expected a positive number"),
        ({"name": "log_normal", "deviation": -1}, "deviation: expected a positive number"),
        ("logit", f"choose from {', '.join(available('times'))}"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(UsageError, match=message) as caught:
        build("times", spec)
    assert "\n" not in str(caught.value)
