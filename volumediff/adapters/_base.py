r"""Contract of adapters: a correction of a frozen weight, which is the weight itself at the start.

Corrections act on weights, W ↦ f(W), and not on activations: a layer computes what it always does,
with f(W) in place of W. No volume is stored beside those of the layer, slabs and recomputation
know nothing of it, and once f(W) is written in place of W the adapter costs nothing.

The mechanism is torch's `parametrize`: `layer.weight` is computed from `original` whenever it is
read.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Adapter", "attach", "merge"]

WEIGHT = "weight"


class Adapter(ABC):
    """What is trained in place of the weights of a network."""

    @abstractmethod
    def correction(self, weight: Tensor) -> nn.Module:
        """A module W ↦ f(W) of the same shape, with parameters of its own; f(W) = W at the start.

        Arguments:
            weight: kernel (o, i, d, h, w) or matrix (o, i); f(W) has its device, dtype and layout
        """


def attach(adapter: Adapter, module: nn.Module) -> None:
    """Freezes a module and corrects its trained kernels and matrices.

    Names of parameters change; those of the corrections are the ones that ask for gradients.

    Arguments:
        adapter: gives the corrections
        module: whose parameters that ask for gradients were to be trained

    Raises:
        ValueError: the module has no kernel and no matrix that is trained
    """
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    layers = [m for m in module.modules() if _is_adapted(m, trained)]
    if not layers:
        raise ValueError("expected trained kernels or matrices, got none")
    module.requires_grad_(False)
    for layer in layers:
        correction = adapter.correction(layer.weight)
        parametrize.register_parametrization(layer, WEIGHT, correction)


def merge(module: nn.Module) -> None:
    """Writes the corrected weights in place of those that they correct; names are as before."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, WEIGHT):
            parametrize.remove_parametrizations(layer, WEIGHT, leave_parametrized=True)


def _is_adapted(layer: nn.Module, trained: set[int]) -> bool:
    weight = layer._parameters.get(WEIGHT)
    return weight is not None and weight.ndim >= 2 and id(weight) in trained
