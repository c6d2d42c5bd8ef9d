r"""A slowly following copy of a module's weights, θ' <- m θ' + (1 - m) θ.

The copy is held as buffers: it is saved with the weights and no optimizer sees it. It is put in
place of the weights for a call, so that there is one module and no second definition of it.

References:
    He et al. (2020), Momentum Contrast, arXiv:1911.05722, Equation 2
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from volumediff.memory.shares import whole_tensor

__all__ = ["MomentumCopy"]


class MomentumCopy(nn.Module):
    """The averaged weights of one module."""

    def follow(self, module: nn.Module) -> None:
        """Becomes the weights of a module that are trained."""
        for name, parameter in _trained(module).items():
            self.register_buffer(_key(name), parameter.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module, momentum: float) -> None:
        """Moves towards the weights of the module."""
        for name, parameter in _trained(module).items():
            self.get_buffer(_key(name)).lerp_(whole_tensor(parameter.detach()), 1 - momentum)

    @torch.no_grad()
    def called(self, module: nn.Module, *arguments: Any) -> Tensor:
        """What the module gives with the averaged weights, without gradients."""
        weights = {name: self.get_buffer(_key(name)) for name in _trained(module)}
        return functional_call(module, weights, arguments)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of buffers have no dots
