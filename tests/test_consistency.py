"""Through-plane consistency: closed forms, slices without and with a common noise, invariances."""

import math

import pytest
import torch

from volumediff.metrics.consistency import through_plane, variation

UNIT = (1.0, 1.0, 1.0)


def ramp(*slopes, shape=(5, 6, 7)):
    axes = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    return sum(s * a for s, a in zip(slopes, axes, strict=True))


def test_ramps_have_the_ratio_of_their_slopes():
    a = ramp(2.0, -3.0, 12.0)
    assert variation(a, spacing_mm=UNIT) == pytest.approx((2, 3, 12))
    assert variation(a, spacing_mm=(2.0, 1.0, 4.0)) == pytest.approx((1, 3, 3))
    assert through_plane(a, spacing_mm=UNIT) == pytest.approx((2 / 7.5, 3 / 7, 12 / 2.5))
    # the same in other units of intensity, anywhere, and with the axes in another order
    assert through_plane(5 * a - 3, spacing_mm=UNIT) == pytest.approx((2 / 7.5, 3 / 7, 12 / 2.5))
    turned = through_plane(a.permute(2, 0, 1), spacing_mm=UNIT)
    assert turned == pytest.approx((12 / 2.5, 2 / 7.5, 3 / 7))


def test_only_pairs_inside_the_foreground_count():
    a, seen = ramp(1.0, 1.0, 1.0), torch.zeros(5, 6, 7, dtype=torch.bool)
    seen[1:4, 1:5, 1:6] = True
    loud = torch.where(seen, a, 1e3 * torch.rand(5, 6, 7, dtype=torch.float64))
    assert variation(loud, foreground=seen, spacing_mm=UNIT) == pytest.approx((1, 1, 1))
    seen[3, 2, 3] = False
    by_hand = []
    for axis in range(3):
        changes = []
        for p in seen.nonzero().tolist():
            q = [v + (i == axis) for i, v in enumerate(p)]
            if q[axis] < a.shape[axis] and seen[tuple(q)]:
                changes.append(abs(float(loud[tuple(q)] - loud[tuple(p)])))
        by_hand.append(sum(changes) / len(changes))
    assert variation(loud, foreground=seen, spacing_mm=UNIT) == pytest.approx(by_hand)


def test_independent_slices_stand_out():
    g = torch.Generator().manual_seed(0)
    white = torch.randn(24, 24, 24, generator=g)
    assert through_plane(white, spacing_mm=UNIT) == pytest.approx((1, 1, 1), abs=0.05)
    flicker = torch.cumsum(torch.cumsum(white, 0), 1) + 100 * torch.randn(24, generator=g)
    assert through_plane(flicker, spacing_mm=UNIT)[2] > 3
    assert max(through_plane(flicker, spacing_mm=UNIT)[:2]) < 1


def test_what_cannot_be_said_is_nan():
    assert all(math.isnan(r) for r in through_plane(torch.ones(3, 3, 3), spacing_mm=UNIT))
    one_slice = variation(torch.rand(4, 4, 1), spacing_mm=UNIT)
    assert math.isnan(one_slice[2])
    assert not math.isnan(one_slice[0])
    nothing = torch.zeros(3, 3, 3, dtype=torch.bool)
    assert all(
        math.isnan(v) for v in variation(torch.rand(3, 3, 3), foreground=nothing, spacing_mm=UNIT)
    )
