r"""Classifier guidance: towards states that a classifier of noisy states takes for healthy,

.. math:: \hat\epsilon = \epsilon - s\, \sigma_t \nabla_{z_t} \log C(y | z_t, t),

and x0 and v follow from the same z_t. With an exact classifier s = 1 turns the score of all
volumes into that of class y.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from volumediff.classification import CLASSIFIER, ClassPosterior
from volumediff.component import borrowed, presentation
from volumediff.condition import HEALTHY, Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.schedules._base import per_sample, power
from volumediff.tunable import Tunable, tunable

__all__ = ["ClassifierGuidance"]


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    """Guidance by the gradient of a classifier, one backward pass through it per prediction.

    At alpha = 0 a state knows nothing of its volume, so that nothing is added.

    Arguments:
        scale: s >= 0; at 0 the classifier is not asked
        target: index of the class y; 0 is healthy
        run: folder of the classifier's run; None takes that of the whole method
        classifier: of the noisy states of this model; handed in, never configured

    References:
        Dhariwal and Nichol (2021), arXiv:2105.05233, algorithm 2; Wolleb et al. (2022), Diffusion
        Models for Medical Anomaly Detection, arXiv:2203.04306, algorithm 1, with s = 100
    """

    scale: float = tunable(100.0, Tunable.STRENGTH)
    target: int = HEALTHY
    run: str | None = presentation(None)
    classifier: ClassPosterior | None = borrowed(CLASSIFIER)

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"expected scale >= 0, got {self.scale}.")
        known = 2 if self.classifier is None else self.classifier.classes
        if not 0 <= self.target or (self.classifier is not None and self.target >= known):
            raise ValueError(
                f"target: expected one of the {known} classes, got {self.target}; 0 is healthy."
            )

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The guided denoiser.

        Raises:
            ValueError: no classifier was handed in
        """
        given = self.classifier
        if given is None:
            raise ValueError("classifier guidance: expected a trained classifier, got none.")
        if self.scale == 0:
            return denoise

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            p = denoise(z_t, t, condition)
            alpha, sigma = given.schedule(t)
            informed = alpha > 0
            if not bool(informed.any()):
                return p
            step = self.scale * given.gradient(z_t, t, label=self.target)
            # d(eps) = -s σ ∇, and with α x0 + σ eps = z_t: d(x0) = s σ²/α ∇,
            # d(v) = -s σ (α² + σ²)/α ∇
            inverse = torch.where(informed, 1 / alpha, 0.0)
            of_x0, of_v = sigma.square() * inverse, -sigma * power(alpha, sigma) * inverse
            return replace(
                p,
                x0=p.x0 + per_sample(of_x0, p.x0) * step,
                eps=p.eps - per_sample(torch.where(informed, sigma, 0.0), p.eps) * step,
                v=p.v + per_sample(of_v, p.v) * step,
            )

        return guided
