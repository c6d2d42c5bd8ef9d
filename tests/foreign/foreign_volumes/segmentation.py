"""Labels by one pass of a network, whose outputs are the log-odds of the labels."""

from dataclasses import dataclass

import torch

from volumediff.segmentation.result import Segmentation
from volumediff.segmentation.segmenters._base import Segmenter


@dataclass(frozen=True)
class OnePass(Segmenter):
    """One pass of a network; its outputs are the log-odds of the labels.

    Arguments:
        values: label values, in the order of the outputs
        temperature: divides the log-odds
    """

    values: tuple[int, ...] = (1,)
    temperature: float = 1.0

    def check(self, model):
        if not isinstance(model, torch.nn.Sequential):
            raise ValueError("expected a run of foreign_volumes.tasks:Supervised.")

    @torch.no_grad()
    def segment(self, model, x, *, foreground, **others):
        return Segmentation(self.values, (model(x) / self.temperature).sigmoid() * foreground)
