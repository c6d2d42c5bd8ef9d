"""Training of flows: shifted times, learned weights and variances, whole runs of both kernels."""

import math
import re

import numpy as np
import pytest
import torch
from oracles import state_like
from scipy import stats
from test_label_methods import small
from test_resume import digests
from tiny_runs import figures, tiny, write_data

import volumediff
from volumediff.batch import Batch
from volumediff.config import build, config_path, shipped
from volumediff.errors import UsageError
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses.uncertainty import LogUncertainty
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.randomness import uniform
from volumediff.runs.trained import load_trained
from volumediff.samplers.ancestral import Ancestral
from volumediff.samples.latents import Precomputed
from volumediff.schedules._base import global_mean_snr
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.rectified import Rectified
from volumediff.segmentation.method_files import load_segmenter
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task
from volumediff.times.logit_normal import LogitNormal
from volumediff.times.shifted import ShiftedTimes
from volumediff.times.uniform import Uniform
from volumediff.training.loop import train

KEYS = range(2000)
RUNS = {
    "rectified": "kernel={name: gaussian, schedule: rectified, prediction: u}",
    "edm": "kernel={name: edm, schedule: {name: exploding, sigma_max: 500}}",
}
LEARNED = ("losses=[{name: uncertainty}]", "kernel_weight=0", "times=log_normal")
TRAINED = {
    "rectified": (RUNS["rectified"], *LEARNED),
    "edm": (RUNS["edm"], *LEARNED),
    "variance": (
        "kernel={name: edm, schedule: rectified, variance: learned, weighting: min_snr}",
        "losses=[{name: vlb}]",
        "times={name: shifted, shift: 4}",
    ),
}


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
def test_shifted_times_are_those_of_a_shifted_schedule(interval):
    t = ShiftedTimes(9.0, *interval).draw(KEYS, Rectified())
    # P(t' <= t) where t = 3 u / (1 + 2 u)
    low, high = (end / (3 - 2 * end) for end in interval)
    cdf = stats.uniform(low, high - low).cdf
    distance = stats.kstest(t.numpy(), lambda x: cdf(x / (3 - 2 * x))).statistic
    assert distance < 1.63 / len(t) ** 0.5
    if interval == (0.0, 1.0):
        moved = Rectified(shift=9.0)(Uniform().draw(KEYS, Rectified()))[1]
        torch.testing.assert_close(t, moved, rtol=1e-12, atol=0)
        # MAISI, for 64³ voxels: ratio (64³ / 32³)^(1/3) = 2, a shift of 4
        u = torch.tensor([uniform(k, "t") for k in KEYS], dtype=torch.float64)
        ours = ShiftedTimes(4.0).draw(KEYS, Rectified())
        torch.testing.assert_close(ours, 2 * (1 - u) / (1 + (1 - u)), rtol=1e-12, atol=1e-15)


def test_a_shift_of_logit_normal_times_is_a_mean():
    # logit(t') = logit(t) + log r, so that the density of SD3 has no argument of its own for it
    t = LogitNormal().draw(KEYS, Rectified())
    shifted = LogitNormal(mean=math.log(3)).draw(KEYS, Rectified())
    torch.testing.assert_close(shifted, 3 * t / (1 + 2 * t), rtol=1e-9, atol=1e-12)


class Constant(Network):
    """Answers with the clean state 0."""

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return torch.zeros_like(x)


def test_learned_uncertainty_is_the_log_of_the_loss():
    # x0 = 0 is wrong by data of unit variance, and v by (alpha² + sigma²) / sigma times as much.
    schedule, term = Rectified(), build("loss", "uncertainty")
    kernel = Gaussian(schedule, "x0", weighting=build("weighting", "v"))
    side = term.side(1, 0)
    assert side(torch.zeros(1)).item() == 0
    model = Model(
        Voxel(),
        kernel,
        Constant(1, 1),
        losses=[term],
        kernel_weight=0.0,
        sides={0: side},
        time_density=Uniform(0.1, 0.9),
    )
    optimizer = torch.optim.Adam(side.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        x = torch.randn((8, 1, 6, 6, 6), generator=generator)
        loss = model.loss(Batch(x, tuple(range(8 * step, 8 * step + 8)))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    alpha, sigma = schedule(t)
    expected = 2 * ((alpha**2 + sigma**2) / sigma).log()
    found = side(schedule.log_snr(t)).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)


def test_learned_weights_move_no_optimum():
    # d/du (l e^-u + u) = 0 at u = log l, where the gradient in the output is that of log l
    side = LogUncertainty(8)
    assert {n for n, _ in side.named_parameters()} == {"weight"}
    with torch.no_grad():
        side.weight.normal_(generator=torch.Generator().manual_seed(0))
    whole = side(torch.linspace(-9, 9, 7))
    parts = torch.cat([side(x[None]) for x in torch.linspace(-9, 9, 7)])
    torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize(
    "kernel",
    [
        Gaussian(Rectified(), "u", variance="learned"),
        EDM(Exploding(), variance="learned"),
        EDM(Rectified(), variance="learned"),
    ],
    ids=lambda k: f"{type(k).__name__}-{type(k.schedule).__name__}",
)
def test_learned_variances_of_flows(kernel):
    """At r = 1 a step from data of unit variance keeps its variance, as under other schedules."""
    z, zero, one = state_like(0.0, 1.0, 0.0), torch.zeros(3, 1, 1, 1, 1), torch.ones(3, 1, 1, 1, 1)
    t, s = (torch.full((3,), v, dtype=torch.float64) for v in (0.7, 0.6))
    (a_t, s_t), (a_s, s_s) = ([float(x[0]) for x in kernel.schedule(v)] for v in (t, s))
    gain = a_t / (a_t**2 + s_t**2)  # E[z_0 | z_t] of data of unit variance

    def denoise(z_t, t, condition):
        truth = kernel.target(gain * z_t, t, (z_t - a_t * gain * z_t) / s_t)
        return kernel.predict(torch.cat([truth, one.to(z_t)], 1), z_t, t)

    times = torch.tensor([0.7, 0.6], dtype=torch.float64)
    drawn = torch.cat([zero[:2], one[:1]]).double()
    out = Ancestral(1).sample(denoise, kernel, z, times, noise=lambda i: drawn)
    offset, moved, noisy = out.flatten().tolist()
    before, after = a_t**2 + s_t**2, a_s**2 + s_s**2
    assert (moved - offset) ** 2 * before + (noisy - offset) ** 2 == pytest.approx(after)


def test_what_would_be_trained_twice_is_refused(tmp_path):
    words = ["losses=[{name: uncertainty}]"]
    with pytest.raises(UsageError, match=r"kernel_weight: expected 0 beside the loss uncertainty"):
        build_task(tiny("population", tmp_path / "run", *words))
    words = [RUNS["edm"], "recipe=local_noise"]
    with pytest.raises(UsageError, match=r"keep about their size for local_noise.*got exploding"):
        build_task(tiny("population", tmp_path / "run", *words))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), labels=True)


@pytest.mark.parametrize("name", TRAINED)
def test_runs_go_on_and_localize(data, tmp_path, name):
    words = TRAINED[name]
    whole = train(tiny(data, tmp_path / "whole", *words))
    train(tiny(data, tmp_path / "parts", *words, "optim.steps=4"))
    parts = train(tiny(data, tmp_path / "parts", *words))
    assert digests(whole) == digests(parts)
    assert all(math.isfinite(row.get("loss", 0)) for row in figures(whole))
    run = volumediff.load(whole, device="cpu")
    model = run.trained.model
    assert type(model.kernel).__name__ in ("Gaussian", "EDM")
    x = torch.rand((8, 8, 8), generator=torch.Generator().manual_seed(0)).numpy()
    for method in ("scan", "ddpm"):
        found = run.localize(
            (x, np.diag([3.0, 3, 3, 1])), method=method, normalize="raw", threshold="otsu"
        )
        assert np.isfinite(found.map).all()


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [("rectified", "pseudo3d_64"), ("edm", "wavelet_64"), ("edm", "patch_64")],
)
def test_runs_segment(data, tmp_path, name, pipeline):
    train(small(data, tmp_path / "run", "label_diffusion", pipeline, RUNS[name]))
    model = load_trained(tmp_path / "run").model.eval()
    x = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    for sampler in ("dpmpp", "unipc", "midpoint", "heun", "ancestral"):
        words = ["samples=1", f"sampler={{name: {sampler}, steps: 2}}"]
        segmenter = load_segmenter("label_diffusion", words)
        segmenter.check(model)
        found = segmenter.segment(
            model, x, foreground=torch.ones_like(x) > 0, spacing_mm=(3.0, 3.0, 3.0), key=1
        )
        p = found.probabilities
        assert bool((p.isfinite() & (p >= 0) & (p <= 1)).all())


@pytest.mark.parametrize("pipeline", shipped("pipelines"))
def test_pipelines_say_how_a_flow_and_edm_are_trained(pipeline):
    text = config_path("pipelines", pipeline).read_text(encoding="utf-8")
    words = re.findall(r'"(kernel=[^"]+)"', text)
    kernels = {}
    for word in words:
        config = load_run_config(pipeline, [word])
        kernels[config.kernel["name"]] = build("kernel", config.kernel)
    flow, edm = kernels["gaussian"], kernels["edm"]
    own = build("kernel", load_run_config(pipeline, []).kernel)
    assert flow.schedule.shift == own.schedule.shift
    assert flow.prediction == "u"
    # the mean of a volume is drowned at t = 1, as `doctor` asks
    assert edm.schedule.variance_exploding
    task = load_run_config(pipeline, [])
    grid = task.data.preprocessing.shape
    if pipeline.startswith("latent"):
        grid = [n // (2 if pipeline == "latent_64" else 4) for n in grid]
    else:
        grid = build_task(task).lend(Model).space.grid(tuple(grid))
    assert global_mean_snr(edm.schedule, math.prod(grid)) < 0.05


def test_learned_weights_are_trained_on_latents_computed_beforehand(tmp_path):
    task = build_task(tiny("population", tmp_path / "run", *TRAINED["edm"]))
    with torch.no_grad():
        task.model.sides["0"].weight.fill_(0.3)
    batch = Batch(torch.randn((2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0)), (1, 2))
    expected = task.loss("network", batch)
    task.states = Precomputed()  # of voxels, which are states already
    assert torch.equal(task.loss("network", batch), expected)
