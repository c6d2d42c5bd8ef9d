"""Components by threshold against scipy at every threshold, and cluster-wise probabilities."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from volumediff.metrics.cluster_inference import tail_probability
from volumediff.metrics.components import least_voxels, without_small
from volumediff.metrics.superlevel import upper_part

SPACING = (2.0, 1.0, 1.5)
VOXEL_ML = 0.003


def scene(seed, *, rounded=False, shape=(7, 6, 5)):
    rng = np.random.default_rng(seed)
    a = ndimage.gaussian_filter(rng.normal(size=shape), 0.8)
    a = np.round(a * 12) / 12 if rounded else a
    foreground = ndimage.gaussian_filter(rng.normal(size=shape), 2) > -0.05
    return (torch.from_numpy(v)[None, None] for v in (a.astype(np.float32), foreground))


def brute(a, foreground, threshold, least):
    """Size, peak and height of the components, with scipy at this threshold."""
    values = a.numpy()[0, 0].astype(np.float64)
    mask = (values > threshold) & foreground.numpy()[0, 0]
    labels, n = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    found = []
    for i in range(1, n + 1):
        inside = values[labels == i]
        if len(inside) >= least:
            found.append((len(inside), inside.max(), (inside - threshold).sum()))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("least", [1, 3, 12])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_components_at_every_threshold_are_those_of_scipy(rounded, least, share):
    for seed in range(1):
        a, foreground = scene(seed, rounded=rounded)
        part = upper_part(a, foreground=foreground, spacing_mm=SPACING, share=share)
        assert len(part.values) <= share * int(foreground.sum())
        steps = part.steps(least * VOXEL_ML)
        inside = a[foreground].double().numpy()
        values = np.unique(inside)
        between = (values[1:] + values[:-1]) / 2
        seen = 0
        for t in np.concatenate([values, between, [values[-1] + 1, values[0] - 1]]):
            expected = brute(a, foreground, t, least)
            if t < part.floor:
                assert steps.at(t) is None
                assert part.clusters(t, volume_ml=least * VOXEL_ML) is None
                continue
            seen += len(expected) > 0
            assert steps.at(t) == len(expected), t
            got = part.clusters(t, volume_ml=least * VOXEL_ML)
            assert sorted(np.round(got.extent_ml / VOXEL_ML)) == sorted(e[0] for e in expected)
            np.testing.assert_allclose(sorted(got.peak), sorted(e[1] for e in expected))
            np.testing.assert_allclose(
                sorted(got.mass / VOXEL_ML), sorted(e[2] for e in expected), atol=1e-9
            )
        assert seen, "the scene has components to count"


def test_the_envelope_never_falls_although_components_join():
    a, foreground = scene(0)
    steps = upper_part(a, foreground=foreground, spacing_mm=SPACING, share=1.0).steps(0.0)
    assert (np.diff(steps.counts) < 0).any()
    assert (np.diff(steps.most_above) >= 0).all()
    assert steps.most_above[-1] == steps.counts.max()


def test_an_empty_foreground_has_no_upper_part():
    a, foreground = scene(0)
    with pytest.raises(ValueError, match="expected a foreground"):
        upper_part(a, foreground=foreground & False, spacing_mm=SPACING)


def test_a_constant_map_has_nothing_above_its_floor():
    a, foreground = scene(0)
    part = upper_part(a * 0 + 2, foreground=foreground, spacing_mm=SPACING)
    assert part.floor == 2
    assert part.steps(0.0).at(2.0) == 0


def test_a_component_of_exactly_the_volume_stays():
    mask = np.zeros((6, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # one component by a corner
    mask[5, 5, 5] = True
    assert without_small(mask, volume_ml=0.2, voxel_ml=0.1).sum() == 2
    assert without_small(mask, volume_ml=0.201, voxel_ml=0.1).sum() == 0
    assert without_small(mask, volume_ml=0.0, voxel_ml=0.1).sum() == 3
    assert least_voxels(0.064 * 8, 0.064) == 8  # rounding does not ask for a ninth


def test_tail_probabilities_by_hand():
    none = (-np.inf,) * 3
    healthy = np.array([(1.0, 10.0, 3.0), (2.0, 1.0, 1.0), none, none])
    got = tail_probability((1.5, 20.0, 4.0), healthy)
    assert (got.peak, got.extent, got.mass) == (2 / 5, 1 / 5, 1 / 5)
    # volume 2 has the highest peak and is as extreme by its own best statistic
    assert got.combined == 2 / 5
    assert tail_probability((3.0, 20.0, 4.0), healthy).combined == 1 / 5
    assert tail_probability((0.5, 0.5, 0.5), healthy).combined == 3 / 5
    with pytest.raises(ValueError, match="got none"):
        tail_probability((1.0, 1.0, 1.0), np.zeros((0, 3)))


def test_tail_probabilities_of_healthy_volumes_are_valid():
    """P(p <= alpha) <= alpha for exchangeable volumes, whatever the dependence of the three."""
    rng = np.random.default_rng(0)
    got = []
    for _ in range(1000):
        base = rng.exponential(size=(10, 1))
        volumes = base * rng.lognormal(sigma=0.6, size=(10, 3))
        volumes[rng.random(10) < 0.4] = -np.inf
        got.append(
            1.0
            if np.isinf(volumes[0, 0])
            else tail_probability(tuple(volumes[0]), volumes[1:]).combined
        )
    for alpha in (0.1, 0.2, 0.3):
        assert np.mean(np.asarray(got) <= alpha + 1e-9) <= alpha + 0.03
    assert np.mean(np.asarray(got) <= 0.1 + 1e-9) > 0.04, "and they are not useless"
