"""The state of a run: trained tensors, their average, the optimizers' moments, and one integer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from volumediff.distributed.data_parallel import DataParallel
from volumediff.distributed.one_process import OneProcess
from volumediff.errors import DataError
from volumediff.optimization.ema import EMA
from volumediff.settings.sections import Optim
from volumediff.storage import checkpoint
from volumediff.storage.checkpoint import Bindings
from volumediff.tasks import Task

__all__ = ["TrainingState"]


def _optimizer(optim: Optim, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    # One pass over weights, gradients and moments. These kernels read memory in order, whatever
    # the strides: autograd gives a gradient those of its weight.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    if optim.momentum is None:
        return torch.optim.AdamW(
            parameters,
            lr=optim.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        parameters,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=True,
        fused=fused,
    )


@dataclass
class TrainingState:
    """Everything that a checkpoint holds.

    Arguments:
        task: the trained module and its players
        parallel: how processes hold the weights
        trained: parameters by name, as they are held
        players: the same by player
        optimizers: of every player
        ema: average of the trained parameters
        step: updates done
        validated: step of the last validation that was finished
        bound: files and settings of the run that the training depends on
        best: score and step of the best checkpoint so far
        least: least loss after the warm-up, for runs with patience
        waited: steps since then
        scaler: scales losses where activations are in float16, whose smallest gradients would
            otherwise be zero; finds gradients that are too large, and leaves the weights then
        skipped: steps that left the weights

    References:
        Micikevicius et al. (2018), Mixed precision training, arXiv:1710.03740 (section 3.2)
    """

    task: Task
    parallel: DataParallel
    trained: dict[str, nn.Parameter]
    players: dict[str, list[nn.Parameter]]
    optimizers: dict[str, torch.optim.Optimizer]
    ema: EMA
    step: int = 0
    validated: int = 0
    bound: Bindings = field(default_factory=lambda: Bindings(files={}, settings={}))
    best: dict[str, Any] = field(default_factory=dict)
    least: float | None = None
    waited: int = 0
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    skipped: int = 0

    @classmethod
    def fresh(
        cls, task: Task, optim: Optim, parallel: DataParallel | None = None
    ) -> "TrainingState":
        """The state before the first step; of one process unless `parallel` says otherwise."""
        trained, players = task.trained(), task.parameters()
        device = next(iter(trained.values())).device.type
        half = task.config.memory.torch_dtype == torch.float16
        return cls(
            task,
            parallel or OneProcess(task.loss),
            trained,
            players,
            {player: _optimizer(optim, own) for player, own in players.items()},
            EMA(trained, decay=optim.ema),
            scaler=GradScaler(device, enabled=half),
        )

    def watch(self, optim: Optim, loss: float, *, step: int) -> None:
        """Counts the steps without a lower loss; after the warm-up, if there is a patience.

        Arguments:
            loss: of update number `step`, from 0
        """
        if optim.patience is None or step < optim.warmup:
            return
        if self.least is None or loss < self.least:
            self.least, self.waited = loss, 0
        else:
            self.waited += 1

    def ended(self, optim: Optim) -> bool:
        """Whether there is no further step."""
        impatient = optim.patience is not None and self.waited >= optim.patience
        return impatient or self.step >= optim.steps

    @property
    def progress(self) -> tuple[int, int]:
        """Steps done, and validated: what is to be saved once it has changed."""
        return self.step, self.validated

    def due(self, optim: Optim, every: int) -> bool:
        """Whether this step is to be validated: every so many steps, and after the last one."""
        return self.validated < self.step and (self.step % every == 0 or self.ended(optim))

    def tensors(self, kind: str) -> dict[str, dict[str, Tensor]]:
        """What the checkpoint `last` (all of it) or `best` (the weights) holds, by file.

        All processes take part; the main process gets whole tensors, the others nothing.
        """
        weights = self.task.state()
        averaged = {n: self.ema.tensors.get(n, t) for n, t in weights.items()}
        tensors = {"weights": weights, "ema": averaged}
        if kind == "last":
            names = {p: n for n, p in self.trained.items()}
            tensors["optimizer"] = {
                f"{player}/{name}": tensor
                for player, optimizer in self.optimizers.items()
                for name, tensor in checkpoint.optimizer_tensors(optimizer, names).items()
            }
            if own := self.task.training_state():
                tensors["training"] = own
        return {name: self.parallel.gathered(group) for name, group in tensors.items()}

    def save(self, run: Path, kind: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Writes a checkpoint of `tensors(kind)`; of `last` two are kept, of `best` one."""
        checkpoint.save(
            run,
            kind,
            step=self.step,
            tensors=tensors,
            state={
                "validated": self.validated,
                "bound": self.bound.model_dump(),
                "best": self.best,
                "borrowed": self.task.borrowed,
                "least": self.least,
                "waited": self.waited,
                "scaling": self._scaling(),
                "skipped": self.skipped,
            },
            keep=2 if kind == "last" else 1,
        )

    def _scaling(self) -> dict[str, float | int] | None:
        if not self.scaler.is_enabled():
            return None
        state = self.scaler.state_dict()
        return {"scale": state["scale"], "growth_tracker": state["_growth_tracker"]}

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The module with the averaged weights in place, whole in every process; the others are
        back afterwards."""
        self._swap()
        try:
            with self.parallel.whole():
                yield self.task.module
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Values change places, not tensors: optimizers, graphs and shards know these by address.
        for name, parameter in self.trained.items():
            average, before = self.ema.tensors[name], parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(before)

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Takes the state of a checkpoint; each process keeps its share of every tensor.

        Raises:
            DataError: it does not fit
        """
        if found.state["borrowed"] != self.task.borrowed:
            names = " and ".join(self.task.config.frozen_runs)
            raise DataError(
                f"{found.path}: was trained with other frozen weights (of {names}) than there are "
                "now; put them back, or choose another output=DIR."
            )
        try:
            self.task.load(found.tensors("weights", keep=self._share))
            self.ema.load(found.tensors("ema", keep=self._share))
            moments = found.tensors("optimizer", keep=self._moment)
            names = {p: n for n, p in self.trained.items()}
            for player, optimizer in self.optimizers.items():
                mine = {p: f"{player}/{names[p]}" for p in self.players[player]}
                checkpoint.restore_optimizer(optimizer, mine, moments)
            own = found.tensors("training") if found.has("training") else {}
            self.task.resume_training(found.step, own)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{found.path}: does not fit this configuration and version ({reason}); "
                "go on with the version that wrote it, or choose another output=DIR."
            ) from error
        self.step, self.best = found.step, dict(found.state["best"])
        self.validated = found.state["validated"]
        self.least, self.waited = found.state["least"], found.state["waited"]
        self.skipped = found.state["skipped"]
        if self.scaler.is_enabled() and found.state["scaling"] is not None:
            own = found.state["scaling"]
            state = {**self.scaler.state_dict(), "scale": own["scale"]}
            self.scaler.load_state_dict({**state, "_growth_tracker": own["growth_tracker"]})

    def _share(self, name: str, tensor: Tensor) -> Tensor:
        """What this process holds of a trained parameter, or of its average."""
        held = self.trained.get(name)
        return tensor if held is None else self.parallel.share(tensor, held)

    def _moment(self, name: str, tensor: Tensor) -> Tensor:
        """The same of a moment `<player>/<parameter>/<moment>`; counters are no share of any."""
        _, _, rest = name.partition("/")
        return self._share(rest.rpartition("/")[0], tensor) if tensor.ndim else tensor
