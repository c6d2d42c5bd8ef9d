"""The contract of reconstructions: a pseudo-healthy volume of an autoencoder, and its map."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.method_input import Example
from volumediff.anomaly.reconstruction import Reconstruction, ReconstructionView
from volumediff.autoencoders import Reconstructor
from volumediff.autoencoders.fanogan import FAnoGAN
from volumediff.autoencoders.token_prior import TokenPrior
from volumediff.autoencoders.vae import VAE
from volumediff.autoencoders.vq import VQ
from volumediff.contracts.requirements import built, equal, randomised, require, unmet, untouched
from volumediff.randomness import normal

__all__ = ["check_reconstruction"]

SIZE = (8, 8, 8)
SMALL = {"shape": SIZE, "latent_channels": 3, "widths": (4, 8), "blocks": 1, "squeeze": 2}


def check_reconstruction(cls: type, **arguments: Any) -> None:
    """Finite, of the volume's size, and random exactly where it was declared."""
    how: Reconstruction = built(cls, arguments, {"steps": 3, "threshold": 0.2})
    model = next((m for m in _models() if unmet(how, m) is None), None)
    require(model is not None, "It refuses every kind of autoencoder, each with a problem.")
    refusals = [unmet(how, m) for m in _models()]
    require(all(r is None or (r and "\n" not in r) for r in refusals), "Problems are one line.")
    healthy, a = _run(how, model, key=1)
    again, b = _run(how, model, key=1)
    equal(healthy, again, "The same key gives another volume.")
    equal(a, b, "The same key gives another map.")
    others = [_run(how, model, key=k) for k in range(2, 6)]
    alike = all(torch.equal(healthy, h) and torch.equal(a, m) for h, m in others)
    require(how.stochastic or alike, "It says that nothing is drawn, and depends on the key.")
    require(not how.stochastic or not alike, "It says that it draws, and no key changes anything.")


def _models() -> Iterator[Reconstructor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = VQ(1, latent_channels=3, codes=16, widths=(4, 4), strides=((2, 2, 2),), blocks=1)
        made = (
            VAE(1, **SMALL),
            FAnoGAN(1, **SMALL),
            TokenPrior(1, autoencoder=codes, shape=SIZE, width=8, layers=1, heads=2),
        )
    for model in made:
        yield randomised(model, std=0.1).eval().requires_grad_(False)


@torch.no_grad()
def _run(how: Reconstruction, model: Reconstructor, *, key: int) -> tuple[Tensor, Tensor]:
    x = 0.3 * normal((1, 1, *SIZE), "contracts", "x")
    inside = torch.zeros((1, 1, *SIZE), dtype=torch.bool)
    inside[..., 1:-1, 1:-1, 1:-1] = True
    view = ReconstructionView(model, Example(x, inside, (2.0, 2.0, 2.0)), key)
    healthy = untouched({"the volume": x}, lambda: how(view))
    require(healthy.shape == x.shape, f"The volume has shape {tuple(healthy.shape)}.")
    require(healthy.isfinite().all(), "The pseudo-healthy volume is not finite.")
    distance = (x - healthy).abs() * inside
    a = untouched({"the distance": distance}, lambda: how.weigh(view, healthy, distance))
    require(tuple(a.shape) == (1, 1, *SIZE), f"The map has shape {tuple(a.shape)}.")
    require(a.isfinite().all() and float(a.min()) >= 0, "The map is not finite, or negative.")
    require(not bool(a[~inside].any()), "The map is not zero outside the foreground.")
    return healthy, a
