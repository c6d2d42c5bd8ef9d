"""Tiles cover, windows blend, padding is undone: hand-computed fixtures and exact identities."""

from itertools import pairwise

import pytest
import torch

from volumediff import tiling

SHAPES = [
    ((9, 12, 7), (4, 5, 3), (1, 2, 0)),
    ((1, 29, 8), (4, 8, 8), (2, 4, 0)),
    ((5, 5, 5), (5, 9, 2), (4, 0, 1)),
    ((16, 3, 11), (6, 3, 4), (5, 2, 3)),
]


def test_grid_along_one_axis_by_hand():
    # 10 voxels, tiles of 4, at least 1 shared: 2 gaps of 3 reach the end exactly
    places = tiling.tile_grid((10, 1, 1), (4, 1, 1), overlap=(1, 0, 0))
    assert [p[0] for p in places] == [slice(0, 4), slice(3, 7), slice(6, 10)]
    # 11 voxels need a third gap; starts 0, 7/3, 14/3, 7 rounded down
    places = tiling.tile_grid((11, 1, 1), (4, 1, 1), overlap=(1, 0, 0))
    assert [p[0].start for p in places] == [0, 2, 4, 7]


@pytest.mark.parametrize(("shape", "tile", "overlap"), SHAPES)
def test_tiles_cover_and_overlap(shape, tile, overlap):
    count = torch.zeros(shape)
    places = tiling.tile_grid(shape, tile, overlap=overlap)
    for place in places:
        count[place] += 1
        assert count[place].shape == tuple(min(n, m) for n, m in zip(shape, tile, strict=True))
    assert count.min() >= 1
    for axis in range(3):
        starts = sorted({p[axis].start for p in places})
        steps = [b - a for a, b in pairwise(starts)]
        assert all(step <= tile[axis] - overlap[axis] for step in steps)


def test_overlap_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match="below the tile size 4, got 4"):
        tiling.tile_grid((8, 8, 8), (4, 4, 4), overlap=(4, 0, 0))


def test_hann_window_has_a_constant_sum_at_half_overlap():
    window = tiling.hann_window((8, 1, 1))[:, 0, 0].double()
    torch.testing.assert_close(window[:4] + window[4:], torch.ones(4, dtype=torch.float64))
    assert window.min() > 0


@pytest.mark.parametrize("window", [tiling.flat_window, tiling.hann_window])
@pytest.mark.parametrize(("shape", "tile", "overlap"), SHAPES)
def test_tiles_of_a_volume_give_it_back(window, shape, tile, overlap):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    places = tiling.tile_grid(shape, tile, overlap=overlap)
    pieces = ((p, x[:, :, *p]) for p in places)
    blended = tiling.overlap_add(pieces, shape, window=window(tile))
    torch.testing.assert_close(blended, x, rtol=1e-12, atol=1e-12)


def test_blend_by_hand():
    # two tiles of four voxels sharing two: sin^2(pi (i + 1/2) / 4) = .1464, .8536, .8536, .1464
    places = tiling.tile_grid((6, 1, 1), (4, 1, 1), overlap=(2, 0, 0))
    pieces = [(p, torch.full((1, 1, 4, 1, 1), float(i))) for i, p in enumerate(places)]
    blended = tiling.overlap_add(pieces, (6, 1, 1), window=tiling.hann_window((4, 1, 1)))
    expected = torch.tensor([0.0, 0.0, 0.1464466, 0.8535534, 1.0, 1.0])
    torch.testing.assert_close(blended.flatten(), expected)


def test_gaps_are_an_error():
    place = (slice(0, 2), slice(0, 1), slice(0, 1))
    with pytest.raises(ValueError, match="do not cover"):
        tiling.overlap_add(
            [(place, torch.ones(1, 1, 2, 1, 1))], (3, 1, 1), window=torch.ones(2, 1, 1)
        )
    with pytest.raises(ValueError, match="at least one tile"):
        tiling.overlap_add([], (3, 1, 1), window=torch.ones(2, 1, 1))


def test_padding_repeats_the_last_plane():
    x = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 2)
    assert tiling.padded_shape((3, 1, 2), (4, 4, 2)) == (4, 4, 2)
    padded = tiling.pad(x, (4, 4, 2))
    assert padded.shape == (1, 1, 4, 4, 2)
    assert padded[0, 0, :, 3, 1].tolist() == [0, 1, 2, 2]
    torch.testing.assert_close(tiling.crop(padded, (3, 1, 2)), x)
