"""Distance of features of the trained model's own encoder."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._level import Level
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.needs.model import Features as HasFeatures
from volumediff.autoencoders import Reconstructor
from volumediff.component import Requirement
from volumediff.condition import Condition
from volumediff.features.autoencoder import autoencoder_features
from volumediff.features.denoiser import Features, network_features
from volumediff.features.grids import spread
from volumediff.model import Model

__all__ = ["Perceptual"]


@dataclass(frozen=True)
class Perceptual(Map):
    r"""Distance of the features that the trained model's own encoder has of x and of x̂,

    .. math:: a = \frac{1}{L} \sum_l U\Big(1 - \frac{f_l(x) \cdot f_l(\hat x)}
              {|f_l(x)|\,|f_l(\hat x)|}\Big)

    over the levels l of the encoder, U the interpolation to voxels; `l2` has the mean squared
    difference instead of the cosine. It stands for LPIPS, whose weights come from photographs.
    Features reach beyond the foreground, unlike the other maps.

    Arguments:
        of: the denoiser, or the autoencoder of a latent space
        distance: how two feature vectors are compared
        log_snr: log(α²/σ²) that the denoiser is told, of a state without noise; high, as volumes
            have little
        features: taken from the model, never configured
    """

    of: Literal["network", "autoencoder"] = "network"
    distance: Literal["cosine", "l2"] = "cosine"
    log_snr: float = 3.5
    features: Features | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Such features."""
        return (HasFeatures(self.of, "map perceptual", (self.log_snr,)),)

    def with_model(self, model: Model | Reconstructor, condition: Condition) -> "Perceptual":
        """The map with the features of a model."""
        result = replace(self)
        if self.of == "autoencoder":
            made = autoencoder_features(model)
        else:
            t = Level(log_snr=self.log_snr).time(model.kernel.schedule)
            made = network_features(model, condition, t)
        object.__setattr__(result, "features", made)
        return result

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The mean distance over the levels.

        Raises:
            ValueError: the map is not bound to a model
        """
        if self.features is None:
            raise ValueError("map perceptual: expected a model, got none; it compares features.")
        d, h, w = x.shape[2:]
        pairs = list(zip(self.features(x), self.features(healthy), strict=True))
        total = torch.zeros_like(x[:, :1])
        for f, g in pairs:
            f, g = f.float(), g.float()
            if self.distance == "cosine":
                near = torch.nn.functional.cosine_similarity(f, g, dim=1)[:, None]
                a = (1 - near).clamp(min=0)
            else:
                a = (f - g).square().mean(1, keepdim=True)
            total += spread(a, (d, h, w))
        return total / len(pairs) * foreground
