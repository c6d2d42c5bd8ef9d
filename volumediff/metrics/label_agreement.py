r"""One label of a segmentation against the truth: overlap, surfaces and volume.

With A the voxels of the label in the prediction, B those in the truth and v the volume of a voxel,

    Dice = 2 |A ∩ B| / (|A| + |B|),   IoU = |A ∩ B| / |A ∪ B|,
    volume error = v (|A| - |B|),     relative: | |A| - |B| | / |B|,

and HD95, ASSD, NSD as in `surfaces`. A label that a volume does not have needs a rule, and the
rule changes every mean; so that it is chosen and recorded:

- *absent*: neither the truth nor the prediction has it. `skip` leaves the volume out of the means
  of this label, `one` counts it as perfect (Dice, IoU and NSD 1, distances and errors 0), as is
  usual with slices and readers.
- *missed*: only one of the two has it. Dice, IoU and NSD are 0. Distances do not exist: `worst`
  takes the diagonal of the volume, so that finding nothing is never better than finding little,
  `skip` leaves them out.

References:
    Maier-Hein et al. (2024), Metrics reloaded, arXiv:2206.01653
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from volumediff.metrics.surfaces import surface_distances

__all__ = ["ABSENT", "AGREEMENT", "MISSED", "AbsentLabels", "label_agreement"]

ABSENT = ("skip", "one")
MISSED = ("worst", "skip")
AGREEMENT = (
    *("dice", "iou", "nsd", "hd95_mm", "assd_mm", "precision", "recall"),
    *("volume_error_ml", "volume_error", "volume_ml", "truth_ml"),
)
PERFECT = {"dice": 1.0, "iou": 1.0, "nsd": 1.0, "precision": 1.0, "recall": 1.0}
NAN = float("nan")


@dataclass(frozen=True)
class AbsentLabels:
    """What counts where a label is not there.

    Arguments:
        absent: neither in the truth nor in the prediction: `skip` or `one`
        missed: in one of them alone, for distances: `worst` (the volume's diagonal) or `skip`
    """

    absent: str = "skip"
    missed: str = "worst"

    def __post_init__(self) -> None:
        for name, choices in (("absent", ABSENT), ("missed", MISSED)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}."
                )


def label_agreement(
    mask: Bool[np.ndarray, "d h w"],
    truth: Bool[np.ndarray, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
    rules: AbsentLabels = AbsentLabels(),
) -> dict[str, float]:
    """The figures of `AGREEMENT` for one label of one volume; nan where one is left out.

    Arguments:
        mask: voxels of the label in the prediction
        truth: voxels of the label in the truth
        spacing_mm: voxel size along d, h, w
        tolerance_mm: of NSD
        rules: for a label that is not there
    """
    ml = math.prod(spacing_mm) / 1000
    hit, found, wanted = int((mask & truth).sum()), int(mask.sum()), int(truth.sum())
    result = {
        **dict.fromkeys(AGREEMENT, NAN),
        "volume_ml": found * ml,
        "truth_ml": wanted * ml,
    }
    if not found and not wanted:
        if rules.absent == "one":
            nothing = {"hd95_mm": 0.0, "assd_mm": 0.0, "volume_error_ml": 0.0, "volume_error": 0.0}
            result |= PERFECT | nothing
        return result
    result |= {
        "dice": 2 * hit / (found + wanted),
        "iou": hit / (found + wanted - hit),
        "precision": hit / found if found else NAN,
        "recall": hit / wanted if wanted else NAN,
        "volume_error_ml": (found - wanted) * ml,
        "volume_error": abs(found - wanted) / wanted if wanted else NAN,
    }
    distances = surface_distances(mask, truth, spacing_mm=spacing_mm)
    if distances is not None:
        return result | {
            "nsd": distances.within(tolerance_mm),
            "hd95_mm": distances.hausdorff(),
            "assd_mm": distances.average,
        }
    sides = [n * s for n, s in zip(truth.shape, spacing_mm, strict=True)]
    worst = math.hypot(*sides) if rules.missed == "worst" else NAN
    return result | {"nsd": 0.0, "hd95_mm": worst, "assd_mm": worst}
