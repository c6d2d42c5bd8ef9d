"""The contract of image codecs: conditions on the grid of states; what learns is said."""

from typing import Any

import torch
from torch import Tensor

from volumediff.autoencoders.kl import KL
from volumediff.contracts.requirements import built, equal, randomised, refused, require
from volumediff.image_codecs import ImageCodec
from volumediff.randomness import normal

__all__ = ["check_image_codec"]

CHANNELS = 2
STRIDE = (2, 4, 2)
SHAPES = ((8, 4, 12), (5, 7, 3), (1, 1, 1))


def check_image_codec(cls: type, **arguments: Any) -> None:
    """Conditions have the promised shape and unit variance, and what is trained is said."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        autoencoder = KL(
            CHANNELS,
            latent_channels=3,
            widths=(4, 4, 8),
            strides=((1, 2, 1), (2, 2, 2)),
            blocks=1,
            norm="voxel",
        )
        objects = {"autoencoder": autoencoder, "inputs": CHANNELS, "stride": STRIDE}
        codec: ImageCodec = randomised(built(cls, arguments, {}, objects)).double()
    finally:
        torch.set_rng_state(state)
    for shape in SHAPES:
        _shapes(codec, shape)
    _fitted(codec)
    _learns(codec)


def _images(shape: tuple[int, int, int], key: str = "x") -> Tensor:
    return normal((2, CHANNELS, *shape), "contracts", key, dtype=torch.float64)


@torch.no_grad()
def _shapes(codec: ImageCodec, shape: tuple[int, int, int]) -> None:
    require(codec.stride == STRIDE, f"It has the stride {codec.stride}, expected {STRIDE}.")
    x = _images(shape)
    grid = [-(-n // s) for n, s in zip(shape, STRIDE, strict=True)]
    found = codec(x)
    require(
        list(found.shape) == [2, codec.channels(CHANNELS), *grid],
        f"The condition of an image of shape {shape} has shape {tuple(found.shape)}, and channels "
        f"and stride say {[2, codec.channels(CHANNELS), *grid]}.",
    )
    require(found.isfinite().all(), "A condition is not finite.")
    alone = codec(x[1:])
    equal(alone, found[1:], "The condition of a sample depends on its batch.", atol=1e-10)
    refused(
        lambda: codec.channels(CHANNELS + 1),
        "An image with another number of channels must be refused.",
        ValueError,
    )


def _fitted(codec: ImageCodec) -> None:
    images = [3 + 2 * _images((8, 8, 8), str(i)) for i in range(3)]
    codec.fit(iter(images))
    with torch.no_grad():
        z = torch.cat([codec(x) for x in images])
    ones = torch.ones(z.shape[1], dtype=z.dtype)
    text = "After fit, conditions of the same images do not have"
    equal(z.mean((0, 2, 3, 4)), 0 * ones, f"{text} mean 0 per channel.", atol=1e-5)
    equal(z.var((0, 2, 3, 4), correction=0), ones, f"{text} variance 1 per channel.", atol=1e-5)


def _learns(codec: ImageCodec) -> None:
    frozen = {id(p) for part in codec.frozen_parts for p in part.parameters()}
    asking = [n for n, p in codec.named_parameters() if p.requires_grad]
    own = [n for n, p in codec.named_parameters() if id(p) not in frozen]
    require(sorted(asking) == sorted(own), "All that is not frozen learns, and nothing else.")
    require(bool(own) == codec.trained, "It does not say whether it is trained.")
    found = codec(_images((8, 8, 8)))
    require(
        found.requires_grad == codec.trained,
        "It does not say whether it is trained: its conditions have a gradient, or lack one.",
    )
    if codec.trained:
        found.square().mean().backward()
        still = [n for n, p in codec.named_parameters() if p.grad is None]
        require(not still, f"No gradient reaches {', '.join(still[:2])}.")
