"""Definitions of the metrics of translation, in the order of the tables."""

from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.metrics.definition import MetricDefinition, Notation

__all__ = ["TRANSLATION_METRICS"]

SHARE = "0 to 1"

TRANSLATION_METRICS: dict[str, MetricDefinition] = {
    "psnr": MetricDefinition(
        "PSNR",
        "Peak signal-to-noise ratio of the translated against the measured channel inside of the "
        "brain mask or the foreground, both scaled to [0, 1] by their quantiles.",
        "0 and above",
        notation=Notation.AMOUNT,
        unit="dB",
    ),
    "ssim": MetricDefinition(
        "SSIM",
        "Mean structural similarity of the translated and the measured channel inside of the "
        "brain mask or the foreground; equal images have 1.",
        "-1 to 1",
    ),
    "lesion_dice": MetricDefinition(
        "lesion Dice, translated with measured",
        "Dice of the lesions that one segmentation model finds in the translated and in the "
        "measured channel.",
        SHARE,
    ),
    "lesion_dice_labels": MetricDefinition(
        "lesion Dice, translated with labels",
        "Dice of the lesions that a segmentation model finds in the translated channel with the "
        "labels of the data set.",
        SHARE,
    ),
    "lesion_dice_measured": MetricDefinition(
        "lesion Dice, measured with labels",
        "Dice of the lesions that the same model finds in the measured channel with the labels: "
        "what a perfect translation would reach.",
        SHARE,
    ),
    **COST_METRICS,
}
