r"""Finite-difference guidance: away from another class,

.. math:: \hat\epsilon = \hat\epsilon(z_t, c) + w\, (\hat\epsilon(z_t, c) -
          \hat\epsilon(z_t, c')).

Unlike the null class, which saw all volumes, c' is what the volume should lose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.component import handed_in
from volumediff.condition import Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.tunable import Tunable, tunable

__all__ = ["FiniteDifference"]


@dataclass(frozen=True)
class FiniteDifference(Guidance):
    """Guidance by the difference of two classes, in two passes one after the other.

    Arguments:
        weight: w; at 0 one pass is enough and is all that is made
        other: index of the class c'; 1 is the first that is not healthy
        classes: number of classes of the network

    References:
        Hu et al. (2023), Conditional Diffusion Models for Weakly Supervised Medical Image
        Segmentation, arXiv:2306.03878, takes c' = 0.95 c + 0.05 c_0 among the embeddings; to first
        order its difference is 0.05 times that of the classes
    """

    weight: float = tunable(1.0, Tunable.STRENGTH)
    other: int = 1
    classes: int = handed_in(1)

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"expected weight >= 0, got {self.weight}.")
        if not 0 <= self.other or (self.classes > 1 and self.other >= self.classes):
            raise ValueError(
                f"other: expected one of the {self.classes} classes, got {self.other}; 0 is "
                "healthy."
            )

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser.

        Raises:
            ValueError: when called without a label
        """

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            if condition.label is None:
                raise ValueError(
                    "finite-difference guidance needs Condition.label, the class to guide to."
                )
            towards = denoise(z_t, t, condition)
            if self.weight == 0:
                return towards
            other = condition.replace(label=torch.full_like(condition.label, self.other))
            away = denoise(z_t, t, other)
            return Prediction(
                x0=torch.lerp(away.x0, towards.x0, 1 + self.weight),
                eps=torch.lerp(away.eps, towards.eps, 1 + self.weight),
                v=torch.lerp(away.v, towards.v, 1 + self.weight),
            )

        return guided
