import math

import pytest
import torch

from volumediff import randomness
from volumediff.data._fields import gaussian
from volumediff.data.anomalies import (
    FAMILIES,
    KINDS,
    TEST,
    TOLERANCE,
    TRAINING,
    VALIDATION,
    insert,
)
from volumediff.data.lesion_shapes import blob, cuboid, ellipsoid

SPACING = (4.0, 4.0, 4.0)
SHAPE = (24, 28, 22)
LITTLE = 4.0**3 / 1000  # ml per voxel


def ball(radius, centre=(12, 14, 11)):
    p = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing="ij"))
    c = torch.tensor(centre, dtype=torch.float32).view(3, 1, 1, 1)
    return ((p - c).norm(dim=0) <= radius)[None]


@pytest.fixture(scope="module")
def foreground():
    return ball(10)


@pytest.fixture(scope="module")
def x(foreground):
    """Tissue with edges and noise in [-0.6, 0.5], background -1."""
    pattern = gaussian(randomness.normal((1, *SHAPE), "tissue"), (1.5, 1.5, 1.5))
    tissue = torch.where(pattern > 0, 0.3, -0.2)
    tissue = gaussian(tissue, (0.6, 0.6, 0.6)) + 0.03 * randomness.normal((1, *SHAPE), "noise")
    tissue = torch.where(ball(4, (7, 14, 11)), -0.6, tissue)  # fluid
    return torch.where(foreground, tissue, -1.0)


@pytest.fixture(scope="module")
def donor(x):
    return torch.where(x > -1, x.flip(1), -1.0)


def inserted(x, foreground, kind, key, donor, **options):
    return insert(x, foreground, kind=kind, key=key, spacing_mm=SPACING, donor=donor, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_what_changed(x, foreground, donor, kind, family):
    for key in range(3):
        y, m = inserted(x, foreground, kind, key, donor, family=FAMILIES[family])
        change = (y - x).abs()
        assert m.any()
        assert not bool((m & ~foreground).any())
        assert torch.equal(y[~foreground], x[~foreground])
        assert y.amin() >= -1
        assert y.amax() <= 1
        assert change[m].mean() > TOLERANCE
        # Outside the mask nothing is left but what a neighbourhood averages away.
        left = gaussian((y - x), (1.0, 1.0, 1.0)).abs()[~m & foreground]
        assert left.mean() < TOLERANCE / 2
        if kind not in ("mass_effect", "atrophy"):
            shape = FAMILIES[family].shape
            volume = volume_of(FAMILIES[family], key)
            region = shape(foreground, volume, spacing_mm=SPACING, key=key)
            assert torch.equal(y[~region], x[~region])
            assert not bool((m & ~region).any())


def test_a_reflection_mirrors_the_tissue_of_its_shape(x, foreground):
    shape = ball(4)
    y, m = inserted(x, foreground, "reflection", 3, None, shape=shape)
    weight = shape * (2 * gaussian(shape.float(), (3 / 4, 3 / 4, 3 / 4)) - 0.5).clamp(0.5, 1)
    expected = []
    for axis, centre in enumerate((12, 14, 11)):
        index = 2 * centre - torch.arange(SHAPE[axis])
        mirrored = x.index_select(axis + 1, index.clamp(0, SHAPE[axis] - 1))
        expected.append(torch.where(shape, torch.lerp(x, mirrored, weight), x))
    farthest = max(expected, key=lambda v: float((v - x).abs().sum()))
    torch.testing.assert_close(y, farthest)
    assert m.any()


def volume_of(family, key):
    low, high = family.volume_ml
    return low * (high / low) ** randomness.uniform(key, "volume")


@pytest.mark.parametrize("kind", KINDS)
def test_insertion_is_a_function_of_the_key(x, foreground, donor, kind):
    first = inserted(x, foreground, kind, 5, donor)
    torch.manual_seed(0)
    kept = torch.random.get_rng_state()
    again = inserted(x, foreground, kind, 5, donor)
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], inserted(x, foreground, kind, 6, donor)[0])


@pytest.mark.parametrize("shape", [blob, cuboid, ellipsoid])
def test_shapes_have_the_asked_volume_and_are_compact(foreground, shape):
    centres = []
    for key in range(12):
        volume = 1.0 + key
        mask = shape(foreground, volume, spacing_mm=SPACING, key=key)
        assert float(mask.sum()) * LITTLE == pytest.approx(volume, abs=LITTLE / 2 + 1e-6)
        assert not bool((mask & ~foreground).any())
        p = mask[0].nonzero().float() * 4
        centre = p.mean(0)
        centres.append(centre)
        radius = (3000 * volume / (4 * math.pi)) ** (1 / 3)
        # A ball's mean squared distance from its centre is 3/5 R^2; these are at most 2.2 times.
        assert (p - centre).square().sum(1).mean() < 2.2 * 0.6 * radius**2
    assert torch.stack(centres).std(0).min() > 4  # they are not all in one place


def test_blobs_have_lobes_and_ellipsoids_have_none(foreground):
    def filled(mask):
        """Share of the midpoints of pairs of voxels that lie inside: 1 for convex shapes."""
        p = mask[0].nonzero()
        middle = (p[:, None] + p[None]) // 2
        even = ((p[:, None] + p[None]) % 2 == 0).all(-1)
        inside = mask[0][tuple(middle[even].T)]
        return float(inside.float().mean())

    everywhere = torch.ones_like(foreground)
    blobs = [filled(blob(everywhere, 15.0, spacing_mm=SPACING, key=k)) for k in range(10)]
    smooth = [filled(ellipsoid(everywhere, 15.0, spacing_mm=SPACING, key=k)) for k in range(10)]
    assert min(smooth) > 0.999
    assert sum(blobs) / 10 < 0.995


def test_shapes_are_lengths_in_millimetres():
    flat = torch.ones(1, 40, 40, 10, dtype=torch.bool)
    mask = blob(flat, 8.0, spacing_mm=(1.5, 1.5, 6.0), key=1)
    size = mask[0].nonzero()
    extent = (size.amax(0) - size.amin(0) + 1) * torch.tensor([1.5, 1.5, 6.0])
    assert extent.max() / extent.min() < 2.2  # round in space, not in voxels


def test_hyper_and_hypo_have_the_stated_contrast(x, foreground, donor):
    for family in (TEST, VALIDATION):
        low, high = family.contrast
        for key in range(4):
            up, m = inserted(x, foreground, "hyper", key, donor, family=family)
            down, _ = inserted(x, foreground, "hypo", key, donor, family=family)
            raised, free = (up - x)[m], (up < 1)[m]
            assert (up - x).amin() >= 0
            assert (down - x).amax() <= 0
            assert low - 1e-5 <= raised.amax() <= high + 1e-5
            lowered = (x - down)[m & (up < 1) & (down > -1)]
            torch.testing.assert_close(raised[free & (down > -1)[m]], lowered)


def test_texture_keeps_the_local_mean(foreground):
    flat = torch.where(foreground, 0.1, -1.0)
    site = ball(5)
    for key in range(4):
        y, m = inserted(flat, foreground, "texture", key, None, shape=site)
        change = (y - flat)[site]
        low, high = TEST.texture
        assert change.mean().abs() < 0.1 * change.std()
        assert 0.7 * low < change.std() < 1.05 * high
        smooth = gaussian(y - flat, (3.0, 3.0, 3.0))  # 4 grains: what is called the local mean
        assert smooth.abs().max() < 0.25 * change.std()
        assert float((m & site).sum()) > 0.8 * float(site.sum())
    # A brighter lesion of the same size would not pass.
    bright, _ = inserted(flat, foreground, "hyper", 0, None, shape=site)
    assert gaussian(bright - flat, (3.0, 3.0, 3.0)).abs().max() > 0.5 * (bright - flat).max()


def test_mass_effect_displaces_outwards_and_atrophy_inwards(foreground):
    """A marked ball at the shape grows under mass effect and shrinks under atrophy."""
    site = ball(2)
    marked = torch.where(foreground, torch.where(ball(4), 0.4, -0.2), -1.0)
    before = float((marked > 0.1).sum()) * LITTLE
    grown, _ = inserted(marked, foreground, "mass_effect", 1, None, shape=site)
    shrunk, _ = inserted(marked, foreground, "atrophy", 1, None, shape=site)
    after, less = (float((v > 0.1).sum()) * LITTLE for v in (grown, shrunk))
    # 16 mm of radius; a push of 8 to 14 mm at the border of the site displaces millilitres.
    assert after > 1.4 * before
    assert less < 0.75 * before
    # The outside of the brain stays where it is.
    assert bool((grown[foreground] > -0.9).all())
    assert bool((shrunk[foreground] > -0.9).all())


def test_deformations_change_nothing_where_tissue_is_even(foreground):
    even = torch.where(foreground, 0.2, -1.0)
    y, m = inserted(even, foreground, "mass_effect", 2, None, shape=ball(2))
    assert not bool(m.any())
    torch.testing.assert_close(y[ball(6)], even[ball(6)])


def test_cavity_is_filled_with_fluid(x, foreground, donor):
    site = ball(3, (16, 14, 11))
    y, m = inserted(x, foreground, "cavity", 3, donor, shape=site)
    core = ball(1, (16, 14, 11))
    assert y[core].mean() == pytest.approx(-0.6, abs=0.08)
    assert float(m[site].float().mean()) > 0.9


def test_foreign_patch_is_tissue_of_the_donor(x, foreground):
    donor = torch.where(foreground, 0.45, -1.0)
    y, _ = inserted(x, foreground, "foreign_patch", 4, donor, shape=ball(3))
    torch.testing.assert_close(y[ball(1)], torch.full_like(y[ball(1)], 0.45))
    with pytest.raises(ValueError, match="pass another subject as donor"):
        inserted(x, foreground, "foreign_patch", 4, None)


def test_a_given_shape_is_used(x, foreground, donor):
    site = ball(2, (12, 17, 11))
    y, m = inserted(x, foreground, "hypo", 1, donor, shape=site)
    assert torch.equal(m, site)
    assert torch.equal(y[~site], x[~site])
    with pytest.raises(ValueError, match="move the shape"):
        inserted(x, foreground, "hypo", 1, donor, shape=~foreground)


def test_families_have_nothing_in_common():
    families = {"test": TEST, "validation": VALIDATION, "training": TRAINING}
    assert families == FAMILIES
    for part in ("shape", "profile", "grain_mm"):
        assert len({getattr(family, part) for family in FAMILIES.values()}) == 3, part


def test_wrong_requests_are_refused(x, foreground):
    with pytest.raises(ValueError, match="expected one of hyper"):
        insert(x, foreground, kind="hypr", key=0, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="check the mask"):
        insert(x, foreground & False, kind="hyper", key=0, spacing_mm=SPACING)
    with pytest.raises(ValueError, match=r"smaller volume_ml"):
        blob(ball(1), 50.0, spacing_mm=SPACING, key=0)
