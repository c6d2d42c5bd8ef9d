r"""Closed-form denoisers: what a perfect network would answer, E[z_0 | z_t], on data of known law.

Each function takes a schedule and returns a `Denoiser`. Where there is a form of eps that is exact
at alpha = 0 and at sigma = 0, the prediction is made of it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.schedules._base import Schedule, per_sample

__all__ = [
    "class_gaussian",
    "flow",
    "gaussian",
    "global_mode",
    "gradual",
    "state_like",
    "two_points",
    "white",
]


def levels(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule(t)
    return per_sample(alpha, z), per_sample(sigma, z)


def gaussian(schedule: Schedule, mean: Tensor | float, std: Tensor | float) -> Denoiser:
    r"""Independent voxels, z_0 ~ N(mean, std^2).

    .. math:: E[\epsilon | z_t] = \sigma \frac{z_t - \alpha \mu}{\alpha^2 s^2 + \sigma^2}
    """

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = levels(schedule, t, z_t)
        score = (z_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        x0, eps = mean + alpha * std**2 * score, sigma * score
        return Prediction(x0, eps, alpha * eps - sigma * x0)

    return denoise


def flow(
    schedule: Schedule, mean: Tensor | float, std: Tensor | float, z: Tensor, t: float, s: float
) -> Tensor:
    r"""Exact solution of the probability-flow equation for `gaussian`, from t to s.

    .. math:: (z_t - \alpha \mu) / \sqrt{\alpha^2 s^2 + \sigma^2} \;\text{ is conserved.}
    """
    alpha_t, sigma_t = levels(schedule, torch.tensor([t], dtype=torch.float64), z)
    alpha_s, sigma_s = levels(schedule, torch.tensor([s], dtype=torch.float64), z)
    kept = (z - alpha_t * mean) / (alpha_t**2 * std**2 + sigma_t**2).sqrt()
    return alpha_s * mean + kept * (alpha_s**2 * std**2 + sigma_s**2).sqrt()


def two_points(schedule: Schedule, prior: float, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Independent voxels that are `high` with probability `prior`, else `low`: a mask."""
    middle, half = (low + high) / 2, (high - low) / 2
    odds = math.log(prior / (1 - prior))

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = schedule(t)
        evidence = per_sample(2 * alpha * half / sigma**2, z_t)
        centred = z_t - per_sample(alpha, z_t) * middle
        x0 = middle + half * torch.tanh((evidence * centred + odds) / 2)
        return Prediction.from_x0(x0, z_t, alpha, sigma)

    return denoise


def global_mode(schedule: Schedule, std: float = 1.0) -> Denoiser:
    """Constant volumes, z_0 = g ~ N(0, std^2) in all voxels: a covariance of rank one."""

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = levels(schedule, t, z_t)
        n = z_t[0].numel()
        mean = z_t.mean((1, 2, 3, 4), keepdim=True)
        g = alpha * n * std**2 * mean / (alpha**2 * n * std**2 + sigma**2)
        x0 = g.expand_as(z_t)
        return Prediction.from_x0(x0, z_t, *schedule(t))

    return denoise


def class_gaussian(schedule: Schedule, means: list[float], std: float) -> Denoiser:
    """Independent voxels, N(means[label], std^2); the null label is an equal mixture."""

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = levels(schedule, t, z_t)
        variance = alpha**2 * std**2 + sigma**2
        score = torch.stack([(z_t - alpha * m) / variance for m in means], -1)
        fit = torch.softmax(-(score**2) * variance[..., None] / 2, -1)
        one = torch.nn.functional.one_hot(condition.label, len(means) + 1)[:, :-1]
        known = (condition.label < len(means))[:, None, None, None, None, None]
        weight = torch.where(known, one[:, None, None, None, None].to(z_t), fit)
        score = (weight * score).sum(-1)
        centre = (weight * torch.tensor(means, dtype=z_t.dtype)).sum(-1)
        x0, eps = centre + alpha * std**2 * score, sigma * score
        return Prediction(x0, eps, alpha * eps - sigma * x0)

    return denoise


def state_like(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A state of one voxel per value and sample: (b, 1, 1, 1, 1)."""
    return torch.tensor(values, dtype=dtype)[:, None, None, None, None]


def gradual(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """n quantiles of N(0, 1) as one volume: a sample without sampling error."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (torch.erfinv(2 * u - 1) * 2**0.5).to(dtype).reshape(1, 1, 1, 1, n)


def white(z: Tensor, seed: int = 0) -> Callable[[int], Tensor]:
    """step -> white noise of the shape of z."""

    def noise(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + step + 1)
        return torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)

    return noise
