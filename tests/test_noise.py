"""Noise fields: their laws in closed form, and that a model knows its own only."""

import math
from itertools import pairwise

import pytest
import torch
from anomaly_models import KERNEL, SHAPE, SPACES, States
from tiny_runs import load_run, tiny, write_data

from volumediff import noise
from volumediff.config import build
from volumediff.errors import UsageError
from volumediff.model import Model
from volumediff.settings.run_config import changes, load_run_config
from volumediff.tasks import build_task
from volumediff.training.loop import train


def draws(field, n=300, shape=(4, 9, 7)):
    return field((n, *shape), 0).double()


def test_interpolated_noise_has_the_covariance_of_its_hats():
    # One axis: nodes at 0, 4, 8; C = A A^T with rows of unit norm.
    place = torch.arange(9, dtype=torch.float64) / 4
    a = (1 - (place[:, None] - torch.arange(3)).abs()).clamp(min=0)
    a = a / a.square().sum(1, keepdim=True).sqrt()
    v = noise.CoarseNoise(cell=4)((8000, 1, 1, 9), 1)[:, 0, 0].double()
    torch.testing.assert_close(v.T @ v / len(v), a @ a.T, atol=0.06, rtol=0)
    white = noise.CoarseNoise(cell=1)((8000, 1, 1, 9), 1)[:, 0, 0]
    assert float((white.T @ white / 8000 - torch.eye(9)).abs().max()) < 0.06
    p = noise.Pyramid(levels=2, discount=0.5)
    v = p((8000, 1, 1, 3), 1)[:, 0, 0]
    # voxel 1 lies between the nodes 0 and 2 of the second grid, with weights of 1 / sqrt(2)
    near, far = (v[:, 0] * v[:, 1]).mean(), (v[:, 0] * v[:, 2]).mean()
    assert float(near) == pytest.approx(0.25 * math.sqrt(0.5) / 1.25, abs=0.05)
    assert float(far) == pytest.approx(0, abs=0.05)


def by_hand(x, table):
    """Simplex noise at one point, by looking at every corner near it."""
    total = 0.0
    base = [math.floor(v + sum(x) / 3) for v in x]
    for di in range(-1, 3):
        for dj in range(-1, 3):
            for dk in range(-1, 3):
                i, j, k = (b + d for b, d in zip(base, (di, dj, dk), strict=True))
                corner = [v - (i + j + k) / 6 for v in (i, j, k)]
                d = [a - b for a, b in zip(x, corner, strict=True)]
                near = 0.5 - sum(v * v for v in d)
                if near > 0:
                    i, j, k = (v % 252 for v in (i, j, k))
                    g = noise._EDGES[table[i + table[j + table[k]]] % 12].tolist()
                    total += near**4 * sum(a * b for a, b in zip(g, d, strict=True))
    return total


def test_simplex_noise_is_the_sum_over_all_corners():
    source = torch.Generator().manual_seed(0)
    table = torch.randperm(252, generator=source).repeat(2)
    points = 9 * torch.rand((40, 3), generator=source, dtype=torch.float64) - 4
    got = noise._gradient_noise(*points.float().T, table)
    expected = [by_hand(p, table.tolist()) / math.sqrt(noise._VARIANCE) for p in points.tolist()]
    torch.testing.assert_close(got.double(), torch.tensor(expected).double(), atol=1e-3, rtol=0)
    # zero at the corners, where the only near gradient meets no distance
    lattice = torch.tensor([[0.0, 0, 0], [5 / 6, -1 / 6, -1 / 6]])
    assert float(noise._gradient_noise(*lattice.T, table).abs().max()) < 1e-5


def test_octaves_have_the_wavelengths_and_weights_asked_for():
    # The variance of differences tells the wavelength: D(h) is a function of h / lambda alone.
    def structure(field, step):
        v = draws(field, n=400, shape=(1, 1, 9))[:, 0, 0]
        return float((v[:, step:] - v[:, :-step]).square().mean() / 2)

    long, short = noise.Simplex(1, wavelength=16.0), noise.Simplex(1, wavelength=8.0)
    assert structure(long, 4) == pytest.approx(structure(short, 2), rel=0.12)
    assert structure(long, 1) < 0.35 * structure(short, 1)
    two = noise.Simplex(2, persistence=0.5, wavelength=16.0)
    mixed = (structure(long, 1) + 0.25 * structure(short, 1)) / 1.25
    assert structure(two, 1) == pytest.approx(mixed, rel=0.12)


@pytest.mark.parametrize("space", ["voxel", "wavelet", "slices", "latent"])
def test_models_draw_their_own_noise_in_every_space(space):
    field = noise.CoarseNoise(cell=4)
    model = Model(SPACES[space](), KERNEL, States(), noise_field=field)
    got = model.noise((3,), (1, *SHAPE))(-1)
    drawn = field((1, *model.space.padded(SHAPE)), 3, "noise", -1)
    torch.testing.assert_close(got, model.space.noise(drawn[None]))
    white = Model(SPACES[space](), KERNEL, States()).noise((3,), (1, *SHAPE))(-1)
    assert not torch.allclose(got, white)


def test_coarse_noise_stays_coarse_in_wavelet_space():
    model = Model(SPACES["wavelet"](), KERNEL, States(), noise_field=noise.CoarseNoise(cell=8))
    energy = model.noise((1,), (1, *SHAPE))(0).square().mean(dim=(0, 2, 3, 4))
    assert float(energy[0] / energy.sum()) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noise.Simplex(octaves=0), "octaves >= 1"),
        (lambda: noise.Simplex(wavelength=0.0), "wavelength > 0"),
        (lambda: noise.Pyramid(discount=1.5), r"discount in \(0, 1\]"),
        (lambda: noise.CoarseNoise(cell=0), "cell: expected at least 1"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_checkpoint_is_bound_to_its_noise(tmp_path):
    words = ("noise={name: simplex, octaves: 2, wavelength: 4}", "optim.steps=2")
    config = tiny(write_data(tmp_path / "data", cases=4), tmp_path / "run", *words)
    train(config)
    _, model = load_run(tmp_path / "run", which="last")
    assert model.noise_field == noise.Simplex(octaves=2, wavelength=4.0)
    other = tiny(tmp_path / "data", tmp_path / "run", "optim.steps=2")
    assert any(line.startswith("noise") for line in changes(config, other))
    with pytest.raises(UsageError, match="noise"):
        train(other)


def test_latent_runs_refuse_noise_of_the_volume():
    with pytest.raises(UsageError, match="noise: expected gaussian in a latent space"):
        build_task(load_run_config("latent_64", ["noise=coarse"]))


def test_training_sees_the_noise(monkeypatch):
    asked = []

    def spy(self, shape, *parts, device="cpu"):
        asked.append(parts)
        return torch.zeros(shape)

    monkeypatch.setattr(noise.CoarseNoise, "__call__", spy)
    config = load_run_config("wavelet_64", ["noise=coarse", "network.widths=[4]", "memory={}"])
    config = config.model_copy(update={"network": {**config.network, "groups": 2}})
    model = build_task(config).model
    from volumediff.batch import Batch

    model.loss(Batch(torch.zeros(2, 1, 4, 4, 4), (1, 2)))
    assert [p[:2] for p in asked] == [(1, "loss"), (2, "loss")]
    assert build("noise", "gaussian") == noise.GaussianNoise()
    assert all(a != b for a, b in pairwise(asked))
