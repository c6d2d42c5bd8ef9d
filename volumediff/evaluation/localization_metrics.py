"""Definitions of the metrics of anomaly localization, in the order of the tables."""

from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.metrics.definition import Better, MetricDefinition, Notation

__all__ = ["LESION_SIZE_METRICS", "LOCALIZATION_METRICS", "WAITING_METRICS"]

LOWER, NEITHER = Better.LOWER, Better.NEITHER
COUNT, AMOUNT = Notation.COUNT, Notation.AMOUNT
SHARE = "0 to 1"

LOCALIZATION_METRICS: dict[str, MetricDefinition] = {
    "voxel_ap_by_group": MetricDefinition(
        "voxel AP, mean over groups",
        "Voxel AP averaged within each subgroup first and then over the subgroups, so that every "
        "subgroup counts equally.",
        SHARE,
    ),
    "voxel_ap": MetricDefinition(
        "voxel AP",
        "Average precision of the voxels: area under the precision-recall curve over all "
        "thresholds of the map, mean over the volumes with lesions. A map without information "
        "reaches the share of lesion voxels.",
        SHARE,
    ),
    "voxel_ap_pooled": MetricDefinition(
        "voxel AP, pooled",
        "Average precision of the voxels of all volumes together, so that map values must be "
        "comparable between volumes and large lesions weigh more.",
        SHARE,
    ),
    "voxel_auroc": MetricDefinition(
        "voxel AUROC",
        "Probability that a lesion voxel has a higher map value than a healthy voxel of the same "
        "volume, mean over the volumes with lesions. It is 0.5 by chance, and close to 1 for many "
        "weak maps since lesions are small.",
        SHARE,
    ),
    "best_dice": MetricDefinition(
        "best Dice (oracle)",
        "Dice of all voxels together at the threshold that the truth itself chooses: an upper "
        "bound, not a result.",
        SHARE,
    ),
    "dice_validation": MetricDefinition(
        "Dice, validation threshold",
        "Dice at the threshold that is best on validation volumes with lesions, mean over the "
        "volumes with lesions.",
        SHARE,
    ),
    "dice_healthy_fpr": MetricDefinition(
        "Dice, healthy-FPR threshold",
        "Dice at the threshold that a fixed share of the healthy voxels of calibration volumes "
        "exceeds, mean over the volumes with lesions.",
        SHARE,
    ),
    "found_by_iou": MetricDefinition(
        "lesions found by IoU",
        "Share of the lesions whose matched finding has an intersection over union of at least "
        "0.1 with them (lesions and findings are matched one to one).",
        SHARE,
    ),
    "found_by_recall": MetricDefinition(
        "lesions found by recall",
        "Share of the lesions of which at least 10 % of the voxels are covered by findings that "
        "lie to at most 70 % outside of all lesions.",
        SHARE,
    ),
    "lesion_f1": MetricDefinition(
        "lesion F1",
        "2 TP / (2 TP + FP + FN) over lesions and findings, matched one to one at an intersection "
        "over union of at least 0.1, pooled over all volumes.",
        SHARE,
    ),
    "false_positives": MetricDefinition(
        "false positives",
        "Findings per volume that touch no lesion, or lie to more than 70 % outside of all "
        "lesions.",
        "0 and above",
        LOWER,
        COUNT,
    ),
    "matched_false_positives": MetricDefinition(
        "volume-matched false pos.",
        "Excess volume per volume, expressed as the number of lesions of mean size that it would "
        "fill. It cannot be lowered by joining false positives.",
        "0 and above",
        LOWER,
        COUNT,
    ),
    "excess_ml": MetricDefinition(
        "excess volume",
        "Marked volume beyond three times the volume of the lesions, mean over the volumes. In a "
        "healthy volume everything that is marked is excess.",
        "0 and above",
        LOWER,
        AMOUNT,
        "ml",
    ),
    "merged": MetricDefinition(
        "merged lesions",
        "Lesions per volume that share a finding with another lesion.",
        "0 and above",
        LOWER,
        COUNT,
    ),
    "split": MetricDefinition(
        "split lesions",
        "Lesions per volume that several findings touch.",
        "0 and above",
        LOWER,
        COUNT,
    ),
    "associated": MetricDefinition(
        "associated changes marked",
        "Share of the voxels of associated changes (oedema, mass effect, atrophy) that the method "
        "marks. They count neither as hit nor as miss in any other metric.",
        SHARE,
        NEITHER,
    ),
    "froc": MetricDefinition(
        "FROC, mean at 1/8 to 8",
        "Mean share of lesions found at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per volume.",
        SHARE,
    ),
    "box_ap": MetricDefinition(
        "box AP at IoU 0.25",
        "Average precision of the boxes around the findings, which hit where their intersection "
        "over union with the box of a lesion is at least 0.25.",
        SHARE,
    ),
    "volume_auroc": MetricDefinition(
        "volume AUROC",
        "Probability that a volume with lesions has a higher volume score than a healthy one; 0.5 "
        "by chance.",
        SHARE,
    ),
    "worklist_recall": MetricDefinition(
        "recall at reading budget 20 %",
        "Share of the volumes with lesions among the 20 % of the volumes with the highest scores.",
        SHARE,
    ),
    "worklist_delay": MetricDefinition(
        "delay of positives, 1 random",
        "Mean position of the volumes with lesions in a reading list that is sorted by score, "
        "relative to a list in random order, which has 1.",
        "0 to 2",
        LOWER,
    ),
    "rqi": MetricDefinition(
        "RQI, healthy restored",
        "Restoration quality index: how well healthy volumes are reproduced, from structural "
        "similarity and relative absolute error. A method that returns its input has 1.",
        SHARE,
    ),
    "ahi": MetricDefinition(
        "AHI, restored is healthy",
        "Anomaly-to-healthy index: the share of the way from volumes with lesions to healthy ones "
        "that the pseudo-healthy volumes cover, as a Fréchet distance of local features. Values "
        "above 1 go beyond the healthy volumes.",
        "0 and above",
    ),
    "caci": MetricDefinition(
        "CACI, changed in lesion only",
        "Conservation and correction index: harmonic mean of the similarity to the image outside "
        "of the lesion and of the dissimilarity inside of it.",
        SHARE,
    ),
    "ece": MetricDefinition(
        "ECE of probabilities",
        "Expected calibration error: mean distance between the probability of a lesion and the "
        "share of lesion voxels, weighted by the voxels of each bin. It is small for every map "
        "that nearly never predicts a lesion.",
        SHARE,
        LOWER,
    ),
    "brier_skill": MetricDefinition(
        "Brier skill of probabilities",
        "1 minus the mean squared error of the probabilities, relative to that of a constant "
        "probability equal to the share of lesion voxels, which has 0.",
        "below 0 to 1",
    ),
    "aurc": MetricDefinition(
        "AURC by uncertainty",
        "Area under the risk-coverage curve: mean share of wrong voxels among those that are "
        "kept when the most uncertain voxels are set aside, over all shares kept.",
        SHARE,
        LOWER,
    ),
    "through_plane": MetricDefinition(
        "through-plane ratio, 1 smooth",
        "Change of the map from axial slice to axial slice per millimetre, relative to that "
        "within slices. It is 1 without a preferred direction, higher where slices do not fit.",
        "0 and above",
        NEITHER,
    ),
    **COST_METRICS,
}

LESION_SIZE_METRICS: dict[str, MetricDefinition] = {
    way: LOCALIZATION_METRICS[f"found_{way}"] for way in ("by_iou", "by_recall")
}
"""Shares of the lesions of one size, by the way of finding them."""

WAITING_METRICS: dict[str, MetricDefinition] = {
    "positive": MetricDefinition(
        "waiting time with lesions",
        "Mean simulated time that volumes with lesions wait for a reader who reads the highest "
        "scores first.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "minutes",
    ),
    "positive_fifo": MetricDefinition(
        "  in order of arrival",
        "Mean simulated time that volumes with lesions wait for a reader who reads volumes in the "
        "order of their arrival.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "minutes",
    ),
}
"""Waiting times on a simulated reading list, see `metrics.worklist`."""
