r"""Data parallelism: each process sees its share of a batch, all of them its mean gradient,

.. math:: g = \frac{1}{N} \sum_{r=1}^{N} \nabla_\theta \ell_r(\theta),

and how weights are held meanwhile: by one process, by each of them, or divided among them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.memory.shares import whole_tensor

__all__ = ["DataParallel", "Loss", "LossModule", "clipped"]

Loss = Callable[[str, Batch], Float[Tensor, "n"]]
"""(player, batch) -> loss of each sample."""


class LossModule(nn.Module):
    """A loss as the forward pass of the modules that it trains, for torch to hook into.

    Arguments:
        players: trained modules by player
        loss: of a player, made by these modules
    """

    def __init__(self, players: Mapping[str, nn.Module], loss: Loss) -> None:
        super().__init__()
        self.players = nn.ModuleDict(players)
        self.loss = loss

    def forward(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self.loss(player, batch)


def clipped(parameters: Sequence[Tensor], most: float | None) -> Float[Tensor, ""]:
    """Scales gradients down to a norm, and returns the norm that they had, over all processes.

    Arguments:
        parameters: with their gradients, whole or divided
        most: largest norm; None leaves them as they are
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if most is not None:
        nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return whole_tensor(norm)


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


class DataParallel(ABC):
    """Gradients over all processes, and the way between whole weights and those that are held."""

    def backward(
        self, player: str, micros: Sequence[Batch], scaled: Callable[[Tensor], Tensor] = _as_it_is
    ) -> list[Float[Tensor, "n"]]:
        """Adds to `grad` the mean gradient over the batches of all processes.

        Processes exchange once, in the backward pass of the last batch.

        Arguments:
            micros: batches of this process, as many and as large as those of the others
            scaled: what the gradient is taken of, from the loss

        Returns:
            the loss of each sample of this process, batch by batch
        """
        losses = []
        for i, batch in enumerate(micros):
            with self._exchanging(player, i + 1 == len(micros)):
                loss = self._loss(player, batch)
                scaled(loss.mean() / len(micros)).backward()
            losses.append(loss.detach())
        return losses

    @abstractmethod
    def _exchanging(self, player: str, wanted: bool) -> AbstractContextManager[None]:
        """Whether the backward pass inside the context exchanges gradients."""

    @abstractmethod
    def _loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        """The loss, with whatever its backward pass needs for the exchange."""

    @abstractmethod
    def whole(self) -> AbstractContextManager[None]:
        """Every process has whole weights inside the context, for passes of its own.

        All processes enter and leave it together.
        """

    @abstractmethod
    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in the main process, for a checkpoint; nothing in the others.

        Arguments:
            tensors: by name; all processes give the same names in the same order
        """

    @abstractmethod
    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        """What this process holds of a whole tensor.

        Arguments:
            tensor: the same in every process
            like: a tensor of this size as this process holds it
        """
