"""Limits of an autoencoder: known errors and spheres of codecs that are known exactly."""

import math

import pytest
import torch
import torch.nn.functional as F

from volumediff.inference.codec_limits import COPIES, DIAMETERS_MM, codec_limits

SPACING = (2.0, 2.0, 2.0)
SIZE = (48, 48, 48)


def volume(seed=0):
    """Noise in a ball, -1 around it."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SIZE], indexing="ij")
    inside = sum(a**2 for a in axes)[None, None] < 0.95
    noise = 0.2 * torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(seed))
    return torch.where(inside, noise, -1.0), inside


def limits(back, *, key=1):
    x, inside = volume()
    return codec_limits(back, x, foreground=inside, spacing_mm=SPACING, key=key)


def pooled(x, width):
    """Means of cells, and nothing within them."""
    return F.interpolate(F.avg_pool3d(x, width), scale_factor=width, mode="nearest")


def test_errors_are_those_of_the_foreground():
    _, inside = volume()
    found = limits(lambda v: v + 0.1 * inside)
    assert found.mean_absolute_error == pytest.approx(0.1, abs=1e-6)
    assert found.psnr_db == pytest.approx(10 * math.log10(4 / 0.01), abs=1e-3)
    # a shift keeps every lesion
    assert [s.dice for s in found.spheres] == [1.0] * len(found.spheres)
    assert found.warnings == []


def test_spheres_have_the_volume_of_spheres_and_places_follow_from_the_key():
    found = limits(lambda v: v)
    assert [s.diameter_mm for s in found.spheres] == [
        d for d in DIAMETERS_MM if d in {s.diameter_mm for s in found.spheres}
    ]
    for sphere in found.spheres:
        assert 1 <= sphere.spheres <= COPIES
        if sphere.diameter_mm >= 12:
            exact = math.pi / 6 * sphere.diameter_mm**3 / 1000
            assert sphere.volume_ml == pytest.approx(exact, rel=0.1)

    def lossy(v):
        return pooled(v, 6)

    again = limits(lossy).facts()
    assert limits(lossy).facts() == again
    assert limits(lossy, key=2).facts() != again


def test_a_codec_that_forgets_small_lesions_says_so():
    """What is smaller than a cell of 8 mm is spread over it, and falls below half."""
    fine = limits(lambda v: pooled(v, 2))
    coarse = limits(lambda v: pooled(v, 4))
    assert fine.smallest.diameter_mm < coarse.smallest.diameter_mm
    by_size = {s.diameter_mm: s.dice for s in coarse.spheres}
    assert by_size[20.0] > 0.7
    assert by_size[3.0] == 0.0  # one voxel of 64
    (line,) = coarse.warnings
    assert f"from {coarse.smallest.diameter_mm:g} mm" in line
    assert coarse.facts()["smallest_ml"] == coarse.smallest.volume_ml
    nothing = limits(lambda v: torch.zeros_like(v))
    assert nothing.smallest is None
    assert nothing.facts()["smallest_ml"] is None
    assert "keeps no lesion of up to" in nothing.warnings[0]
