r"""Agreement of two encoders, of image with labels and of image with what the network predicts,

.. math:: KL\big(Q(\cdot | x, m) \,\|\, P(\cdot | x, \hat\epsilon)\big), \qquad
          Q, P = N(\mu, \operatorname{diag} \sigma^2),

a few numbers per volume that say which of several readers is meant. Nothing draws from them:
sampling needs the denoising network alone, so that the term is a regulariser of its training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.kernels._base import Kernel
from volumediff.losses._base import LossContext, LossTerm, needs_labels
from volumediff.recipes._base import Recipe
from volumediff.spaces._base import StateSpace

__all__ = ["GaussianEncoder", "LatentKL"]

CONVOLUTIONS = 3  # per level


@dataclass(frozen=True)
class LatentKL(LossTerm):
    """Divergence of the posterior encoder from the prior one; gradients reach the network.

    Arguments:
        latent: numbers per volume
        widths: channels of the encoders by level
        weight: of the term

    References:
        Rahman et al. (2023), CIMD, arXiv:2304.04745; Kohl et al. (2018), A Probabilistic U-Net,
        arXiv:1806.05034, for the encoders
    """

    latent: int = 6
    widths: tuple[int, ...] = (32, 64, 128, 192)
    weight: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(
                "expected latent >= 1 and at least one width above 0, got "
                f"{self.latent} and {list(self.widths)}."
            )

    def problem(self, kernel: Kernel, recipe: Recipe, space: StateSpace) -> str | None:
        if "eps" not in kernel.predicts:
            return "expected a kernel that predicts eps, such as gaussian; leave the loss out."
        if not space.exact:
            return "expected voxels or wavelets, got latents; leave the loss out."
        return needs_labels(recipe)

    def side(self, channels: int, image_channels: int) -> nn.Module:
        made = (
            GaussianEncoder(channels + image_channels, self.latent, self.widths) for _ in range(2)
        )
        return nn.ModuleDict(dict(zip(("prior", "posterior"), made, strict=True)))

    def __call__(self, context: LossContext) -> Float[Tensor, "b"]:
        assert context.side is not None, "Model builds it"
        shape = tuple(context.x.shape[2:])
        eps = context.space.decode(context.prediction.eps.float(), shape)
        images = [image.float() for image in context.images]
        mean_p, log_p = context.side["prior"](torch.cat([*images, eps], dim=1))
        mean_q, log_q = context.side["posterior"](torch.cat([*images, context.x.float()], dim=1))
        apart = (mean_q - mean_p).square() * (-2 * log_p).exp()
        kl = log_p - log_q + ((2 * (log_q - log_p)).exp() + apart - 1) / 2
        return kl.sum(1)


class GaussianEncoder(nn.Module):
    """A volume to mean and log standard deviation of a few numbers.

    Three convolutions of 3³ with ReLU per level, halved by averaging in between, then the mean
    over the volume and an affine map.

    Arguments:
        channels: of the volume
        latent: numbers
        widths: channels per level
    """

    def __init__(self, channels: int, latent: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for width in widths:
            layers: list[nn.Module] = []
            for _ in range(CONVOLUTIONS):
                conv = nn.Conv3d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.zeros_(conv.bias)
                layers += [conv, nn.ReLU()]
                channels = width
            self.levels.append(nn.Sequential(*layers))
        self.head = nn.Linear(channels, 2 * latent)

    def forward(
        self, x: Float[Tensor, "b c d h w"]
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
        for i, level in enumerate(self.levels):
            if i:
                x = nn.functional.avg_pool3d(x, 2, ceil_mode=True)
            x = level(x)
        mean, log_deviation = self.head(x.mean((2, 3, 4))).chunk(2, dim=1)
        return mean, log_deviation
