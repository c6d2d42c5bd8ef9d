"""Models and denoisers with known answers, on which contracts are checked."""

import torch
from torch import Tensor

from volumediff.classification import ClassPosterior
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.networks._base import Network
from volumediff.schedules._base import Schedule, per_sample

__all__ = ["KnownDenoiser", "class_posterior", "gaussian", "gaussian_ends"]


def gaussian(schedule: Schedule, mean: float, std: float) -> Denoiser:
    r"""Independent voxels, z_0 ~ N(mean, std²).

    .. math:: E[\epsilon | z_t] = \sigma \frac{z_t - \alpha \mu}{\alpha^2 s^2 + \sigma^2}
    """

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = (per_sample(level, z_t) for level in schedule(t))
        score = (z_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        x0, eps = mean + alpha * std**2 * score, sigma * score
        return Prediction(x0, eps, alpha * eps - sigma * x0)

    return denoise


def gaussian_ends(schedule: Schedule, mean: float, std: float) -> Denoiser:
    r"""The ends of the paths of the probability flow, for the same data.

    .. math:: f(z_t, t) = \mu + s \frac{z_t - \alpha \mu}{\sqrt{\alpha^2 s^2 + \sigma^2}}
    """

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        alpha, sigma = schedule(t)
        a, s = per_sample(alpha, z_t), per_sample(sigma, z_t)
        x0 = mean + std * (z_t - a * mean) / (a**2 * std**2 + s**2).sqrt()
        return Prediction.from_x0(x0, z_t, alpha, sigma)

    return denoise


def class_posterior(schedule: Schedule, means: tuple[float, ...], std: float) -> ClassPosterior:
    """p(y | z_t) of states N(means[y], std²) in every voxel, all classes as likely before."""

    def log_probability(z_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (per_sample(level, z_t) for level in schedule(t))
        variance = alpha**2 * std**2 + sigma**2
        fits = [-((z_t - alpha * m) ** 2 / variance / 2).flatten(1).sum(1) for m in means]
        return torch.log_softmax(torch.stack(fits, 1), 1)

    return ClassPosterior(log_probability, schedule, len(means), "closed form")


class KnownDenoiser(Network):
    """The clean state E[z_0 | z_t] of independent voxels, N(means[label], std²).

    The null class is N(mean of the means, std²). `noisy` adds one channel of log-odds, high where
    the state is far from its mean.
    """

    def __init__(
        self,
        schedule: Schedule,
        channels: int = 1,
        *,
        means: tuple[float, ...] = (0.0,),
        std: float = 0.1,
        image_channels: int = 0,
        noisy: bool = False,
    ) -> None:
        classes = len(means) if len(means) > 1 else 0
        super().__init__(
            channels, channels + noisy, image_channels=image_channels, classes=classes
        )
        self.schedule, self.std, self.noisy = schedule, std, noisy
        self.means = torch.tensor([*means, sum(means) / len(means)])

    @property
    def stride(self) -> tuple[int, int, int]:
        """Voxels are apart."""
        return 1, 1, 1

    def body(self, x: Tensor, e: Tensor) -> Tensor:
        """Not asked: `forward` is overridden by the closed form."""
        raise NotImplementedError

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The conditional mean of the clean state."""
        label = None if condition is None else condition.label
        if condition is not None and condition.mixture is not None:
            mean = (condition.mixture.to(z_t) @ self.means.to(z_t))[:, None, None, None, None]
        else:
            index = torch.full((len(z_t),), len(self.means) - 1) if label is None else label
            mean = per_sample(self.means[index], z_t)
        alpha, sigma = (per_sample(level, z_t) for level in self.schedule(t))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        x0 = mean + gain * (z_t - alpha * mean)
        if not self.noisy:
            return x0
        far = (z_t - alpha * mean).abs().mean(1, keepdim=True)
        return torch.cat([x0, 10 * (far - 3 * self.std)], dim=1)
