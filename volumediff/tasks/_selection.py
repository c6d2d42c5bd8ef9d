r"""Selection of the best checkpoint: voxel average precision on synthetic lesions.

A lesion of the validation generators (never of those that a test uses) is inserted in each healthy
validation volume, and scanned with one denoising step per level,

.. math:: a = \frac{1}{|L|} \sum_{t \in L} \left| x - D\big(\hat z_0(\alpha_t z + \sigma_t
          \epsilon)\big) \right|,

smoothed and cut to the foreground: the cheapest map that ranks checkpoints by what they are for.
Self-supervised recipes have theirs: no noise for a cold kernel, E[m | x] for a model of the map.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.anomaly.detectors import PosteriorMean
from volumediff.compatibility.methods import restores
from volumediff.condition import Condition
from volumediff.data.anomalies import KINDS, VALIDATION, insert
from volumediff.distributed.processes import wait
from volumediff.errors import UsageError
from volumediff.metrics.detection import average_precision, histogram
from volumediff.metrics.mask_dice import mean_dice
from volumediff.model import Model
from volumediff.randomness import key
from volumediff.recipes._base import Recipe
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import Cache

__all__ = ["label_dice", "one_step_map", "voxel_ap", "with_lesions"]

# To be raised when the validation generators come to make other lesions for the same key.
VERSION = 2


def with_lesions(
    volumes: Sequence[TrainingVolume], *, seed: int, cache: Cache, accelerator: Accelerator
) -> list[TrainingVolume]:
    """The volumes with one lesion each, kind after kind, and its mask as `truth`; in the cache.

    Raises:
        UsageError: a volume is too small for lesions
    """

    def entry(index: int) -> TrainingVolume:
        volume, donor = volumes[index], volumes[(index + 1) % len(volumes)]

        def make() -> tuple[dict[str, np.ndarray], dict[str, object]]:
            try:
                x, truth = insert(
                    volume.x,
                    volume.foreground,
                    kind=KINDS[index % len(KINDS)],
                    key=key(seed, "selection", index),
                    spacing_mm=volume.spacing_mm,
                    family=VALIDATION,
                    donor=donor.x if donor.shape == volume.shape else volume.x,
                )
            except ValueError as error:
                raise UsageError(
                    f"validation.best: no lesion fits into case {volume.id} ({error}) Use larger "
                    "volumes, or validation.best=null."
                ) from None
            arrays = {"x": x, "truth": truth, "foreground": volume.foreground}
            return {n: a.numpy() for n, a in arrays.items()}, dict(volume.entry.info)

        fingerprint = {
            "lesions": VERSION,
            "volume": volume.entry.folder.name,
            "donor": donor.entry.folder.name,
            "index": index,
            "seed": seed,
        }
        made = cache.entry(f"{volume.id}-lesion", fingerprint, make)
        return replace(volume, entry=made)

    for index in range(accelerator.process_index, len(volumes), accelerator.num_processes):
        entry(index)
    wait(accelerator)
    return [entry(index) for index in range(len(volumes))]


def label_dice(
    found: UInt8[Tensor, "1 1 d h w"],
    truth: UInt8[Tensor, "1 1 d h w"],
    recipe: Recipe,
) -> float:
    """Mean Dice over the labels that either map has; 1 where none has any.

    Arguments:
        found, truth: label maps; where the truth is ignored, neither counts
        recipe: says the labels
    """
    judged = ~torch.isin(truth, truth.new_tensor(recipe.ignored))
    return mean_dice(((found == v) & judged, truth == v) for v in recipe.labels)


@torch.no_grad()
def one_step_map(
    model: Model,
    x: Float[Tensor, "1 c d h w"],
    *,
    condition: Condition,
    levels: tuple[float, ...],
    key: int,
) -> Float[Tensor, "1 1 d h w"]:
    """Mean over levels of the residual after one denoising step, channels averaged.

    A cold kernel reads the volume itself as a state; a model of the map gives it at t = 1.
    """
    d, h, w = x.shape[2:]
    if model.recipe.marks == "self":
        m = PosteriorMean().estimate(model, condition, key=key, shape=(1, d, h, w))
        return ((model.decode(m, (d, h, w)) + 1) / 2).clamp(0, 1)
    z, noise = model.encode(x), model.noise((key,), x.shape[1:])
    condition = model.referred(condition, z)
    clean = restores(model.kernel)
    total = torch.zeros_like(x[:, :1])
    for i, level in enumerate(levels):
        t = torch.full((1,), level, dtype=torch.float64, device=x.device)
        z_t = z if clean else model.kernel.corrupt(z, t, noise(i))
        z_0 = model.denoise(z_t, t, condition).x0
        total += (x - model.decode(z_0, x.shape[2:])).abs().mean(1, keepdim=True)
    return total / len(levels)


def voxel_ap(
    residual: Float[Tensor, "1 1 d h w"],
    truth: Bool[Tensor, "1 1 d h w"],
    foreground: Bool[Tensor, "1 1 d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    smooth_mm: float,
) -> float:
    """Average precision inside the foreground after Gaussian smoothing (standard deviation)."""
    from scipy.ndimage import gaussian_filter

    sigma = [smooth_mm / s for s in spacing_mm]
    smooth = torch.from_numpy(gaussian_filter(residual[0, 0].float().cpu().numpy(), sigma))
    inside = foreground[0, 0].cpu()
    return average_precision(histogram(smooth, truth[0, 0].cpu(), foreground=inside))
