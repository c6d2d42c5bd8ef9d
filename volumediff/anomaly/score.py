"""Volume scores: one number per volume for triage, from its map or from the errors of its runs."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.classification import CLASSIFIER, ClassPosterior
from volumediff.component import Component, borrowed, presentation
from volumediff.condition import HEALTHY

__all__ = [
    "ClassifierScore",
    "Excess",
    "Max",
    "MeanScore",
    "Reported",
    "Score",
    "TopFraction",
    "ZAverage",
]

OWN = 10_000  # number of the noise that no route draws


@dataclass(frozen=True)
class Score(Component, ABC):
    """A number from a map; higher means more abnormal.

    `calibrated` says whether it needs healthy volumes.
    """

    calibrated: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The score of the foreground.

        Arguments:
            scores: the map
            foreground: voxels that count
            errors: mean of the map of each run of the ensemble
            healthy: the same of healthy volumes, one per row
        """

    def evidence(self, context: MethodContext, error: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What a run is remembered by: the mean of its map, for scores that have no other."""
        return error


@dataclass(frozen=True)
class MeanScore(Score):
    """Mean of the map over the foreground; dilutes small lesions."""

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean."""
        return float(scores[foreground].double().mean())


@dataclass(frozen=True)
class Max(Score):
    """Largest value of the map in the foreground; one voxel decides."""

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The maximum."""
        return float(scores[foreground].max())


@dataclass(frozen=True)
class Excess(Score):
    """Mass of the map above a value, per voxel of the foreground: mean of max(0, a - θ).

    Arguments:
        value: θ, in units of the map
    """

    value: float = 0.0

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean excess."""
        return float((scores[foreground].double() - self.value).clamp(min=0).mean())


@dataclass(frozen=True)
class TopFraction(Score):
    """Mean of the highest values of the map in the foreground.

    Arguments:
        fraction: share of the foreground, in (0, 1]; 0.001 of a brain is about 1.4 ml
    """

    fraction: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: expected a share in (0, 1], got {self.fraction}.")

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean of the top."""
        values = scores[foreground]
        top = values.topk(max(math.ceil(self.fraction * values.numel()), 1)).values
        return float(top.double().mean())


@dataclass(frozen=True)
class Reported(Score):
    """Mean of the errors that the method itself reports, such as PatchCore's weighted distance."""

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean error.

        Raises:
            ValueError: a method that reports none
        """
        if errors is None:
            raise ValueError(
                "score reported: expected a method that reports errors, got none; use another "
                "score, such as top_fraction."
            )
        return float(errors.double().mean())


@dataclass(frozen=True)
class ZAverage(Score):
    r"""Mean over the runs of an ensemble of their error in units of healthy volumes,

    .. math:: s = \frac{1}{n} \sum_i (e_i - μ_i) / s_i,

    with e_i the mean of the i-th map in the foreground, μ_i and s_i mean and deviation of that of
    healthy volumes: noise levels whose errors are large do not drown the others.

    References:
        Graham et al. (2023), Denoising Diffusion Models for Out-of-Distribution Detection,
        arXiv:2211.07740
    """

    calibrated: ClassVar[bool] = True

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean deviation.

        Raises:
            ValueError: a method without runs, or fewer than two healthy volumes
        """
        if errors is None:
            raise ValueError("score z_average: expected a method with runs, got a baseline.")
        if healthy is None or len(healthy) < 2:
            raise ValueError(
                "score z_average: expected a calibration on healthy volumes, got none; fit one, "
                "or use the score mean."
            )
        h = healthy.double()
        std = h.std(dim=0)
        # runs that are equal on all healthy volumes have the error as unit
        std = torch.where(std > 1e-6 * h.mean(0).abs(), std, h.mean(0).abs().clamp(min=1e-12))
        return float(((errors.double().cpu() - h.mean(0)) / std).mean())


@dataclass(frozen=True)
class ClassifierScore(Score):
    r"""Log-odds of disease of a classifier of noisy states, whatever the map says,

    .. math:: s = \log (1 - C(\text{healthy} | z_t, t)) - \log C(\text{healthy} | z_t, t),

    at a low noise level, mean over the runs of the ensemble.

    Arguments:
        log_snr: of the level
        run: folder of the classifier's run; None takes that of the whole method
        classifier: of the noisy states of this model; handed in, never configured

    References:
        Wolleb et al. (2022), Diffusion Models for Medical Anomaly Detection, arXiv:2203.04306
    """

    log_snr: float = 3.5
    run: str | None = presentation(None)
    classifier: ClassPosterior | None = borrowed(CLASSIFIER)

    def evidence(self, context: MethodContext, error: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The log-odds of the volume.

        Raises:
            ValueError: no classifier was handed in
        """
        if self.classifier is None:
            raise ValueError("score classifier: expected a trained classifier, got none.")
        t = Level(log_snr=self.log_snr).time(context.schedule)
        z_t = context.noised(context.encode(context.x), t, draw=OWN)
        log_p = self.classifier.log_probability(z_t, context.times(t))[0]
        sick = torch.cat([log_p[:HEALTHY], log_p[HEALTHY + 1 :]])
        return (torch.logsumexp(sick, 0) - log_p[HEALTHY]).float()

    def __call__(
        self,
        scores: Float[Tensor, "1 1 d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        errors: Float[Tensor, "n"] | None = None,
        healthy: Float[Tensor, "m n"] | None = None,
    ) -> float:
        """The mean log-odds.

        Raises:
            ValueError: a method without runs
        """
        if errors is None:
            raise ValueError("score classifier: expected a method with runs, got a baseline.")
        return float(errors.double().mean())
