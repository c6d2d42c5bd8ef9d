r"""A Gaussian latent: the encoder gives mean and log-variance of q(z | x),

.. math:: \mathrm{KL}(q \| N(0, 1)) = \tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2),

the decoder reads a sample in training and a latent is the mean.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Generators

__all__ = ["mean", "normal", "sample"]

# exp(-30) and exp(20) are far from what a latent of unit order needs, and finite in float32.
LOG_VARIANCE = (-30.0, 20.0)


def mean(features: Float[Tensor, "b f d h w"]) -> Float[Tensor, "b k d h w"]:
    """The mean, of features that are mean and log-variance."""
    return features.chunk(2, dim=1)[0]


def sample(
    features: Float[Tensor, "b f d h w"], generator: Generators
) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""]]:
    """A sample of q, and its divergence from the prior as a mean over latent elements."""
    mu, log_variance = features.float().chunk(2, dim=1)
    log_variance = log_variance.clamp(*LOG_VARIANCE)
    z = mu + torch.exp(0.5 * log_variance) * normal(mu, generator)
    kl = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).mean()
    return z.to(features.dtype), kl


def normal(like: Tensor, generator: Generators) -> Tensor:
    """Normal numbers, drawn where the generator lives; one generator per sample if it is many."""
    if isinstance(generator, torch.Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return noise.to(like.device)
    if len(generator) != like.shape[0]:
        raise ValueError(
            f"expected {like.shape[0]} generators, one per sample, got {len(generator)}."
        )
    return torch.cat([normal(like[i : i + 1], g) for i, g in enumerate(generator)])
