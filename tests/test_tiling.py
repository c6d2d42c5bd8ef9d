"""Tiles cover, padding is undone: hand-computed fixtures and exact identities."""

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


def test_padding_repeats_the_last_plane():
    x = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 2)
    assert tiling.padded_shape((3, 1, 2), (4, 4, 2)) == (4, 4, 2)
    padded = tiling.pad(x, (4, 4, 2))
    assert padded.shape == (1, 1, 4, 4, 2)
    assert padded[0, 0, :, 3, 1].tolist() == [0, 1, 2, 2]
    torch.testing.assert_close(tiling.crop(padded, (3, 1, 2)), x)
