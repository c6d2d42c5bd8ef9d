r"""Heads on features of a frozen diffusion model, voxel by voxel,

.. math:: y_l = \frac{1}{|J|\,|A|} \sum_{j \in J} \sum_{a \in A} p_{j,a}(l | x),

over the heads J and, where a head answers at several times, the times A; a member of an ensemble
may be a single head or a single time. Nothing is drawn.

References:
    Baranchuk et al. (2022), Label-Efficient Semantic Segmentation with Diffusion Models,
        arXiv:2112.03126
    Rosnati et al. (2023), Robust semi-supervised segmentation with timestep ensembling diffusion
        models, arXiv:2311.07421, for the mean over times
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.features.probe import Probe, probe_missing
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate, Image, Predictor

__all__ = ["ProbeLabels"]

SAME = 1e-6  # between a time that is asked for and one that there is


@dataclass(frozen=True)
class ProbeLabels(Predictor):
    """What the heads of a probe say.

    Arguments:
        chunk: voxels whose features are at hand at once, a multiple of 1024; changes memory and
            speed, never the result
    """

    draws: ClassVar[bool] = False
    chunk: int = 16_384

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.chunk % 1024:
            raise ValueError(f"chunk: expected a multiple of 1024 voxels, got {self.chunk}.")

    def check(self, model: Any) -> None:
        require(probe_missing(model))

    def check_draws(self, model: Probe, draws: Sequence[Draw]) -> None:
        # The last head, so that the message names all that were asked for.
        last = max((draw.head for draw in draws if draw.head is not None), default=None)
        _chosen_heads(last, len(model.heads))
        for draw in draws:
            _chosen_times(draw.time, model.answers)

    def labels(self, model: Probe) -> tuple[int, ...]:
        return model.recipe.labels

    def prepare(self, model: Probe, image: Image) -> Float[Tensor, "m a k d h w"]:
        """Every answer of every head: the features are read once for all members."""
        return model.probabilities(image.x, image.condition, chunk=self.chunk)

    def memberships(
        self,
        model: Probe,
        prepared: Float[Tensor, "m a k d h w"],
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        made = []
        for draw in draws:
            heads = _chosen_heads(draw.head, len(prepared))
            times = _chosen_times(draw.time, model.answers)
            p = prepared[heads][:, times].float().mean(dim=(0, 1))
            made.append((p / p.sum(dim=0, keepdim=True))[1:])  # half precision sums to about one
        return torch.stack(made)


def _chosen_heads(head: int | None, count: int) -> slice:
    if head is None:
        return slice(None)
    if head >= count:
        raise ValueError(
            f"ensemble: expected at most {count} heads, which the probe has (probe.members), got "
            f'{head + 1}; segment with "ensemble=[{{name: heads, count: {count}}}]".'
        )
    return slice(head, head + 1)


def _chosen_times(time: float | None, answers: Sequence[float | None]) -> list[int]:
    if time is None:
        return list(range(len(answers)))
    found = [i for i, t in enumerate(answers) if t is not None and abs(t - time) < SAME]
    if not found:
        known = ", ".join(f"{t:.3f}" for t in answers if t is not None) or "which sees all at once"
        raise ValueError(
            f"ensemble: expected one of the times of the probe, {known}, got {time:g}; leave the "
            "factor times out."
        )
    return found
