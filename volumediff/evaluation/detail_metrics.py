"""Definitions of metrics that stand in evaluation.json and in no table."""

from volumediff.metrics.definition import Better, MetricDefinition, Notation

__all__ = ["LOCALIZATION_DETAILS", "SEGMENTATION_DETAILS"]

SHARE = "0 to 1"
LOWER, NEITHER, AMOUNT = Better.LOWER, Better.NEITHER, Notation.AMOUNT

LOCALIZATION_DETAILS: dict[str, MetricDefinition] = {
    "prevalence": MetricDefinition(
        "share of lesion voxels",
        "Share of the voxels of volumes with lesions that are lesion: the average precision of a "
        "map that knows nothing.",
        SHARE,
        NEITHER,
    ),
    "box_giou": MetricDefinition(
        "generalized IoU of boxes",
        "For each true box the largest generalized intersection over union with a found box, -1 "
        "where nothing was found, mean over the boxes.",
        "-1 to 1",
    ),
    "box_response": MetricDefinition(
        "response in boxes",
        "Mean of the map inside the true boxes over its mean in the rest of the foreground, both "
        "above the lowest value of the foreground, mean over the volumes. It is 1 for a map "
        "without information.",
        "0 and above",
    ),
    "box_energy": MetricDefinition(
        "energy in boxes",
        "Share of the sum of the map that lies inside the true boxes, mean over the volumes. It "
        "grows with the size of the boxes.",
        SHARE,
    ),
    "normative": MetricDefinition(
        "normative score",
        "Mean of AHI and of the harmonic mean of RQI and CACI, the three measures of a "
        "pseudo-healthy volume.",
        SHARE,
    ),
    "mce": MetricDefinition(
        "MCE of probabilities",
        "Maximum calibration error: largest distance, over the bins, between the probability of "
        "a lesion and the share of lesion voxels.",
        SHARE,
        LOWER,
    ),
    "brier": MetricDefinition(
        "Brier score of probabilities",
        "Mean squared distance between the probability of a lesion and the truth of each voxel.",
        SHARE,
        LOWER,
    ),
    "through_plane_restored": MetricDefinition(
        "through-plane ratio of the pseudo-healthy volume, 1 smooth",
        "Change of the pseudo-healthy volume from axial slice to axial slice per millimetre, "
        "relative to that within slices. It is 1 without a preferred direction.",
        "0 and above",
        NEITHER,
    ),
}

SEGMENTATION_DETAILS: dict[str, MetricDefinition] = {
    "volume_ml": MetricDefinition(
        "volume",
        "Volume of the label in the segmentation, mean over the volumes that are compared.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "ml",
    ),
    "truth_ml": MetricDefinition(
        "volume of the truth",
        "Volume of the label in the truth, mean over the volumes that are compared.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "ml",
    ),
}
