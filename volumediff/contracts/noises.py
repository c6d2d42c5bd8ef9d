"""The contract of noise fields: keyed, zero mean and unit variance in every voxel over draws."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, require
from volumediff.noise import Noise

__all__ = ["check_noise"]

DRAWS = 300


def check_noise(cls: type, **arguments: Any) -> None:
    """A function of its key alone, whose law has mean 0 and variance 1 everywhere."""
    small = {"octaves": 2, "wavelength": 5.0, "cell": 3, "levels": 3}
    field: Noise = built(cls, arguments, small)
    require(field.kind, "The class does not declare its kind, so that no method knows it.")
    shape = (2, 4, 5, 3)
    first = field(shape, 7, "noise", 0)
    require(tuple(first.shape) == shape, f"A field of shape {shape} has {tuple(first.shape)}.")
    require(first.dtype == torch.float32, "Fields must be in float32.")
    state = torch.get_rng_state()
    torch.rand(1)
    require(torch.equal(field(shape, 7, "noise", 0), first), "A field depends on more than a key.")
    torch.set_rng_state(state)
    for other in ((8, "noise", 0), (7, "loss", 0), (7, "noise", 1)):
        require(not torch.equal(field(shape, *other), first), "Other keys give the same field.")
    require(not torch.equal(first[0], first[1]), "Channels share one field.")
    v = torch.stack([field((1, 4, 5, 3), i, "law") for i in range(DRAWS)])[:, 0].double()
    mean, variance = v.mean(0), v.square().mean(0)
    # over 300 draws a mean has a standard error of 0.06 and a variance one of 0.08
    require(
        float(mean.abs().max()) < 0.3,
        f"The mean over draws is {float(mean.abs().max()):.3g} at some voxel, not 0.",
    )
    low, high = float(variance.min()), float(variance.max())
    require(
        low > 0.6 and high < 1.5 and abs(float(variance.mean()) - 1) < 0.1,
        f"The variance over draws is between {low:.3g} and {high:.3g}, not 1 in every voxel.",
    )
