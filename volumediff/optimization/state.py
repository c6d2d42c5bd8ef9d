"""The state of a run: trained tensors, their average, the optimizers' moments, and one integer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from volumediff.errors import DataError
from volumediff.optimization.ema import EMA
from volumediff.settings.sections import Optim
from volumediff.storage import checkpoint
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
        optimizers: of every player
        ema: average of the trained parameters
        step: updates done
        best: score and step of the best checkpoint so far
        least: least loss after the warm-up, for runs with patience
        waited: steps since then
    """

    task: Task
    optimizers: dict[str, torch.optim.Optimizer]
    ema: EMA
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    least: float | None = None
    waited: int = 0

    @classmethod
    def fresh(cls, task: Task, optim: Optim) -> "TrainingState":
        """The state before the first step."""
        optimizers = {p: _optimizer(optim, own) for p, own in task.parameters().items()}
        return cls(task, optimizers, EMA(task.trained(), decay=optim.ema))

    @classmethod
    def start(
        cls, task: Task, optim: Optim, run: Path, report: Callable[[str], None]
    ) -> "TrainingState":
        """A fresh state, or that of the newest good checkpoint of the run."""
        state = cls.fresh(task, optim)
        found = checkpoint.find(run, "last", report=report)
        if found is not None:
            state._resume(found)
        return state

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

    def save(self, run: Path, kind: str) -> None:
        """Writes `last` (all of it, two kept) or `best` (the weights, one kept)."""
        weights = self.task.state()
        averaged = {n: self.ema.tensors.get(n, t) for n, t in weights.items()}
        tensors = {"weights": weights, "ema": averaged}
        if kind == "last":
            tensors["optimizer"] = {
                f"{player}/{name}": tensor
                for player, optimizer in self.optimizers.items()
                for name, tensor in checkpoint.optimizer_tensors(optimizer, self._names()).items()
            }
        checkpoint.save(
            run,
            kind,
            step=self.step,
            tensors=tensors,
            state={
                "best": self.best,
                "borrowed": self.task.digest,
                "least": self.least,
                "waited": self.waited,
            },
            keep=2 if kind == "last" else 1,
        )

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The module with the averaged weights in place; the others are back afterwards."""
        self._swap()
        try:
            yield self.task.module
        finally:
            self._swap()

    def _swap(self) -> None:
        # Tensors change places without a copy; the optimizer keeps its parameters.
        for name, parameter in self.task.trained().items():
            parameter.data, self.ema.tensors[name] = self.ema.tensors[name], parameter.data

    def _names(self) -> dict[Tensor, str]:
        return {p: n for n, p in self.task.module.named_parameters()}

    def _resume(self, found: checkpoint.Checkpoint) -> None:
        if found.state["borrowed"] != self.task.digest:
            names = " and ".join(self.task.config.borrows())
            raise DataError(
                f"{found.path}: was trained with other frozen weights (of {names}) than there are "
                "now; put them back, or choose another output=DIR."
            )
        try:
            self.task.load(found.tensors("weights"))
            self.ema.load(found.tensors("ema"))
            moments = found.tensors("optimizer")
            names = self._names()
            for player, optimizer in self.optimizers.items():
                mine = {p: f"{player}/{names[p]}" for p in self.task.parameters()[player]}
                checkpoint.restore_optimizer(optimizer, mine, moments)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{found.path}: does not fit this configuration and version ({reason}); "
                "go on with the version that wrote it, or choose another output=DIR."
            ) from error
        self.step, self.best = found.step, dict(found.state["best"])
        self.least, self.waited = found.state["least"], found.state["waited"]
