"""The contract of autoencoders: volumes keep their shape, and each player trains itself alone."""

import inspect
from typing import Any

import torch

from volumediff.autoencoders import Autoencoder, Reconstructor
from volumediff.autoencoders.vq import VQ
from volumediff.contracts.requirements import built, equal, randomised, refused, require
from volumediff.randomness import generator, normal

__all__ = ["check_autoencoder"]

SIZE = (8, 8, 8)
SMALL = {
    "latent_channels": 3,
    "widths": (8, 16),
    "strides": ((2, 2, 2),),
    "blocks": 1,
    "groups": 4,
    "codes": 16,
    "shape": SIZE,
    "squeeze": 4,
    "width": 16,
    "heads": 2,
}


def check_autoencoder(cls: type, **arguments: Any) -> None:
    """Reconstructions are deterministic and apart; losses are finite and each player's own."""
    inner = {"latent_channels": 3, "widths": (8, 16), "strides": ((2, 2, 2),), "blocks": 1}
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        objects = {"channels": 2}
        if "autoencoder" in inspect.signature(cls).parameters:
            objects["autoencoder"] = VQ(2, codes=16, **inner)
        model: Reconstructor = randomised(built(cls, arguments, SMALL, objects), std=0.1)
    finally:
        torch.set_rng_state(state)
    _reconstructs(model.eval())
    _trains(model.train())
    if isinstance(model, Autoencoder):
        _encodes(model.eval())


@torch.no_grad()
def _reconstructs(model: Reconstructor) -> None:
    x = normal((2, 2, *SIZE), "contracts", "x")
    found = model.reconstruct(x)
    require(found.shape == x.shape, f"A reconstruction has shape {tuple(found.shape)}.")
    require(found.dtype == x.dtype, "A reconstruction does not keep the dtype.")
    require(found.isfinite().all(), "A reconstruction is not finite.")
    require(torch.equal(model.reconstruct(x), found), "reconstruct draws random numbers.")
    equal(model.reconstruct(x[1:]), found[1:], "Samples of a batch see each other.", atol=1e-5)
    half = model.reconstruct(x.bfloat16())
    require(half.dtype == torch.bfloat16, "A reconstruction does not keep bfloat16.")


def _trains(model: Reconstructor) -> None:
    x = normal((2, 2, *SIZE), "contracts", "x")
    require(len(model.players) > 0, "There are no players: nothing would be trained.")
    refused(
        lambda: model.loss("nobody", x, generator=generator("g")),
        "A player that there is not must be refused.",
        ValueError,
    )
    for player, module in model.players.items():
        model.zero_grad(set_to_none=True)
        both = [generator("g", 0), generator("g", 1)]
        loss = model.loss(player, x, generator=both)["loss"]
        require(loss.ndim == 0 and loss.isfinite(), f"The loss of {player} is no finite number.")
        loss.backward()
        own = {id(p) for p in module.parameters()}
        others = [
            n for n, p in model.named_parameters() if id(p) not in own and p.grad is not None
        ]
        moved = [n for n in others if bool(model.get_parameter(n).grad.any())]
        require(not moved, f"The loss of {player} trains {', '.join(moved[:2])}, another's.")
        require(
            any(p.grad is not None and p.grad.any() for p in module.parameters()),
            f"The loss of {player} has no gradient in its own parameters.",
        )
        apart = [
            model.loss(player, x[i : i + 1], generator=[generator("g", i)])["loss"]
            for i in range(2)
        ]
        equal(
            loss.detach(),
            torch.stack(apart).mean().detach(),
            f"The loss of {player} on a batch is not the mean over its samples with their own "
            "generators.",
            rtol=1e-4,
            atol=1e-5,
        )


@torch.no_grad()
def _encodes(model: Autoencoder) -> None:
    for shape in ((8, 4, 12), (5, 7, 3), (1, 1, 1)):
        x = normal((1, 2, *shape), "contracts", "x")
        z = model.encode(x)
        grid = [-(-n // s) for n, s in zip(shape, model.stride, strict=True)]
        require(
            list(z.shape[2:]) == grid and z.shape[1] == model.latent_channels,
            f"The latent of {shape} has shape {tuple(z.shape)}; stride and latent_channels say "
            f"{[model.latent_channels, *grid]}.",
        )
        require(model.decode(z, shape).shape == x.shape, "decode does not crop to the shape.")
    if model.binary:
        require(bool((z.abs() == 1).all()), "It says that latents are bits, and they are not.")
