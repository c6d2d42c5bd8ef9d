"""A task from outside the package: its class beside its configuration.

Distillation: one step of the student is two of its teacher's, Salimans and Ho (2022),
arXiv:2202.00512, algorithm 2.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from volumediff.config import build
from volumediff.model import Model, state_noise
from volumediff.randomness import uniform
from volumediff.schedules._base import per_sample
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.tasks import Refusals, Task, borrowed, source_of


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
