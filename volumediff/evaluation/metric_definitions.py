"""All metrics by kind of evaluation: what legends, tooltips and the reference explain."""

from collections.abc import Mapping

from volumediff.evaluation.detail_metrics import LOCALIZATION_DETAILS, SEGMENTATION_DETAILS
from volumediff.evaluation.generation_metrics import GENERATION_METRICS
from volumediff.evaluation.localization_metrics import LOCALIZATION_METRICS, WAITING_METRICS
from volumediff.evaluation.segmentation_metrics import SEGMENTATION_METRICS
from volumediff.evaluation.translation_metrics import TRANSLATION_METRICS
from volumediff.metrics.definition import MetricDefinition

__all__ = ["METRICS"]

METRICS: Mapping[str, Mapping[str, MetricDefinition]] = {
    "localization": {**LOCALIZATION_METRICS, **WAITING_METRICS, **LOCALIZATION_DETAILS},
    "segmentation": {**SEGMENTATION_METRICS, **SEGMENTATION_DETAILS},
    "translation": TRANSLATION_METRICS,
    "generation": GENERATION_METRICS,
}
"""Kind of evaluation -> name in evaluation.json -> definition, in the order of the tables."""
