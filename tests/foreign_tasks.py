"""Two tasks from outside the package, each a class beside its configuration.

Distillation: one step of the student is two of its teacher's, Salimans and Ho (2022),
arXiv:2202.00512, algorithm 2. Segmentation: labels of images by the Dice loss, Milletari et al.
(2016), arXiv:1606.04797.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from volumediff.config import build
from volumediff.model import Model, state_noise
from volumediff.randomness import uniform
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samples.dataset import collate
from volumediff.schedules._base import per_sample
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.tasks import Criterion, Refusals, Task, borrowed, source_of


class DistillationConfig(RunConfig):
    teacher: str
    network: Component
    steps: int = 4

    def borrows(self):
        return {"teacher": Path(self.teacher)}


class Distillation(Task):
    schema = DistillationConfig
    noun = "a distilled diffusion model"
    refusals = Refusals(localize=None, segment="was not trained to segment.", sample=None)

    @classmethod
    def resolve(cls, config):
        if config.data.root is not None:
            return config
        return config.model_copy(
            update={"data": source_of(Path(config.teacher), where="teacher").data}
        )

    @classmethod
    def build(cls, config, run):
        found = borrowed(Path(config.teacher), where="teacher", run=run)
        teacher = found.task.lend(Model).requires_grad_(False)
        k = teacher.network.in_channels
        network = build("network", config.network, in_channels=k, out_channels=k)
        student = Model(teacher.space, teacher.kernel, network, recipe=teacher.recipe)
        module = nn.ModuleDict({"student": student, "teacher": teacher})
        return cls(config, module, main="student", digest=found.digest, frozen=[teacher])

    @property
    def result(self):
        return self.module["student"]

    def modules(self):
        return {"student": self.result.network}

    def loss(self, player, batch):
        teacher, n = self.module["teacher"], self.config.steps
        kernel, noise = teacher.kernel, partial(state_noise, teacher.space, teacher.noise_field)
        places = [(1 + int(uniform(key, "t") * n)) / n for key in batch.keys]
        t = torch.tensor(places, dtype=torch.float64, device=batch.x.device)
        with torch.no_grad():
            z_0 = teacher.encode(batch.x)
            drawn = noise(batch.keys, tuple(batch.x.shape[1:]), "loss", device=z_0.device)
            z = z_t = kernel.corrupt(z_0, t, drawn.to(z_0))
            for at in (t, t - 0.5 / n):
                said = teacher.denoise(z, at)
                z = kernel.corrupt(said.x0, at - 0.5 / n, said.eps)
            (a_t, s_t), (a_s, s_s) = kernel.schedule(t), kernel.schedule(t - 1 / n)
            ratio = s_s / s_t
            target = (z - per_sample(ratio, z) * z_t) / per_sample(a_s - ratio * a_t, z)
        return (self.result.denoise(z_t, t).x0 - target).square().flatten(1).mean(1)


class SupervisedSegmentationConfig(RunConfig):
    labels: tuple[int, ...] = (1,)
    width: int = 4


class SupervisedSegmentation(Task):
    schema = SupervisedSegmentationConfig
    noun = "a segmentation network"

    @classmethod
    def build(cls, config, run):
        c, n = config.data.channel_count, config.width
        layers = nn.Conv3d(c, n, 3, padding=1), nn.SiLU(), nn.Conv3d(n, len(config.labels), 1)
        recipe = LabelDiffusion(labels=config.labels)
        return cls(config, nn.Sequential(*layers), main="network", recipe=recipe)

    def modules(self):
        return {"network": self.module}

    def dice(self, batch):
        p, m = self.module(batch.images[-1]).sigmoid().flatten(2), (batch.x.flatten(2) + 1) / 2
        return (2 * (p * m).sum(2) + 1) / (p.sum(2) + m.sum(2) + 1)

    def loss(self, player, batch):
        return 1 - self.dice(batch).mean(1)

    def criterion(self, samples):
        def dice(index):
            batch = collate([samples.scans.sample(index, key=0)]).to(self.device)
            return float(self.dice(batch).mean())

        return Criterion("dice", len(samples.scans), dice)
