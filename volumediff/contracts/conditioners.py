"""The contract of conditioners: an image branch that runs once per volume, at any size."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from volumediff import config
from volumediff.condition import Condition
from volumediff.conditioners._base import Conditioner
from volumediff.contracts.requirements import equal, randomised, refused, require
from volumediff.errors import UsageError
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._base import Network
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.randomness import normal

__all__ = ["check_conditioner"]

NETWORKS = (UNet, Pseudo3D)
SIZES = ((1, 1, 1), (1, 6, 5), (7, 3, 2), (12, 4, 4))
SMALL = {"blocks": 1, "features": 4, "growth": 2}
STATE, IMAGE = 2, 3  # channels


def check_conditioner(cls: type, **arguments: Any) -> None:
    """Any size, samples apart, the branch outside of the steps, slabs, every parameter in use."""
    small = {k: v for k, v in SMALL.items() if k in config.arguments("conditioner", cls)}
    spec = {"name": cls, **small, **arguments}
    for kind in NETWORKS:

        def made(kind: type = kind, **more: Any) -> Network:
            options = {"widths": (4, 8), "blocks": 1, "groups": 2, "image_channels": IMAGE}
            return kind(STATE, STATE, conditioner=spec, **{**options, **more})

        network = randomised(made()).double().eval()
        require(isinstance(network.conditioner, Conditioner), "It is no conditioner.")
        for size in SIZES:
            _prepared(network, size)
        _used(network)
        _once(network)
        _in_slabs(network)
        _in_half(randomised(made()).bfloat16().eval())
    if cls.inside:
        text = "A network without an image must be refused."
        refused(lambda: made(image_channels=0), text, UsageError)


def _draw(*shape: int, key: str = "x") -> Tensor:
    return normal(shape, "contracts", key, dtype=torch.float64)


def _scene(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Condition]:
    z, t = _draw(2, STATE, *size), torch.tensor([0.1, 0.7])
    return z, t, Condition(image=_draw(2, IMAGE, *size, key="image"))


@torch.no_grad()
def _prepared(network: Network, size: tuple[int, ...]) -> None:
    """Prepared beforehand or on the spot, for one sample or several: the same numbers."""
    z, t, condition = _scene(size)
    try:
        y = network(z, t, condition)
    except (ValueError, RuntimeError) as error:
        sentence = f"A state of size {size} is refused ({' '.join(str(error).split())})."
        raise AssertionError(sentence) from error
    require(y.shape == z.shape, f"A state of size {size} gives one of {tuple(y.shape[2:])}.")
    require(y.isfinite().all(), "The output is not finite.")
    equal(network(z, t, condition), y, "The same input does not give the same output.")
    told = network.prepare(condition)
    for volume in _volumes(told.prepared):
        fits = volume.ndim == 5 and len(volume) == 2
        require(fits, f"Expected volumes (b, c, d, h, w), got the shape {tuple(volume.shape)}.")
    before = [v.clone() for v in _volumes(told.prepared)]
    equal(network(z, t, told), y, "Prepared once, an image gives another output.")
    for volume, old in zip(_volumes(told.prepared), before, strict=True):
        equal(volume, old, "A step changes what was prepared.")
    alone = told.map(lambda v: v[1:])
    text = "Samples of a batch see each other."
    for given in (alone, condition.map(lambda v: v[1:])):
        equal(network(z[1:], t[1:], given), y[1:], text, atol=1e-9)
    wide = alone.map(lambda v: v.expand(2, *v.shape[1:]))
    again = network(torch.cat([z[1:], z[1:]]), torch.cat([t[1:], t[1:]]), wide)
    equal(
        again[1:], y[1:], "An image that is expanded over a batch gives another output.", atol=1e-9
    )


def _used(network: Network) -> None:
    """The image matters, and every parameter has a gradient."""
    # On two voxels a spectrum is real, and what shifts it has no gradient.
    z, t, condition = _scene((8, 8, 8))
    with torch.no_grad():
        y = network(z, t, condition)
        other = network(z, t, condition.replace(image=condition.image + 0.5))
    require(not torch.allclose(other, y), "The output does not depend on the image.")
    network.zero_grad(set_to_none=True)
    told = network.prepare(condition)
    loss = network(z, t, told).square().sum()
    anchor = network.conditioner.anchor(told.prepared)
    if anchor is not None:
        require(anchor.shape == z.shape, f"The anchor has the shape {tuple(anchor.shape)}.")
        loss = loss + anchor.square().sum()
    loss.backward()
    named = network.conditioner.named_parameters()
    unused = [n for n, p in named if p.grad is None or not p.grad.any()]
    require(not unused, f"Parameters without a gradient: {', '.join(unused[:3])}.")
    network.zero_grad(set_to_none=True)


@torch.no_grad()
def _once(network: Network) -> None:
    """No part of a step repeats what follows from the image alone."""
    z, t, condition = _scene((4, 4, 4))
    changed = condition.replace(image=condition.image + 0.5)
    first = _inputs(network, z, t, network.prepare(condition))
    step = _inputs(network, z + 1, t / 2, network.prepare(condition))
    image = _inputs(network, z, t, network.prepare(changed))
    for name, given in first.items():
        free = _same(given, step[name])  # of state and time
        bound = not _same(given, image[name])  # to the image
        require(
            not (free and bound),
            f"{name} computes the same in every step: it belongs in prepare.",
        )


def _inputs(
    network: Network, z: Tensor, t: Tensor, condition: Condition
) -> Mapping[str, list[Tensor]]:
    """What every layer of the conditioner is given in a step."""
    seen: dict[str, list[Tensor]] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            seen.setdefault(name, []).extend(v.clone() for v in given if isinstance(v, Tensor))

        return hook

    handles = [
        m.register_forward_pre_hook(look(n))
        for n, m in network.conditioner.named_modules()
        if n and not [*m.children()]
    ]
    try:
        network(z, t, condition)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


def _in_slabs(network: Network) -> None:
    """Slabs and recomputation change neither the output nor the gradients."""
    z, t, condition = _scene((6, 4, 5))
    parameters = [*network.conditioner.parameters()]
    found = []
    for policy in (MemoryPolicy(), MemoryPolicy(checkpoint=True), MemoryPolicy(slab=2)):
        policy.apply(network)
        with torch.no_grad():
            y = network(z, t, network.prepare(condition))
        gradients: tuple[Tensor | None, ...] = ()
        if parameters:
            loss = network(z, t, condition).square().sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found.append((y, [torch.zeros(()) if g is None else g for g in gradients]))
    MemoryPolicy().apply(network)
    (y, gradients), *others = found
    for other, theirs in others:
        equal(other, y, "In slabs, or with recomputation, the output differs.", atol=1e-9)
        for a, b in zip(theirs, gradients, strict=True):
            text = "In slabs, or with recomputation, the gradients differ."
            equal(a, b, text, atol=1e-9 * max(1.0, float(b.abs().max())))


@torch.no_grad()
def _in_half(network: Network) -> None:
    z, t, condition = _scene((8, 6, 4))
    condition = Condition(image=condition.image.bfloat16())
    y = network(z.bfloat16(), t, condition)
    require(y.dtype == torch.bfloat16, f"States in bfloat16 give an output in {y.dtype}.")
    require(y.isfinite().all(), "In bfloat16 the output is not finite.")


def _volumes(prepared: Any) -> list[Tensor]:
    if isinstance(prepared, tuple):
        return [volume for inner in prepared for volume in _volumes(inner)]
    return [prepared]
