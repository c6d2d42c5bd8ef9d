"""The contract of pretexts: losses of samples alone, drawn by key, that teach the encoder."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, randomised, require, untouched
from volumediff.networks.unet import UNet
from volumediff.pretexts._base import Pretext
from volumediff.pretraining import NetworkEncoder, Pretraining
from volumediff.randomness import normal
from volumediff.spaces.wavelet import Wavelet

__all__ = ["check_pretext"]

SIZE = (12, 9, 10)
# Small values for what a pretext may take.
SMALL = {"queue": 5, "places": 2, "width": 6, "hidden": 8, "orders": 4, "cell": 3}


def check_pretext(cls: type[Pretext], **arguments: Any) -> None:
    """A loss per volume, of it and its key alone; gradients; what follows a step."""
    network = UNet(8, 8, widths=(4, 8), blocks=1, groups=2)
    pretext: Pretext = built(cls, arguments, SMALL, {"features": network.anatomy.channels})
    encoder = NetworkEncoder(Wavelet(), network, dtype=torch.float32)
    randomised(encoder)
    randomised(pretext)
    module = Pretraining(encoder, pretext).train()
    x = normal((3, 1, *SIZE), "contracts", "pretext").clamp(-1, 1)
    x[:, :, :2] = -1
    keys = (11, 12, 13)
    loss = untouched({"the volumes": x}, lambda: pretext.loss(encoder, x, keys))
    require(loss.shape == (3,) and loss.isfinite().all(), "There is no finite loss per volume.")
    equal(pretext.loss(encoder, x, keys), loss, "The loss does not follow from the keys.")
    for i, key in enumerate(keys):
        alone = pretext.loss(encoder, x[i : i + 1], (key,))
        equal(alone, loss[i : i + 1], "The loss depends on the batch.", rtol=1e-4, atol=1e-5)
    other = pretext.loss(encoder, x, (21, 22, 23))
    require(not torch.allclose(other, loss), "Nothing is drawn by the key.")
    module.zero_grad()
    loss.mean().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            learns = parameter.grad is not None and bool(parameter.grad.any())
            require(learns or name.startswith("encoder."), f"{name} learns nothing.")
    stem = next(network.anatomy.stem.parameters())
    require(stem.grad is not None and bool(stem.grad.any()), "The encoder learns nothing.")
    _steps(module)


def _steps(module: Pretraining) -> None:
    """Two equal modules that take the same step are equal again, from what is saved alone."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.stepped(0.25, lambda rows: rows)
    for name, tensor in module.state_dict().items():
        require(tensor.isfinite().all(), f"{name} is not finite after a step.")
        if name in dict(module.named_parameters()):
            equal(tensor, before[name], f"A step changes {name}, which the optimizer does.")
    module.load_state_dict(before)
    for name, tensor in module.state_dict().items():
        equal(tensor, before[name], f"{name} does not come back from a checkpoint.")
