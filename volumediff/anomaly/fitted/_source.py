"""Feature vectors of a trained model, on a grid coarse enough to keep their statistics."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._context import classes_of
from volumediff.anomaly._level import read_levels
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.needs.model import Features as HasFeatures
from volumediff.autoencoders import Reconstructor
from volumediff.component import Requirement
from volumediff.condition import HEALTHY
from volumediff.features.autoencoder import autoencoder_features
from volumediff.features.denoiser import Features, network_features
from volumediff.features.grids import spread
from volumediff.model import Model
from volumediff.randomness import key as key_of

__all__ = ["FeatureSource"]


@dataclass(frozen=True, kw_only=True)
class FeatureSource:
    """Features of all levels of an encoder, side by side at every position of one grid.

    Finer levels are averaged over the cells of the grid, coarser ones interpolated linearly. The
    grid has ceil(n / stride) positions along an axis of n voxels: a 256³ volume with 200 features
    takes 52 MB at stride 8 and 420 MB at stride 4. What the network itself needs comes on top.

    Arguments:
        of: the denoiser, or the autoencoder of a latent space
        log_snrs: log(α²/σ²) of the states that the denoiser sees, one evaluation each; the
            autoencoder knows none
        noise: share of the kernel's noise in the state that the denoiser sees: 0 for the clean
            α_t z, 1 for z_t. It is one draw for all volumes.
        stride: voxels per cell of the grid
    """

    of: Literal["network", "autoencoder"] = "network"
    log_snrs: tuple[float, ...] = (3.5,)
    noise: float = 0.0
    stride: int = 4

    def __post_init__(self) -> None:
        if not self.log_snrs:
            raise ValueError("log_snrs: expected one or more, got none.")
        if self.stride < 1:
            raise ValueError(f"stride: expected at least one voxel, got {self.stride}.")
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise: expected a share in [0, 1], got {self.noise}.")

    def needed(self, where: str) -> Requirement:
        """Such features of a run.

        Arguments:
            where: what needs it, for the message
        """
        return HasFeatures(self.of, where, self.log_snrs)

    @torch.no_grad()
    def __call__(
        self, model: Model | Reconstructor, example: Example
    ) -> Float[Tensor, "f d2 h2 w2"]:
        """The features of a volume, in float32 on its device."""
        grid = self.grid(example.x)
        made = [
            _onto(level.float(), grid)
            for extract in self._extractors(model, example)
            for level in extract(example.x)
        ]
        return torch.cat(made, dim=1)[0]

    def grid(self, x: Float[Tensor, "1 c d h w"]) -> tuple[int, int, int]:
        """Positions along each axis."""
        d, h, w = (math.ceil(n / self.stride) for n in x.shape[2:])
        return d, h, w

    def inside(self, example: Example) -> Bool[Tensor, "d2 h2 w2"]:
        """Positions whose cell has foreground."""
        share = F.adaptive_avg_pool3d(example.foreground.float(), self.grid(example.x))
        return share[0, 0] > 0

    def voxels(self, a: Float[Tensor, "d2 h2 w2"], example: Example) -> Float[Tensor, "1 1 d h w"]:
        """A map of the grid at the voxels, zero outside the foreground."""
        d, h, w = example.x.shape[2:]
        return spread(a[None, None], (d, h, w)).to(example.x.dtype) * example.foreground

    def _extractors(self, model: Model | Reconstructor, example: Example) -> list[Features]:
        if self.of == "autoencoder":
            return [autoencoder_features(model)]
        condition = example.condition
        if classes_of(model):
            label = torch.full((1,), HEALTHY, device=example.x.device)
            condition = condition.replace(label=label)
        schedule = model.kernel.schedule
        times = [level.time(schedule) for level in read_levels((), self.log_snrs)]
        if self.noise == 0:
            return [network_features(model, condition, t) for t in times]
        draw = model.noise((key_of("features"),), tuple(example.x.shape[1:]))

        def noised(step: int) -> Features:
            def noise(z: Tensor) -> Tensor:
                return self.noise * draw(step).to(z)

            return network_features(model, condition, times[step], noise=noise)

        return [noised(step) for step in range(len(times))]


def _onto(level: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """A level on the grid: averages where it is finer, linear interpolation where coarser."""
    small = [min(a, b) for a, b in zip(level.shape[2:], grid, strict=True)]
    level = F.adaptive_avg_pool3d(level, small)
    return spread(level, grid)
