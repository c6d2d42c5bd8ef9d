"""The context of a method: volume, model, noise and what its components found so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._check_output import sound
from volumediff.anomaly.maps._base import Map
from volumediff.condition import Condition
from volumediff.features.grids import spread, upright
from volumediff.kernels._base import Denoiser
from volumediff.model import Model
from volumediff.schedules._base import Schedule

__all__ = ["MethodContext", "classes_of"]


def classes_of(model: Model) -> int:
    """Classes that the checkpoint was trained with, without the null class; 0 for none."""
    return model.network.embedding.classes


@dataclass(frozen=True, eq=False)
class MethodContext:
    """One run of a method on one volume.

    Arguments:
        model: space, kernel and network
        denoise: guided, with which the way down is walked
        condition: what `denoise` is conditioned on
        unguided: of the model alone, with which the way up is walked
        unguided_condition: condition of `unguided`; the null class where there are classes
        x: the volume
        foreground: voxels that count
        spacing_mm: voxel size along d, h, w
        distance: the method's map
        noise: keyed state noise: -1, -2, ... of the forward route, 0, 1, ... of the steps
        key: of whatever else is drawn
        lossy: whether the space's own loss is subtracted from the map
        prior_map: map of the first pass, where the method has one
        prior_healthy: pseudo-healthy volume of the first pass
        region: voxels that the caller wants redrawn
        saliency: map that the caller brought
        trace: masks and intermediate maps, for inspection
        maps: maps that the editing strategy collected on the way; they join the ensemble
    """

    model: Model
    denoise: Denoiser
    condition: Condition
    unguided: Denoiser
    unguided_condition: Condition
    x: Float[Tensor, "1 c d h w"]
    foreground: Bool[Tensor, "1 1 d h w"]
    spacing_mm: tuple[float, float, float]
    distance: Map
    noise: Callable[[int], Tensor]
    key: int = 0
    lossy: bool = False
    prior_map: Float[Tensor, "1 1 d h w"] | None = None
    prior_healthy: Float[Tensor, "1 c d h w"] | None = None
    region: Bool[Tensor, "1 1 d h w"] | None = None
    saliency: Float[Tensor, "1 1 d h w"] | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)
    maps: list[Tensor] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        """The checkpoint's schedule."""
        return self.model.kernel.schedule

    def encode(self, x: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "1 k d2 h2 w2"]:
        """The state of a volume."""
        return self.model.encode(x)

    def decode(self, z: Float[Tensor, "1 k d2 h2 w2"]) -> Float[Tensor, "1 c d h w"]:
        """The volume of a state, of the size of x."""
        d, h, w = self.x.shape[2:]
        return self.model.decode(z, (d, h, w))

    def voxels(self, a: Float[Tensor, "1 1 d2 h2 w2"]) -> Float[Tensor, "1 1 d h w"]:
        """A map on the grid of the state, interpolated to voxels; zero outside the foreground."""
        d, h, w = self.x.shape[2:]
        wide = spread(upright(self.model.space, a), self.model.space.padded((d, h, w)))
        return wide[..., :d, :h, :w] * self.foreground

    def noised(self, z: Float[Tensor, "1 k d2 h2 w2"], t: float, *, draw: int = 0) -> Tensor:
        """z_t of a state, with a draw of the noise of the forward route."""
        return self.model.kernel.corrupt(z, self.times(t), self.noise(-1 - draw).to(z))

    def times(self, t: float) -> Float[Tensor, "1"]:
        """A time as the model takes it."""
        return torch.tensor([t], dtype=torch.float64, device=self.x.device)

    def compare(self, healthy: Float[Tensor, "1 c d h w"]) -> Float[Tensor, "1 1 d h w"]:
        """The method's map; what the space alone loses is no anomaly and is subtracted."""
        a = self._map(healthy)
        return (a - self.floor).clamp(min=0) if self.lossy and self.distance.relative else a

    @cached_property
    def floor(self) -> Float[Tensor, "1 1 d h w"]:
        """Map of the space's own reconstruction D(E(x))."""
        return self._map(self.kept)

    @cached_property
    def kept(self) -> Float[Tensor, "1 c d h w"]:
        """What the space keeps of x: D(E(x)) where its own loss is no anomaly, else x."""
        return self.decode(self.encode(self.x)) if self.lossy else self.x

    def distance_of(
        self, x: Float[Tensor, "1 c d h w"], healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The method's map of two volumes."""
        a = self.distance(x, healthy, foreground=self.foreground, spacing_mm=self.spacing_mm)
        return sound(a, self.foreground, maker=self.distance, what="map")

    def _map(self, healthy: Tensor) -> Tensor:
        return self.distance_of(self.x, healthy)
