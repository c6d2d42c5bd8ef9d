"""Predictors that ask a diffusion model of label maps: all see the image in its state space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from volumediff.compatibility import require
from volumediff.compatibility.methods import label_model_problem
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Image, Predictor
from volumediff.shapes import Shape

__all__ = ["EncodedImage", "LabelModelPredictor"]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """A volume in the state space of a model of labels.

    Arguments:
        condition: with the encoded image, and what the network's image branch makes of it
        shape: voxels
        spacing_mm: voxel size along d, h, w
    """

    condition: Condition
    shape: Shape
    spacing_mm: tuple[float, float, float]

    def expanded(self, draws: Sequence[Draw]) -> Condition:
        """The condition of so many members, each told its level of agreement."""
        n = len(draws)
        told = self.condition.map(lambda c: c.expand(n, *c.shape[1:]))
        if draws[0].level is None:
            return told
        assert told.image is not None, "models of labels look at an image"
        levels = torch.tensor([[draw.level] for draw in draws]).to(told.image)
        known = [] if told.scalars is None else [told.scalars]
        return told.replace(scalars=torch.cat([*known, levels], dim=1))


def _encoded(model: Model, image: Image) -> EncodedImage:
    """The image in state space, and through the network's image branch: once per volume."""
    condition = model.told(image.condition.replace(image=None), [image.x])
    d, h, w = image.x.shape[2:]
    return EncodedImage(model.prepared(condition), (d, h, w), image.spacing_mm)


@dataclass(frozen=True)
class LabelModelPredictor(Predictor):
    """A predictor of a diffusion model of label maps; what it asks is left to define."""

    def check(self, model: Any) -> None:
        require(label_model_problem(model))

    def labels(self, model: Model) -> tuple[int, ...]:
        return model.recipe.labels

    def prepare(self, model: Model, image: Image) -> EncodedImage:
        return _encoded(model, image)
