"""Definitions of what results cost, for every kind of evaluation."""

from volumediff.metrics.definition import Better, MetricDefinition, Notation

__all__ = ["COST_METRICS"]

COST_METRICS: dict[str, MetricDefinition] = {
    "network_calls": MetricDefinition(
        "network calls",
        "Number of evaluations of the diffusion network per volume.",
        "0 and above",
        Better.NEITHER,
        Notation.COUNT,
    ),
    "seconds": MetricDefinition(
        "time per volume",
        "Mean wall-clock time per volume on the hardware that the results were made on.",
        "0 and above",
        Better.NEITHER,
        Notation.AMOUNT,
        "seconds",
    ),
    "peak_gb": MetricDefinition(
        "peak GPU memory",
        "Mean over the volumes of the largest memory that was allocated on the GPU at once.",
        "0 and above",
        Better.NEITHER,
        Notation.AMOUNT,
        "GB",
    ),
}
