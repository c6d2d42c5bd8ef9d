"""Corruptions: what every one of them keeps, and each against its formula."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lesion_masks import MASKS

from volumediff.config import available, build
from volumediff.data import anomalies, corruptions
from volumediff.data.corruptions import Corruption
from volumediff.data.corruptions._place import box, foreign
from volumediff.data.corruptions._poisson import blended, grown
from volumediff.data.corruptions.coarse import Coarse
from volumediff.data.corruptions.disentangled import Disentangled, drawn_levels, in_range
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.data.corruptions.mixture import Mixture
from volumediff.data.corruptions.mood import KINDS, Mood
from volumediff.data.corruptions.natural_patch import NaturalPatch
from volumediff.data.corruptions.poisson_patch import PoissonPatch
from volumediff.data.corruptions.texture_patch import TexturePatch
from volumediff.errors import UsageError

SPACING = (2.0, 2.0, 2.0)
SPECS = {name: {"name": name} for name in available("corruption")}
SPECS["pasted"] |= {"masks": str(MASKS)}
SPECS["mixture"] = {"name": "mixture", "of": ["coarse", {"name": "mood", "kinds": ["noise"]}]}


def scene(shape=(1, 14, 16, 12), seed=0, dtype=torch.float32):
    """A volume, its foreground and a donor; both keep away from -1 and 1."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand((2, *shape), generator=g, dtype=torch.float64).to(dtype) * 1.6 - 0.8
    foreground = torch.zeros((1, *shape[1:]), dtype=torch.bool)
    edge = [slice(1, -1) if n > 2 else slice(None) for n in shape[1:]]
    foreground[:, edge[0], edge[1], edge[2]] = True
    foreground[:, shape[1] // 2, : shape[2] // 2] = False  # not convex
    return x, foreground, y


def run(corruption, x, foreground, donor, key, spacing_mm=SPACING):
    return corruption(x, foreground, donor=lambda k: donor, spacing_mm=spacing_mm, key=key)


def one(spec, key=3, **kwargs):
    x, foreground, y = scene(**kwargs)
    return x, foreground, y, *run(build("corruption", spec), x, foreground, y, key)


@pytest.mark.parametrize("name", SPECS)
def test_every_corruption_keeps_the_dtype_and_needs_a_foreground(name):
    *_, changed, amount = one(SPECS[name], dtype=torch.float64)
    assert changed.dtype == amount.dtype == torch.float64
    *_, single, less = one(SPECS[name], dtype=torch.float32)
    torch.testing.assert_close(changed.float(), single, rtol=0, atol=2e-4)
    torch.testing.assert_close(amount.float(), less, rtol=0, atol=5e-3)
    x, foreground, y = scene()
    if name in ("coarse", "bias_field", "mixture"):  # change what there is
        return
    with pytest.raises(ValueError, match="foreground: expected some voxels, got none"):
        run(build("corruption", SPECS[name]), x, torch.zeros_like(foreground), y, 0)


def test_the_generators_of_the_lesions_are_not_used():
    for name in available("corruption"):
        module = type(build("corruption", SPECS[name])).__module__
        source = __import__(module, fromlist=["x"]).__dict__
        taken = {getattr(v, "__module__", "") for v in source.values()}
        assert anomalies.__name__ not in taken
        assert "volumediff.data.lesion_shapes" not in taken
    assert "They share no generator" in corruptions.__doc__


# Poisson


def dense(x, patch, window, weights, foreground):
    """The least-squares problem of the definition, edge by edge, as dense normal equations."""
    around = grown(tuple(x.shape[1:]), window)
    first = [p.start for p in around]
    places = list(itertools.product(*(range(p.start, p.stop) for p in window)))
    index = {place: i for i, place in enumerate(places)}
    rows, right = [], []
    reach = [range(p.start, p.stop) for p in around]
    for axis in range(3):
        if x.shape[axis + 1] <= 2:
            continue
        for p in itertools.product(*reach):
            q = tuple(v + (i == axis) for i, v in enumerate(p))
            if p not in index and q not in index:
                continue
            a = float(x[0][q] - x[0][p])
            u, v = (tuple(i - f for i, f in zip(r, first, strict=True)) for r in (p, q))
            b = float(patch[0][v] - patch[0][u])
            wanted = max(weights[0] * a, weights[1] * b, key=abs)
            if not (foreground[0][p] and foreground[0][q]):
                wanted = a
            row = np.zeros(len(places))
            rest = wanted
            for place, sign in ((q, 1.0), (p, -1.0)):
                if place in index:
                    row[index[place]] = sign
                else:
                    rest -= sign * float(x[0][place])
            rows.append(row)
            right.append(rest)
    solution = np.linalg.lstsq(np.stack(rows), np.array(right), rcond=None)[0]
    expected = x.clone()
    for place, i in index.items():
        expected[0][place] = solution[i]
    return expected


@pytest.mark.parametrize("shape", [(1, 7, 8, 6), (1, 1, 8, 7)], ids=["volume", "slice"])
@pytest.mark.parametrize("weights", [(0.4, 0.6), (1.0, 1.0), (0.0, 1.0)])
def test_blending_solves_the_dense_problem(shape, weights):
    x, foreground, y = scene(shape, dtype=torch.float64)
    size = shape[1:]
    window = box(size, [n // 2 for n in size], [2.0, 2.0, 1.6], margin=1)
    patch = y[(slice(None), *grown(size, window))]
    got = blended(x, patch, window, weights=weights, foreground=foreground)
    torch.testing.assert_close(got, dense(x, patch, window, weights, foreground))
    assert not torch.equal(got, x)


def test_blending_a_patch_with_itself_changes_nothing_and_a_lifted_one_neither():
    x, foreground, _ = scene(dtype=torch.float64)
    window = box((14, 16, 12), (7, 8, 6), (3.0, 3.0, 3.0), margin=1)
    own = x[(slice(None), *grown((14, 16, 12), window))]
    for patch in (own, own + 0.3):  # only differences count
        same = blended(x, patch, window, weights=(0.0, 1.0), foreground=foreground)
        torch.testing.assert_close(same, x, rtol=0, atol=1e-12)
    full = PoissonPatch(factor=(1.0, 1.0))
    changed, amount = run(full, x, foreground, x, 4)
    assert torch.equal(changed, x)
    assert not amount.any()


def test_a_poisson_patch_has_no_seam_and_a_foreign_one_has():
    """A brighter donor: the volume plus 0.4."""
    g = torch.Generator().manual_seed(0)
    x = 0.2 * torch.rand((1, 20, 20, 20), generator=g, dtype=torch.float64) - 0.5
    foreground = torch.ones((1, 20, 20, 20), dtype=torch.bool)
    for cls, seam in ((ForeignPatch, 0.4), (PoissonPatch, 0.0)):
        changed, _ = run(cls((0.2, 0.2), (1.0, 1.0)), x, foreground, x + 0.4, 1)
        assert float((changed - x).abs().max()) == pytest.approx(seam, abs=1e-9)


# FPI, NSA


def test_a_foreign_patch_is_the_weighted_sum():
    x, _, y, changed, amount = one({"name": "foreign_patch"})
    torch.testing.assert_close(changed, (1 - amount) * x + amount * y)
    values = amount.unique()
    assert len(values) == 2
    assert 0.05 <= float(values[1]) <= 0.95


def test_a_resized_patch_is_the_interpolated_donor():
    ramp = torch.arange(10.0).view(1, 10, 1, 1) * torch.ones((1, 10, 8, 8))
    window = (slice(2, 7), slice(3, 5), slice(0, 8))
    got = foreign(ramp, ramp, window, (4, 4, 4), 2.0)
    assert got.shape == (1, 5, 2, 8)
    # half as steep as the donor, which is what twice the size means
    torch.testing.assert_close(got[0, :, 0, 0], torch.tensor([3.0, 3.5, 4.0, 4.5, 5.0]))
    at_the_border = foreign(ramp, ramp, window, (0, 4, 4), 1.0)
    torch.testing.assert_close(at_the_border[0, :, 0, 0], torch.tensor([0.0, 0, 0, 1, 2]))


def test_natural_patches_have_gamma_sides_and_logistic_amounts():
    corruption = NaturalPatch()
    sides = torch.tensor([corruption._side(k, 0, 0) for k in range(600)])
    assert float(sides.min()) >= 0.03
    assert float(sides.max()) <= 0.4 + 1e-6
    assert float(sides.mean()) == pytest.approx(0.03 + 2 * 0.05, abs=0.006)
    assert float(sides.var()) == pytest.approx(2 * 0.05**2, rel=0.2)
    x, _, _, changed, amount = one({"name": "natural_patch"}, shape=(2, 14, 16, 12))
    size = (changed - x).abs().mean(0, keepdim=True)
    there = size > 0
    grey = 127.5 * size[there]
    torch.testing.assert_close(amount[there], 1 / (1 + torch.exp(-(grey - 24) / 12)))
    assert not amount[~there].any()


# DAG


def test_levels_are_drawn_by_their_share_of_the_shape():
    """Bins of [-1, 1]: of 4 bins, the shape has 3 voxels of the first and 1 of the last."""
    x = torch.tensor([-0.9, -0.6, -0.55, 0.8, 0.1, 0.2]).view(1, 1, 1, 6)
    shape = torch.tensor([True, True, True, True, False, False]).view(1, 1, 1, 6)
    flat = torch.zeros((1, 3, 3, 90))  # each value far from the others: smoothing mixes none
    counts = torch.zeros(3)
    for i, value in enumerate((-0.9, 0.8, 0.1)):
        flat[..., 30 * i : 30 * i + 30] = value
    inside = torch.zeros((1, 3, 3, 90), dtype=torch.bool)
    inside[..., :30] = True
    inside[..., 30:40] = True  # 3 to 1
    keys = 400
    for key in range(keys):
        q = drawn_levels(flat, inside, 4, key)[0, 1, 1, [10, 45, 75]]
        assert set(q.round(decimals=3).tolist()) <= {0.0, 1.0}
        counts += q
    # none drawn: all are. P(first) = 3/4, P(last) = 1/4, P(neither) = 1/4 · 3/4
    none = 0.25 * 0.75
    expected = torch.tensor([0.75 + none, 0.25 + none, none])
    torch.testing.assert_close(counts / keys, expected, rtol=0, atol=0.07)
    low = drawn_levels(x, shape, 1, 0)
    torch.testing.assert_close(low, torch.ones_like(low))


def test_texture_takes_the_range_of_the_place():
    y = torch.tensor([0.0, 1.0, 3.0, 9.0]).view(1, 1, 1, 4)
    x = torch.tensor([-0.5, 0.1, 0.5, 0.9]).view(1, 1, 1, 4)
    shape = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    got = in_range(y, x, shape)
    expected = torch.tensor([-0.5, -1 / 6, 0.5])
    torch.testing.assert_close(got[0, 0, 0, :3], expected, rtol=0, atol=1e-3)


def test_texture_and_intensity_come_alone_or_together():
    x, foreground, y = scene(seed=2)
    flat = torch.full_like(x, 0.1)
    bias = Disentangled(bias=(0.3, 0.3), levels=1, chance=1.0)
    changed, amount = run(bias, flat, foreground, y, 1)
    # a flat volume gives the texture no range: what is left is ± 0.3 s
    change = (changed - flat).abs()
    assert float(change.max()) == pytest.approx(0.3, abs=2e-3)
    assert float(amount[0].max()) >= 0.15
    nothing = Disentangled(factor=(0.0, 0.0), bias=(0.0, 0.0), chance=1.0)
    assert torch.equal(run(nothing, x, foreground, y, 1)[0], x)
    rare = Disentangled(chance=0.0)
    assert not torch.equal(run(rare, x, foreground, y, 1)[0], x)


# DAE, MOOD, DRAEM, mixture


def test_coarse_noise_has_its_deviation_everywhere():
    corruption = Coarse(sigma=0.05, cell=5)
    x = torch.zeros((1, 8, 9, 7))
    foreground = torch.ones((1, 8, 9, 7), dtype=torch.bool)
    draws = torch.stack([run(corruption, x, foreground, x, k)[0] for k in range(600)])
    assert float(draws.square().mean().sqrt()) == pytest.approx(0.05, rel=0.03)
    everywhere = draws.square().mean(0).sqrt()
    assert float((everywhere - 0.05).abs().max()) < 0.008
    changed, amount = run(corruption, x, foreground, x, 0)
    torch.testing.assert_close(amount, changed.abs() / 2)
    neighbours = (draws[:, 0, 1] * draws[:, 0, 2]).mean() / 0.05**2
    assert float(neighbours) > 0.6, "coarse"


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_the_challenge_do_what_they_say(kind):
    """On a ramp along the last axis, every kind has its own figure."""
    n = 24
    ramp = torch.linspace(-0.6, 0.6, n).expand(1, n, n, n).contiguous()
    step = 1.2 / (n - 1)
    foreground = torch.ones((1, n, n, n), dtype=torch.bool)
    foreground[:, :7] = foreground[:, -7:] = False
    changed, amount = run(Mood((kind,), (0.25, 0.25)), ramp, foreground, ramp + 0.1, 5)
    change = (changed - ramp)[0]
    where = amount[0] > 0
    if kind == "addition":
        values = change[where & (changed[0].abs() < 1)].abs()
        assert 0.4 <= float(values.min()) <= float(values.max()) <= 0.6 + 1e-6
        assert float(values.max() - values.min()) < 1e-5
    elif kind == "noise":
        assert 0.08 < float(change[where].std()) < 0.65
        assert abs(float(change[where].mean())) < 0.15
    elif kind in ("sink", "source"):
        # along the ramp: flatter in the middle of a source, steeper in that of a sink
        places = where.nonzero()
        d, h, w = places.float().mean(0).round().long().tolist()
        slope = float(changed[0, d, h, w + 1] - changed[0, d, h, w - 1]) / 2 / step
        assert slope < 0.6 if kind == "source" else slope > 1.4
    elif kind == "shift":
        values = change[where & (changed[0].abs() < 0.6)]
        assert float(values.max() - values.min()) < 1e-4
        assert 0 < float(values.abs().max()) <= 2 * 6 * step + 1e-4
    elif kind == "reflection":
        # all along the ramp or, up to rounding, not at all
        sums = (changed + ramp)[0][where & (change.abs() > 1e-4)]
        assert not len(sums) or float(sums.max() - sums.min()) < 1e-4
    elif kind == "interpolation":
        assert float(change.abs().max()) > 0.01
    else:
        assert float(changed[0][where].max() - changed[0][where].min()) < 1e-6
    assert set(amount.unique().tolist()) <= {0.0, 1.0}


def test_textures_cover_the_drawn_share():
    x, foreground, y = scene((1, 20, 22, 18))
    exact = TexturePatch(share=(0.1, 0.1), opacity=(0.5, 0.5), gain=(0.0, 0.0), offset=(0.4, 0.4))
    for key in range(5):
        changed, amount = run(exact, x, foreground, y, key)
        share = float((amount > 0).sum() / foreground.sum())
        assert share == pytest.approx(0.1, abs=0.002)
        there = amount > 0
        torch.testing.assert_close(changed[there], 0.5 * x[there] + 0.2)
        assert set(amount.unique().tolist()) == {0.0, 0.5}


@dataclass(frozen=True)
class Mark(Corruption):
    """Puts a value everywhere."""

    value: float

    def __call__(self, x, foreground, *, donor, spacing_mm, key):
        return torch.full_like(x, self.value), torch.ones_like(x[:1])


def test_a_mixture_draws_each_as_often_as_it_says():
    x, foreground, y = scene((1, 3, 3, 3))
    mixture = Mixture((Mark(0.1), Mark(0.2), Mark(0.3)), weights=(1.0, 2.0, 1.0))
    drawn = [float(run(mixture, x, foreground, y, k)[0].mean()) for k in range(400)]
    counts = torch.histc(torch.tensor(drawn), 3, 0.05, 0.35) / 400
    # three standard deviations of a binomial share
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.5, 0.25]), rtol=0, atol=0.075)
    equal = Mixture((Mark(0.1), Mark(0.2)))
    drawn = [float(run(equal, x, foreground, y, k)[0].mean()) for k in range(400)]
    assert sum(v > 0.15 for v in drawn) == pytest.approx(200, abs=30)


def test_a_mixture_may_be_in_a_mixture():
    inner = Mixture((Coarse(0.1), Coarse(0.2)))
    outer = Mixture((inner, Coarse(0.3)))
    x = torch.zeros((1, 6, 6, 6))
    foreground = torch.ones((1, 6, 6, 6), dtype=torch.bool)
    sizes = [float(run(outer, x, foreground, x, k)[0].std()) for k in range(200)]
    assert np.mean(np.array(sizes) > 0) == 1
    names = build("corruption", {"name": "mixture", "of": [SPECS["mixture"], "mood"]})
    assert names.of[0].of[1] == Mood(("noise",))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "mixture", "of": []}, "of: expected at least one corruption"),
        ({"name": "mixture", "of": ["mod"]}, "name = 'mod'.*Did you mean 'mood'"),
        ({"name": "mixture", "of": ["mood"], "weights": [1.0, 2.0]}, "expected one for each of 1"),
        ({"name": "mixture", "of": ["mood"], "weights": [0.0]}, "expected positive numbers"),
        ({"name": "mood", "kinds": ["sinks"]}, "kinds: expected some of addition, .*got sinks"),
        ({"name": "foreign_patch", "side": [0.3, 0.2]}, "side: expected two numbers in"),
        ({"name": "coarse", "sigma": 0.0}, "expected sigma above 0"),
        ({"name": "natural_patch", "patches": 0}, "expected patches >= 1"),
        ({"name": "disentangled", "levels": 0}, "expected levels >= 1"),
        ({"name": "bias_field", "cell_mm": 0.0}, "cell_mm: expected a positive length"),
        ({"name": "texture_patch", "opacity": [0.5, 2.0]}, "opacity: expected two numbers"),
    ],
)
def test_wrong_arguments_are_named(spec, message):
    with pytest.raises(UsageError, match=message):
        build("corruption", spec)
