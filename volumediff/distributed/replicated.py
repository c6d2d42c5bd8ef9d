"""DDP: every process has all weights; gradients travel in buckets during the backward pass."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.distributed.data_parallel import DataParallel, Loss, LossModule

__all__ = ["Replicated"]


class Replicated(DataParallel):
    """torch's DistributedDataParallel, one for each player.

    Arguments:
        players: trained modules by player
        loss: of a player
        accelerator: of all processes

    References:
        Li et al. (2020), PyTorch Distributed: Experiences on accelerating data parallel training,
        arXiv:2006.15704
    """

    def __init__(
        self, players: Mapping[str, nn.Module], loss: Loss, accelerator: Accelerator
    ) -> None:
        # It looks for parameters that a loss leaves out, and says so where there are none.
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        self._main = accelerator.is_main_process
        self._players = {
            player: accelerator.prepare_model(LossModule({player: module}, loss))
            for player, module in players.items()
        }

    def _exchanging(self, player: str, wanted: bool) -> AbstractContextManager[None]:
        return nullcontext() if wanted else self._players[player].no_sync()

    def _loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self._players[player](player, batch)

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) if self._main else {}

    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor
