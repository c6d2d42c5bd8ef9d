r"""A Gaussian latent: the encoder gives mean and log-variance of q(z | x),

.. math:: \mathrm{KL}(q \| N(0, 1)) = \tfrac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2),

the decoder reads a sample in training and a latent is the mean.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders._base import Generators, sources
from volumediff.networks._precision import wide
from volumediff.transfer import sent

__all__ = ["divergence", "draw", "mean", "normal", "posterior", "sample"]

# exp(-30) and exp(20) are far from what a latent of unit order needs, and finite in float32.
LOG_VARIANCE = (-30.0, 20.0)


def mean(features: Float[Tensor, "b f d h w"]) -> Float[Tensor, "b k d h w"]:
    """The mean, of features that are mean and log-variance."""
    return features.chunk(2, dim=1)[0]


def posterior(
    features: Float[Tensor, "b f d h w"],
) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, "b k d h w"]]:
    """Mean and log-variance of q, in float32 or wider."""
    mu, log_variance = wide(features).chunk(2, dim=1)
    return mu, log_variance.clamp(*LOG_VARIANCE)


def divergence(
    mu: Float[Tensor, "b k d h w"], log_variance: Float[Tensor, "b k d h w"]
) -> Float[Tensor, "b"]:
    """KL(q || N(0, 1)) of each sample, a mean over latent elements."""
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)


def draw(
    mu: Float[Tensor, "b k d h w"], log_variance: Float[Tensor, "b k d h w"], generator: Generators
) -> Float[Tensor, "b k d h w"]:
    """A sample of q."""
    return mu + torch.exp(0.5 * log_variance) * normal(mu, generator)


def sample(
    features: Float[Tensor, "b f d h w"], generator: Generators
) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""]]:
    """A sample of q, and its divergence from the prior as a mean over latent elements."""
    mu, log_variance = posterior(features)
    z = draw(mu, log_variance, generator)
    return z.to(features.dtype), divergence(mu, log_variance).mean()


def normal(like: Tensor, generator: Generators) -> Tensor:
    """Normal numbers, drawn where the generator lives; one generator per sample if it is many."""
    if isinstance(generator, torch.Generator):
        noise = torch.randn(like.shape, generator=generator, device=generator.device)
        return sent(noise, like.device, dtype=like.dtype)
    each = sources(generator, like.shape[0])
    return torch.cat([normal(like[i : i + 1], g) for i, g in enumerate(each)])
