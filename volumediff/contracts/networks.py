"""The contracts of networks, classifiers, residual segmenters: sizes, samples, inputs used."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.contracts.requirements import built, equal, randomised, refused, require, takes
from volumediff.randomness import normal

__all__ = ["check_classifier", "check_network", "check_residual_segmenter"]

SIZES = ((1, 1, 1), (1, 6, 5), (7, 3, 2), (12, 4, 4))
SMALL = {"widths": (4, 8), "blocks": 1, "groups": 2}


def _draw(*shape: int, key: str = "x") -> Tensor:
    return normal(shape, "contracts", key, dtype=torch.float64)


def _same(found: Callable[[], Tensor], expected: Tensor) -> None:
    equal(found(), expected, "The same input does not give the same output.")


def check_network(cls: type, **arguments: Any) -> None:
    """Any size, samples apart, every condition and every parameter in use."""
    objects = {"in_channels": 2, "out_channels": 3}
    net = randomised(built(cls, arguments, SMALL, objects)).double().eval()
    for size in SIZES:
        z, t = _draw(2, 2, *size), torch.tensor([0.1, 0.7])
        y = net(z, t)
        require(
            tuple(y.shape) == (2, 3, *size),
            f"A state of size {size} gives an output of shape {tuple(y.shape)}.",
        )
        require(y.isfinite().all(), "The output is not finite.")
        equal(net(z[1:], t[1:]), y[1:], "Samples of a batch see each other.", atol=1e-9)
        _same(lambda z=z, t=t: net(z, t), y)
    other = net(z, torch.tensor([0.9, 0.7]))
    require(not torch.allclose(other[0], y[0]), "The output does not depend on the time.")
    equal(other[1:], y[1:], "A sample's output depends on the time of another.", atol=1e-9)
    more = {"image_channels": 1, "classes": 2, "scalars": 1, "coordinates": True}
    _conditions(cls, arguments, {k: v for k, v in more.items() if takes(cls, k)}, objects)


def _conditions(cls: type, arguments: Any, more: dict[str, Any], objects: Any) -> None:
    told: nn.Module = randomised(built(cls, arguments, SMALL, {**objects, **more})).double()
    size = (4, 4, 4)
    parts = {
        "image_channels": ("image", _draw(1, 1, *size, key="image")),
        "classes": ("label", torch.tensor([1])),
        "scalars": ("scalars", _draw(1, 1, key="scalars")),
        "coordinates": ("coordinates", _draw(1, 3, *size, key="place")),
    }
    given = dict(parts[name] for name in more)
    condition, t = Condition(**given), torch.tensor([0.3])
    z = _draw(1, 2, *size)
    y = told(z, t, condition)
    y.square().sum().backward()
    unused = [n for n, p in told.named_parameters() if p.grad is None or not p.grad.any()]
    require(not unused, f"Parameters without a gradient: {', '.join(unused[:3])}.")
    for name, value in given.items():
        changed = condition.replace(**{name: value - 1 if name == "label" else value + 0.5})
        require(
            not torch.allclose(told(z, t, changed), y),
            f"The output does not depend on Condition.{name}, which the network was built for.",
        )
    if "image" in given:
        text = "A network that was built for an image must refuse a condition without one."
        refused(lambda: told(z, t, condition.replace(image=None)), text, ValueError)


def check_classifier(cls: type, **arguments: Any) -> None:
    """A logit per class at any size, which depends on the state and the time."""
    objects = {"in_channels": 2, "classes": 3}
    made = randomised(built(cls, arguments, SMALL, objects)).double().eval()
    t = torch.tensor([0.1, 0.7])
    for size in ((8, 8, 8), (5, 9, 6), (1, 3, 2)):
        z = _draw(2, 2, *size)
        y = made(z, t)
        require(tuple(y.shape) == (2, 3), f"Expected a logit per class, got {tuple(y.shape)}.")
        require(y.isfinite().all(), "Logits are not finite.")
        equal(made(z[1:], t[1:]), y[1:], "Samples of a batch see each other.", atol=1e-9)
        _same(lambda z=z: made(z, t), y)
    require(not torch.allclose(made(z + 1, t), y), "Logits do not depend on the state.")
    require(not torch.allclose(made(z, 1 - t), y), "Logits do not depend on the time.")
    half = made.bfloat16()(z.bfloat16(), t)
    require(half.dtype == torch.float32, "Logits must be at least in float32.")
    text = "A classifier of one class must be refused."
    refused(lambda: cls(2, 1), text, ValueError)


def check_residual_segmenter(cls: type, **arguments: Any) -> None:
    """A logit per voxel at any size, which depends on the residual and the volume."""
    made = randomised(built(cls, arguments, SMALL, {"channels": 2})).double().eval()
    for size in ((1, 7, 3), (8, 8, 8), (5, 9, 6)):
        r, x = _draw(2, 2, *size, key="r"), _draw(2, 2, *size)
        y = made(r, x)
        require(
            tuple(y.shape) == (2, 1, *size), f"Expected a logit per voxel, got {tuple(y.shape)}."
        )
        require(y.isfinite().all(), "Logits are not finite.")
        equal(made(r[1:], x[1:]), y[1:], "Samples of a batch see each other.", atol=1e-9)
        _same(lambda r=r, x=x: made(r, x), y)
    require(not torch.allclose(made(r + 1, x), y), "Logits do not depend on the residual.")
    require(not torch.allclose(made(r, x + 1), y), "Logits do not depend on the volume.")
