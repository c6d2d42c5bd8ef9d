"""Validation on the averaged weights: loss, previews, and the score that selects the best step.

Everything is keyed by the volume, so that figures of different steps differ by the weights alone;
processes take turns in the volumes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from volumediff.condition import HEALTHY, Condition
from volumediff.config import build
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.randomness import key
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.training import processes
from volumediff.training.dataset import collate
from volumediff.training.prepare import Prepared
from volumediff.training.previews import write_slices
from volumediff.training.run_config import RunConfig
from volumediff.training.selection import one_step_map, voxel_ap
from volumediff.training.task import Compression, Diffusion

__all__ = ["Found", "Validator"]


@dataclass(frozen=True)
class Found:
    """Figures of one validation.

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

    def __init__(self, config: RunConfig, prepared: Prepared, accelerator: Accelerator) -> None:
        self.config, self.prepared, self.accelerator = config, prepared, accelerator

    @torch.no_grad()
    def __call__(self, step: int) -> Found:
        task, wanted = self.prepared.task, self.config.validation
        held = self.prepared.held
        if len(held) == 0:
            return Found({}, None)
        was_training = task.module.training
        task.module.eval()
        try:
            loss = self._mean(self._loss, min(len(held), wanted.volumes))
            row, score = {"validation_loss": loss}, -loss
            if self.prepared.lesions:
                score = self._mean(self._voxel_ap, len(self.prepared.lesions))
                row["localization_ap"] = score
            if wanted.previews and self.accelerator.is_main_process and self._shows:
                self._preview(step)
        finally:
            task.module.train(was_training)
        return Found(row, score if math.isfinite(score) else -math.inf)

    def _mean(self, function: Callable[[int], float], count: int) -> float:
        """Mean of a function over the first volumes, shared by the processes."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = [function(i) for i in range(rank, count, world)]
        return processes.total(self.accelerator, [sum(mine)])[0] / count

    def _loss(self, index: int) -> float:
        sample = self.prepared.held.sample(index, key=key(self.config.seed, "validation", index))
        batch = collate([sample]).to(self.accelerator.device)
        return float(self.prepared.task.loss(self.prepared.task.main, batch).mean())

    def _voxel_ap(self, index: int) -> float:
        """AP of the one-step scan for one lesion in one validation volume."""
        best, volume = self.config.validation.best, self.prepared.lesions[index]
        model, truth = self.prepared.task.module, volume.array("truth")
        assert best is not None
        assert truth is not None, "lesioned volumes have a truth"
        if not bool(truth.any()):
            return 0.0
        x = volume.x[None].to(self.accelerator.device)
        residual = one_step_map(
            model,
            x,
            condition=self._condition(model, index, x),
            levels=best.levels,
            key=key(self.config.seed, "selection", index),
        )
        return voxel_ap(
            residual,
            truth[None],
            volume.foreground[None],
            spacing_mm=volume.spacing_mm,
            smooth_mm=best.smooth_mm,
        )

    def _condition(self, model: Model, index: int, x: Tensor | None = None) -> Condition:
        """Condition of a whole validation volume, healthy where there are classes.

        Arguments:
            x: what a model of maps is to look at, in place of a synthetic anomaly
        """
        sample = self.prepared.scans.sample(index, key=0)
        batch = collate([sample]).to(self.accelerator.device)
        condition = batch.condition
        if condition.label is not None:
            condition = condition.replace(label=torch.full_like(condition.label, HEALTHY))
        images = batch.images
        if x is not None and isinstance(model.recipe, SyntheticAnomalies):
            images = (*images[:-1], x)
        return model.told(condition, images, batch.mask)

    @property
    def _shows(self) -> bool:
        """Whether there is something to show: not every model can be sampled."""
        task = self.prepared.task
        if not isinstance(task, Diffusion):
            return isinstance(task, Compression)
        model = task.model
        return model.recipe.samples and not model.recipe.reference and model.times == (0.0, 1.0)

    def _preview(self, step: int) -> None:
        """Samples of a diffusion model, or volumes beside their reconstructions."""
        scans, device = self.prepared.scans, self.accelerator.device
        path = self.config.output / "previews" / f"step-{step:08d}.png"
        volumes, titles = [], []
        for index in range(min(self.config.validation.previews, len(scans))):
            sample = scans.sample(index, key=0)
            x, name = sample.x[None].to(device), scans.volumes[index].id
            task = self.prepared.task
            if isinstance(task, Compression):
                volumes += [x[0], task.reconstruct(x)[0]]
                titles += [name, f"{name}, reconstruction at step {step}"]
            else:
                volumes.append(self._sampled(task.module, index, tuple(x.shape[1:])))
                titles.append(f"sample {index + 1} at step {step}")
        write_slices(path, volumes, titles)

    def _sampled(self, model: Model, index: int, shape: tuple[int, int, int, int]) -> Tensor:
        name = "ddim" if isinstance(model.kernel, Gaussian) else "ancestral"
        sampler = build("sampler", {"name": name, "steps": self.config.validation.preview_steps})
        noise = model.noise((key(self.config.seed, "preview", index),), shape)
        z = sampler.sample(
            model.denoise,
            model.kernel,
            model.kernel.prior(noise(-1)),
            sampler.times(model.kernel.schedule),
            condition=self._condition(model, index),
            noise=noise,
        )
        return model.decode(z, shape[1:])[0]
