r"""Classifier-free guidance: away from what the null class would predict,

.. math:: \hat\epsilon = \hat\epsilon(z_t, \varnothing) + w\, (\hat\epsilon(z_t, c) -
          \hat\epsilon(z_t, \varnothing)).

w = 0 is unconditional, w = 1 conditional, w > 1 guided. The same holds for x0 and v, which are
affine in eps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.component import handed_in
from volumediff.condition import Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.tunable import Tunable, tunable

__all__ = ["ClassifierFree"]


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Guidance by the class label, in two passes one after the other: the memory is that of one.

    Arguments:
        weight: w >= 0; at 0 and 1 one pass is enough and is all that is made
        classes: number of classes of the network, which is the index of the null class

    References:
        Ho and Salimans (2022), Classifier-Free Diffusion Guidance, arXiv:2207.12598; its w is
        ours minus 1
    """

    weight: float = tunable(3.0, Tunable.STRENGTH)
    classes: int = handed_in(1)

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"expected weight >= 0, got {self.weight}.")
        if self.classes < 1:
            raise ValueError(
                "classifier-free guidance needs a network trained with classes and a null class, "
                f"got classes = {self.classes}; train with the class_conditional recipe."
            )

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser.

        Raises:
            ValueError: when called without a label
        """

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            if condition.label is None:
                raise ValueError(
                    "classifier-free guidance needs Condition.label, the class to guide to."
                )
            if self.weight == 1:
                return denoise(z_t, t, condition)
            null = condition.replace(label=torch.full_like(condition.label, self.classes))
            away = denoise(z_t, t, null)
            if self.weight == 0:
                return away
            towards = denoise(z_t, t, condition)
            return Prediction(
                x0=torch.lerp(away.x0, towards.x0, self.weight),
                eps=torch.lerp(away.eps, towards.eps, self.weight),
                v=torch.lerp(away.v, towards.v, self.weight),
            )

        return guided
