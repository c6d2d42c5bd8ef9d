r"""Direct: the labels of a network that was trained to give them in one pass,

.. math:: p = \operatorname{softmax} A^{-1} F(z, 0),

or the mean over the noise levels that it was trained at, each with noise of the member's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.methods import direct_problem
from volumediff.condition import Condition
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate, Image, Predictor
from volumediff.shapes import Shape
from volumediff.supervised_segmentation import SupervisedSegmentation

__all__ = ["Direct", "EncodedVolume"]


@dataclass(frozen=True, eq=False)
class EncodedVolume:
    """A volume in the state space of a supervised segmentation.

    Arguments:
        z: its state
        shape: voxels
        condition: scalars
    """

    z: Float[Tensor, "1 k d h w"]
    shape: Shape
    condition: Condition


@dataclass(frozen=True)
class Direct(Predictor):
    """One pass of a supervised segmentation.

    References:
        Isensee et al. (2021), nnU-Net, Nature Methods 18
    """

    draws: ClassVar[bool] = False

    def check(self, model: Any) -> None:
        require(direct_problem(model))

    def labels(self, model: SupervisedSegmentation) -> tuple[int, ...]:
        return model.recipe.labels

    def prepare(self, model: SupervisedSegmentation, image: Image) -> EncodedVolume:
        d, h, w = image.x.shape[2:]
        return EncodedVolume(model.encode(image.x), (d, h, w), image.condition)

    @torch.no_grad()
    def memberships(
        self,
        model: SupervisedSegmentation,
        prepared: EncodedVolume,
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        n = len(draws)
        times = [draw.time for draw in draws if draw.time is not None]
        return model.memberships(
            prepared.z.expand(n, *prepared.z.shape[1:]),
            prepared.shape,
            keys=[draw.key for draw in draws],
            levels=times or None,
            condition=prepared.condition.map(lambda c: c.expand(n, *c.shape[1:])),
        )
