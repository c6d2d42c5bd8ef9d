"""Localization on flows: a method finds the same under every schedule of one EDM network.

The network sees z / alpha and a log noise level alone, and methods say their levels as log-SNRs,
so that a change of the schedule is a change of variables.
"""

from dataclasses import replace

import pytest
import torch
from anomaly_models import SHAPE, SPACES, SPACING, foreground
from test_methods import FIELDS, KINDS, LENT, LESION, REGION, ROWS, channels_of, quick, volume

from volumediff.anomaly import method_files
from volumediff.anomaly.editing.resample import Resample
from volumediff.anomaly.fitted._base import Fitted
from volumediff.anomaly.maps.perceptual import Perceptual
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes._base import Route
from volumediff.classification import ClassPosterior
from volumediff.kernels.edm import EDM
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks.unet import UNet
from volumediff.noise import GaussianNoise
from volumediff.recipes.healthy import Healthy
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.rectified import Rectified
from volumediff.time_grids import LogSNRTimeGrid

FIRST, *OTHERS = (Cosine(shift=2.0), Rectified(), Exploding(sigma_max=200.0))
INSIDE = foreground()


class Preconditioned(Network):
    """F of states N(means[label], std²); the null class is their wider union."""

    def __init__(self, means=(0.0,), std=0.3, *, classes=0, noisy=False):
        super().__init__(1, 1, classes=classes)
        self.means, self.std, self.noisy = torch.tensor(means).double(), std, noisy

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, seen, clock, condition=None):
        sigma = per_sample(torch.exp(4 * clock.double()), seen.double())
        size = (sigma**2 + 1).sqrt()
        y, mean = seen.double() * size, self._mean(seen, condition)
        x0 = mean + self.std**2 / (self.std**2 + sigma**2) * (y - mean)
        f = ((x0 - y / size**2) * size / sigma).to(seen)
        return torch.cat([f, seen.abs().mean(1, keepdim=True) - 0.2], 1) if self.noisy else f

    def _mean(self, seen, condition):
        union = torch.cat([self.means, self.means.mean()[None]])
        if condition is not None and condition.mixture is not None:
            return (condition.mixture.double() @ union[: condition.mixture.shape[1]])[
                :, None, None, None, None
            ]
        label = None if condition is None else condition.label
        if label is None:
            label = torch.full((len(seen),), len(union) - 1)
        return per_sample(union[label], seen.double())


def posterior(schedule, means=(-0.2, 0.3), std=0.3):
    """The exact class posterior of states N(means[y], std²) in every voxel, equal priors."""

    def log_probability(z_t, t):
        alpha, sigma = (per_sample(a, z_t) for a in schedule(t))
        variance = alpha**2 * std**2 + sigma**2
        fits = [-((z_t - alpha * m) ** 2 / variance / 2).flatten(1).sum(1) for m in means]
        return torch.log_softmax(torch.stack(fits, 1), 1)

    return ClassPosterior(log_probability, schedule, len(means), "exact")


def model_of(schedule, *, classes=0, field=GaussianNoise, stages=False, recipe=Healthy, space):
    made = SPACES[space]()
    if stages:
        k = made.channels(1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet(k, k, widths=(4, 8), blocks=1, groups=2)
    else:
        prior = {"means": (-0.2, 0.3), "classes": 2} if classes else {}
        network = Preconditioned(**prior, noisy=bool(recipe().mask_loss))
    model = Model(made, EDM(schedule), network, noise_field=FIELDS[field], recipe=recipe())
    return model.eval().requires_grad_(False)


def in_log_snr(method):
    """The row with steps of log-SNR, which are the same under every schedule."""
    if not isinstance(method, Localizer):
        return method
    grid = LogSNRTimeGrid(-8.0, 8.0)
    sampler = method.sampler and replace(method.sampler, grid=grid)
    if isinstance(method.editing, Resample):  # as a calibration would set it
        method = replace(method, editing=replace(method.editing, threshold=0.1))
    return replace(method, sampler=sampler, first=method.first and in_log_snr(method.first))


def kind_of(method):
    """What checkpoints of Gaussian noise serve a method, the first of them."""
    for kind in KINDS:
        if "cold" in kind or "bits" in kind:
            continue
        try:
            method.check(model_of(FIRST, **kind, space="voxel"))
        except ValueError:
            continue
        return kind
    return None


def timed(method):
    """Whether a method says a level as a time, which is another one under every schedule."""
    parts = [part for _, part in method.parts()]
    levels = [each for p in parts if isinstance(p, Route) for each in p.noise_levels()]
    return (
        any(level.level is not None for level in levels)
        or any(isinstance(p, Perceptual) for p in parts)
        or (isinstance(method, Fitted) and hasattr(method, "features"))
    )


def found(method, schedule, kind, space="voxel"):
    model = model_of(schedule, **kind, space=space)
    method = method.bind(lambda r: posterior(schedule) if r.loan.kind == "classifier" else None)
    c = channels_of(model)
    if isinstance(method, Fitted):
        seen = [Example(volume(i, c), INSIDE, SPACING, truth=LESION) for i in range(4)]
        method = replace(method, fit=method.learn(model, iter(seen), key=0))
    one = Example(volume(9, c), INSIDE, SPACING, truth=LESION, region=REGION)
    return method.residual(model, one, key=3).map


SERVED = [
    row
    for row in ROWS
    if (row, "voxel") not in LENT and type(method_files.read_method(row)).__name__ != "Fusion"
]


@pytest.mark.parametrize("name", SERVED)
def test_every_row_finds_the_same_under_every_schedule(name):
    method = in_log_snr(quick(method_files.read_method(name)))
    bound = method.bind(lambda r: posterior(FIRST) if r.loan.kind == "classifier" else None)
    kind = kind_of(bound)
    if kind is None:
        pytest.skip("no checkpoint of Gaussian noise serves it")
    expected = found(method, FIRST, kind)
    assert expected.shape == (1, 1, *SHAPE)
    for schedule in OTHERS:
        local = kind.get("recipe", Healthy)().local
        if local and schedule.variance_exploding:
            continue  # is not trained
        a = found(method, schedule, kind)
        assert bool(a.isfinite().all())
        if timed(method) or local:
            continue
        close = {"rtol": 2e-3, "atol": 2e-3 * float(expected.abs().max())}
        torch.testing.assert_close(a, expected, **close)
