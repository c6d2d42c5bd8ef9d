"""Methods that learn from synthetic degradations, against closed forms."""

import pytest
import torch
from anomaly_models import SCHEDULE, SHAPE, SPACES, SPACING, foreground
from tiny_runs import tiny, write_data

from volumediff.anomaly.detectors import PosteriorMean, Sampled
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.identity import Identity
from volumediff.anomaly.routes.restore import Restore
from volumediff.calibration.of_run import load_method
from volumediff.condition import Condition
from volumediff.data.corruptions.coarse import Coarse
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.documentation.method_matrix import inventory
from volumediff.errors import UsageError
from volumediff.kernels.cold import Cold
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.optimization.metrics_file import read_metrics
from volumediff.randomness import key as key_of
from volumediff.recipes.degradation import Degradation
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.runs.trained import load_trained
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.heun import Heun
from volumediff.schedules._base import per_sample
from volumediff.spaces.voxel import Voxel
from volumediff.tasks._selection import one_step_map
from volumediff.times.uniform import Uniform
from volumediff.training.loop import train

INSIDE = foreground()
EXACT = ["voxel", "wavelet", "slices"]
STD, NOISE = 0.3, 0.8  # of healthy voxels, and of the noise at the end of the kernel


def volume(i=0):
    return 0.3 * torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(i))


class Function(Network):
    """A network that is a function of state, time and condition."""

    def __init__(self, function):
        super().__init__(1, 1)
        self.function = function

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        return self.function(z_t, t, condition)


def gain(t):
    """E[x | z_t] / z_t for x ~ N(0, s²), z_t = x + (1 - alpha) n and n ~ N(0, τ²)."""
    lost = (1 - SCHEDULE(t)[0]) * NOISE
    return STD**2 / (STD**2 + lost**2)


def restoring(space):
    network = Function(lambda z, t, c: per_sample(gain(t), z).to(z) * z)
    return Model(space, Cold(SCHEDULE), network, recipe=Degradation(Coarse()))


def row(**slots):
    return Localizer(kernel=Cold, recipe=Degradation, corruption=Coarse, **slots)


def one(t):
    return torch.tensor([t], dtype=torch.float64)


@pytest.mark.parametrize("space", EXACT)
def test_single_steps_give_the_posterior_mean_of_each_severity(space):
    x, levels = volume(), (0.9, 0.6, 0.3)
    method = row(route=Restore(levels))
    model = restoring(SPACES[space]())
    got = method.localize(model, x, foreground=INSIDE, spacing_mm=SPACING, key=3)
    gains = [float(gain(one(t))) for t in levels]
    assert max(gains) - min(gains) > 0.2
    mean = sum(gains) / 3
    torch.testing.assert_close(got.pseudo_healthy, mean * x)
    residual = (1 - mean) * x.abs()
    torch.testing.assert_close(got.map[INSIDE], residual[INSIDE])
    again = method.localize(model, x, foreground=INSIDE, spacing_mm=SPACING, key=4)
    assert torch.equal(again.map, got.map), "no noise"


@pytest.mark.parametrize("space", EXACT)
def test_several_steps_walk_down_the_line_of_the_kernel(space):
    x = volume()
    method = row(route=Restore((0.8,)), sampler=Ancestral(4))
    got = method.localize(
        restoring(SPACES[space]()), x, foreground=INSIDE, spacing_mm=SPACING, key=0
    )
    # cold diffusion's step for a state proportional to x: D_s(z_0) = a_s z_0 + (1 - a_s) z_1
    scale, t = 1.0, 0.8
    for s in (0.6, 0.4, 0.2, 0.0):
        a_t, a_s = (float(SCHEDULE(one(v))[0]) for v in (t, s))
        z_0 = float(gain(one(t))) * scale
        z_1 = (scale - a_t * z_0) / (1 - a_t)
        at_t, at_s = (a * z_0 + (1 - a) * z_1 for a in (a_t, a_s))
        scale, t = scale - at_t + at_s, s
    assert abs(scale - float(gain(one(0.8)))) > 0.01, "not one step"
    torch.testing.assert_close(got.pseudo_healthy, scale * x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        got.map[INSIDE], (1 - scale) * x.abs()[INSIDE], rtol=1e-4, atol=1e-5
    )


def test_restoration_refuses_what_does_not_walk_a_cold_kernel():
    for sampler in (DDIM(3), Heun(3)):
        with pytest.raises(
            ValueError, match=r"step is the kernel's own, ancestral with .*Gaussian noise"
        ):
            row(route=Restore((0.5,)), sampler=sampler)
    with pytest.raises(ValueError, match=r"expected .*ancestral with variance 0"):
        row(route=Restore((0.5,)), sampler=Ancestral(3, variance=0.5))
    with pytest.raises(ValueError, match="restore: expected levels, got none"):
        Restore()
    with pytest.raises(ValueError, match="kernel: expected cold for the route restore, got gauss"):
        Localizer(route=Restore((0.5,)))
    with pytest.raises(ValueError, match="kernel: expected gaussian or discrete for the route"):
        row(route=Diffuse(0.5), sampler=DDIM(3))
    row(route=Identity())  # no kernel at all
    model, method = restoring(Voxel()), row(route=Restore((0.5,)))
    method.check(model)
    model.recipe = Degradation(ForeignPatch())
    with pytest.raises(ValueError, match=r"corruption: expected .* with coarse, got one with for"):
        method.check(model)
    model.recipe = SyntheticAnomalies()
    with pytest.raises(ValueError, match="expected a checkpoint of the recipe degradation"):
        method.check(model)


# Detectors


def truth():
    m = torch.rand((1, 1, *SHAPE), generator=torch.Generator().manual_seed(9))
    return torch.where(m > 0.5, m, 0.0)


def detecting(space, function, **recipe):
    model = Model(space, Gaussian(SCHEDULE, prediction="x0"), Function(function))
    model.recipe = SyntheticAnomalies(**recipe)
    return model


@pytest.mark.parametrize("space", EXACT)
@pytest.mark.parametrize("method", [PosteriorMean(seeds=2), Sampled(sampler=DDIM(3))])
def test_a_network_that_knows_the_map_gives_it(space, method):
    space, m, x, atlas = SPACES[space](), truth(), volume(1), volume(2)
    seen = []

    def knows(z, t, condition):
        seen.append(condition.image)
        return space.encode(2 * m - 1)

    model = detecting(space, knows, atlas=True)
    told = Condition(image=space.encode(atlas))
    example = Example(x, INSIDE, SPACING, told)
    got = method.find(model, example, key=1)
    torch.testing.assert_close(got.map, m * INSIDE)
    assert got.healthy is None
    # the recipe's order: atlas, then the volume
    torch.testing.assert_close(seen[0], torch.cat([space.encode(atlas), space.encode(x)], 1))
    found = method.localize(model, x, foreground=INSIDE, spacing_mm=SPACING, key=1, condition=told)
    torch.testing.assert_close(found.map, m * INSIDE)
    assert found.pseudo_healthy is None


def test_maps_stay_between_none_and_all():
    model = detecting(Voxel(), lambda z, t, c: torch.where(truth() > 0.7, 3.0, -2.0))
    got = PosteriorMean().find(model, Example(volume(), INSIDE, SPACING), key=0)
    assert torch.equal(got.map, (truth() > 0.7).float() * INSIDE)


def test_seeds_are_averaged_and_their_deviation_is_the_uncertainty():
    model = detecting(Voxel(), lambda z, t, c: 0.3 * z)
    example = Example(volume(), INSIDE, SPACING)
    got = PosteriorMean(seeds=3).find(model, example, key=5)
    alpha, sigma = (float(v) for v in SCHEDULE(one(1.0)))
    maps = []
    for seed in range(3):
        noise = model.noise((key_of(5, "seed", seed),), (1, *SHAPE))(-1)
        z = sigma * noise - alpha
        maps.append(((0.3 * z + 1) / 2).clamp(0, 1) * INSIDE)
    each = torch.stack(maps)
    torch.testing.assert_close(got.map, each.mean(0))
    torch.testing.assert_close(got.uncertainty, each.std(0))
    torch.testing.assert_close(got.errors, each[:, INSIDE].mean(1))
    assert PosteriorMean().find(model, example, key=5).uncertainty is None
    with pytest.raises(ValueError, match="seeds >= 1"):
        PosteriorMean(seeds=0)


def test_checkpoints_are_selected_by_the_map_of_the_row():
    """For a model of the map, E[m | x]; for a cold kernel, the volume without noise."""
    m, x = truth(), volume()
    model = detecting(Voxel(), lambda z, t, c: 2 * m - 1 + 0 * c.image)
    told = model.told(Condition(), (x,))
    got = one_step_map(model, x, condition=told, levels=(0.4, 0.8), key=1)
    torch.testing.assert_close(got, m)
    levels = (0.4, 0.8)
    got = one_step_map(restoring(Voxel()), x, condition=Condition(), levels=levels, key=1)
    mean = sum(float(gain(one(t))) for t in levels) / 2
    torch.testing.assert_close(got, (1 - mean) * x.abs())


def test_a_detector_says_what_does_not_suit_it():
    method = read_method("nsa")
    model = detecting(Voxel(), lambda z, t, c: z)
    with pytest.raises(ValueError, match=r"corruption: expected .* with natural_patch, got one w"):
        method.check(model)
    fits = read_method("fpi")
    fits.check(model)
    model.time_density = Uniform(0.0, 0.8)
    with pytest.raises(ValueError, match=r"trained up to t = 1, got one up to 0\.800"):
        fits.check(model)
    latent = detecting(SPACES["latent"](), lambda z, t, c: z)
    with pytest.raises(ValueError, match="space: expected voxels or wavelets, got latents"):
        fits.check(latent)
    with pytest.raises(ValueError, match=r"recipe: expected .* synthetic_anomalies, got degrad"):
        fits.check(restoring(Voxel()))
    with pytest.raises(ValueError, match="expected a trained model, got none"):
        fits.check(None)


def test_every_need_can_be_trained_in_every_pipeline_but_maps_of_latents():
    found = inventory()
    assert found["localization needs"]["pii"] == [
        "recipe=synthetic_anomalies",
        "recipe.corruption=poisson_patch",
    ]
    assert found["localization needs"]["disyre_v2"] == [
        "recipe=degradation",
        "kernel=cold",
        "recipe.corruption=disentangled",
    ]
    assert found["localization"]["disyre"]["latent"] == "ok"
    assert "expected a space of voxels or wavelets" in found["localization"]["draem"]["latent"]


COLD = "kernel={name: cold, schedule: {name: cosine, zero_terminal_snr: true}}"
RUNS = {
    "disyre": ["recipe={name: degradation, corruption: foreign_patch, atlas: true}", COLD],
    "draem": ["recipe={name: synthetic_anomalies, corruption: texture_patch, atlas: true}"],
}


@pytest.mark.parametrize("name", RUNS)
def test_from_training_to_a_map(name, tmp_path):
    root = write_data(tmp_path / "data", cases=6, size=(16, 16, 16))
    best = ["validation.best={volumes: 1}", "data.preprocessing.shape=[16,16,16]"]
    words = [*RUNS[name], *best, "optim.steps=3"]
    run = train(tiny(root, tmp_path / "run", *words))
    assert any("localization_ap" in line for line in read_metrics(run / "metrics.jsonl"))
    trained = load_trained(run, which="last", device="cpu")
    trained.localizes()
    method = load_method(trained, name)
    example = next(trained.examples("validation"))
    got = method.localize(
        trained.model,
        example.x,
        foreground=example.foreground,
        spacing_mm=example.spacing_mm,
        key=0,
        condition=example.condition,
    )
    assert got.map.shape == example.x.shape
    assert bool(torch.isfinite(got.map).all())
    assert float(got.map[example.foreground].std()) > 0
    for other in {*RUNS, "fpi", "scan"} - {name}:
        with pytest.raises(UsageError, match=r"does not suit .*expected"):
            load_method(trained, other)
