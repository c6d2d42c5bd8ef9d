"""Validation on the averaged weights: loss, previews, and the score that selects the best step.

Everything is keyed by the volume, so that metrics of different steps differ by the weights alone;
processes take turns in the volumes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from volumediff.distributed import processes
from volumediff.distributed.mesh import turn
from volumediff.distributed.signals import StopFlag
from volumediff.memory.domain import current_domain
from volumediff.randomness import key
from volumediff.samples.dataset import collate
from volumediff.settings.run_config import RunConfig
from volumediff.training.previews import middle_slices, write_slices
from volumediff.training.setup import TrainingSetup

__all__ = ["ValidationResult", "Validator"]

T = TypeVar("T")


@dataclass(frozen=True)
class ValidationResult:
    """Metrics of one validation.

    Arguments:
        row: for metrics.jsonl
        score: higher is better; None without validation volumes, then the newest is the best
    """

    row: Mapping[str, float]
    score: float | None

    def better_than(self, best: Mapping[str, Any]) -> bool:
        """Whether this is to become the best checkpoint."""
        before = best.get("score")
        return before is None or self.score is None or self.score > before

    def summary(self, step: int) -> dict[str, Any]:
        """What a checkpoint remembers of its selection."""
        return {"step": step, "score": self.score, **self.row}


class Validator:
    """Validates the module of a task, whatever weights are in place."""

    def __init__(
        self, config: RunConfig, prepared: TrainingSetup, accelerator: Accelerator
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.task, self.samples = prepared.task, prepared.samples

    @torch.no_grad()
    def __call__(self, step: int, stop: StopFlag) -> ValidationResult | None:
        """Validates the weights of a step.

        Arguments:
            step: for the previews
            stop: looked at after every volume and preview

        Returns:
            None where any of the processes is to stop; nothing was written
        """
        task, wanted, held = self.task, self.config.validation, self.samples.held
        if len(held) == 0:
            return ValidationResult({}, None)
        was_training = task.module.training
        task.module.eval()
        try:
            loss = self._mean(self._loss, min(len(held), wanted.volumes), stop)
            if loss is None:
                return None
            row, score = {"validation_loss": loss}, -loss
            criterion = task.criterion(self.samples)
            if criterion is not None:
                score = self._mean(criterion.of, criterion.cases, stop)
                if score is None:
                    return None
                row[criterion.name] = score
            for indicator in task.indicators(self.samples):
                found = self._mean(indicator.of, indicator.cases, stop)
                if found is None:
                    return None
                row[indicator.name] = found
            if wanted.previews and not self._preview(step, stop):
                return None
        finally:
            task.module.train(was_training)
        return ValidationResult(row, score if math.isfinite(score) else -math.inf)

    def _mean(self, function: Callable[[int], float], count: int, stop: StopFlag) -> float | None:
        """Mean of a function over the first volumes, shared by the processes; None at a stop."""
        mine = self._shared(function, count, stop)
        if mine is None:
            return None
        total = processes.total(self.accelerator, [sum(mine.values())])[0]
        # Those that share a volume have found the same of it.
        return total / (count * current_domain().size)

    def _shared(
        self, function: Callable[[int], T], count: int, stop: StopFlag
    ) -> dict[int, T] | None:
        """What a function gives for the volumes that are this process's turn.

        The processes meet after every volume: once one of them is to stop, all get None.
        """
        rank, world = turn(self.accelerator)
        found = {}
        for first in range(0, count, world):
            if first + rank < count:
                found[first + rank] = function(first + rank)
            if processes.total(self.accelerator, [float(stop.number)])[0]:
                return None
        return found

    def _loss(self, index: int) -> float:
        sample = self.samples.held.sample(index, key=key(self.config.seed, "validation", index))
        batch = collate([sample]).to(self.accelerator.device)
        return float(self.task.loss(self.task.main, batch).mean())

    def _preview(self, step: int, stop: StopFlag) -> bool:
        """A picture of what the task has to show, if anything, made by all processes.

        Returns:
            whether it is finished; not at a stop
        """
        count = min(self.config.validation.previews, len(self.samples.scans))

        def slices(i: int) -> list[Any]:
            return [
                middle_slices(f"{title} at step {step}", volume)
                for title, volume in self.task.preview(self.samples, i)
            ]

        mine = self._shared(slices, count, stop)
        if mine is None:
            return False
        found = {
            i: own
            for part in processes.gathered(self.accelerator, mine)
            for i, own in part.items()
        }
        shown = [preview for i in range(count) for preview in found[i]]
        if shown:
            path = self.config.output / "previews" / f"step-{step:08d}.png"
            processes.on_main(self.accelerator, lambda: write_slices(path, shown))
        return True
