"""Features of an autoencoder: levels of its encoder, or of that of a latent space."""

from collections.abc import Callable

from torch import Tensor, nn

from volumediff.autoencoders import Reconstructor
from volumediff.config import name_of
from volumediff.features.denoiser import Features
from volumediff.features.grids import upright
from volumediff.model import Model
from volumediff.networks._block import Recomputable
from volumediff.spaces._base import StateSpace
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices

__all__ = ["autoencoder_features", "autoencoder_problem", "latent_of"]


def autoencoder_problem(model: Model | Reconstructor) -> str | None:
    """Why there are no features of an autoencoder; None where there are."""
    if model.diffuses:
        if latent_of(model.space) is not None:
            return None
        kind = name_of(type(model.space))
        return f"expected a latent space with an autoencoder, got {kind}; use of: network."
    module = model.passes[0]
    if _parts(module):
        return None
    kind = name_of(type(module))
    return f"expected a network of residual blocks, got {kind}; use another map."


def autoencoder_features(model: Model | Reconstructor) -> Features:
    """Stages of the encoder of an autoencoder, or of that of a latent space."""

    def features(x: Tensor) -> list[Tensor]:
        if not model.diffuses:
            return _encoded(model.passes[0], lambda: model.reconstruct(x))
        encoder = latent_of(model.space).autoencoder.passes[0]
        return [upright(model.space, f) for f in _encoded(encoder, lambda: model.encode(x))]

    return features


def latent_of(space: StateSpace) -> Latent | None:
    """The latent space that a space is or holds."""
    inner = space.inner if isinstance(space, Slices) else space
    return inner if isinstance(inner, Latent) else None


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
