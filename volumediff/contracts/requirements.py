"""Assertions of contracts: what must hold, what must be equal, what is refused."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from volumediff import config
from volumediff.component import Component
from volumediff.randomness import generator

__all__ = ["built", "equal", "randomised", "refused", "require", "takes", "unmet", "untouched"]

# What is built where a constructor asks for a component of a family and has no default.
EXAMPLES: Mapping[str, Any] = {
    "autoencoder": {"name": "kl", "latent_channels": 2, "widths": [4, 4], "strides": [[2, 2, 2]]},
    "contrast": "tissue",
    "corruption": "coarse",
    "guidance": {"name": "dynamic_clipping", "quantile": 0.5, "limit": 0.2},
    "map": "l1",
    "network": {"name": "unet", "widths": [4], "blocks": 1, "groups": 2},
    "editing": "plain",
    "region": {"name": "cells", "cell_mm": 6.0},
    "sampler": {"name": "ddim", "steps": 3},
    "schedule": "cosine",
    "space": "voxel",
    "threshold": {"name": "fixed", "value": 0.5},
    "selector": "found",
}


def require(holds: object, sentence: str) -> None:
    """Raises AssertionError with the sentence where something does not hold."""
    if not bool(holds):
        raise AssertionError(sentence)


def equal(a: Tensor, b: Tensor, sentence: str, *, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Raises AssertionError where two tensors differ, with the largest difference."""
    a, b = a.detach(), b.detach()
    require(a.shape == b.shape, f"{sentence} (shapes {tuple(a.shape)} and {tuple(b.shape)})")
    if not torch.allclose(a.double(), b.double(), atol=atol, rtol=rtol, equal_nan=False):
        gap = float((a.double() - b.double()).abs().max())
        raise AssertionError(f"{sentence} (largest difference {gap:.3g})")


def refused(call: Callable[[], object], sentence: str, error: type[Exception]) -> None:
    """Raises AssertionError where a call does not fail with the error, or without a message."""
    try:
        call()
    except error as found:
        require(str(found) and "\n" not in str(found), f"{sentence} The message must be one line.")
        return
    raise AssertionError(sentence)


def unmet(component: Component, model: Any) -> str | None:
    """Why a model does not meet what a component needs; None where it does."""
    for requirement in component.requirements():
        try:
            requirement.check(model)
        except ValueError as error:
            require(str(error) and "\n" not in str(error), "A refusal must be one line.")
            return str(error)
    return None


def untouched(values: Mapping[str, Tensor], call: Callable[[], Any]) -> Any:
    """The result of a call that must not write into tensors that it was given."""
    before = {name: value.clone() for name, value in values.items()}
    result = call()
    for name, value in values.items():
        require(torch.equal(value, before[name]), f"It writes into {name}, which is the caller's.")
    return result


def takes(cls: type, name: str) -> bool:
    """Whether a constructor takes an argument, by its name or among `**others`."""
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    return name in inspect.signature(cls).parameters or inspect.Parameter.VAR_KEYWORD in kinds


def built(
    cls: type,
    arguments: Mapping[str, Any],
    usual: Mapping[str, Any] | None = None,
    objects: Mapping[str, Any] | None = None,
) -> Any:
    """An instance of a component.

    Arguments:
        cls: its class
        arguments: given by whoever checks; as in YAML
        usual: small values for arguments of these names, where the class takes them
        objects: the same for what is never configured, such as channels and posteriors
    """
    family = config.family_of(cls)
    assert family is not None, "looked up by family"
    known = config.arguments(family, cls)
    hints = typing.get_type_hints(cls.__init__)
    given = {k: v for k, v in (objects or {}).items() if takes(cls, k) and k not in arguments}
    spec = {k: v for k, v in (usual or {}).items() if k in known and k not in given}
    spec |= arguments
    for name in sorted(known - set(spec) - set(given)):
        if inspect.signature(cls).parameters[name].default is not inspect.Parameter.empty:
            continue
        annotation = hints.get(name)
        if typing.get_origin(annotation) is tuple:
            inner = config.family_of(typing.get_args(annotation)[0])
            if inner in EXAMPLES:
                spec[name] = [EXAMPLES[inner]] * 2
        elif config.family_of(annotation) in EXAMPLES:
            spec[name] = EXAMPLES[config.family_of(annotation)]
    return config.build(family, {"name": cls, **spec}, **given)


def randomised(module: nn.Module, *, std: float = 0.15) -> nn.Module:
    """Weights as after training: nothing at its zero or identity start."""
    source = generator("contracts", "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            scale = std / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else std
            parameter.add_(torch.randn(parameter.shape, generator=source) * scale * 2)
    return module
