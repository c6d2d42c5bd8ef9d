"""A segmentation as the planner sees it: one member of an ensemble, with what the others left.

The engine itself runs, so that the plan holds its probabilities, moments, votes and samples. Only
what all members have in common is done once: the first of two is nothing but its result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate, Image, Predictor
from volumediff.segmentation.segmenters.composed import Composed
from volumediff.tasks._base import Stage

__all__ = ["segment_once"]

SAMPLES = 5  # of the shipped methods; a byte per voxel of each is kept
LEVEL = 0.6  # any time will do


@dataclass(frozen=True)
class _OneOfMany(Predictor):
    """Members of which the second alone is computed.

    Arguments:
        batch: one volume
        stage: names what happens
    """

    batch: Batch
    stage: Stage

    def check(self, model: nn.Module) -> None:
        """Any model of labels will do."""

    def labels(self, model: Model) -> tuple[int, ...]:
        return model.recipe.labels

    def prepare(self, model: Model, image: Image) -> Condition:
        batch = self.batch
        with self.stage("encode"):
            condition = model.told(batch.condition, batch.images, batch.mask)
        if model.network.conditioner.places:
            with self.stage("prepare"):
                condition = model.prepared(condition)
        return condition

    def memberships(
        self,
        model: Model,
        prepared: Condition,
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        batch, recipe = self.batch, model.recipe
        c, d, h, w = batch.x.shape[1:]
        if draws[0].number == 0:
            return batch.x.new_zeros((1, len(recipe.labels), d, h, w))
        with self.stage("denoise"):
            noise = model.noise(batch.keys, (c, d, h, w))
            # A sampler holds on to the state and the noise while the network runs.
            z, drawn = noise(-1), noise(0)
            t = torch.full((len(z),), LEVEL, dtype=torch.float64, device=z.device)
            z_t = model.kernel_of(prepared).corrupt(z, t, drawn)
            x0 = model.denoise(z_t, t, noise.conditioned(prepared, 0)).x0
            del z, drawn, z_t
        with self.stage("decode"):
            x = model.decode(x0, (d, h, w))
            return recipe.coding.decode(x, spacing_mm=(1.0, 1.0, 1.0))


def segment_once(model: Model, batch: Batch, *, stage: Stage) -> Any:
    """What segmenting one volume holds at once, in named stages.

    Arguments:
        model: of labels
        batch: one volume, in the form of training
        stage: names what happens
    """
    x = batch.images[-1]
    with stage("fuse"):
        others = torch.empty((SAMPLES - 2, *x.shape[2:]), dtype=torch.uint8, device=x.device)
        found = Composed(_OneOfMany(batch, stage), samples=2).segment(
            model,
            x,
            foreground=torch.ones_like(x[:, :1], dtype=torch.bool),
            spacing_mm=(1.0, 1.0, 1.0),
            key=0,
            condition=batch.condition,
        )
    return found, others
