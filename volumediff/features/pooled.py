"""One vector per volume: the levels of a trained model, each averaged over its positions."""

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.autoencoders import Reconstructor
from volumediff.condition import Condition
from volumediff.features.autoencoder import autoencoder_features, autoencoder_problem
from volumediff.features.denoiser import denoiser_problem, feature_maps
from volumediff.model import Model

__all__ = ["TIME", "pooled", "pooled_problem"]

TIME = 0.1  # behind little noise, which all volumes share
LEVELS = ("encoder", "middle")


def pooled_problem(model: Model | Reconstructor) -> str | None:
    """Why a model gives no vectors; None where it does."""
    return denoiser_problem(model) if isinstance(model, Model) else autoencoder_problem(model)


@torch.no_grad()
def pooled(
    model: Model | Reconstructor, x: Float[Tensor, "1 c d h w"], condition: Condition
) -> Float[Tensor, "f"]:
    """Mean features of the encoder and the deepest level of a diffusion model at the time `TIME`,
    or of the encoder of an autoencoder.

    Arguments:
        model: that `pooled_problem` has nothing against
        x: volume as the model is trained on
        condition: what the denoiser is conditioned on
    """
    if isinstance(model, Model):
        maps = feature_maps(model, x, condition, levels=LEVELS, t=TIME)
        return torch.cat([m.values.float().mean((0, 1, 2)) for m in maps])
    levels = autoencoder_features(model)(x)
    return torch.cat([level.float().mean((0, 2, 3, 4)) for level in levels])
