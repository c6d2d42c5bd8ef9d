"""The contract of state spaces: round trip, isometry, white noise, masks that cover."""

from typing import Any

import torch
from torch import Tensor

from volumediff.autoencoders.kl import KL
from volumediff.contracts.requirements import built, equal, randomised, require
from volumediff.randomness import normal
from volumediff.spaces._base import StateSpace

__all__ = ["check_space"]

SHAPES = ((8, 4, 12), (5, 7, 3), (1, 1, 1))
TIGHT = {"atol": 1e-10, "rtol": 1e-10}


def check_space(cls: type, **arguments: Any) -> None:
    """Volumes come back, white noise stays white, and masks cover what depends on them."""
    space: StateSpace = _space(cls, arguments)
    for shape in SHAPES:
        _round_trip(space, shape)
    if space.exact:
        _isometry(space)
    _noise(space)
    _masks(space)
    if not space.binary:
        _normalised(space)


def _space(cls: type, arguments: dict[str, Any]) -> StateSpace:
    # voxel normalisation, so that what a latent depends on has an end: `reach` latent voxels
    codec = KL(2, latent_channels=3, widths=(4, 8), strides=((2, 2, 2),), blocks=1, norm="voxel")
    objects = {"autoencoder": randomised(codec)}
    return built(cls, arguments, {"reach": 6}, objects).double()


def _volumes(shape: tuple[int, int, int], key: str = "x") -> Tensor:
    return normal((2, 2, *shape), "contracts", key, dtype=torch.float64)


def _round_trip(space: StateSpace, shape: tuple[int, int, int]) -> None:
    x = _volumes(shape)
    z = space.encode(x)
    expected = (2, space.channels(2), *space.grid(shape))
    require(
        tuple(z.shape) == expected,
        f"The state of a volume of shape {shape} has shape {tuple(z.shape)}, and channels and "
        f"grid say {expected}.",
    )
    back = space.decode(z, shape)
    require(back.shape == x.shape, "decode with a shape does not give a volume of this shape.")
    require(back.isfinite().all(), "decode gives values that are not finite.")
    equal(space.encode(x[1:]), z[1:], "The state of a sample depends on its batch.", **TIGHT)
    wide = space.decode(z)
    require(
        tuple(wide.shape[2:]) == space.padded(shape), "decode alone must give the padded volume."
    )
    if space.exact:
        equal(back, x, "It says that it is exact, and decode(encode(x)) is not x.", **TIGHT)


def _isometry(space: StateSpace) -> None:
    shape = space.padded((8, 4, 12))
    x, y = _volumes(shape), _volumes(shape, "y")
    moved = (space.analysis(x) - space.analysis(y)).square().flatten(1).sum(1)
    equal(
        moved,
        (x - y).square().flatten(1).sum(1),
        "It is exact, and squared distances of states are not those of volumes: white noise and "
        "losses would not mean the same in both.",
        rtol=1e-9,
    )


def _noise(space: StateSpace) -> None:
    shape = space.padded((4, 4, 4))
    n = shape[0] * shape[1] * shape[2]
    unit = torch.eye(n, dtype=torch.float64).view(n, 1, *shape)
    rows = space.noise(unit).flatten(1).T
    equal(
        rows @ rows.T,
        torch.eye(len(rows), dtype=torch.float64),
        "White noise of unit variance does not become white state noise of unit variance.",
        atol=1e-9,
    )
    field = _volumes(shape, "field")
    equal(
        space.noise(2 * field[:1] - field[1:]),
        2 * space.noise(field)[:1] - space.noise(field)[1:],
        "State noise is not linear in the noise field.",
        **TIGHT,
    )


def _masks(space: StateSpace) -> None:
    shape = (8, 4, 12)
    m = torch.zeros((1, 1, *shape), dtype=torch.float64)
    require(not bool(space.mask(m).any()), "An empty mask marks states.")
    require(bool((space.mask(m + 1) == 1).all()), "A full mask leaves states out.")
    m[..., 5, 2, 7] = 1
    x = _volumes(shape)
    changed = (space.encode(x + m) - space.encode(x)).abs().amax((0, 1)) > 1e-12
    marked = space.mask(m)[0, 0] > 0
    require(
        not bool((changed & ~marked).any()),
        "States outside of the mask of a voxel change with the voxel: the rest of a volume would "
        "not be kept.",
    )


def _normalised(space: StateSpace) -> None:
    data = [3 + 2 * _volumes((8, 4, 12), str(i)) for i in range(3)]
    space.fit(iter(data))
    z = torch.cat([space.encode(x) for x in data])
    ones = torch.ones(z.shape[1], dtype=z.dtype)
    text = "After fit, states of the same volumes do not have"
    equal(z.mean((0, 2, 3, 4)), 0 * ones, f"{text} mean 0 per channel.", atol=1e-5)
    equal(z.var((0, 2, 3, 4), correction=0), ones, f"{text} variance 1 per channel.", atol=1e-5)
    if space.exact:
        x = data[0]
        equal(space.decode(space.encode(x)), x, "After fit, volumes do not come back.", atol=1e-9)
