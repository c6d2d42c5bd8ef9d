"""Lesions shaped by a flow: each piece against what its docstring says."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from drawn_heads import SPACING, STRUCTURES, head

from volumediff import randomness
from volumediff.data.contrasts import TissueContrast
from volumediff.data.corruptions import fluid
from volumediff.data.corruptions._place import box
from volumediff.data.corruptions.fluid import Fluid, divergence_free
from volumediff.data.drawing import Drawing

T1 = TissueContrast(deviation=(0.0, 0.0))
FLAIR = TissueContrast(fluid=(0.05, 0.15), white=(0.4, 0.5), grey=(1.3, 1.6), deviation=(0.0, 0.0))
# one lesion, always of the usual sign, and nothing else
PLAIN = Fluid(
    count=(1, 1),
    volume_ml=(3.0, 3.0),
    erased=(0.0, 0.0),
    texture=0.0,
    usual=1.0,
    core=0.0,
    push_mm=0.0,
    vessels=0.0,
)


@cache
def brain(contrast=T1, key=5):
    """A volume in [-1, 1] and its foreground, without fluid around the brain."""
    _, indices = head()
    drawing = Drawing(ventricles_mm=0.0, thinning=0.0, rim=0.0)
    signal, inside = drawing(indices, STRUCTURES, contrast=contrast, spacing_mm=SPACING, key=key)
    return torch.where(inside, 2 * signal.clamp(0, 1) - 1, -1.0), inside


def applied(corruption, x, inside, key):
    return corruption(x, inside, donor=lambda k: x, spacing_mm=SPACING, key=key)


def central(v, axis, step):
    return (v.roll(-1, axis) - v.roll(1, axis)) / (2 * step)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 3.0)])
def test_the_flow_has_no_divergence(spacing):
    v = divergence_free((20, 24, 18), 8.0, spacing, 3)
    assert v.shape == (3, 20, 24, 18)
    slopes = [central(v[i], i, mm)[1:-1, 1:-1, 1:-1] for i, mm in enumerate(spacing)]
    size = max(float(s.abs().max()) for s in slopes)
    assert float(sum(slopes).abs().max()) < 1e-4 * size
    assert float(v.square().sum(0).mean()) == pytest.approx(1.0, rel=1e-4)
    assert not torch.equal(v, divergence_free((20, 24, 18), 8.0, spacing, 4))


@pytest.mark.parametrize("key", range(3))
def test_the_flow_keeps_the_volume_of_the_ball(key):
    """To what a grid of voxels shows; a flow with divergence would not."""
    radius, spacing = 9.0, (1.0, 1.0, 1.0)
    shape, centre = (64, 64, 64), (32, 32, 32)
    window = box(shape, centre, [31.0] * 3)
    p = Fluid(transport=1.5)._shape(window, centre, radius, 1.5, spacing, key)
    still = Fluid(transport=0.0)._shape(window, centre, radius, 1.5, spacing, key)
    ball = 4 / 3 * math.pi * radius**3
    assert float(still.sum()) == pytest.approx(ball, rel=0.01)
    assert float(p.sum()) == pytest.approx(ball, rel=0.06)
    assert float((p - still).abs().sum()) > 0.05 * ball, "the shape is another"
    assert float(p.min()) >= 0
    assert float(p.max()) <= 1 + 1e-5


@pytest.mark.parametrize(("contrast", "sign"), [(T1, -1.0), (FLAIR, 1.0)], ids=["T1w", "FLAIR"])
def test_lesions_are_dark_in_t1w_and_bright_in_flair(contrast, sign):
    x, inside = brain(contrast)
    for key in range(3):
        changed, amount = applied(PLAIN, x, inside, key)
        there = amount[0] > 0.5
        assert bool((sign * (changed - x)[0][there] >= 0).all())
        assert float((sign * (changed - x)[0][there]).mean()) > 0.02
    other = [applied(replace(PLAIN, usual=0.0), x, inside, k)[0] - x for k in range(3)]
    assert all(float(sign * d.sum()) < 0 for d in other)


def test_fluid_in_the_sulci_does_not_make_flair_look_like_t1w():
    """On a coarse grid most voxels of the cortex are darkened by it."""
    _, indices = head()
    shrunken = Drawing(ventricles_mm=0.0, thinning=1.0, rim=0.0, blur=(0.5, 0.5))
    for contrast, sign in ((T1, -1.0), (FLAIR, 1.0)):
        for key in range(4):
            signal, inside = shrunken(
                indices, STRUCTURES, contrast=contrast, spacing_mm=SPACING, key=key
            )
            look = fluid._LesionLook.of(signal.clamp(0, 1), inside, SPACING, None)
            assert look.signs == (sign,), (contrast, key)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sign_that_is_given_holds_in_every_contrast(sign):
    for contrast in (T1, FLAIR):
        x, inside = brain(contrast)
        changed, _ = applied(replace(PLAIN, sign=sign), x, inside, 1)
        assert float(sign * (changed - x).sum()) > 0


def middle(amount):
    """Distance of a lesion's centre from that of the head, whose tissues are shells."""
    place = torch.stack([a.float().mean() for a in (amount[0] > 0.3).nonzero(as_tuple=True)])
    return float((place - 21.5).norm()) * SPACING[0]


def test_lesions_of_white_matter_lie_there_and_near_the_ventricles_if_asked():
    x, inside = brain(FLAIR)
    small = replace(PLAIN, volume_ml=(0.5, 0.5), transport=0.0, change=(0.5, 0.5))
    places = {}
    for name, more in {
        "anywhere": {},
        "white": {"white_matter": 1.0},
        "near": {"white_matter": 1.0, "periventricular": 1.0},
    }.items():
        made = replace(small, **more)
        places[name] = [middle(applied(made, x, inside, key)[1]) for key in range(8)]
    # white matter from 11 to 28 mm, cortex to 36 mm
    assert max(places["anywhere"]) > 29 or min(places["anywhere"]) < 9
    assert all(9 < r < 29 for r in places["white"])
    assert max(places["white"]) > 20
    assert all(9 < r < 20 for r in places["near"])


def test_a_lesion_has_the_volume_that_was_drawn():
    x, inside = brain()
    asked = replace(PLAIN, change=(0.5, 0.5), volume_ml=(6.0, 6.0), edge_mm=(1.0, 1.0))
    sizes = []
    for key in range(8):
        _, amount = applied(asked, x, inside, key)
        sizes.append(float(amount.sum()) * math.prod(SPACING) / 1000)
    # what leaves the brain is lost, and voxels that look alike after it are not marked
    assert max(sizes) < 6.5
    assert sorted(sizes)[-3] > 4.5


def test_the_change_is_in_units_of_the_range_of_the_volume():
    x, inside = brain()
    fixed = replace(PLAIN, change=(0.3, 0.3), edge_mm=(0.0, 0.0), transport=0.0)
    levels = ((x + 1) / 2)[inside][::7]
    low, high = levels.quantile(torch.tensor([0.05, 0.95]))
    changed, amount = applied(fixed, x, inside, 2)
    full = (amount == 1) & ((changed > -1) & (changed < 1))
    steps = (changed - x)[full] / 2
    assert float(steps.median()) == pytest.approx(-0.3 * float(high - low), rel=1e-3)


def test_a_large_beta_wipes_the_anatomy_out():
    x, inside = brain()
    spread = []
    for erased in (0.0, 1.0):
        made = replace(PLAIN, erased=(erased, erased), volume_ml=(20.0, 20.0), change=(0.1, 0.1))
        changed, amount = applied(made, x, inside, 4)
        spread.append(float(changed[amount > 0.95].std()))
    assert spread[1] < 0.1 * spread[0]


@pytest.mark.parametrize("key", range(4))
def test_mass_effect_moves_tissue_away_by_at_most_what_was_asked(key):
    """A marked point moves along the radius, outwards, and far ones stay."""
    shape, centre, radius, push = (61, 61, 61), (30, 30, 30), 10.0, 5.0
    inside = torch.zeros((1, *shape), dtype=torch.bool)
    inside[:, 2:-2, 2:-2, 2:-2] = True
    at = 30 + 6 + 2 * key  # voxels, 1 mm each
    point = torch.zeros((1, *shape))
    point[0, at - 1 : at + 2, 29:32, 29:32] = 1.0
    spacing = (1.0, 1.0, 1.0)
    moved, amount = fluid._pushed(point, point, inside, centre, radius, push, spacing)
    axis = torch.arange(61.0)
    place = float((moved[0].sum((1, 2)) * axis).sum() / moved.sum())
    assert 0.5 < place - at < push + 0.1
    torch.testing.assert_close(moved, amount)
    far = torch.zeros((1, *shape))
    far[0, 30 + 29, 30, 30] = 1.0
    assert float(fluid._pushed(far, far, inside, centre, radius, push, spacing)[0][far > 0]) > 0.9


def test_mass_effect_is_nothing_for_small_lesions_and_no_lesion_by_itself():
    x, inside = brain()
    for volume, moves in ((3.0, False), (20.0, True)):
        still = replace(PLAIN, volume_ml=(volume, volume))
        pushed = replace(still, push_mm=8.0)
        a, b = applied(still, x, inside, 1), applied(pushed, x, inside, 1)
        assert torch.equal(a[0], b[0]) is not moves
    beyond = (b[1] == 0) & (b[0] != x)
    assert bool(beyond.any()), "tissue is moved where the amount is 0"


def test_vessels_are_bright_at_the_border_and_no_lesion():
    x, inside = brain()
    none = replace(PLAIN, volume_ml=(1e-4, 1e-4), vessels=1.0)
    found = 0
    for key in range(3):
        bare, _ = applied(replace(none, vessels=0.0), x, inside, key)
        changed, amount = applied(none, x, inside, key)
        vessel = (changed - bare) > 0.05
        found += int(vessel.sum())
        assert bool((changed - bare >= -1e-6).all()), "they only brighten"
        assert float(amount[vessel].sum()) < 1
        assert not bool((vessel & ~inside).any())
        radius = torch.linalg.norm(vessel[0].nonzero() * 2.0 - 43.0, dim=1)
        assert len(radius) == 0 or float(radius.median()) > 28.0
    assert found > 300


def test_vessels_come_as_often_as_asked():
    x, inside = brain()
    small = replace(PLAIN, volume_ml=(1e-4, 1e-4), vessels=0.3)
    none = replace(small, vessels=0.0)
    often = sum(
        not torch.equal(applied(small, x, inside, k)[0], applied(none, x, inside, k)[0])
        for k in range(8)
    )
    expected = sum(randomness.uniform(k, "vessels") < 0.3 for k in range(8))
    assert often == expected


def test_a_core_looks_different_within_large_lesions():
    x, inside = brain()
    whole = replace(PLAIN, volume_ml=(20.0, 20.0), erased=(1.0, 1.0), core=1.0)
    cores = 0
    for key in range(4):
        plain, _ = applied(replace(whole, core=0.0), x, inside, key)
        cored, amount = applied(whole, x, inside, key)
        different = (plain - cored).abs() > 0.02
        cores += bool(different.any())
        # a core may undo the change; what looks as healthy as before is not marked
        unmarked = different & (amount == 0)
        assert float((cored - x)[unmarked].abs().mean() if unmarked.any() else 0.0) < 0.08
        assert float(different.sum()) < 0.5 * float((amount > 0.5).sum())
    assert cores >= 3


def test_oedema_is_a_soft_border_of_the_width_that_was_drawn():
    """Across an edge softened by a Gaussian of σ, P falls from .84 to .16 within 2 σ."""
    shape, centre, spacing = (61, 61, 61), (30, 30, 30), (1.0, 1.0, 1.0)
    window = box(shape, centre, [30.0] * 3)
    made = Fluid(transport=0.0)
    for edge in (1.5, 3.0):
        p = made._shape(window, centre, 15.0, edge, spacing, 0)[0, 30:, 30, 30]
        places = [float((p > level).sum()) for level in (0.84, 0.16)]
        assert places[1] - places[0] == pytest.approx(2 * edge, abs=1.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"volume_ml": (5.0, 1.0)}, "volume_ml: expected two numbers in"),
        ({"count": (0, 2)}, "count: expected two ascending numbers from 1 on"),
        ({"usual": 1.5}, r"usual: expected a share in \[0, 1\], got 1.5"),
        ({"push_mm": -1.0}, "push_mm: expected at least 0, got -1"),
        ({"change": (0.0, 0.5)}, "change: expected two numbers in"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Fluid(**options)
