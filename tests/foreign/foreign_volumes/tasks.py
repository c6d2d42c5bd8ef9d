"""Supervised segmentation by the Dice loss. Milletari et al. (2016), arXiv:1606.04797."""

from torch import nn

from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samples.dataset import collate
from volumediff.settings.run_config import RunConfig
from volumediff.tasks import Criterion, Refusals, Task


class SupervisedConfig(RunConfig):
    """Keys of the task: label values, and channels of the hidden layer."""

    labels: tuple[int, ...] = (1,)
    width: int = 4


class Supervised(Task):
    """A network of two layers that segments an image in one pass."""

    schema = SupervisedConfig
    noun = "a segmentation network"
    refusals = Refusals("was trained to segment.", None, "was trained to segment.")

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
