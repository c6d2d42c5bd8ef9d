"""The localizer under denoisers that are known exactly: equivalences, limits and refusals."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from anomaly_models import (
    KERNEL,
    SHAPE,
    SPACING,
    States,
    Wiener,
    blob,
    foreground,
    states,
    tiny_autoencoder,
    wiener,
)
from sklearn.metrics import average_precision_score

from volumediff import noise
from volumediff.anomaly.baselines import Prevalence
from volumediff.anomaly.editing.harmonise import Harmonise
from volumediff.anomaly.editing.stitch import Stitch
from volumediff.anomaly.ensemble import HarmonicMean, MeanEnsemble
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.maps.l2 import L2
from volumediff.anomaly.maps.saturated import Saturated
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.normalization import Voxelwise
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.identity import Identity
from volumediff.anomaly.routes.inversion import Inversion
from volumediff.anomaly.routes.scan import Scan
from volumediff.anomaly.score import ZAverage
from volumediff.anomaly.threshold import Fixed
from volumediff.calibration.collect_maps import fit
from volumediff.condition import Condition
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.randomness import key as key_of
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.heun import Heun
from volumediff.samplers.plms import PLMS
from volumediff.schedules.linear import LinearSchedule
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.time_grids import LogSNRTimeGrid
from volumediff.times.uniform import Uniform

FOREGROUND = foreground()
ALL = torch.ones_like(FOREGROUND)


def run(row, model, x, key=1, inside=FOREGROUND, **more):
    return row.localize(model, x, foreground=inside, spacing_mm=SPACING, key=key, **more)


def lesion_volume(model, seed=0, contrast=0.5):
    return model.network.sample(seed) + contrast * blob()


ROUTES = {
    "diffuse": {"route": Diffuse(level=0.5), "sampler": Ancestral(6)},
    "inversion": {"route": Inversion(level=0.5), "sampler": Heun(4)},
    "scan": {"route": Scan(levels=(0.3, 0.6))},
    "thor": {
        "route": Diffuse(level=0.5),
        "sampler": Ancestral(6),
        "editing": Harmonise(levels=(0.3,), dilate_mm=2.0),
        "map": Saturated(L1()),
    },
}


@pytest.mark.parametrize("name", [n for n in ROUTES if n != "thor"])
@pytest.mark.parametrize(
    "space", [lambda: Wavelet(), lambda: Wavelet("db2"), lambda: Slices(Voxel())]
)
def test_orthonormal_spaces_give_the_voxel_chain(name, space):
    # The state noise is W times the voxel noise and the denoiser is conjugated: one chain.
    row = Localizer(**ROUTES[name])
    here, there = wiener(correlation=1.5), wiener(space(), correlation=1.5)
    x = lesion_volume(here)
    a, b = run(row, here, x), run(row, there, x)
    torch.testing.assert_close(a.pseudo_healthy, b.pseudo_healthy, atol=2e-5, rtol=0)
    torch.testing.assert_close(a.map, b.map, atol=2e-5, rtol=0)
    assert float(a.map.max()) > 0.1


def test_scan_equals_dense_algebra_and_brute_force_ap():
    # E[x | x_t] = mu + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mu), with the matrix C.
    shape = (6, 6, 6)
    model = wiener(shape=shape, mean=-0.2, correlation=1.0)
    truth = torch.zeros((1, 1, *shape), dtype=torch.bool)
    truth[..., 2:4, 2:4, 2:4] = True
    x = model.network.sample(3) + 0.4 * truth
    got = Localizer(route=Scan(levels=(0.4, 0.7))).localize(
        model, x, foreground=torch.ones_like(truth), spacing_mm=SPACING, key=5
    )
    unit = torch.eye(216).reshape(216, 1, *shape)
    power = model.network.power
    covariance = torch.fft.ifftn(power * torch.fft.fftn(unit, dim=(2, 3, 4)), dim=(2, 3, 4))
    covariance = covariance.real.reshape(216, 216).double()
    noise = model.noise((key_of(5, "run", 0, 0),), (1, *shape))
    expected, scores = [], 0
    for i, t in enumerate((0.4, 0.7)):
        alpha, sigma = (float(v) for v in KERNEL.schedule(torch.tensor([t])))
        x_t = (alpha * x + sigma * noise(-1 - i)).flatten().double()
        system = alpha**2 * covariance + sigma**2 * torch.eye(216, dtype=torch.float64)
        rest = alpha * covariance @ torch.linalg.solve(system, x_t + alpha * 0.2)
        expected.append((rest - 0.2).float().reshape(x.shape))
        scores = scores + (x - expected[-1]).abs() / 2
    torch.testing.assert_close(got.pseudo_healthy, sum(expected) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.map, scores, atol=1e-5, rtol=0)
    order = scores.flatten().argsort(descending=True)
    hits = truth.flatten()[order].double()
    ap = float((hits.cumsum(0) / torch.arange(1, 217) * hits).sum() / hits.sum())
    exact = average_precision_score(truth.flatten().numpy(), got.map.flatten().numpy())
    assert ap == pytest.approx(exact, abs=1e-6)
    assert ap > 0.9


@pytest.mark.parametrize("name", ["diffuse", "scan", "thor"])
def test_a_blob_is_found(name):
    model = wiener(correlation=2.0)
    x = lesion_volume(model)
    found = run(Localizer(**ROUTES[name]), model, x).map[FOREGROUND]
    ap = average_precision_score(blob()[FOREGROUND].numpy(), found.numpy())
    assert ap > 0.7
    healthy = run(Localizer(**ROUTES[name]), model, model.network.sample(0)).map[FOREGROUND]
    assert average_precision_score(blob()[FOREGROUND].numpy(), healthy.numpy()) < 0.3


@pytest.mark.parametrize(
    "space", [Voxel, Wavelet, lambda: Slices(Voxel()), lambda: Slices(Wavelet(axes="hw"))]
)
def test_stitch_keeps_the_patient_outside_the_aligned_mask(space):
    model = wiener(space())
    x = lesion_volume(model)
    first = Localizer(route=Diffuse(level=0.5), sampler=DDIM(4), map=L1())
    row = Localizer(
        first=first,
        route=Diffuse(level=0.3),
        sampler=Ancestral(4),
        editing=Stitch(threshold=0.3, dilate_mm=2.0, resampling=3),
        threshold=Fixed(0.1),
    )
    got = run(row, model, x)
    m = got.trace["stitch/mask"]
    assert 0.02 < float(m.float().mean()) < 0.5
    # The aligned mask: voxels whose value depends on a state voxel inside the state mask.
    state_mask = model.space.mask(m.float())
    touched = model.decode(state_mask.expand(-1, model.space.channels(1), -1, -1, -1), SHAPE)
    aligned = m.clone()
    stride = model.space.stride
    blocks = torch.nn.functional.max_pool3d(m.float(), stride)
    aligned = torch.nn.functional.interpolate(blocks, size=SHAPE, mode="nearest").bool()
    assert not bool((touched.abs() > 1e-6)[~aligned].any())
    change = (got.pseudo_healthy - x).abs()
    assert float(change[aligned].mean()) > 0.05
    if isinstance(model.space, Voxel):
        assert torch.equal(got.pseudo_healthy[~aligned], x[~aligned])
    assert float(change[~aligned].max()) < 1e-5
    assert not bool(got.mask[~aligned].any())
    # the second chain starts from the first pass's volume inside the mask only
    example = Example(x, FOREGROUND, SPACING)
    prior = first.find(model, example, key=key_of(1, "first"))
    context = row._context(model, example, key=0, prior=prior)
    assert torch.equal(row.editing.start(context), torch.where(m, prior.healthy, x))
    # weighed by the first pass
    residual = (x - got.pseudo_healthy).abs() * FOREGROUND
    torch.testing.assert_close(got.map, residual * got.trace["first/map"])


def test_stitch_in_a_lossy_space_blends_in_the_volume():
    model = Model(Latent(tiny_autoencoder()), KERNEL, States())
    x = torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(0))
    first = Localizer(route=Diffuse(level=0.5), sampler=DDIM(3))
    got = run(
        Localizer(
            first=first,
            route=Diffuse(level=0.3),
            sampler=DDIM(3),
            editing=Stitch(threshold=0.5, dilate_mm=0.0, resampling=2),
        ),
        model,
        x,
    )
    m = got.trace["stitch/mask"]
    assert 0 < float(m.float().mean()) < 1
    assert torch.equal(got.pseudo_healthy[~m], x[~m])


def test_stitch_repeats_every_step_but_the_last():
    grid = torch.tensor([0.4, 0.2, 0.0], dtype=torch.float64)
    again = Stitch(resampling=3).times(grid).tolist()
    assert again == [0.4, 0.2, 0.4, 0.2, 0.4, 0.2, 0.0]
    assert Stitch(resampling=1).times(grid).tolist() == grid.tolist()


def test_the_floor_of_a_lossy_space_is_no_finding():
    model = Model(Latent(tiny_autoencoder()), KERNEL, States())
    x = torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(0))
    rough = (model.decode(model.encode(x), SHAPE) - x).abs() * FOREGROUND
    row = Localizer(route=Diffuse(level=0.4), sampler=DDIM(3))
    got = run(row, model, x)
    expected = ((x - got.pseudo_healthy).abs() * FOREGROUND - rough).clamp(min=0)
    torch.testing.assert_close(got.map, expected)
    # the autoencoder alone is judged by what it loses
    torch.testing.assert_close(run(Localizer(route=Identity()), model, x).map, rough)


@pytest.mark.parametrize(("sampler", "factor"), [(DDIM, 1.8), (Heun, 6.0)])
def test_inversion_round_trip_error_falls_with_steps(sampler, factor):
    model = wiener(std=0.3)
    x = lesion_volume(model)
    errors = []
    for steps in (10, 20, 40):
        row = Localizer(route=Inversion(level=0.6), sampler=sampler(steps))
        errors.append(float((run(row, model, x).pseudo_healthy - x).norm() / x.norm()))
    assert all(a > factor * b for a, b in pairwise(errors)), errors
    exact = Localizer(route=Inversion(level=0.3, iterations=20), sampler=DDIM(8))
    assert float((run(exact, model, x).pseudo_healthy - x).norm() / x.norm()) < 1e-4


def test_few_euler_steps_leave_the_residual_of_many_times_a_factor():
    # What the row ddim_inversion rests on: its map is the error of the steps, of first order.
    model = wiener(std=0.3)
    x = lesion_volume(model)
    few, many = (
        run(Localizer(route=Inversion(level=0.6), sampler=DDIM(steps)), model, x).pseudo_healthy
        - x
        for steps in (40, 480)
    )
    assert float((few * many).sum() / few.norm() / many.norm()) > 0.99
    assert float(few.norm() / many.norm()) == pytest.approx(12, rel=0.1)


def test_times_even_in_log_snr_serve_inversion_best():
    # The choice of the rows: on correlated volumes the fine modes live at high SNR.
    model = wiener(correlation=1.0, std=0.3)
    x = lesion_volume(model)
    errors = []
    for sampler in (Heun(10), Heun(10, grid=LogSNRTimeGrid(-3.0, 8.0))):
        row = Localizer(route=Inversion(log_snr=-2.46), sampler=sampler)
        errors.append(float((run(row, model, x).pseudo_healthy - x).norm() / x.norm()))
    assert errors[1] < 0.04 < 0.09 < errors[0]


def test_guidance_towards_healthy():
    # Two classes of voxels, healthy at -0.5 and pathological at 0.5; the volume is pathological.
    model = states(means=(-0.5, 0.5), std=0.3, classes=2)
    x = 0.5 + 0.3 * torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(1))
    common = {"route": Inversion(level=0.5), "sampler": Heun(6)}
    plain = run(Localizer(**common), model, x)
    one = run(Localizer(**common, guidance=ClassifierFree(1.0, classes=1)), model, x)
    three = run(Localizer(**common, guidance=ClassifierFree(3.0, classes=1)), model, x)
    assert torch.equal(plain.map, one.map)
    means = [float(v.pseudo_healthy.mean()) for v in (plain, three)]
    assert 0.4 > means[0] > means[1]
    # the caller's label is not taken: the way down always goes to healthy
    told = run(Localizer(**common), model, x, condition=Condition(label=torch.tensor([1])))
    assert torch.equal(told.map, plain.map)
    # upwards the null class: with the healthy class both ways the volume would come back
    null = Localizer(**common, guidance=ClassifierFree(0.0, classes=1))
    back = run(null, model, x).pseudo_healthy
    assert float((back - x).abs().mean()) < 0.02


@dataclass(frozen=True)
class Constant(Map):
    """A map that is the same number everywhere."""

    value: float

    def __call__(self, x, healthy, *, foreground, spacing_mm):
        return torch.full_like(x[:, :1], self.value)


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_harmonise_is_the_plain_chain_where_nothing_is_put_back(space):
    model = wiener(space())
    x = lesion_volume(model)
    common = {"route": Diffuse(level=0.5), "sampler": Ancestral(5)}
    plain = run(Localizer(**common), model, x, inside=ALL)
    levels = Harmonise(levels=(0.4, 0.25), dilate_mm=2.0)
    free = run(Localizer(**common, editing=levels, map=Constant(1.0)), model, x, inside=ALL)
    torch.testing.assert_close(free.pseudo_healthy, plain.pseudo_healthy, atol=2e-5, rtol=0)
    # ... and the patient's own forward process where everything is
    last = Harmonise(levels=(0.1,), dilate_mm=2.0)
    held = run(Localizer(**common, editing=last, map=Constant(0.0)), model, x, inside=ALL)
    torch.testing.assert_close(held.pseudo_healthy, x, atol=2e-5, rtol=0)
    assert float((plain.pseudo_healthy - x).abs().max()) > 0.2


def test_harmonise_collects_one_map_per_level():
    model = wiener()
    x = lesion_volume(model)
    common = {"route": Diffuse(level=0.5), "sampler": Ancestral(5)}
    row = Localizer(
        **common,
        editing=Harmonise(levels=(0.1, 0.45, 0.25), dilate_mm=2.0),
        map=Saturated(L1()),
        ensemble=HarmonicMean(),
    )
    got = run(row, model, x)
    # grid 0.5, 0.4, 0.3, 0.2, 0.1, 0: the first time at or below each level
    names = [f"harmonise/{t}/map" for t in ("0.400", "0.200", "0.100")]
    assert [n for n in got.trace if n.endswith("/map")] == names
    parts = [got.trace[n] for n in names]
    own = row.map(x, got.pseudo_healthy, foreground=FOREGROUND, spacing_mm=SPACING)
    inverse = sum(1 / a.clamp(min=1e-6) for a in [*parts, own])
    inside = FOREGROUND & (got.map > 0)
    torch.testing.assert_close(got.map[inside], (4 / inverse)[inside])
    r = got.trace["harmonise/0.400/mask"]
    assert 0 <= float(r.min()) < float(r.max()) <= 1


def test_an_ensemble_is_the_mean_of_its_members():
    model = wiener()
    x = lesion_volume(model)
    row = Localizer(route=Diffuse(level=0.5), sampler=Ancestral(3))
    both = run(replace(row, ensemble=MeanEnsemble(levels=(0.3, 0.5), seeds=2)), model, x)
    volumes = []
    for i, (level, seed) in enumerate(MeanEnsemble(levels=(0.3, 0.5), seeds=2).members()):
        noise = model.noise((key_of(1, "run", i, seed),), (1, *SHAPE))
        t = torch.tensor([level.level], dtype=torch.float64)
        z = KERNEL.corrupt(x, t, noise(-1))
        times = Ancestral(3).times(KERNEL.schedule, start=level.level)
        volumes.append(Ancestral(3).sample(model.denoise, KERNEL, z, times, noise=noise))
    expected = sum((x - v).abs() for v in volumes) / 4 * FOREGROUND
    torch.testing.assert_close(both.map, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(both.pseudo_healthy, sum(volumes) / 4, atol=1e-6, rtol=0)


def test_the_z_average_takes_every_level_in_its_own_units():
    model = wiener(correlation=1.5)
    row = Localizer(
        route=Diffuse(level=0.5),
        sampler=DDIM(3),
        ensemble=MeanEnsemble(levels=(0.2, 0.7)),
        score=ZAverage(),
    )
    volumes = [model.network.sample(i) for i in range(5)]
    calibration = fit(row, model, [Example(v, FOREGROUND, SPACING) for v in volumes], seed=0)
    assert calibration.errors.shape == (5, 2)
    x = lesion_volume(model, 9)
    got = run(row, model, x, calibration=calibration)

    def errors(v, key):
        made = []
        for i, level in enumerate((0.2, 0.7)):
            noise = model.noise((key_of(key, "run", i, 0),), (1, *SHAPE))
            z = KERNEL.corrupt(v, torch.tensor([level], dtype=torch.float64), noise(-1))
            times = DDIM(3).times(KERNEL.schedule, start=level)
            healthy = DDIM(3).sample(model.denoise, KERNEL, z, times)
            made.append((v - healthy).abs()[FOREGROUND].mean())
        return torch.stack(made)

    table = torch.stack([errors(v, key_of(0, "calibration", i)) for i, v in enumerate(volumes)])
    z = (errors(x, 1) - table.mean(0)) / table.std(0)
    assert got.score == pytest.approx(float(z.mean()), rel=1e-3)
    assert got.score > 2
    # a calibration volume is judged by the others
    rest = table[1:]
    own = ((table[0] - rest.mean(0)) / rest.std(0)).mean()
    assert calibration.scores[0] == pytest.approx(float(own), rel=1e-3)
    with pytest.raises(ValueError, match="score z_average: expected a calibration"):
        run(row, model, x)
    with pytest.raises(ValueError, match="score z_average: expected a method with runs"):
        Prevalence(score=ZAverage()).localize(
            None, x, foreground=FOREGROUND, spacing_mm=SPACING, key=0
        )


def test_log_snr_and_time_are_the_same_level():
    model = wiener()
    x = lesion_volume(model)
    log_snr = float(KERNEL.schedule.log_snr(torch.tensor([0.5])))
    a = run(Localizer(route=Diffuse(level=0.5), sampler=DDIM(3)), model, x)
    b = run(Localizer(route=Diffuse(log_snr=log_snr), sampler=DDIM(3)), model, x)
    torch.testing.assert_close(a.map, b.map, atol=1e-6, rtol=0)


def test_results_depend_on_the_key_alone():
    model = wiener()
    row = Localizer(**ROUTES["thor"])
    volumes = [lesion_volume(model, seed) for seed in (1, 2)]
    forth = [run(row, model, x, key=i) for i, x in enumerate(volumes)]
    torch.manual_seed(9)
    back = [run(row, model, volumes[i], key=i) for i in (1, 0)][::-1]
    for a, b in zip(forth, back, strict=True):
        assert torch.equal(a.map, b.map)
        assert a.score == b.score
    assert not torch.equal(run(row, model, volumes[0], key=7).map, forth[0].map)


def test_a_method_and_its_checkpoint_have_one_noise():
    x = torch.zeros((1, 1, *SHAPE))
    white, coarse = wiener(), wiener()
    coarse.noise_field = noise.CoarseNoise(cell=4)
    row = Localizer(route=Scan(levels=(0.5,)))
    other = replace(row, noise=noise.CoarseNoise)
    run(row, white, x)
    run(other, coarse, x)
    with pytest.raises(ValueError, match="trained with gaussian noise, got one with coarse noise"):
        run(row, coarse, x)
    with pytest.raises(ValueError, match=r"got one with gaussian noise; .* train with noise=coa"):
        run(other, white, x)
    # and the noise that is drawn is the checkpoint's
    asked = []
    coarse.denoise = lambda z, t, condition: (asked.append(z), white.denoise(z, t, condition))[1]
    run(other, coarse, x)
    _, sigma = KERNEL.schedule(torch.tensor([0.5], dtype=torch.float64))
    drawn = coarse.noise_field((1, *SHAPE), key_of(1, "run", 0, 0), "noise", -1)
    torch.testing.assert_close(asked[0][0], float(sigma) * drawn)


class Fancy(Gaussian):
    """A kernel by another name, of the same path."""


class Silent(Gaussian):
    """A kernel that says nothing of its path."""

    path = ""


REFUSED = [
    (
        lambda: Localizer(
            route=Diffuse(level=0.5),
            sampler=DDIM(2),
            guidance=ClassifierFree(2.0, classes=1),
        ),
        "expected a class-conditional checkpoint",
    ),
    (
        lambda: Localizer(route=Diffuse(log_snr=-40.0), sampler=DDIM(2)),
        "expected a log-SNR of at least",
    ),
    (
        lambda: Localizer(
            first=Localizer(route=Diffuse(level=0.2), sampler=DDIM(2)),
            route=Diffuse(level=0.3),
            sampler=DDIM(2),
            editing=Stitch(),
        ),
        "expected a second pass at a lower noise level",
    ),
    (
        lambda: Localizer(route=Scan(levels=(0.5,)), normalize=Voxelwise()),
        "normalize voxelwise: expected a calibration",
    ),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[r for _, r in REFUSED])
def test_meaningless_combinations_are_refused(row, reason):
    model = Model(Voxel(), Gaussian(LinearSchedule(), prediction="x0"), Wiener(Voxel()))
    with pytest.raises(ValueError, match=reason) as caught:
        run(row(), model, torch.zeros((1, 1, *SHAPE)))
    assert "\n" not in str(caught.value)


def test_checkpoint_and_calibration_must_suit():
    row = Localizer(route=Scan(levels=(0.5,)))
    x = torch.zeros((1, 1, *SHAPE))
    named = Model(Voxel(), Fancy(KERNEL.schedule, prediction="x0"), Wiener(Voxel()))
    assert torch.equal(run(row, named, x).map, run(row, wiener(), x).map)
    other = Model(Voxel(), Silent(KERNEL.schedule, prediction="x0"), Wiener(Voxel()))
    with pytest.raises(ValueError, match="the silent kernel, whose class declares no path"):
        run(row, other, x)
    short = Model(Voxel(), KERNEL, Wiener(Voxel()), time_density=Uniform(0.0, 0.4))
    with pytest.raises(ValueError, match=r"expected times up to 0\.400.*got 0\.500"):
        run(row, short, x)
    late = Model(Voxel(), KERNEL, Wiener(Voxel()), time_density=Uniform(0.4, 1.0))
    chain = Localizer(route=Diffuse(level=0.5), sampler=DDIM(2))
    with pytest.raises(ValueError, match=r"expected times above 0\.400.*got 0\.000"):
        run(chain, late, x)
    with pytest.raises(ValueError, match=r"expected times above 0\.400.*got 0\.300"):
        run(Localizer(route=Scan(levels=(0.3, 0.5))), late, x)
    assert run(row, late, x).map.shape == x.shape
    assert run(replace(chain, sampler=DDIM(1)), late, x).map.shape == x.shape
    with pytest.raises(ValueError, match="expected a trained model, got none"):
        run(row, None, x)
    model = wiener()
    with pytest.raises(ValueError, match="expected a foreground with voxels"):
        run(row, model, x, inside=~ALL)
    examples = [Example(model.network.sample(i), FOREGROUND, SPACING) for i in range(3)]
    calibration = fit(row, model, examples, seed=0)
    another = replace(row, map=L2())
    with pytest.raises(ValueError, match="expected a calibration of this method"):
        run(another, model, x, calibration=calibration)
    # another threshold is no other method
    assert run(replace(row, threshold=Fixed(1.0)), model, x, calibration=calibration)


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ({"route": Diffuse(level=0.5)}, "route diffuse: expected a sampler"),
        ({"route": Scan(levels=(0.5,)), "sampler": DDIM(2)}, "route scan: has no reverse"),
        (
            {"route": Inversion(level=0.5), "sampler": PLMS(2)},
            "expected a sampler that can be inverted.*got plms",
        ),
        (
            {"route": Scan(levels=(0.5,)), "editing": Harmonise(levels=(0.2,))},
            "editing harmonise: expected a route with a reverse chain, got scan",
        ),
        (
            {
                "route": Inversion(level=0.5),
                "sampler": DDIM(2),
                "ensemble": MeanEnsemble(seeds=2),
            },
            "the route draws no noise",
        ),
        (
            {"route": Diffuse(level=0.5), "sampler": DDIM(2), "editing": Stitch()},
            "first: expected a first pass",
        ),
    ],
)
def test_slots_that_do_not_go_together(slots, reason):
    with pytest.raises(ValueError, match=reason):
        Localizer(**slots)


@pytest.mark.parametrize("make", [Diffuse, Inversion, Scan])
def test_a_route_has_one_kind_of_level(make):
    with pytest.raises(ValueError, match="level"):
        make()
    if make is not Scan:
        with pytest.raises(ValueError, match="exactly one of level and log_snr"):
            make(level=0.5, log_snr=1.0)
        with pytest.raises(ValueError, match=r"expected a time in \(0, 1\], got 250"):
            make(level=250.0)
    else:
        with pytest.raises(ValueError, match="got both"):
            make(levels=(0.5,), log_snrs=(1.0,))
