"""One process, which has all samples and all weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from jaxtyping import Float
from torch import Tensor

from volumediff.batch import Batch
from volumediff.distributed.data_parallel import DataParallel, Loss

__all__ = ["OneProcess"]


class OneProcess(DataParallel):
    """Nothing to exchange.

    Arguments:
        loss: of a player
    """

    def __init__(self, loss: Loss) -> None:
        self._function = loss

    def _exchanging(self, player: str, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def _loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self._function(player, batch)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor
