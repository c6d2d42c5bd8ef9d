"""Features of a trained model, to compare volumes by: what its encoder makes of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.networks._layers import Recomputable
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices

__all__ = [
    "Features",
    "autoencoder_features",
    "feature_problem",
    "network_features",
    "spread",
    "upright",
]

# volume -> one tensor per level, on that level's own grid, axes d, h, w of the volume
Features = Callable[[Tensor], list[Tensor]]


def feature_problem(model: Model, of: str) -> str | None:
    """Why the model has no such features; None where it has."""
    if of == "autoencoder":
        if _latent(model.space) is None:
            kind = type(model.space).__name__.lower()
            return f"expected a latent space with an autoencoder, got {kind}; use of: network."
        return None
    if "body" in vars(model.network):  # an instance's own body is that of the slab executor
        return (
            "expected a network that runs in one piece, whose stages can be read, got one in "
            "slabs; use memory.slab=null memory.offload=false, or another map."
        )
    if not _parts(model.network):
        kind = type(model.network).__name__.lower()
        return f"expected a network of residual blocks, got {kind}; use another map."
    return None


def network_features(model: Model, condition: Condition, t: float) -> Features:
    """Stages of the denoiser's encoder for the noise-free state α_t z, at the time t."""

    def features(x: Tensor) -> list[Tensor]:
        time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        alpha, _ = model.kernel.schedule(time)
        z = model.encode(x)
        scaled = alpha.to(z).view(-1, 1, 1, 1, 1) * z
        made = _encoded(model.network, lambda: model.denoise(scaled, time, condition))
        return [upright(model.space, f) for f in made]

    return features


def autoencoder_features(model: Model) -> Features:
    """Stages of the encoder of the autoencoder of a latent space."""

    def features(x: Tensor) -> list[Tensor]:
        made = _encoded(_latent(model.space).autoencoder.codec["encoder"], lambda: model.encode(x))
        return [upright(model.space, f) for f in made]

    return features


def spread(a: Float[Tensor, "b c d2 h2 w2"], shape: Shape) -> Float[Tensor, "b c d h w"]:
    """A map on a coarser grid, interpolated linearly to the voxels."""
    return F.interpolate(a.float(), size=shape, mode="trilinear", align_corners=False)


def _encoded(module: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """The last tensor of every level on the way down, and the first of the coarsest one."""
    parts = _parts(module)
    deepest = max(part.level for part in parts)
    seen: dict[int, Tensor] = {}

    def keep(part: Recomputable, _: object, output: Tensor) -> None:
        if deepest not in seen:  # what follows is the decoder's
            seen[part.level] = output

    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[level] for level in sorted(seen)]


def _parts(module: nn.Module) -> list[Recomputable]:
    return [part for part in module.modules() if isinstance(part, Recomputable)]


def _latent(space: StateSpace) -> Latent | None:
    inner = space.inner if isinstance(space, Slices) else space
    return inner if isinstance(inner, Latent) else None


def upright(space: StateSpace, features: Tensor) -> Tensor:
    """A tensor on the state's grid with the axes of the volume."""
    return features.movedim(2, space.axis) if isinstance(space, Slices) else features
