"""The contract of maps: never negative, zero outside, least for equal volumes, samples apart."""

from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.maps._base import Map
from volumediff.condition import Condition
from volumediff.contracts.requirements import built, equal, require, unmet, untouched
from volumediff.contracts.scenes import INSIDE, LESION, SHAPE, SPACING, network_model
from volumediff.randomness import normal
from volumediff.residual_segmentation import VoxelPosterior

__all__ = ["check_map"]


def _probability(x: Tensor, healthy: Tensor) -> Tensor:
    return torch.sigmoid(20 * (x - healthy).abs().mean(1, keepdim=True) - 3)


def check_map(cls: type, **arguments: Any) -> None:
    """How far volumes are from their pseudo-healthy versions, of two samples at once."""
    posterior = VoxelPosterior(_probability, "self", "closed form")
    block: Map = built(cls, arguments, objects={"residual_segmenter": posterior})
    model = network_model()
    require(unmet(block, model) is None, "It refuses a usual model.")
    bound = block.with_model(model, Condition())
    healthy = 0.1 * normal((2, 1, *SHAPE), "contracts", "healthy")
    noise = 0.02 * normal((2, 1, *SHAPE), "contracts", "rest")
    x = healthy + noise + torch.tensor([0.6, 0.9])[:, None, None, None, None] * LESION
    inside = INSIDE.expand(2, -1, -1, -1, -1)

    @torch.no_grad()
    def measured(x: Tensor, healthy: Tensor) -> Tensor:
        return bound(x, healthy, foreground=inside[: len(x)], spacing_mm=SPACING)

    a = untouched({"the volume": x, "its healthy version": healthy}, lambda: measured(x, healthy))
    require(tuple(a.shape) == (2, 1, *SHAPE), f"The map has shape {tuple(a.shape)}.")
    require(a.dtype == x.dtype, f"The map of {x.dtype} is in {a.dtype}.")
    require(a.isfinite().all(), "The map is not finite.")
    require(float(a.min()) >= 0, f"The map is negative, down to {float(a.min()):.3g}.")
    require(not bool(a[~inside].any()), "The map is not zero outside the foreground.")
    require(torch.equal(measured(x, healthy), a), "The same volumes give another map.")
    for i in range(2):
        alone = measured(x[i : i + 1], healthy[i : i + 1])
        text = "The map of a volume depends on its batch."
        equal(alone, a[i : i + 1], text, atol=1e-5, rtol=1e-4)
    if bound == block:  # nothing of the model's, which has a dtype of its own
        double = measured(x.double(), healthy.double())
        require(double.dtype == torch.float64, "The map of float64 volumes is not in float64.")
        equal(double, a, "The map of float64 volumes is another.", atol=1e-3, rtol=1e-3)
    own = measured(x, x.clone())
    require(own.isfinite().all() and float(own.min()) >= 0, "Equal volumes give no finite map.")
    for i in range(2):
        require(
            float(own[i][inside[i]].mean()) < float(a[i][inside[i]].mean()),
            "Equal volumes are not less abnormal than different ones.",
        )
    lesion = LESION[0]
    for i in range(2):
        require(
            float(a[i][lesion].mean()) > float(a[i][INSIDE[0] & ~lesion].mean()),
            "The map is not higher where the volumes differ than elsewhere.",
        )
