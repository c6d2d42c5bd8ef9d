"""Routes and policies beyond one chain, against the same thing done by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from anomaly_models import KERNEL, SHAPE, SPACING, blob, foreground, states, wiener
from sklearn.metrics import average_precision_score

from volumediff.anomaly import maps
from volumediff.anomaly._filters import dilate, inside_quantile
from volumediff.anomaly.calibration import Example
from volumediff.anomaly.ensemble import GeometricMean
from volumediff.anomaly.localizer import Localizer
from volumediff.anomaly.policies.class_contrast import ClassContrast
from volumediff.anomaly.policies.inpaint import Inpaint
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.flow_scan import FlowScan
from volumediff.anomaly.routes.grid import Grid
from volumediff.anomaly.routes.masks import Masks
from volumediff.anomaly.routes.scan import Scan
from volumediff.anomaly.routes.shrink import Shrink
from volumediff.anomaly.rows import load_row
from volumediff.anomaly.where import Found, Given
from volumediff.condition import Condition
from volumediff.data.regions import Cells, Slabs
from volumediff.guidance.classifier_free import ClassifierFree
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.randomness import key as key_of
from volumediff.randomness import normal
from volumediff.recipes.inpainting import Inpainting, high_frequencies
from volumediff.recipes.local_noise import LocalNoise
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

INSIDE = foreground()
ALL = torch.ones_like(INSIDE)


def run(row, model, x, *, key=1, inside=INSIDE, **more):
    return row.localize(model, x, foreground=inside, spacing_mm=SPACING, key=key, **more)


def lesion_volume(model, seed=0):
    return model.network.sample(seed) + 0.5 * blob()


def scene_of(row, model, x, inside=INSIDE):
    # as the engine makes it for the first run of key 1
    example = Example(x, inside, SPACING)
    return row._scene(model, example, key=key_of(1, "run", 0, 0), prior=None)


def region_chain(row, scene, m, level):
    """The chain that redraws m, written out."""
    z_t = scene.noised(scene.encode(scene.x), level)
    state_mask = scene.model.space.mask(m)
    own = scene.encode(scene.x)

    def hook(ctx):
        return state_mask * ctx.prediction.x0 + (1 - state_mask) * own, ctx.z_t

    times = row.sampler.times(scene.schedule, start=level)
    z = row.sampler.sample(
        scene.denoise, scene.model.kernel, z_t, times, noise=scene.noise, on_x0=hook
    )
    return scene.decode(z)


# grid


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_one_box_is_the_plain_chain(space):
    model = wiener(space(), correlation=1.5)
    x = lesion_volume(model)
    plain = Localizer(route=Diffuse(level=0.5), sampler=Ancestral(4))
    grid = replace(plain, route=Grid(level=0.5, box_mm=400.0))
    a, b = run(plain, model, x), run(grid, model, x)
    torch.testing.assert_close(b.pseudo_healthy, a.pseudo_healthy, atol=1e-5, rtol=0)
    torch.testing.assert_close(b.map, a.map, atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_boxes_change_nothing_where_voxels_do_not_know_of_each_other(space):
    model = wiener(space())
    x = lesion_volume(model)
    plain = Localizer(route=Diffuse(level=0.5), sampler=Ancestral(4))
    grid = replace(plain, route=Grid(level=0.5, box_mm=9.0, overlap_mm=3.0))
    a, b = run(plain, model, x, inside=ALL), run(grid, model, x, inside=ALL)
    torch.testing.assert_close(b.pseudo_healthy, a.pseudo_healthy, atol=1e-5, rtol=0)


def test_boxes_are_redrawn_from_the_patients_own_surroundings():
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    inside = INSIDE.clone()
    inside[..., 6:, :] = False  # no box of the second half has foreground
    row = Localizer(route=Grid(level=0.5, box_mm=12.0), sampler=Ancestral(3))
    got = run(row, model, x, inside=inside).pseudo_healthy
    scene = scene_of(row, model, x, inside)
    # 8 x 12 x 8 voxels of 2 mm in boxes of 6: two per axis, of which two axes overlap
    total, weight = torch.zeros_like(x), torch.zeros_like(x)
    for d in (0, 2):
        for w in (0, 2):
            m = torch.zeros_like(x)
            m[..., d : d + 6, 0:6, w : w + 6] = 1
            total += m * region_chain(row, scene, m, 0.5)
            weight += m
    expected = torch.where(weight > 0, total / weight.clamp(min=1), x)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert torch.equal(got[..., 6:, :], x[..., 6:, :])
    with pytest.raises(ValueError, match="expected overlap_mm below box_mm"):
        Grid(level=0.5, box_mm=4.0, overlap_mm=4.0)


# shrink


def test_the_mask_shrinks_to_its_fixed_point():
    model = wiener(correlation=2.0)
    x = lesion_volume(model)
    row = Localizer(route=Shrink(level=0.6, quantile=0.7, passes=8, stop=0.05), sampler=DDIM(4))
    got = run(row, model, x)
    scene = scene_of(row, model, x)
    m, bar, masks = INSIDE, None, []
    for _ in range(8):
        healthy = region_chain(row, scene, m.float(), 0.6)
        masks.append(m)
        a = (x - healthy).abs() * INSIDE
        bar = inside_quantile(a, 0.7, foreground=INSIDE) if bar is None else bar
        smaller = m & (a > bar)
        if smaller.sum() > 0.95 * m.sum() or not smaller.any():
            break
        m = smaller
    traced = [got.trace[n] for n in sorted(got.trace)]
    assert len(traced) == len(masks) > 2
    assert all(torch.equal(a, b) for a, b in zip(traced, masks, strict=True))
    torch.testing.assert_close(got.pseudo_healthy, healthy)
    assert torch.equal(got.pseudo_healthy[~masks[-1]], x[~masks[-1]])
    # what is left is the lesion
    lesion = blob() & INSIDE
    assert float((masks[-1] & lesion).sum() / masks[-1].sum()) > 3 * float(lesion.sum() / 360)
    with pytest.raises(ValueError, match="passes >= 1"):
        Shrink(level=0.5, passes=0)


def test_the_mask_never_grows_where_states_are_coarser_than_voxels():
    # redrawing in Haar space changes the neighbours of the mask, too
    model = wiener(Wavelet(), correlation=2.0)
    row = Localizer(route=Shrink(level=0.6, quantile=0.5, passes=6), sampler=DDIM(3))
    got = run(row, model, lesion_volume(model))
    masks = [got.trace[n] for n in sorted(got.trace)]
    assert len(masks) > 2
    assert all(not bool((b & ~a).any()) for a, b in pairwise(masks))


# redrawn regions


def test_a_given_region_is_redrawn_without_a_look_inside():
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    other = x + 2.0 * blob()
    row = Localizer(
        route=Diffuse(log_snr=-9.0),
        sampler=Ancestral(6),
        policy=Inpaint(Given(), resampling=2),
    )
    a, b = (run(row, model, v, region=blob()).pseudo_healthy for v in (x, other))
    # the level leaves a trace of exp(-4.5) of what was inside
    assert float((a - b)[blob()].abs().max()) < 0.05
    assert torch.equal(a[~blob()], x[~blob()])
    assert float((a - x)[blob()].abs().mean()) > 0.2
    wide = replace(row, policy=Inpaint(Given(dilate_mm=2.0)))
    c = run(wide, model, x, region=blob()).pseudo_healthy
    grown = dilate(blob().float(), radius_mm=2.0, spacing_mm=SPACING).bool()
    assert torch.equal(c[~grown], x[~grown])
    assert not torch.equal(c[grown & ~blob()], x[grown & ~blob()])
    with pytest.raises(ValueError, match="where given: expected a region to redraw, got none"):
        run(row, model, x)


def test_inpainting_redraws_what_the_first_pass_found():
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    first = Localizer(route=Scan(levels=(0.6,)))
    row = Localizer(
        first=first,
        route=Diffuse(level=0.9),  # above the first pass's: allowed, unlike for stitch
        sampler=Ancestral(4),
        policy=Inpaint(Found(quantile=0.9, dilate_mm=2.0), resampling=2),
    )
    got = run(row, model, x)
    a = got.trace["first/map"]
    top = (a > inside_quantile(a, 0.9, foreground=INSIDE)) & INSIDE
    m = dilate(top.float(), radius_mm=2.0, spacing_mm=SPACING).bool()
    assert torch.equal(got.trace["inpaint/mask"], m)
    assert torch.equal(got.pseudo_healthy[~m], x[~m])
    torch.testing.assert_close(got.map, (x - got.pseudo_healthy).abs() * INSIDE)
    with pytest.raises(ValueError, match="quantile: expected a share"):
        Found(quantile=1.0)


class Neighbours(Network):
    r"""The conditional mean of hidden voxels, E[x_M | x], of volumes x ~ N(0, C), by brute force.

    C is the covariance of a moving average along w; the state says nothing (t = 1), and the
    network is told the void and the mask in state space.
    """

    def __init__(self, n, space):
        super().__init__(1, 1, image_channels=2)
        places = torch.arange(n)
        self.covariance = torch.exp(-(places[:, None] - places).abs() / 3.0).double()
        self.space, self.seen = [space], []

    @property
    def stride(self):
        return 1, 1, 1

    def body(self, x, e):
        self.seen.append(x)
        k = x.shape[1] // 2
        void = self.space[0].synthesis(x[:, k : 2 * k], x.shape[2:])
        hidden = x[0, -1, 0, 0] > 0
        result = void.clone()
        c, line = self.covariance, void[0, 0, 0, 0].double()
        weights = c[hidden][:, ~hidden] @ torch.linalg.inv(c[~hidden][:, ~hidden])
        result[0, 0, 0, 0, hidden] = (weights @ line[~hidden]).to(void.dtype)
        return self.space[0].analysis(result)


TERMINAL = Gaussian(Cosine(zero_terminal_snr=True), prediction="x0")


def test_a_network_trained_on_voids_is_told_them_and_fills_them():
    network = Neighbours(12, Voxel())
    model = Model(Voxel(), TERMINAL, network, recipe=Inpainting())
    x = normal((1, 1, 1, 1, 12), 5)
    inside = torch.ones_like(x, dtype=torch.bool)
    m = torch.zeros_like(inside)
    m[..., 4:8] = True
    row = Localizer(
        recipe=Inpainting,
        route=Diffuse(level=1.0),
        sampler=DDIM(1),
        policy=Inpaint(Given()),
    )
    found = run(row, model, x, inside=inside, region=m)
    told = network.seen[0][:, 1:]
    torch.testing.assert_close(told[:, :1], x * ~m)
    assert torch.equal(told[:, 1:], m.float())
    weights = network.covariance[4:8][:, [0, 1, 2, 3, 8, 9, 10, 11]] @ torch.linalg.inv(
        network.covariance[[0, 1, 2, 3, 8, 9, 10, 11]][:, [0, 1, 2, 3, 8, 9, 10, 11]]
    )
    expected = weights @ x[0, 0, 0, 0, [0, 1, 2, 3, 8, 9, 10, 11]].double()
    got = found.pseudo_healthy[0, 0, 0, 0]
    torch.testing.assert_close(got[4:8].double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(got[~m[0, 0, 0, 0]], x[0, 0, 0, 0, ~m[0, 0, 0, 0]])
    # what lies in the void does not matter
    other = run(row, model, torch.where(m, 9.0, x), inside=inside, region=m)
    assert torch.equal(other.pseudo_healthy, found.pseudo_healthy)


def test_masks_average_what_was_hidden():
    network = Neighbours(12, Voxel())
    model = Model(Voxel(), TERMINAL, network, recipe=Inpainting())
    x = normal((1, 1, 1, 1, 12), 5)
    inside = torch.ones_like(x, dtype=torch.bool)
    row = Localizer(
        recipe=Inpainting,
        route=Masks(region=Cells(0.5, 4.0), count=3, level=1.0),
        sampler=DDIM(1),
    )
    got = run(row, model, x, inside=inside).pseudo_healthy
    hidden = [call[:, 2:] for call in network.seen]
    assert len(hidden) == 3
    fills = [Neighbours(12, Voxel()).body(call, None) for call in network.seen]
    weight = sum(hidden)
    mean = sum(m * f for m, f in zip(hidden, fills, strict=True)) / weight.clamp(min=1)
    assert bool((weight == 0).any())
    assert bool((weight > 1).any())
    torch.testing.assert_close(got, torch.where(weight > 0, mean, x))


class Recorder(Network):
    """Halves what it sees."""

    def __init__(self, channels=1, image_channels=0):
        super().__init__(channels, channels, image_channels=image_channels)
        self.seen = []

    @property
    def stride(self):
        return 1, 1, 1

    def body(self, x, e):
        self.seen.append(x)
        return x / 2


def test_one_modality_is_redrawn_from_the_other():
    class Copies(Recorder):
        """Says that both channels look as the first, which it is shown."""

        def body(self, x, e):
            return x[:, 2:3].expand(-1, 2, -1, -1, -1).contiguous()

    network = Copies(2, image_channels=3)
    recipe = Inpainting(redrawn=(1,))
    model = Model(Voxel(), TERMINAL, network, recipe=recipe)
    x = normal((1, 1, *SHAPE), 4)
    x = torch.cat([x, x + 2.0 * blob()], dim=1)  # healthy: both modalities agree
    row = Localizer(
        recipe=Inpainting,
        route=Masks(region=Slabs(8.0, 4.0), count=12, level=1.0),
        sampler=DDIM(1),
        map=maps.L2(),
    )
    got = run(row, model, x)
    torch.testing.assert_close(got.pseudo_healthy[:, 0], x[:, 0])
    torch.testing.assert_close(got.pseudo_healthy[:, 1], x[:, 0], atol=1e-5, rtol=0)
    # the mean over channels of squares: 2² / 2 in the lesion, nothing elsewhere
    torch.testing.assert_close(got.map, 2.0 * (blob() & INSIDE), atol=1e-4, rtol=0)


def test_a_network_trained_on_local_noise_sees_clean_surroundings_at_every_step():
    model = Model(Voxel(), KERNEL, Recorder(), recipe=LocalNoise())
    x = normal((1, 1, *SHAPE), 2)
    row = Localizer(
        recipe=LocalNoise,
        route=Diffuse(level=0.6),
        sampler=Ancestral(4),
        policy=Inpaint(Given()),
    )
    got = run(row, model, x, region=blob()).pseudo_healthy
    assert len(model.network.seen) == 4
    for z_t in model.network.seen:
        assert torch.equal(z_t[~blob()], x[~blob()])
        assert not torch.isclose(z_t[blob()], x[blob()]).any()
    assert torch.equal(got[~blob()], x[~blob()])
    # the last prediction is of the state that the network saw last
    torch.testing.assert_close(got[blob()], model.network.seen[-1][blob()] / 2)


def test_the_hint_of_the_edges_is_the_volume_without_low_frequencies():
    x = normal((1, 2, 6, 8, 10), 1)
    rows, columns, planes = (torch.arange(n) for n in (6, 8, 10))
    wave = torch.cos(2 * torch.pi * (rows[:, None, None] / 6 + columns[:, None] / 8 + 0 * planes))
    low = 3.0 + wave.expand(1, 2, 6, 8, 10)  # the mean, and a radius of sqrt(2)
    torch.testing.assert_close(
        high_frequencies(x + low, 1.5), high_frequencies(x, 1.5), atol=1e-5, rtol=0
    )
    fine = torch.cos(2 * torch.pi * 3 * planes / 10).expand(1, 2, 6, 8, 10)
    torch.testing.assert_close(high_frequencies(low + fine, 1.5), fine, atol=1e-5, rtol=0)
    recipe = Inpainting(edges=1.5)
    assert recipe.image_channels(2) == (4,)
    m = torch.zeros(1, 1, 6, 8, 10)
    m[..., 2:4] = 1
    (hint,) = recipe.hints(x, m)
    torch.testing.assert_close(hint, torch.cat([x * (1 - m), high_frequencies(x, 1.5)], 1))


# classes


def labelled(x, means=(-0.5, 0.5)):
    return states(means=means, std=0.3, classes=2), x


def test_the_class_contrast_is_the_difference_of_two_predictions():
    model, x = labelled(0.5 + 0.3 * normal((1, 1, *SHAPE), 3))
    row = Localizer(
        route=Diffuse(level=0.5),
        sampler=DDIM(3),
        policy=ClassContrast(),
        map=maps.L2(),
    )
    got = run(row, model, x)
    scene = scene_of(row, model, x)
    z, parts = scene.noised(x, 0.5), []
    grid = row.sampler.times(KERNEL.schedule, start=0.5)
    for t, s in pairwise(grid):
        pair = [
            model.denoise(z, t[None], Condition(label=torch.tensor([label]))) for label in (0, 1)
        ]
        parts.append((pair[0].x0 - pair[1].x0).square() * INSIDE)
        alpha, sigma = (float(v) for v in KERNEL.schedule(s[None]))
        z = alpha * pair[0].x0 + sigma * pair[0].eps
    torch.testing.assert_close(got.map, sum(parts) / 3, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.pseudo_healthy, z, atol=1e-5, rtol=0)
    # of equal Gaussians the difference does not depend on the voxel: (m_0 - m_1) sigma² / (...)
    assert float(got.map[INSIDE].std()) < 1e-4
    with pytest.raises(ValueError, match="policy classcontrast: expected a class-conditional"):
        run(row, states(), x)
    third = replace(row, policy=ClassContrast(other=2))
    with pytest.raises(ValueError, match="with a class 2, got one with 2"):
        run(third, model, x)


def test_the_flow_scan_stops_where_the_class_matters_most():
    model, x = labelled(0.5 + 0.3 * normal((1, 1, *SHAPE), 3))
    levels = (0.2, 0.4, 0.6, 0.8, 0.95)
    row = Localizer(
        route=FlowScan(levels=levels),
        sampler=DDIM(1),
        guidance=ClassifierFree(2.0, classes=1),
        map=maps.L2(),
    )
    got = run(row, model, x)
    null, healthy = (Condition(label=torch.tensor([label])) for label in (2, 0))
    z, below, guided, curve = x, 0.0, [], []
    for t in levels:
        now, last = (torch.tensor([v], dtype=torch.float64) for v in (t, below))
        z = DDIM(1).invert(model.denoise, KERNEL, z, torch.cat([now, last]), condition=null)
        free, own = (model.denoise(z, now, c).x0 for c in (null, healthy))
        guided.append(free + 2.0 * (own - free))
        curve.append(float((guided[-1] - free)[INSIDE].square().mean()))
        below = t
    end = max(range(5), key=curve.__getitem__)
    assert 0 < end, "the class matters little where there is no noise"
    assert got.trace["flow_scan/curve"].tolist() == pytest.approx(curve, rel=1e-4)
    expected = sum((x - v).square() for v in guided[:end]) / end * INSIDE
    torch.testing.assert_close(got.map, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="route flow_scan: expected a sampler that can be inv"):
        replace(row, sampler=Ancestral(1))
    with pytest.raises(ValueError, match="two or more levels"):
        FlowScan(levels=(0.5,))


# backward transitions


def test_the_scan_is_the_distance_of_backward_transitions_up_to_a_factor():
    # Both posterior means of z_s share the part of z_t: they differ by a multiple of the residual,
    # so that the geometric mean over t is that of the residuals times one constant.
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    levels = (0.2, 0.3, 0.4)
    row = Localizer(route=Scan(levels=levels), ensemble=GeometricMean())
    got = run(row, model, x)
    noise = model.noise((key_of(1, "run", 0, 0),), (1, *SHAPE))
    logs = 0.0
    for i, level in enumerate(levels):
        t, s = (torch.tensor([v], dtype=torch.float64) for v in (level, level - 0.001))
        z_t = KERNEL.corrupt(x, t, noise(-1 - i))
        ours, _ = KERNEL.posterior(model.denoise(z_t, t).x0.double(), z_t.double(), t, s)
        true, _ = KERNEL.posterior(x.double(), z_t.double(), t, s)
        logs = logs + (ours - true).abs().log()
    transitions = (logs / 3).exp()[INSIDE]
    ratio = transitions / got.map[INSIDE].double()
    assert float(ratio.std() / ratio.mean()) < 1e-3


# rows


@pytest.mark.parametrize(
    ("name", "least"),
    # the windows of the similarity reach beyond a blob of three voxels
    [("grid", 0.9), ("shrink", 0.9), ("ssim_ensemble", 0.35), ("repaint", 0.9)],
)
def test_rows_find_a_blob_with_a_perfect_denoiser(name, least):
    row = load_row(name, overrides=["sampler.steps=6", "post=[]"])
    if name == "grid":
        row = replace(row, route=replace(row.route, box_mm=12.0, overlap_mm=4.0))
    if name == "repaint":
        row = replace(row, policy=Inpaint(Found(quantile=0.9)))
    model = wiener(correlation=2.0)
    truth = blob()[INSIDE].numpy()

    def mean_ap(volumes):
        maps_of = [run(row, model, x).map[INSIDE].numpy() for x in volumes]
        return sum(average_precision_score(truth, a) for a in maps_of) / len(maps_of)

    sick = mean_ap([lesion_volume(model, seed) for seed in range(4)])
    healthy = mean_ap([model.network.sample(seed) for seed in range(4)])
    assert sick > least
    assert sick > 2 * healthy
