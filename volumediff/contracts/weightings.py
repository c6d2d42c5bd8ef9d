"""The contract of weightings: a size of errors per level, shared by all outputs of networks."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, require
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.randomness import normal
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.rectified import Rectified
from volumediff.weightings import Weighting

__all__ = ["check_weighting"]

TIMES = (1e-4, 0.3, 0.8, 1.0)


def check_weighting(cls: type, **arguments: Any) -> None:
    """Finite and not negative at every level, per sample, and the same loss for every output."""
    weighting: Weighting = built(cls, arguments)
    t = torch.tensor(TIMES, dtype=torch.float64)
    z_0, noise, wrong = (normal((4, 1, 2, 3, 2), "contracts", k, dtype=t.dtype) for k in "abc")
    for schedule in (Cosine(), Rectified(), Exploding()):
        size = weighting.size(schedule, t)
        require(size.dtype == torch.float64, "Sizes must be in float64.")
        require(bool((size.isfinite() & (size >= 0)).all()), "Sizes are negative, or not finite.")
        equal(size[1:2], weighting.size(schedule, t[1:2]), "A level's size depends on the others.")
    for schedule in (Cosine(), Rectified()):
        losses = []
        for prediction in ("x0", "v"):
            kernel = Gaussian(schedule, prediction, weighting=weighting)
            losses.append(_loss(kernel, z_0, noise, wrong, t[1:3]))
        losses.append(_loss(EDM(schedule, weighting=weighting), z_0, noise, wrong, t[1:3]))
        for loss in losses[1:]:
            equal(loss, losses[0], "The loss depends on what the network gives.", rtol=1e-9)


def _loss(
    kernel: Gaussian | EDM,
    z_0: torch.Tensor,
    noise: torch.Tensor,
    wrong: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """Of a network that takes another clean state for the true one, from the same noisy state."""
    z_0, noise, wrong = z_0[:2], noise[:2], wrong[:2]
    z_t = kernel.corrupt(z_0, t, noise)
    alpha, sigma = (level[:, None, None, None, None] for level in kernel.schedule(t))
    output = kernel.target(wrong, t, (z_t - alpha * wrong) / sigma)
    return kernel.loss(output, z_0, z_t, t, noise)
