r"""Residual segmentation: what a network makes of a volume and its healthy one-step estimate,

.. math:: y = σ\big(f(\hat x_t - x, x)\big), \qquad
          \hat x_t = D\big(\hat z_0(z_t, t)\big), \quad z_t \sim q(z_t | E(x)),

at the time t of the member, or at one time for all.

References:
    Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
        Supervised Segmentation for Brain MRIs (SADM), MIDL
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.methods import highest_problem
from volumediff.condition import Condition
from volumediff.residual_segmentation import ResidualSegmentation, residual_missing
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate, Image, Predictor

__all__ = ["EncodedPair", "ResidualLabels"]


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """A volume with its state and what the diffusion model is conditioned on."""

    x: Float[Tensor, "1 c d h w"]
    z: Float[Tensor, "1 k d2 h2 w2"]
    told: Condition


@dataclass(frozen=True)
class ResidualLabels(Predictor):
    """The probability of the one label that a residual segmenter was trained to find.

    Arguments:
        time: in (0, 1], of members that have none
    """

    time: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.time <= 1:
            raise ValueError(f"time: expected a time in (0, 1], got {self.time}.")

    def check(self, model: Any) -> None:
        require(residual_missing(model))
        problem = highest_problem(model.model, self.time)
        require(None if problem is None else f"time: {problem}")

    def labels(self, model: ResidualSegmentation) -> tuple[int, ...]:
        return model.labels

    @torch.no_grad()
    def prepare(self, model: ResidualSegmentation, image: Image) -> EncodedPair:
        """The state of the volume."""
        z = model.encode(image.x)
        return EncodedPair(image.x, z, model.told(z, image.condition))

    @torch.no_grad()
    def memberships(
        self,
        model: ResidualSegmentation,
        prepared: EncodedPair,
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        diffusion, x, n = model.model, prepared.x, len(draws)
        times = [self.time if draw.time is None else draw.time for draw in draws]
        t = torch.tensor(times, dtype=torch.float64, device=x.device)
        z = prepared.z.expand(n, *prepared.z.shape[1:])
        condition = prepared.told.map(lambda c: c.expand(n, *c.shape[1:]))
        noise = diffusion.noise([draw.key for draw in draws], tuple(x.shape[1:]))(0)
        z_t = diffusion.kernel.corrupt(z, t, noise.to(z))
        d, h, w = x.shape[2:]
        healthy = diffusion.decode(diffusion.denoise(z_t, t, condition).x0, (d, h, w))
        return model.probability(x.expand(n, *x.shape[1:]), healthy)
