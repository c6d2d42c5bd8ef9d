"""Features of a trained model, for comparing volumes: activations of its encoder."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders import Reconstructor
from volumediff.condition import Condition
from volumediff.config import name_of
from volumediff.model import Model
from volumediff.networks._block import Recomputable
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices

__all__ = [
    "Features",
    "autoencoder_features",
    "feature_problem",
    "latent_of",
    "network_features",
    "spread",
    "upright",
]

# volume -> one tensor per level, on that level's own grid, axes d, h, w of the volume
Features = Callable[[Tensor], list[Tensor]]


def feature_problem(model: Model | Reconstructor, of: str) -> str | None:
    """Why the model has no such features; None where it has."""
    if not model.diffuses:
        if of != "autoencoder":
            return "expected a denoiser, got an autoencoder; use of: autoencoder."
        return None if _parts(model.passes[0]) else _no_blocks(model.passes[0])
    if of == "autoencoder":
        if latent_of(model.space) is None:
            kind = name_of(type(model.space))
            return f"expected a latent space with an autoencoder, got {kind}; use of: network."
        return None
    if "body" in vars(model.network):  # an instance's own body is that of the slab executor
        return (
            "expected a network that runs in one piece, whose stages can be read, got one in "
            "slabs; use memory.slab=null memory.offload=false, or another map."
        )
    return None if _parts(model.network) else _no_blocks(model.network)


def _no_blocks(network: nn.Module) -> str:
    kind = name_of(type(network))
    return f"expected a network of residual blocks, got {kind}; use another map."


def network_features(
    model: Model,
    condition: Condition,
    t: float,
    *,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Stages of the denoiser's encoder at the time t.

    Arguments:
        model: with a network of residual blocks
        condition: what the denoiser is conditioned on
        t: time
        noise: state -> ε, for the state α_t z + σ_t ε; None for the noise-free α_t z
    """

    def features(x: Tensor) -> list[Tensor]:
        time = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        alpha, sigma = model.kernel.schedule(time)
        z = model.encode(x)
        z_t = alpha.to(z).view(-1, 1, 1, 1, 1) * z
        if noise is not None:
            z_t = z_t + sigma.to(z).view(-1, 1, 1, 1, 1) * noise(z)
        made = _encoded(model.network, lambda: model.denoise(z_t, time, condition))
        return [upright(model.space, f) for f in made]

    return features


def autoencoder_features(model: Model | Reconstructor) -> Features:
    """Stages of the encoder of an autoencoder, or of that of a latent space."""

    def features(x: Tensor) -> list[Tensor]:
        if not model.diffuses:
            return _encoded(model.passes[0], lambda: model.reconstruct(x))
        encoder = latent_of(model.space).autoencoder.passes[0]
        return [upright(model.space, f) for f in _encoded(encoder, lambda: model.encode(x))]

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


def latent_of(space: StateSpace) -> Latent | None:
    """The latent space that a space is or holds."""
    inner = space.inner if isinstance(space, Slices) else space
    return inner if isinstance(inner, Latent) else None


def upright(space: StateSpace, features: Tensor) -> Tensor:
    """A tensor on the state's grid with the axes of the volume."""
    return features.movedim(2, space.axis) if isinstance(space, Slices) else features
