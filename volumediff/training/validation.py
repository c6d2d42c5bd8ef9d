"""Validation on the averaged weights: loss, previews, and the score that selects the best step.

Everything is keyed by the volume, so that metrics of different steps differ by the weights alone;
processes take turns in the volumes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from volumediff.distributed import processes
from volumediff.randomness import key
from volumediff.samples.dataset import collate
from volumediff.settings.run_config import RunConfig
from volumediff.training.previews import middle_slices, write_slices
from volumediff.training.setup import TrainingSetup

__all__ = ["ValidationResult", "Validator"]


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
    def __call__(self, step: int) -> ValidationResult:
        task, wanted, held = self.task, self.config.validation, self.samples.held
        if len(held) == 0:
            return ValidationResult({}, None)
        was_training = task.module.training
        task.module.eval()
        try:
            loss = self._mean(self._loss, min(len(held), wanted.volumes))
            row, score = {"validation_loss": loss}, -loss
            criterion = task.criterion(self.samples)
            if criterion is not None:
                score = self._mean(criterion.of, criterion.cases)
                row[criterion.name] = score
            if wanted.previews:
                self._preview(step)
        finally:
            task.module.train(was_training)
        return ValidationResult(row, score if math.isfinite(score) else -math.inf)

    def _mean(self, function: Callable[[int], float], count: int) -> float:
        """Mean of a function over the first volumes, shared by the processes."""
        mine = [function(i) for i in self._mine(count)]
        return processes.total(self.accelerator, [sum(mine)])[0] / count

    def _mine(self, count: int) -> range:
        """The numbers below `count` that are this process's turn."""
        return range(self.accelerator.process_index, count, self.accelerator.num_processes)

    def _loss(self, index: int) -> float:
        sample = self.samples.held.sample(index, key=key(self.config.seed, "validation", index))
        batch = collate([sample]).to(self.accelerator.device)
        return float(self.task.loss(self.task.main, batch).mean())

    def _preview(self, step: int) -> None:
        """A picture of what the task has to show, if anything, made by all processes."""
        count = min(self.config.validation.previews, len(self.samples.scans))
        mine = {
            i: [
                middle_slices(f"{title} at step {step}", volume)
                for title, volume in self.task.preview(self.samples, i)
            ]
            for i in self._mine(count)
        }
        found = {
            i: own
            for part in processes.gathered(self.accelerator, mine)
            for i, own in part.items()
        }
        shown = [preview for i in range(count) for preview in found[i]]
        if shown:
            path = self.config.output / "previews" / f"step-{step:08d}.png"
            processes.on_main(self.accelerator, lambda: write_slices(path, shown))
