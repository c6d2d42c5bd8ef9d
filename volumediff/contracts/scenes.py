"""A small volume with a lesion, and models with known answers, for components of localization."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.maps._base import Map
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_input import Example
from volumediff.autoencoders.binary import Binary
from volumediff.condition import HEALTHY
from volumediff.contracts.closed_form import KnownDenoiser, class_posterior
from volumediff.contracts.requirements import equal, randomised, require
from volumediff.kernels.cold import Cold
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.recipes.class_conditional import ClassConditional
from volumediff.recipes.degradation import Degradation
from volumediff.recipes.healthy import Healthy as HealthyVolumes
from volumediff.recipes.local_noise import LocalNoise
from volumediff.recipes.modality_cycle import ModalityCycle
from volumediff.recipes.pseudo_healthy import PseudoHealthy
from volumediff.recipes.synthetic_anomalies import SyntheticAnomalies
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.latent import Latent
from volumediff.spaces.voxel import Voxel

__all__ = [
    "INSIDE",
    "LESION",
    "POSTERIOR",
    "SHAPE",
    "SPACING",
    "check_map_of",
    "context",
    "example",
    "models",
    "network_model",
]

SHAPE = (8, 10, 8)
SPACING = (2.0, 2.0, 2.0)
SCHEDULE = Cosine()
MEANS = (0.0, 0.4)
POSTERIOR = class_posterior(SCHEDULE, MEANS, 0.1)

INSIDE = torch.zeros((1, 1, *SHAPE), dtype=torch.bool)
INSIDE[..., 1:-1, 1:-1, 1:-1] = True
LESION = torch.zeros_like(INSIDE)
LESION[..., 2:5, 3:6, 4:7] = True


def example(i: int = 0, *, channels: int = 1, lesion: float = 0.5) -> Example:
    """A volume N(0, 0.1²) with a bright lesion; every i is another."""
    x = 0.1 * normal((1, channels, *SHAPE), "contracts", "volume", i) + lesion * LESION
    return Example(x, INSIDE, SPACING, truth=LESION, region=LESION, saliency=LESION.float())


def network_model(recipe: Any = None, **more: Any) -> Model:
    """A model with a small U-Net, for what looks into its network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(1, 1, widths=(4, 8), blocks=1, groups=2, **more)
    recipe = recipe or HealthyVolumes()
    kernel = Gaussian(Cosine(zero_terminal_snr=True), prediction="v")
    model = Model(Voxel(), kernel, randomised(network), recipe=recipe)
    return model.eval().requires_grad_(False)


def models() -> Iterator[Model]:
    """Models of every kind that localization works with, the most usual first."""
    kernel = Gaussian(SCHEDULE, prediction="x0")
    yield Model(Voxel(), kernel, KnownDenoiser(SCHEDULE))
    classes = ClassConditional("group", ("control", "patient"))
    yield Model(Voxel(), kernel, KnownDenoiser(SCHEDULE, means=MEANS), recipe=classes)
    yield Model(Voxel(), Cold(SCHEDULE), KnownDenoiser(SCHEDULE), recipe=Degradation())
    local = LocalNoise(mask_loss=0.1)
    yield Model(Voxel(), kernel, KnownDenoiser(SCHEDULE, noisy=True), recipe=local)
    two = KnownDenoiser(SCHEDULE, 2, image_channels=3)
    yield Model(Voxel(), kernel, two, recipe=ModalityCycle())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bits = Binary(1, latent_channels=4, widths=(4, 4), strides=((2, 2, 2),), blocks=1)
    yield Model(Latent(bits), Discrete(SCHEDULE), KnownDenoiser(SCHEDULE, 4, std=0.5))
    yield network_model(SyntheticAnomalies(), image_channels=1)
    yield network_model(PseudoHealthy(), image_channels=1)


def context(model: Model, *, key: int = 1, distance: Map | None = None) -> MethodContext:
    """One run on one volume with a first pass, a region and a map from elsewhere."""
    channels = 2 if isinstance(model.recipe, ModalityCycle) else 1
    one = example(channels=channels)
    condition = null = one.condition
    classes = model.network.embedding.classes
    if classes:
        condition = condition.replace(label=torch.full((1,), HEALTHY))
        null = condition.replace(label=torch.full((1,), classes))
    return MethodContext(
        model=model,
        denoise=model.denoise,
        condition=condition,
        unguided=model.denoise,
        unguided_condition=null,
        x=one.x,
        foreground=INSIDE,
        spacing_mm=SPACING,
        distance=distance or L1(),
        noise=model.noise((key,), (channels, *SHAPE)),
        key=key,
        lossy=not model.space.exact,
        prior_map=one.x.abs().mean(1, keepdim=True) * INSIDE,
        prior_healthy=torch.zeros_like(one.x),
        region=one.region,
        saliency=one.saliency,
    )


def check_map_of(a: Tensor, what: str) -> None:
    """A map is one channel on the grid, finite, never negative, and zero outside."""
    require(tuple(a.shape) == (1, 1, *SHAPE), f"{what} has shape {tuple(a.shape)}.")
    require(a.isfinite().all(), f"{what} is not finite.")
    require(float(a.min()) >= 0, f"{what} is negative: higher means more abnormal, from 0 on.")
    equal(a[~INSIDE], torch.zeros_like(a[~INSIDE]), f"{what} is not zero outside the foreground.")
