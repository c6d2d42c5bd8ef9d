"""Definitions of the metrics of segmentation, in the order of the tables.

A leading space in a heading marks a part of the metric above it.
"""

from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.metrics.definition import Better, MetricDefinition, Notation

__all__ = ["SEGMENTATION_METRICS"]

LOWER, NEITHER = Better.LOWER, Better.NEITHER
COUNT, AMOUNT = Notation.COUNT, Notation.AMOUNT
SHARE = "0 to 1"

SEGMENTATION_METRICS: dict[str, MetricDefinition] = {
    "dice": MetricDefinition(
        "Dice",
        "Twice the common voxels of segmentation A and truth B over the voxels of both, "
        "2 |A ∩ B| / (|A| + |B|), mean over the volumes.",
        SHARE,
    ),
    "iou": MetricDefinition(
        "IoU",
        "Intersection over union of segmentation and truth, |A ∩ B| / |A ∪ B|, mean over the "
        "volumes; also called the Jaccard index.",
        SHARE,
    ),
    "nsd": MetricDefinition(
        "NSD at the tolerance",
        "Normalized surface Dice: the share of both surfaces that lies within the tolerance of "
        "the other surface. The tolerance is named below the table.",
        SHARE,
    ),
    "hd95_mm": MetricDefinition(
        "HD95",
        "95th percentile of the distances from one surface to the other, the larger of the two "
        "directions.",
        "0 and above",
        LOWER,
        AMOUNT,
        "mm",
    ),
    "assd_mm": MetricDefinition(
        "ASSD",
        "Average symmetric surface distance: the mean of the distances from each surface to the "
        "other one.",
        "0 and above",
        LOWER,
        AMOUNT,
        "mm",
    ),
    "precision": MetricDefinition(
        "precision",
        "Share of the segmented voxels that have the label in the truth.",
        SHARE,
    ),
    "recall": MetricDefinition(
        "recall",
        "Share of the voxels of the label in the truth that are segmented; also called "
        "sensitivity.",
        SHARE,
    ),
    "volume_error": MetricDefinition(
        "relative volume error",
        "Absolute difference of the volumes of segmentation and truth, relative to the truth.",
        "0 and above",
        LOWER,
    ),
    "volume_error_ml": MetricDefinition(
        "signed volume error",
        "Volume of the segmentation minus that of the truth; negative where too little is "
        "segmented.",
        "any",
        NEITHER,
        AMOUNT,
        "ml",
    ),
    "lesion_f1": MetricDefinition(
        "lesion F1 at IoU 0.1",
        "2 TP / (2 TP + FP + FN) over connected components that are matched one to one at an "
        "intersection over union of at least 0.1, pooled over the volumes.",
        SHARE,
    ),
    "pq": MetricDefinition(
        "panoptic quality at IoU 0.5",
        "Recognition quality times segmentation quality of connected components that are matched "
        "at an intersection over union above 0.5, pooled over the volumes.",
        SHARE,
    ),
    "rq": MetricDefinition(
        "  recognition quality",
        "F1 of connected components that are matched at an intersection over union above 0.5.",
        SHARE,
    ),
    "sq": MetricDefinition(
        "  segmentation quality",
        "Mean intersection over union of the matched connected components.",
        "0.5 to 1",
    ),
    "ged_v": MetricDefinition(
        "GED², with self pairs (V)",
        "Squared generalized energy distance between the samples of the method and the masks of "
        "the readers, estimated over all pairs, a mask with itself among them; biased upwards.",
        "0 to 2",
        LOWER,
    ),
    "ged_u": MetricDefinition(
        "GED², without (U)",
        "Squared generalized energy distance between the samples of the method and the masks of "
        "the readers, estimated over pairs of different masks; unbiased.",
        "-2 to 2",
        LOWER,
    ),
    "hm_iou": MetricDefinition(
        "HM-IoU with readers",
        "Mean intersection over union of samples and readers that are matched one to one for the "
        "largest sum (Hungarian matching).",
        SHARE,
    ),
    "ci": MetricDefinition(
        "collective insight",
        "Harmonic mean of the three parts below.",
        SHARE,
    ),
    "sensitivity": MetricDefinition(
        "  sensitivity of the union",
        "Share of the voxels that any reader marked which some sample marks.",
        SHARE,
    ),
    "d_max": MetricDefinition(
        "  best Dice per reader",
        "Largest Dice of a sample with a reader's mask, mean over the readers.",
        SHARE,
    ),
    "diversity": MetricDefinition(
        "  agreement of diversity",
        "1 minus the mean distance between the extreme disagreements among samples and among "
        "readers, each measured as 1 - Dice.",
        SHARE,
    ),
    "components": MetricDefinition(
        "components per sample",
        "Mean number of connected components of a sample.",
        "0 and above",
        NEITHER,
        COUNT,
    ),
    "components_ratio": MetricDefinition(
        "  relative to readers, 1 alike",
        "Connected components of the samples relative to those of the readers' masks; far above 1 "
        "where samples consist of specks.",
        "0 and above",
        NEITHER,
    ),
    "surface_ratio": MetricDefinition(
        "surface relative to readers",
        "Surface of the samples relative to that of the readers' masks; 1 where they are equally "
        "smooth.",
        "0 and above",
        NEITHER,
    ),
    "ece": MetricDefinition(
        "ECE",
        "Expected calibration error: mean distance between the probability of the label and the "
        "share of its voxels, weighted by the voxels of each bin.",
        SHARE,
        LOWER,
        AMOUNT,
    ),
    "ace": MetricDefinition(
        "ACE, average over bins",
        "Average calibration error: the same distance with every bin of probability counted "
        "equally.",
        SHARE,
        LOWER,
    ),
    "brier": MetricDefinition(
        "Brier score",
        "Mean squared difference between the probability of the label and the truth.",
        SHARE,
        LOWER,
        AMOUNT,
    ),
    "brier_skill": MetricDefinition(
        "Brier skill",
        "1 minus the Brier score relative to that of a constant probability equal to the share of "
        "the label's voxels, which has 0.",
        "below 0 to 1",
    ),
    "entropy_auroc": MetricDefinition(
        "AUROC of errors by entropy",
        "Probability that a wrong voxel has a higher entropy than a right one; 0.5 by chance.",
        SHARE,
    ),
    "aurc": MetricDefinition(
        "AURC by entropy",
        "Area under the risk-coverage curve: mean share of wrong voxels among those that are "
        "kept when the voxels of highest entropy are set aside, over all shares kept.",
        SHARE,
        LOWER,
        AMOUNT,
    ),
    **COST_METRICS,
}
