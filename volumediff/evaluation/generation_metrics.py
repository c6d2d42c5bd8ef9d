"""Definitions of the metrics of generated volumes, in the order of the tables."""

from volumediff.metrics.definition import Better, MetricDefinition, Notation

__all__ = ["GENERATION_METRICS", "generation_metric"]

LOWER, NEITHER = Better.LOWER, Better.NEITHER
AMOUNT = Notation.AMOUNT

GENERATION_METRICS: dict[str, MetricDefinition] = {
    "mmd": MetricDefinition(
        "MMD² of voxels",
        "Squared maximum mean discrepancy between generated and real volumes, averaged to small "
        "blocks, with a Gaussian kernel. The estimate is unbiased and may fall below 0.",
        "about 0 and above",
        LOWER,
        AMOUNT,
    ),
    "kid": MetricDefinition(
        "KID of features",
        "Kernel inception distance: squared maximum mean discrepancy of feature vectors with a "
        "cubic kernel. The estimate is unbiased and may fall below 0.",
        "about 0 and above",
        LOWER,
        AMOUNT,
    ),
    "fid": MetricDefinition(
        "Fréchet distance (FID)",
        "Fréchet distance between normal distributions fitted to the feature vectors of generated "
        "and of real volumes; too large by an amount that shrinks with the number of volumes.",
        "0 and above",
        LOWER,
        AMOUNT,
    ),
    "fid_extrapolated": MetricDefinition(
        "FID at infinitely many volumes",
        "The Fréchet distance extrapolated to infinitely many volumes, without the bias of few.",
        "about 0 and above",
        LOWER,
        AMOUNT,
    ),
    "precision": MetricDefinition(
        "precision of features",
        "Share of the generated volumes whose features lie among those of real ones: fidelity.",
        "0 to 1",
        Better.HIGHER,
    ),
    "recall": MetricDefinition(
        "recall of features",
        "Share of the real volumes whose features lie among those of generated ones: variety.",
        "0 to 1",
        Better.HIGHER,
    ),
    "ms_ssim": MetricDefinition(
        "MS-SSIM of pairs",
        "Mean multi-scale structural similarity of pairs of generated volumes. Above that of real "
        "pairs the volumes are less diverse than real ones; 1 is always the same volume.",
        "0 to 1",
        NEITHER,
    ),
    "intensity_distance": MetricDefinition(
        "distance of intensities",
        "First Wasserstein distance between the mean intensity distributions, mean over the "
        "channels, in units of the prepared intensities.",
        "0 and above",
        LOWER,
        AMOUNT,
    ),
    "high_frequency": MetricDefinition(
        "power of fine detail, 1 as real",
        "Power in the upper half of the spatial frequencies relative to real volumes; below 1 is "
        "blur, above 1 noise.",
        "0 and above",
        NEITHER,
        AMOUNT,
    ),
    **{
        f"through_plane_{axis.lower()}": MetricDefinition(
            f"slice consistency along {axis}, 1 smooth",
            f"Change from slice to slice along the {words} axis per millimetre, relative to the "
            "two other axes; it is 1 without a preferred direction.",
            "0 and above",
            NEITHER,
        )
        for axis, words in (
            ("R", "left-right"),
            ("A", "posterior-anterior"),
            ("S", "inferior-superior"),
        )
    },
    "foreground_ml": MetricDefinition(
        "foreground volume",
        "Mean volume of the foreground of a volume.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "ml",
    ),
}


def generation_metric(name: str) -> MetricDefinition:
    """The definition of a metric; `label_3_ml` is the volume of label 3, which only generated
    label maps have.

    Arguments:
        name: in `evaluation.json`
    """
    if name in GENERATION_METRICS:
        return GENERATION_METRICS[name]
    value = name.removeprefix("label_").removesuffix("_ml")
    return MetricDefinition(
        f"volume of label {value}",
        f"Mean volume of label {value} in a label map.",
        "0 and above",
        NEITHER,
        AMOUNT,
        "ml",
    )
