r"""Segmentation of anomalies from volumes and their one-step reconstructions by a frozen model,

.. math:: \hat x = D\big(\hat z_0(z_t)\big), \quad z_t \sim q(z_t | E(x)), \qquad
          p = σ\big(f(\hat x - x, x)\big),

trained with the binary cross-entropy at random t, on synthetic anomalies or on labels. What is
drawn for a sample depends on its key alone, as in `volumediff.model`.

References:
    Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
    Supervised Segmentation for Brain MRIs, MIDL
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.component import Loan
from volumediff.condition import HEALTHY, Condition
from volumediff.data.seen import Seen
from volumediff.model import Model, state_noise
from volumediff.recipes._base import Recipe
from volumediff.residual_segmenters import ResidualSegmenter
from volumediff.spaces._base import StateSpace
from volumediff.times._base import TimeDensity
from volumediff.times.uniform import Uniform

__all__ = ["SEGMENTER", "ResidualSegmentation", "VoxelPosterior", "residual_missing"]

Volume = Float[Tensor, "b c d h w"]
SEGMENTER = Loan(
    "residual_segmenter",
    what="the run of a residual segmenter that was trained for this run",
    configurations="residual_segmenters",
)


class ResidualSegmentation(nn.Module):
    """f(x̂ - x, x), as a frozen model that gives x̂ and a residual_segmenter.

    Arguments:
        model: makes reconstructions; its weights never change here
        residual_segmenter: (residual, volume) -> logits
        dtype: in which its network computes; volumes, residuals, logits and losses are wider
        time_density: of the training times
        recipe: what was to be found, for models that segment by themselves
    """

    diffuses: ClassVar[bool] = False

    def __init__(
        self,
        model: Model,
        residual_segmenter: ResidualSegmenter,
        *,
        dtype: torch.dtype = torch.float32,
        time_density: TimeDensity = Uniform(),  # noqa: B008 - frozen
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.residual_segmenter = residual_segmenter
        self.dtype = dtype
        self.time_density = time_density
        self.recipe = recipe

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.residual_segmenter.parameters()).device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs: one per estimate."""
        return self.model.network

    @property
    def labels(self) -> tuple[int, ...]:
        """Label values that it was trained to find; 1 for synthetic anomalies."""
        return self.recipe.labels if self.recipe is not None and self.recipe.segments else (1,)

    def encode(self, x: Volume) -> Float[Tensor, "b k d2 h2 w2"]:
        """The state of a volume."""
        return self.model.encode(x)

    def encode_image(self, x: Volume) -> Float[Tensor, "b k d2 h2 w2"]:
        """The state of a volume that the model is conditioned on."""
        return self.model.encode_image(x)

    @property
    def space(self) -> StateSpace:
        """That of the frozen model."""
        return self.model.space

    def told(self, z_0: Float[Tensor, "b k d2 h2 w2"], condition: Condition) -> Condition:
        """What the model is conditioned on to estimate healthy volumes of states."""
        told = self.model.referred(condition, z_0)
        if self.model.network.embedding.classes:
            healthy = torch.full((len(z_0),), HEALTHY, dtype=torch.int64, device=z_0.device)
            told = told.replace(label=healthy)
        return told

    @torch.no_grad()
    def reconstruct(
        self,
        x: Volume,
        keys: tuple[int, ...],
        condition: Condition,
        images: tuple[Float[Tensor, "b _ d h w"], ...] = (),
    ) -> Volume:
        """One-step estimates of the volumes, each from its own time, healthy where it has a class.

        Arguments:
            keys: one per volume, of its time and noise
            condition: of the model, beside images and class
            images: volumes that it is conditioned on
        """
        model, (d, h, w) = self.model, x.shape[2:]
        z_0 = model.encode(x)
        told = self.told(z_0, model.told(condition, images))
        t = self.time_density.draw(keys, model.kernel.schedule, device=x.device)
        shape = tuple(x.shape[1:])
        noise = state_noise(model.space, model.noise_field, keys, shape, "loss", device=x.device)
        z_t = model.kernel.corrupt(z_0, t, noise.to(z_0))
        return model.decode(model.denoise(z_t, t, told).x0, (d, h, w))

    def logits(self, x: Volume, healthy: Volume) -> Float[Tensor, "b 1 d h w"]:
        """f(x̂ - x, x) of a reconstruction x̂."""
        return self.residual_segmenter((healthy - x).to(self.dtype), x.to(self.dtype)).to(x.dtype)

    def probability(self, x: Volume, healthy: Volume) -> Float[Tensor, "b 1 d h w"]:
        """σ(f(x̂ - x, x)) of a reconstruction x̂."""
        return torch.sigmoid(self.logits(x, healthy))

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """Cross-entropy of each sample, the mean over its voxels.

        Arguments:
            batch: 2 m - 1 as its volumes, one channel per kind of anomaly; the volume that is
                looked at is the last image, the model is conditioned on those before
        """
        x, told = batch.images[-1], batch.images[:-1]
        healthy = self.reconstruct(x, batch.keys, batch.condition, told)
        m = ((batch.x + 1) / 2).amax(dim=1, keepdim=True)
        each = F.binary_cross_entropy_with_logits(self.logits(x, healthy), m, reduction="none")
        return each.flatten(1).mean(1)


@dataclass(frozen=True)
class VoxelPosterior:
    """What a trained residual segmenter says, as maps take it.

    Arguments:
        probability: (x, x̂) -> p in [0, 1] for every voxel
        supervision: what it was trained on: synthetic anomalies (self) or masks (full)
        digest: identifies the weights; calibrations belong to it
        seen: what they were trained on
        facts: where they come from, for the records of results
    """

    probability: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    supervision: Literal["self", "full"]
    digest: str
    seen: Seen = field(default_factory=Seen, repr=False, compare=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def residual_missing(model: object) -> str | None:
    """Why a model is no residual segmentation of one label; None where it is."""
    if not isinstance(model, ResidualSegmentation):
        return "expected a residual segmenter; train with task=residual_segmenter."
    if len(model.labels) > 1:
        return (
            f"expected a residual segmenter of one label, got one of {list(model.labels)} "
            "together; train with one of them."
        )
    return None
