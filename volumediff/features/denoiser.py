"""Features of a denoiser: levels of its network while it looks at a volume behind noise.

The noise is one draw for all volumes of a size, so that features of two volumes differ by the
volumes alone.

References:
    Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
    arXiv:2112.03126
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility.methods import restores
from volumediff.condition import HEALTHY, Condition
from volumediff.config import name_of
from volumediff.features.grids import FeatureMap, feature_map, upright
from volumediff.features.taps import tap_names, watched
from volumediff.memory.memory_policy import runs_in_slabs
from volumediff.model import Model
from volumediff.randomness import key as key_of

__all__ = [
    "Features",
    "denoiser_problem",
    "feature_maps",
    "feature_rows",
    "network_features",
    "seen_levels",
]

# volume -> one tensor per level, on that level's own grid, axes d, h, w of the volume
Features = Callable[[Tensor], list[Tensor]]


def denoiser_problem(model: Model) -> str | None:
    """Why the levels of a model's network cannot be watched; None where they can."""
    if runs_in_slabs(model.network, "body"):
        return (
            "expected a network that runs in one piece, whose stages can be read, got one in "
            "slabs; use memory.slab=null memory.offload=false processes.domain=1, or another map."
        )
    if model.network.latent_length or model.network.times:
        return (
            "expected a network of a state and its time alone, got one that takes a random latent "
            "or gives trajectories; use the run of a plain diffusion model."
        )
    if not model.network.taps:
        return (
            f"expected a network of residual blocks, got {name_of(type(model.network))}; use "
            "another map."
        )
    return None


def seen_levels(
    model: Model,
    z_t: Float[Tensor, "b k d h w"],
    t: float,
    condition: Condition,
    names: Sequence[str],
    see: Callable[[str, Tensor], None],
) -> None:
    """Shows levels of the network while it looks at a noisy state; see `watched`.

    Arguments:
        z_t: the state
        t: its time
        condition: what the denoiser is conditioned on
        names: of the levels, see `tap_names`
        see: takes name and tensor on the state's grid
    """
    time = torch.full((len(z_t),), t, dtype=torch.float64, device=z_t.device)
    taps = model.network.taps
    places = {name: taps[name].module for name in names}
    watched(places, lambda: model.denoise(z_t, time, condition), see)


def network_features(
    model: Model,
    condition: Condition,
    t: float,
    *,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Levels of the denoiser's encoder at the time t, the finest first.

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
        found: dict[str, Tensor] = {}

        def see(name: str, level: Tensor) -> None:
            found[name] = upright(model.space, level.clone())

        names = tap_names(model.network, ["encoder"])
        seen_levels(model, z_t, t, condition, names, see)
        return [found[name] for name in names]

    return features


@torch.no_grad()
def feature_maps(
    model: Model,
    x: Float[Tensor, "1 c d h w"],
    condition: Condition,
    *,
    levels: Sequence[str],
    t: float,
) -> list[FeatureMap]:
    """Levels of a volume at one time, each on its own grid, in the order of `tap_names`.

    Arguments:
        levels: see `tap_names`
        t: time in (0, 1]
    """
    found: dict[str, FeatureMap] = {}
    d, h, w = x.shape[2:]

    def see(name: str, level: Tensor) -> None:
        found[name] = feature_map(model.space, level, (d, h, w))

    names = tap_names(model.network, levels)
    told, z = _told(model, x, condition)
    seen_levels(model, _noisy(model, z, x, t), t, told, names, see)
    return [found[name] for name in names]


@torch.no_grad()
def feature_rows(
    model: Model,
    x: Float[Tensor, "1 c d h w"],
    condition: Condition,
    *,
    levels: Sequence[str],
    times: Sequence[float],
    points: Float[Tensor, "n 3"],
) -> Float[Tensor, "n t f"]:
    """Features of all levels at points, one row per time; a level is read and let go.

    Arguments:
        levels: see `tap_names`; their channels stand side by side in its order
        times: in (0, 1], one evaluation of the network each
        points: voxel indices along d, h, w
    """
    names = tap_names(model.network, levels)
    told, z = _told(model, x, condition)
    d, h, w = x.shape[2:]
    made = []
    for t in times:
        found: dict[str, Tensor] = {}

        def see(name: str, level: Tensor, found: dict[str, Tensor] = found) -> None:
            found[name] = feature_map(model.space, level, (d, h, w)).at(points)

        seen_levels(model, _noisy(model, z, x, t), t, told, names, see)
        made.append(torch.cat([found[name] for name in names], dim=1))
    return torch.stack(made, dim=1)


def _told(model: Model, x: Tensor, condition: Condition) -> tuple[Condition, Tensor]:
    """What the model is conditioned on beside the noisy state, healthy where it has classes."""
    z = model.encode(x)
    told = model.referred(condition, z)
    if model.network.embedding.classes:
        healthy = torch.full((len(x),), HEALTHY, dtype=torch.int64, device=x.device)
        told = told.replace(label=healthy)
    return told, z


def _noisy(model: Model, z: Tensor, x: Tensor, t: float) -> Tensor:
    """z_t with the draw of noise that all volumes share; restoring models see z itself."""
    if restores(model.kernel):
        return z
    time = torch.full((len(z),), t, dtype=torch.float64, device=z.device)
    noise = model.noise((key_of("features"),) * len(x), tuple(x.shape[1:]))(0)
    return model.kernel.corrupt(z, time, noise.to(z))
