"""How a diffusion model is looked at while it is trained: lesions found, labels found, samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.compatibility.chains import sampler_problem
from volumediff.compatibility.methods import samples_everything
from volumediff.condition import HEALTHY, Condition
from volumediff.model import Model
from volumediff.randomness import key
from volumediff.samplers._base import Sampler
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.student import Student
from volumediff.samples.dataset import Samples, collate
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.tasks._selection import label_dice, one_step_map, voxel_ap

__all__ = ["Validating"]


@dataclass(frozen=True, eq=False)
class Validating:
    """A model and the volumes that it is validated on.

    Arguments:
        model: with the weights that are looked at
        samples: of the run
        seed: of the run; everything that is drawn follows from it
    """

    model: Model
    samples: Samples
    seed: int

    def localization_ap(self, index: int, *, levels: tuple[float, ...], smooth_mm: float) -> float:
        """AP of the one-step scan for one lesion in one validation volume."""
        volume = self.samples.lesions[index]
        truth = volume.array("truth")
        assert truth is not None, "lesioned volumes have a truth"
        if not bool(truth.any()):
            return 0.0
        x = volume.x[None].to(self.model.device)
        residual = one_step_map(
            self.model,
            x,
            condition=self._condition(index, x),
            levels=levels,
            key=key(self.seed, "selection", index),
        )
        return voxel_ap(
            residual,
            truth[None],
            volume.foreground[None],
            spacing_mm=volume.spacing_mm,
            smooth_mm=smooth_mm,
        )

    def _condition(self, index: int, x: Tensor | None = None) -> Condition:
        """Condition of a whole validation volume, healthy where there are classes.

        Arguments:
            x: what a model of maps is to look at, in place of a synthetic anomaly
        """
        batch = collate([self.samples.scans.sample(index, key=0)]).to(self.model.device)
        condition, images = batch.condition, batch.images
        readers = self.samples.scans.volumes[index].reader_count
        level = self.model.recipe.consensus_level(readers)
        if level is not None:
            assert condition.scalars is not None, "the level is the last of them"
            scalars = condition.scalars.clone()
            scalars[:, -1] = level
            condition = condition.replace(scalars=scalars)
        if condition.label is not None:
            condition = condition.replace(label=torch.full_like(condition.label, HEALTHY))
        if x is not None and self.model.recipe.marks == "self":
            images = (*images[:-1], x)
        return self.model.told(condition, images, batch.mask)

    def dice(self, index: int, *, steps: int) -> float:
        """Mean Dice over the labels of a validation volume, of one sampled label map."""
        found, truth = self._segmented(index, steps)
        return label_dice(found, truth, self.model.recipe)

    def _segmented(self, index: int, steps: int) -> tuple[Tensor, Tensor]:
        """A sampled label map of a validation volume, and the true one."""
        model, volume = self.model, self.samples.scans.volumes[index]
        truth = volume.array("label")
        assert truth is not None, "volumes without labels are refused before"
        found = Composed(sampler=self._few_steps(steps), samples=1).segment(
            model,
            volume.x[None].to(model.device),
            foreground=volume.foreground[None].to(model.device),
            spacing_mm=volume.spacing_mm,
            key=key(self.seed, "selection", index),
            condition=self._condition(index),
        )
        return found.labels.cpu(), truth[None]

    def _few_steps(self, steps: int) -> Sampler:
        """Of a chain that is good enough to look at; a student's is its own."""
        if self.model.walk is not None:
            return Student()
        sampler: Sampler = DPMSolverPP(steps)
        return Ancestral(steps) if sampler_problem(sampler, self.model.kernel) else sampler

    def preview(self, index: int, *, steps: int) -> Sequence[tuple[str, Tensor]]:
        """A sample, of models that can be sampled without an image; or, of models of labels, a
        volume with its labels and a sampled label map."""
        model = self.model
        if self.model.recipe.segments:
            shown = self._segmented(index, steps)
            most = max(self.model.recipe.labels)
            found, truth = (labels[0].float() / most * 2 - 1 for labels in shown)
            x = self.samples.scans.volumes[index].x
            number = index + 1
            return [(f"image {number}", x), (f"truth {number}", truth), ("sample", found)]
        if not samples_everything(model):
            return ()
        shape = tuple(self.samples.scans.sample(index, key=0).x.shape)
        sampler = self._few_steps(steps).of(model)
        noise = model.noise((key(self.seed, "preview", index),), shape)
        z = sampler.sample(
            model.denoise,
            model.kernel,
            model.kernel.prior(noise(-1)),
            sampler.times(model.kernel.schedule),
            condition=self._condition(index),
            noise=noise,
        )
        return [(f"sample {index + 1}", model.decode(z, shape[1:])[0])]
