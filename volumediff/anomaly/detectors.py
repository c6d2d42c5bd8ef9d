r"""Detectors: models that predict the map itself, E[m | x], instead of a healthy volume.

    posterior_mean   one network call per seed at t = 1, where the state says nothing
    sampled          maps drawn by a sampler, averaged

The model is one of the recipe `synthetic_anomalies`: 2 m - 1 was diffused, with the changed volume
as the condition. There is no pseudo-healthy volume.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._disagreement import Spread
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Learned, Method
from volumediff.anomaly.needs.levels import TrainedToTheEnd
from volumediff.anomaly.needs.model import Diffusion, ExactSpace, PredictsMeans, Walked
from volumediff.anomaly.needs.training import CorruptedBy, NoisedBy, TrainedOn, WithKernel
from volumediff.anomaly.raw_map import RawLocalization
from volumediff.component import Requirement
from volumediff.condition import Condition
from volumediff.data.corruptions import Corruption
from volumediff.model import Model
from volumediff.randomness import key as key_of
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.samplers._base import Sampler

__all__ = ["Detector", "PosteriorMean", "Sampled"]

Size = tuple[int, int, int, int]
State = Float[Tensor, "1 k d2 h2 w2"]


@dataclass(frozen=True, kw_only=True)
class Detector(Method, ABC):
    """A model of the map, asked for it.

    Arguments:
        corruption: that the checkpoint was trained with; None for any
        seeds: number of noises; their maps are averaged
    """

    section: ClassVar[str | None] = "detector"
    beside: ClassVar[tuple[str, ...]] = ("corruption",)
    corruption: type[Corruption] | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"detector: expected seeds >= 1, got {self.seeds}.")

    @abstractmethod
    def estimate(self, model: Model, condition: Condition, *, key: int, shape: Size) -> State:
        """2 m - 1 in state space.

        Arguments:
            condition: with the volume
            key: of the noise
            shape: (1, d, h, w) of the map
        """

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Recipe, corruption, kernel, space and training times must suit the method."""
        return (
            Diffusion(),
            TrainedOn(SyntheticAnomalies),
            *(() if self.corruption is None else (CorruptedBy(self.corruption),)),
            WithKernel(),
            NoisedBy(),
            ExactSpace(),
            TrainedToTheEnd(),
        )

    def find(self, model: Learned, example: Example, *, key: int) -> RawLocalization:
        """The mean of the maps of all seeds, in [0, 1] in the foreground, 0 elsewhere."""
        assert model is not None, "check"
        d, h, w = example.x.shape[2:]
        condition = model.told(example.condition, (example.x,))
        spread = Spread(self.seeds) if self.seeds > 1 else None
        total, errors = torch.zeros_like(example.x[:, :1]), []
        for seed in range(self.seeds):
            z = self.estimate(model, condition, key=key_of(key, "seed", seed), shape=(1, d, h, w))
            m = ((model.decode(z, (d, h, w)) + 1) / 2).clamp(0, 1) * example.foreground
            total += m
            errors.append(m[example.foreground].double().mean().float())
            if spread is not None:
                spread.add(m)
        return RawLocalization(
            map=total / self.seeds,
            healthy=None,
            errors=torch.stack(errors),
            uncertainty=None if spread is None else spread.value(),
        )


@dataclass(frozen=True, kw_only=True)
class PosteriorMean(Detector):
    r"""The posterior mean of the map, by one network call at t = 1,

    .. math:: a = \frac{1 + \hat m_0(z_1, x)}{2} \approx E[m | x], \qquad
              z_1 = α_1\, (-1) + σ_1 \epsilon,

    the state of a volume without any change, which with zero terminal SNR is noise alone. It is
    what a segmentation network trained with the squared error gives.
    """

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A call must give a mean, too."""
        return (*super().needs, PredictsMeans())

    def estimate(self, model: Model, condition: Condition, *, key: int, shape: Size) -> State:
        """The predicted clean state."""
        t, z = _end(model, key, shape)
        return model.denoise(z, t, condition).x0


@dataclass(frozen=True, kw_only=True)
class Sampled(Detector):
    """The mean of maps that a sampler draws; their deviation is the uncertainty.

    Arguments:
        sampler: steps of the reverse chain from t = 1
    """

    sampler: Sampler

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """The sampler must suit the model, too."""
        return (*super().needs, Walked(self.sampler))

    def estimate(self, model: Model, condition: Condition, *, key: int, shape: Size) -> State:
        """The last state of the chain."""
        _, z = _end(model, key, shape)
        sampler = self.sampler.of(model)
        return sampler.sample(
            model.denoise,
            model.kernel,
            z,
            sampler.times(model.kernel.schedule),
            condition=condition,
            noise=model.noise((key,), shape),
        )


def _end(model: Model, key: int, shape: Size) -> tuple[Float[Tensor, "1"], State]:
    """t = 1 and a state there: of a volume without any change."""
    t = torch.ones(1, dtype=torch.float64, device=model.device)
    nothing = model.encode(torch.full((1, *shape), -1.0, device=model.device))
    return t, model.kernel.corrupt(nothing, t, model.noise((key,), shape)(-1).to(nothing))
