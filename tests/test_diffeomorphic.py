"""Smooth invertible deformations: known fields come back in any contrast, lesions stay."""

import numpy as np
import pytest
import torch

from volumediff.data._fields import exponential, smooth_noise, warp
from volumediff.data.diffeomorphic import (
    Bending,
    bent,
    displacement_of,
    log_jacobian,
    matched,
    velocity_mm,
)

SHAPE, SPACING = (40, 44, 36), (4.0, 4.0, 4.0)
BENDING = Bending()


def scene():
    """A head-sized ellipsoid with two dark ventricles and brighter tissue between."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in SHAPE]
    d, h, w = torch.meshgrid(*axes, indexing="ij")
    r = ((d / 16) ** 2 + (h / 19) ** 2 + (w / 14) ** 2).sqrt()
    x = torch.full(SHAPE, -1.0)
    inside = r < 1
    x[inside] = 0.1
    x[r < 0.75] = 0.6
    for side in (-1, 1):
        x[((d - 3.5 * side) / 2.5) ** 2 + (h / 6) ** 2 + (w / 3) ** 2 < 1] = -0.7
    smooth = torch.nn.functional.avg_pool3d(x[None, None], 3, 1, 1, False, False)[0, 0]
    return smooth, inside


def known_velocity():
    """A smooth field of up to 8 mm."""
    v = smooth_noise((3, *SHAPE), (6.0, 6.0, 6.0), 7, "velocity")
    return 8.0 * v / v.norm(dim=0).max()


def found(moving, fixed, inside, bending=BENDING):
    return velocity_mm(moving, fixed, inside=inside, spacing_mm=SPACING, bending=bending)


def test_a_known_deformation_is_found_and_its_inverse_undoes_it():
    x, inside = scene()
    true = known_velocity()
    y = bent(x[None], true, spacing_mm=SPACING)[0]
    around = bent(inside[None].float(), true, spacing_mm=SPACING)[0] > 0.5
    v = found(x, y, around)
    after = bent(x[None], v, spacing_mm=SPACING)[0]
    before = (x - y)[around].square().mean()
    assert (after - y)[around].square().mean() < 0.2 * before
    back = bent(y[None], -v, spacing_mm=SPACING)[0]
    assert (back - x)[inside].square().mean() < 0.25 * before


def test_exponentials_of_a_field_and_of_its_negative_undo_each_other():
    v = known_velocity() / 4
    there, back = exponential(v), exponential(-v)
    middle = (slice(None), slice(5, -5), slice(5, -5), slice(5, -5))
    assert (there + warp(back, there))[middle].abs().max() < 0.05


@pytest.mark.parametrize("contrast", [lambda x: -x, lambda x: (x - 0.1).abs() * 2 - 1])
def test_another_contrast_is_bent_alike(contrast):
    x, inside = scene()
    y = bent(x[None], known_velocity(), spacing_mm=SPACING)[0]
    v = found(x, contrast(y), inside)
    after = bent(x[None], v, spacing_mm=SPACING)[0]
    assert (after - y)[inside].square().mean() < 0.4 * (x - y)[inside].square().mean()
    same = matched(y, contrast(y), inside=inside)
    assert (same - contrast(y))[inside].abs().mean() < 0.05


def test_equal_volumes_are_not_bent_and_the_result_is_the_same_again():
    x, inside = scene()
    assert displacement_of(found(x, x, inside), spacing_mm=SPACING).norm(dim=0).max() < 0.3
    y = bent(x[None], known_velocity(), spacing_mm=SPACING)[0]
    assert torch.equal(found(x, y, inside), found(x, y, inside))


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.2])
def test_the_jacobian_of_a_scaling_is_its_determinant(scale):
    axes = [torch.arange(n, dtype=torch.float32) * s for n, s in zip(SHAPE, SPACING, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    j = log_jacobian((scale - 1) * places, spacing_mm=SPACING)
    torch.testing.assert_close(j, torch.full_like(j, 3 * np.log(scale)), atol=1e-4, rtol=0)


def test_a_lesion_keeps_its_contrast_and_its_size():
    x, inside = scene()
    y = bent(x[None], known_velocity(), spacing_mm=SPACING)[0]
    lesion = torch.zeros(SHAPE, dtype=torch.bool)
    lesion[24:30, 26:32, 14:20] = True  # 14 ml of tissue
    sick = torch.where(lesion, y - 0.8, y)
    residual = []
    for volume in (y, sick):
        v = found(x, volume, inside)
        residual.append(sick - bent(x[None], v, spacing_mm=SPACING)[0])
    free, own = (r[lesion].mean() for r in residual)
    assert own / free > 0.9  # what the deformation leaves of the contrast
    plain = found(x, sick, inside, Bending(smooth_mm=4.0, robust=float("inf")))
    robust = found(x, sick, inside)
    shrunk = [
        log_jacobian(displacement_of(v, spacing_mm=SPACING), spacing_mm=SPACING)[0][lesion]
        for v in (plain, robust)
    ]
    assert shrunk[1].abs().mean() < shrunk[0].abs().mean()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="expected positive smooth_mm"):
        Bending(smooth_mm=0.0)
    with pytest.raises(ValueError, match="as many iterations"):
        Bending(levels_mm=(4.0,), iterations=(10, 10))
