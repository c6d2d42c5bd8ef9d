"""Labels and their probabilities on the grid of the input."""

import numpy as np
import pytest
import torch

from volumediff.data.grid import Grid
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.volume import Volume
from volumediff.outputs.input_grid import InputGrid

FINE = (30, 28, 26)


def prepared(array, spacing):
    """A volume of 1 mm voxels, prepared at a spacing, and the way back."""
    plan = Preprocessing(spacing_mm=(spacing,) * 3, centre="volume")
    affine = np.eye(4)
    x = Volume(array[None].astype(np.float32), affine, "image", Grid(array.shape, affine))
    found = plan.prepare_volumes([x])
    return plan, found, InputGrid(plan, found.record)


def ball(radius, shift=0.0):
    axes = np.meshgrid(*(np.arange(n) - (n - 1) / 2 - shift for n in FINE), indexing="ij")
    return sum(a**2 for a in axes) < radius**2


def memberships(masks, plan, record):
    """Shares of the labels on the prepared grid, as a network that knows them would say."""
    volumes = (
        Volume(m[None].astype(np.float32), record.canonical.affine, "image", record.canonical)
        for m in masks
    )
    return torch.cat([plan.to_prepared(v, record) for v in volumes])


@pytest.mark.parametrize("spacing", [1.0, 1.5, 2.3, 0.7])
def test_label_map_is_the_argmax_of_the_probability_maps(spacing):
    plan, found, grid = prepared(np.random.default_rng(0).uniform(1, 2, FINE), spacing)
    inner, outer = ball(4.0, 1.0), ball(8.0) & ~ball(4.0, 1.0)
    p = memberships([inner, outer], plan, found.record)
    labels = grid.most_probable(p, (3, 7))
    maps = [grid.image(each[None]) for each in p]
    every = np.concatenate([1 - maps[0] - maps[1], *maps])
    expected = np.array([0, 3, 7], np.uint8)[every.argmax(0)]
    sure = np.sort(every, axis=0)[-1] - np.sort(every, axis=0)[-2] > 1e-5
    assert sure.mean() > 0.95
    assert np.array_equal(labels[0][sure], expected[sure])


def test_equal_spacing_is_the_label_map_of_the_probabilities():
    plan, found, grid = prepared(np.random.default_rng(0).uniform(1, 2, FINE), 1.0)
    masks = [ball(4.0, 1.0), ball(8.0) & ~ball(4.0, 1.0)]
    p = memberships(masks, plan, found.record)
    labels = grid.most_probable(p, (3, 7))[0]
    assert np.array_equal(labels, 3 * masks[0] + 7 * masks[1])
    assert not grid.most_probable(torch.full_like(p[:1], 0.5), (3,)).any()


def test_shares_find_the_border_better_than_their_label_map():
    plan, found, grid = prepared(np.random.default_rng(0).uniform(1, 2, FINE), 2.5)
    mask = ball(7.0, 0.4)
    p = memberships([mask], plan, found.record)
    soft = grid.most_probable(p, (1,))[0] == 1
    hard = grid.label((p > 0.5).to(torch.uint8))[0] == 1
    errors = [float((each != mask).sum() / mask.sum()) for each in (soft, hard)]
    assert errors[0] < 0.75 * errors[1]
