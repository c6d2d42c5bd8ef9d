"""Routes and policies beyond one chain, against the same thing done by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from anomaly_models import (
    KERNEL,
    SHAPE,
    SPACES,
    SPACING,
    blob,
    foreground,
    posterior,
    states,
    wiener,
)
from sklearn.metrics import average_precision_score

from volumediff.anomaly._filters import dilate, inside_quantile, smooth
from volumediff.anomaly.editing.class_contrast import ClassContrast
from volumediff.anomaly.editing.inpaint import Inpaint
from volumediff.anomaly.editing.resample import Resample
from volumediff.anomaly.editing.stitch import Stitch
from volumediff.anomaly.ensemble import GeometricMean
from volumediff.anomaly.maps.l2 import L2
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.cycle import Cycle
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.flow_scan import FlowScan
from volumediff.anomaly.routes.fuse import Fuse
from volumediff.anomaly.routes.grid import GridRoute
from volumediff.anomaly.routes.inversion import Inversion
from volumediff.anomaly.routes.kl import KLRoute
from volumediff.anomaly.routes.masks import Masks
from volumediff.anomaly.routes.saliency import Saliency
from volumediff.anomaly.routes.scan import Scan
from volumediff.anomaly.routes.selective import Selective
from volumediff.anomaly.routes.shrink import Shrink
from volumediff.anomaly.score import ClassifierScore
from volumediff.anomaly.selectors import FoundSelector, Given
from volumediff.anomaly.threshold import Fixed
from volumediff.calibration.collect_maps import fit, validate
from volumediff.classification import ClassPosterior
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
from volumediff.recipes.modality_cycle import ModalityCycle
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
    return row._context(model, example, key=key_of(1, "run", 0, 0), prior=None)


def region_chain(row, context, m, level):
    """The chain that redraws m, written out."""
    z_t = context.noised(context.encode(context.x), level)
    state_mask = context.model.space.mask(m)
    own = context.encode(context.x)

    def hook(ctx):
        return state_mask * ctx.prediction.x0 + (1 - state_mask) * own, ctx.z_t

    times = row.sampler.times(context.schedule, start=level)
    z = row.sampler.sample(
        context.denoise, context.model.kernel, z_t, times, noise=context.noise, on_x0=hook
    )
    return context.decode(z)


# grid


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_one_box_is_the_plain_chain(space):
    model = wiener(space(), correlation=1.5)
    x = lesion_volume(model)
    plain = Localizer(route=Diffuse(level=0.5), sampler=Ancestral(4))
    grid = replace(plain, route=GridRoute(level=0.5, box_mm=400.0))
    a, b = run(plain, model, x), run(grid, model, x)
    torch.testing.assert_close(b.pseudo_healthy, a.pseudo_healthy, atol=1e-5, rtol=0)
    torch.testing.assert_close(b.map, a.map, atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_boxes_change_nothing_where_voxels_do_not_know_of_each_other(space):
    model = wiener(space())
    x = lesion_volume(model)
    plain = Localizer(route=Diffuse(level=0.5), sampler=Ancestral(4))
    grid = replace(plain, route=GridRoute(level=0.5, box_mm=9.0, overlap_mm=3.0))
    a, b = run(plain, model, x, inside=ALL), run(grid, model, x, inside=ALL)
    torch.testing.assert_close(b.pseudo_healthy, a.pseudo_healthy, atol=1e-5, rtol=0)


def test_boxes_are_redrawn_from_the_patients_own_surroundings():
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    inside = INSIDE.clone()
    inside[..., 6:, :] = False  # no box of the second half has foreground
    row = Localizer(route=GridRoute(level=0.5, box_mm=12.0), sampler=Ancestral(3))
    got = run(row, model, x, inside=inside).pseudo_healthy
    context = scene_of(row, model, x, inside)
    # 8 x 12 x 8 voxels of 2 mm in boxes of 6: two per axis, of which two axes overlap
    total, weight = torch.zeros_like(x), torch.zeros_like(x)
    for d in (0, 2):
        for w in (0, 2):
            m = torch.zeros_like(x)
            m[..., d : d + 6, 0:6, w : w + 6] = 1
            total += m * region_chain(row, context, m, 0.5)
            weight += m
    expected = torch.where(weight > 0, total / weight.clamp(min=1), x)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert torch.equal(got[..., 6:, :], x[..., 6:, :])
    with pytest.raises(ValueError, match="expected overlap_mm below box_mm"):
        GridRoute(level=0.5, box_mm=4.0, overlap_mm=4.0)


# shrink


def test_the_mask_shrinks_to_its_fixed_point():
    model = wiener(correlation=2.0)
    x = lesion_volume(model)
    row = Localizer(route=Shrink(level=0.6, quantile=0.7, passes=8, stop=0.05), sampler=DDIM(4))
    got = run(row, model, x)
    context = scene_of(row, model, x)
    m, first_threshold, masks = INSIDE, None, []
    for _ in range(8):
        healthy = region_chain(row, context, m.float(), 0.6)
        masks.append(m)
        a = (x - healthy).abs() * INSIDE
        first_threshold = (
            inside_quantile(a, 0.7, foreground=INSIDE)
            if first_threshold is None
            else first_threshold
        )
        smaller = m & (a > first_threshold)
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
        editing=Inpaint(Given(), resampling=2),
    )
    a, b = (run(row, model, v, region=blob()).pseudo_healthy for v in (x, other))
    # the level leaves a trace of exp(-4.5) of what was inside
    assert float((a - b)[blob()].abs().max()) < 0.05
    assert torch.equal(a[~blob()], x[~blob()])
    assert float((a - x)[blob()].abs().mean()) > 0.2
    wide = replace(row, editing=Inpaint(Given(dilate_mm=2.0)))
    c = run(wide, model, x, region=blob()).pseudo_healthy
    grown = dilate(blob().float(), radius_mm=2.0, spacing_mm=SPACING).bool()
    assert torch.equal(c[~grown], x[~grown])
    assert not torch.equal(c[grown & ~blob()], x[grown & ~blob()])
    with pytest.raises(ValueError, match="selector given: expected a region to redraw, got none"):
        run(row, model, x)


def test_inpainting_redraws_what_the_first_pass_found():
    model = wiener(correlation=1.5)
    x = lesion_volume(model)
    first = Localizer(route=Scan(levels=(0.6,)))
    row = Localizer(
        first=first,
        route=Diffuse(level=0.9),  # above the first pass's: allowed, unlike for stitch
        sampler=Ancestral(4),
        editing=Inpaint(FoundSelector(quantile=0.9, dilate_mm=2.0), resampling=2),
    )
    got = run(row, model, x)
    a = got.trace["first/map"]
    top = (a > inside_quantile(a, 0.9, foreground=INSIDE)) & INSIDE
    m = dilate(top.float(), radius_mm=2.0, spacing_mm=SPACING).bool()
    assert torch.equal(got.trace["inpaint/mask"], m)
    assert torch.equal(got.pseudo_healthy[~m], x[~m])
    torch.testing.assert_close(got.map, (x - got.pseudo_healthy).abs() * INSIDE)
    with pytest.raises(ValueError, match="quantile: expected a share"):
        FoundSelector(quantile=1.0)


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
        editing=Inpaint(Given()),
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


class Knows(Recorder):
    """Halves what it sees, and says where noise is."""

    def __init__(self, channels, noisy):
        super().__init__(channels)
        self.noisy = noisy

    def body(self, x, e):
        self.seen.append(x)
        return torch.cat([x / 2, self.noisy(x)], 1)


PREDICTS = LocalNoise(mask_loss=0.1)


@pytest.mark.parametrize("name", SPACES)
def test_only_what_is_predicted_as_noise_is_denoised_and_the_rest_stays_bit_for_bit(name):
    space = SPACES[name]()
    k, inside = space.channels(1), space.mask(INSIDE.float()) > 0
    m = torch.zeros(inside.shape, dtype=torch.bool)
    m[..., 1:3, 1:3, 1:2] = True
    m[..., :1, :1, :1] = True  # for voxels that is no foreground
    model = Model(space, KERNEL, Knows(k, lambda x: m * 2.0 - 1), recipe=PREDICTS)
    x = normal((1, 1, *SHAPE), 3)
    row = Localizer(recipe=LocalNoise, route=Selective(levels=(0.3, 0.6)))
    got = run(row, model, x)
    z_0 = z = space.encode(x)
    levels = torch.tensor([0.6, 0.3, 0.0], dtype=torch.float64)
    alphas, sigmas = (a.float() for a in KERNEL.schedule(levels))
    touched = (m & inside).expand_as(z)
    assert 0 < int(touched.sum()) < z.numel() / 2
    assert len(model.network.seen) == 2
    for i, state in enumerate(model.network.seen):
        torch.testing.assert_close(state, z)
        assert torch.equal(state[~touched], z_0[~touched])
        eps = (z - alphas[i] * z / 2) / sigmas[i]
        z = torch.where(touched, alphas[i + 1] * z / 2 + sigmas[i + 1] * eps, z)
    assert torch.equal(model.network.seen[0], z_0), "nothing is added"
    assert not torch.isclose(model.network.seen[1], z_0)[touched].any()
    expected = space.decode(z, SHAPE)
    torch.testing.assert_close(got.pseudo_healthy, expected, atol=1e-5, rtol=0)
    if name == "voxel":
        assert torch.equal(got.pseudo_healthy == x, ~(m & inside))
    # the residual, without what the space itself loses, and the deviation of the state
    first = (x - expected).abs() * INSIDE
    if not space.exact:
        first = (first - (x - space.decode(z_0, SHAPE)).abs() * INSIDE).clamp(min=0)
    context = scene_of(row, model, x)
    second = context.voxels((z - z_0).abs().mean(1, keepdim=True))
    torch.testing.assert_close(got.map, (first + second) / 2, atol=1e-5, rtol=0)
    if name == "voxel":
        torch.testing.assert_close(second, first)
    share = context.voxels((m & inside).float())
    torch.testing.assert_close(got.trace["selective/denoised"], share)


def test_where_noise_is_is_asked_again_at_every_level():
    """What has become small enough on the way is taken for clean, and left where it is."""

    class Wary(Recorder):
        """Takes everything beyond 1 for noise, and says 0 there."""

        def body(self, x, e):
            return torch.cat([torch.zeros_like(x), x.abs() - 1], 1)

    model = Model(Voxel(), KERNEL, Wary(), recipe=PREDICTS)
    x = torch.where(blob(), 3.0, 0.5 * torch.ones(1, 1, *SHAPE))
    high, low = KERNEL.schedule(torch.tensor([0.9, 0.1], dtype=torch.float64))[1].tolist()
    assert 3 * low / high < 1
    row = Localizer(recipe=LocalNoise, route=Selective(levels=(0.9, 0.1)))
    got = run(row, model, x).pseudo_healthy
    torch.testing.assert_close(got, torch.where(blob(), 3 * low / high, x))
    row = replace(row, route=Selective(levels=(0.9, 0.8)))  # still noise at the second level
    torch.testing.assert_close(run(row, model, x).pseudo_healthy, torch.where(blob(), 0.0, x))


def test_a_network_that_does_not_say_where_noise_is_has_no_such_route():
    row = Localizer(recipe=LocalNoise, route=Selective(levels=(0.5,)))
    with pytest.raises(ValueError, match=r"route selective: .*train with recipe.mask_loss=0.1"):
        row.check(Model(Voxel(), KERNEL, Recorder(), recipe=LocalNoise()))


# cycles


class Joint(Network):
    r"""Volumes of two channels, x = Σ_r c_r B_r + τ ε with c ~ N(0, I) and τ small.

    The conditional mean of c, and with it of x, given z_t and what is shown of one channel is that
    of Bayesian least squares.
    """

    def __init__(self, rank=5, tau=1e-3):
        super().__init__(2, 2, image_channels=3)
        parts = [F.interpolate(normal((rank, 2, 2, 3, 2), 5), SHAPE, mode="trilinear")]
        self.basis, self.tau, self.asked = parts[0].double(), tau, []

    @property
    def stride(self):
        return 1, 1, 1

    def body(self, x, e):
        return x

    def volume(self, c):
        return torch.einsum("r,rcdhw->cdhw", c, self.basis)[None].float()

    def forward(self, z_t, t, condition=None):
        hint, hidden = condition.image[0, :2].double(), condition.image[0, 2:].double()
        channel = hint.flatten(1).abs().sum(1).argmax()
        self.asked.append((float(t), int(channel), condition.image.clone()))
        seen = torch.zeros_like(hint)
        seen[channel] = 1 - hidden[0]
        alpha, sigma = (float(a) for a in TERMINAL.schedule(t.double()))
        rows = self.basis.flatten(1)
        shown = rows * seen.flatten()
        precision = torch.eye(len(rows)) + alpha**2 / sigma**2 * rows @ rows.T
        precision = precision + shown @ shown.T / self.tau**2
        right = alpha / sigma**2 * rows @ z_t[0].double().flatten()
        right = right + shown @ hint.flatten() / self.tau**2
        return self.volume(torch.linalg.solve(precision, right)).to(z_t)


def cycled(model, x, *, count=6, steps=3):
    row = Localizer(
        recipe=ModalityCycle,
        route=Cycle(region=Slabs(6.0, 4.0), count=count),
        sampler=DDIM(steps),
        map=L2(),
    )
    context = scene_of(row, model, x)
    regions = [
        row.route.region(INSIDE[0], spacing_mm=SPACING, key=key_of(context.key, "mask", i))[None]
        for i in range(count)
    ]
    return run(row, model, x), regions


@pytest.mark.parametrize("source", [0, 1])
def test_a_cycle_returns_healthy_tissue_and_leaves_the_lesion_of_one_channel(source):
    network = Joint()
    recipe = ModalityCycle(source=source, through=1 - source)
    model = Model(Voxel(), TERMINAL, network, recipe=recipe)
    x = network.volume(normal((5,), 6).double())
    got, regions = cycled(model, x)
    assert float(x.square().mean()) > 0.1
    assert float(got.map.max()) < 1e-4
    torch.testing.assert_close(got.pseudo_healthy, x, atol=1e-2, rtol=0)
    # a lesion of the source: the least squares of what is shown, and nothing else
    sick = x.clone()
    sick[:, source] += 2.0 * blob()[0]
    got, regions = cycled(model, sick)
    b = network.basis[:, source].flatten(1).T
    y, total, weight = sick[0, source].double().flatten(), torch.zeros(SHAPE), torch.zeros(SHAPE)
    for m in regions:
        open_ = ~m.flatten()
        c = torch.linalg.lstsq(b[open_], y[open_, None]).solution
        residual = (y - (b @ c)[:, 0]).view(SHAPE).float()
        total += m[0, 0] * residual.square() / 2  # the mean over two channels
        weight += m[0, 0]
    expected = total / weight.clamp(min=1) * INSIDE[0, 0]
    torch.testing.assert_close(got.map[0, 0], expected, atol=2e-3, rtol=2e-3)
    assert float(got.map[blob()].mean()) > 5 * float(got.map[~blob()].mean())


def test_nothing_of_the_other_channel_is_looked_at():
    network = Joint()
    model = Model(Voxel(), TERMINAL, network, recipe=ModalityCycle())
    x = network.volume(normal((5,), 6).double())
    got, regions = cycled(model, x, count=4, steps=3)
    calls = network.asked.copy()
    network.asked.clear()
    other = torch.cat([x[:, :1], normal((1, 1, *SHAPE), 9)], 1)
    again, _ = cycled(model, other, count=4, steps=3)
    assert torch.equal(again.map, got.map)
    assert torch.equal(again.pseudo_healthy[:, :1], got.pseudo_healthy[:, :1])
    assert torch.equal(again.pseudo_healthy[:, 1:], other[:, 1:])
    # forth in three steps with a region hidden, back in one with nothing hidden
    assert len(calls) == 4 * (3 + 1)
    for i, m in enumerate(regions):
        forth, (t, channel, image) = calls[4 * i : 4 * i + 3], calls[4 * i + 3]
        for _, shown, told in forth:
            assert shown == 0
            assert torch.equal(told[:, :1], x[:, :1] * ~m)
            assert torch.equal(told[:, 2:], m.float())
        assert forth[0][0] == 1
        assert (t, channel) == (1.0, 1)
        assert not bool(image[:, [0, 2]].any())


def test_the_way_back_is_the_mean_and_where_no_region_was_is_nothing():
    class Correlated(Recorder):
        """Each channel is half of the other one; 2 in both where nothing is shown."""

        def body(self, x, e):
            first, second = x[:, 2:3], x[:, 3:4]
            return torch.cat([first + second / 2, second + first / 2], 1) + 2 * x[:, 4:]

    model = Model(Voxel(), TERMINAL, Correlated(2, image_channels=3), recipe=ModalityCycle())
    x = normal((1, 2, *SHAPE), 4)
    got, regions = cycled(model, x, count=2, steps=1)
    hidden = torch.stack(regions).any(0)
    assert bool((~hidden & INSIDE).any())
    # in the region nothing is known: 2 forth, half of it back
    own = x[:, :1]
    torch.testing.assert_close(got.map, (own - 1).square() / 2 * (hidden & INSIDE))
    torch.testing.assert_close(got.pseudo_healthy[:, :1], torch.where(hidden, 1.0, own))
    with pytest.raises(
        ValueError, match="expected a checkpoint of the recipe modality_cycle, got"
    ):
        read_method("mmccd").check(Model(Voxel(), TERMINAL, Recorder(), recipe=Inpainting()))
    with pytest.raises(ValueError, match="count: expected at least 1 region"):
        Cycle(count=0)


def test_a_network_trained_on_local_noise_sees_clean_surroundings_at_every_step():
    model = Model(Voxel(), KERNEL, Recorder(), recipe=LocalNoise())
    x = normal((1, 1, *SHAPE), 2)
    row = Localizer(
        recipe=LocalNoise,
        route=Diffuse(level=0.6),
        sampler=Ancestral(4),
        editing=Inpaint(Given()),
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
        editing=ClassContrast(),
        map=L2(),
    )
    got = run(row, model, x)
    context = scene_of(row, model, x)
    z, parts = context.noised(x, 0.5), []
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
    with pytest.raises(ValueError, match="editing class_contrast: expected a class-conditional"):
        run(row, states(), x)
    third = replace(row, editing=ClassContrast(other=2))
    with pytest.raises(ValueError, match="with a class 2, got one with 2"):
        run(third, model, x)


def test_the_flow_scan_stops_where_the_class_matters_most():
    model, x = labelled(0.5 + 0.3 * normal((1, 1, *SHAPE), 3))
    levels = (0.2, 0.4, 0.6, 0.8, 0.95)
    row = Localizer(
        route=FlowScan(levels=levels),
        sampler=DDIM(1),
        guidance=ClassifierFree(2.0, classes=1),
        map=L2(),
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
    row = read_method(name, overrides=["sampler.steps=6", "post=[]"])
    if name == "grid":
        row = replace(row, route=replace(row.route, box_mm=12.0, overlap_mm=4.0))
    if name == "repaint":
        row = replace(row, editing=Inpaint(FoundSelector(quantile=0.9)))
    model = wiener(correlation=2.0)
    truth = blob()[INSIDE].numpy()

    def mean_ap(volumes):
        maps_of = [run(row, model, x).map[INSIDE].numpy() for x in volumes]
        return sum(average_precision_score(truth, a) for a in maps_of) / len(maps_of)

    sick = mean_ap([lesion_volume(model, seed) for seed in range(4)])
    healthy = mean_ap([model.network.sample(seed) for seed in range(4)])
    assert sick > least
    assert sick > 2 * healthy


# fuse


FIRST = Localizer(route=Scan(levels=(0.3,)))


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_an_empty_mask_is_the_round_trip_and_a_full_one_the_stochastic_chain(space, monkeypatch):
    model = wiener(space(), correlation=1.5)
    x = lesion_volume(model)
    row = Localizer(first=FIRST, route=Fuse(level=0.6), sampler=DDIM(5))

    def with_mask(value):
        monkeypatch.setattr(Fuse, "mask", lambda self, context: torch.full_like(context.x, value))
        return run(row, model, x).pseudo_healthy

    trip = run(Localizer(route=Inversion(level=0.6), sampler=DDIM(5)), model, x)
    torch.testing.assert_close(with_mask(0.0), trip.pseudo_healthy, atol=1e-6, rtol=0)
    context = scene_of(row, model, x)
    times = row.sampler.times(context.schedule, start=0.6)
    z = row.sampler.invert(model.denoise, model.kernel, context.encode(x), times)
    z = Ancestral(5).sample(model.denoise, model.kernel, z, times, noise=context.noise)
    torch.testing.assert_close(with_mask(1.0), context.decode(z), atol=1e-6, rtol=0)


def test_fused_chains_keep_the_round_trip_outside_and_redraw_inside():
    model = wiener()  # voxels that do not know of each other
    x = lesion_volume(model)
    row = Localizer(first=FIRST, route=Fuse(level=0.6, share=0.2), sampler=DDIM(5))
    got = run(row, model, x, inside=ALL)
    m = got.trace["fuse/mask"]
    assert int(m.sum()) == pytest.approx(0.2 * m.numel(), abs=1)
    trip = run(Localizer(route=Inversion(level=0.6), sampler=DDIM(5)), model, x, inside=ALL)
    a, b = got.pseudo_healthy, trip.pseudo_healthy
    torch.testing.assert_close(a[~m], b[~m], atol=1e-6, rtol=0)
    assert float((a[m] - b[m]).abs().median()) > 1e-3
    prior = got.trace["first/map"]
    prior = smooth(prior, sigma_mm=3.0, spacing_mm=SPACING, foreground=ALL)
    assert float(prior[m].min()) > float(prior[~m].max())
    with pytest.raises(ValueError, match="first: expected a first pass exactly where"):
        Localizer(route=Fuse(level=0.6), sampler=DDIM(5))
    with pytest.raises(ValueError, match="route fuse: expected a sampler that can be inverted"):
        Localizer(first=FIRST, route=Fuse(level=0.6), sampler=Ancestral(5))


# saliency


def test_saliency_is_the_norm_of_the_classifiers_gradient():
    model, exact = states(), posterior()
    x = 0.05 + 0.02 * lesion_volume(wiener())
    row = Localizer(route=Saliency(levels=(0.2, 0.5), classifier=exact))
    got = run(row, model, x)
    assert got.pseudo_healthy is None
    context = scene_of(row, model, x)
    total = 0
    for i, level in enumerate((0.2, 0.5)):
        z_t = context.noised(x, level, draw=i)
        alpha, sigma = model.kernel.schedule(context.times(level))
        slope = alpha * 0.5 / (alpha**2 * 0.3**2 + sigma**2)  # of the log-odds, per voxel
        total += float(exact.log_probability(z_t, context.times(level))[0, 1].exp() * slope) / 2
    torch.testing.assert_close(got.map, total * INSIDE, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("space", SPACES)
def test_saliency_is_in_its_place_in_every_space(space):
    model = states(SPACES[space]())
    model.space.shift = torch.zeros(1)
    place = torch.zeros(model.encode(torch.zeros(1, 1, *SHAPE)).shape)
    d, h, w = (2 * n // s for n, s in zip((2, 4, 1), model.space.stride, strict=True))
    if space == "slices":
        d, h, w = w, d, h
    place[0, 0, d, h, w] = 1

    def log_probability(z_t, t):
        odds = (place * z_t).flatten(1).sum(1)
        return torch.log_softmax(torch.stack([odds, -odds], 1), 1)

    seen = ClassPosterior(log_probability, KERNEL.schedule, 2, "one state voxel")
    row = Localizer(route=Saliency(levels=(0.3,), classifier=seen))
    got = run(row, model, torch.zeros(1, 1, *SHAPE), inside=ALL).map
    peak = torch.unravel_index(got.argmax(), got.shape)[2:]
    for found, wanted, s in zip(peak, (4, 8, 2), model.space.stride, strict=True):
        assert wanted <= int(found) < wanted + s, "where the state voxel is"


def test_a_map_from_elsewhere_takes_the_place_of_the_first_pass():
    model = wiener()
    x = lesion_volume(model)
    row = read_method(
        "dif_fuse", overrides=["first={route: external}", "post=[]", "sampler.steps=3"]
    )
    row = replace(row, route=replace(row.route, share=0.1, sigma_mm=0.0))
    brought = torch.rand(1, 1, *SHAPE)
    got = run(row, model, x, saliency=brought)
    top = brought > inside_quantile(brought, 0.9, foreground=INSIDE)
    assert torch.equal(got.trace["fuse/mask"], top & INSIDE)
    assert torch.equal(got.trace["first/map"], brought * INSIDE)
    with pytest.raises(
        ValueError, match="expected a map with the volume, got none; give one as sal"
    ):
        run(row, model, x)


def test_the_score_of_a_classifier_is_the_log_odds_of_disease():
    model, exact = states(), posterior()
    row = Localizer(
        route=Scan(levels=(0.3,)), score=ClassifierScore(classifier=exact), threshold=Fixed(0.1)
    )
    healthy, sick = (torch.full((1, 1, *SHAPE), m) for m in (-0.2, 0.3))
    middle = run(row, model, 0.05 + 0.01 * torch.rand(1, 1, *SHAPE)).score
    assert run(row, model, healthy).score < middle < run(row, model, sick).score
    x = lesion_volume(wiener())
    context = scene_of(row, model, x)
    t = torch.tensor([0.0], dtype=torch.float64)
    t += model.kernel.schedule.time(torch.tensor([3.5], dtype=torch.float64))
    alpha, sigma = (float(a) for a in model.kernel.schedule(t))
    z_t = alpha * x + sigma * context.noise(-1 - 10_000)
    variance = alpha**2 * 0.3**2 + sigma**2
    squares = [((z_t - alpha * m) ** 2).double().sum() / variance / 2 for m in (-0.2, 0.3)]
    assert run(row, model, x).score == pytest.approx(float(squares[0] - squares[1]), rel=1e-3)
    with pytest.raises(ValueError, match="expected a method with runs"):
        row.score(x, foreground=INSIDE)


# kl and resample


@pytest.mark.parametrize("space", [Voxel, Wavelet])
def test_the_kl_map_is_the_divergence_of_the_posteriors(space):
    model = wiener(space(), correlation=1.5).double()
    x = lesion_volume(model).double()
    row = Localizer(route=KLRoute(levels=(0.3, 0.6), steps=100))
    got = run(row, model, x, inside=ALL)
    assert got.pseudo_healthy is None
    context = scene_of(row, model, x, ALL)
    z_0, total = context.encode(x), 0
    for i, level in enumerate((0.3, 0.6)):
        t, s = context.times(level), context.times(level - 0.01)
        z_t = context.noised(z_0, level, draw=i)
        of_q, deviation = KERNEL.posterior(z_0, z_t, t, s)
        of_p, _ = KERNEL.posterior(model.denoise(z_t, t, Condition()).x0, z_t, t, s)
        kl = ((of_q - of_p) ** 2 / (2 * deviation**2)).sum(1, keepdim=True)
        total += context.voxels(kl) / 2
        if space is Voxel:
            torch.testing.assert_close(context.voxels(kl), kl.float(), check_dtype=False)
    torch.testing.assert_close(got.map, total, rtol=1e-4, atol=1e-9, check_dtype=False)
    with pytest.raises(ValueError, match="kl: expected levels"):
        KLRoute()


def test_what_is_redrawn_exceeds_a_quantile_of_the_healthy_maps():
    model = wiener()
    first = Localizer(route=KLRoute(levels=(0.4,)))
    editing = Resample(quantile=0.9, sigma_mm=0.0)
    row = Localizer(first=first, route=Diffuse(level=0.6), editing=editing, sampler=DDIM(3))
    healthy = [Example(model.network.sample(i), INSIDE, SPACING) for i in range(6)]
    calibration = fit(row, model, healthy, seed=0)
    maps = [
        first.find(model, e, key=key_of(key_of(0, "calibration", i), "first")).map[INSIDE]
        for i, e in enumerate(healthy)
    ]
    first_threshold = float(calibration.statistics["first.threshold"])
    assert float((torch.cat(maps) > first_threshold).float().mean()) == pytest.approx(
        0.1, abs=0.01
    )
    x = lesion_volume(model)
    got = run(row, model, x, calibration=calibration)
    m = got.trace["resample/mask"]
    assert torch.equal(m, (got.trace["first/map"] > first_threshold) & INSIDE)
    assert torch.equal(got.pseudo_healthy[~m], x[~m]), "healthy states are the patient's own"
    torch.testing.assert_close(got.map, (x - got.pseudo_healthy).abs() * m, rtol=0, atol=1e-6)
    assert float(got.map[blob() & INSIDE].mean()) > 5 * float(got.map[INSIDE].mean())
    # the same row with the value written out, and the same fingerprint before and after
    fixed = replace(row, editing=replace(editing, threshold=first_threshold))
    assert torch.equal(run(fixed, model, x).map, got.map)
    assert calibration.fingerprint == row.fingerprint
    sick = [Example(x, INSIDE, SPACING, truth=blob())]
    assert validate(calibration, row, model, sick, seed=0).validation_threshold > 0
    with pytest.raises(ValueError, match="editing: expected a calibration on healthy volumes"):
        run(row, model, x)
    with pytest.raises(ValueError, match="expected a method with a pseudo-healthy volume"):
        Localizer(first=first, route=Diffuse(level=0.2), editing=Stitch(), sampler=DDIM(3))


def test_the_class_derivative_is_its_share_of_the_contrast():
    model = states(means=(-0.2, 0.3), classes=2)
    x = lesion_volume(wiener())
    row = Localizer(route=Diffuse(level=0.6), editing=ClassContrast(share=0.05), sampler=DDIM(4))
    whole = replace(row, editing=ClassContrast())
    # predictions of this model are linear in the shares of the classes
    torch.testing.assert_close(run(row, model, x).map, 0.05 * run(whole, model, x).map)
    with pytest.raises(ValueError, match="share: expected a share in"):
        ClassContrast(share=0.0)
