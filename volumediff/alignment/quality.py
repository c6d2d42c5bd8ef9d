"""Quality of an alignment: its measures, and which of them look wrong.

The limits single out what a person should look at; a flagged case is written like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from volumediff.alignment.aligning import Aligned, BrainMask, Steps
from volumediff.data.alignment_geometry import decomposed
from volumediff.data.alignment_template import Template
from volumediff.data.mutual_information import mutual_information

__all__ = ["Quality", "flags", "measured", "outliers"]

# Affinely aligned brains overlap the MNI152 by about 0.95 to 0.97; a wrong optimum, or a mask of
# the head instead of the brain, is below this.
LEAST_DICE = 0.88
# A brain that is seen to 95 % may lack its lowest slices; less, and the template sees nothing.
LEAST_COVERED = 0.95
# Adult brains are smaller than the MNI152, whose linear scale to them is 0.9 to 1.25 per axis;
# children's and atrophied brains get some room, wrong optima lie outside.
SCALES = (0.8, 1.45)
MOST_SHEAR = 0.2
# The MNI152's brain has 1.88 l, with its fluid; adults' have 1.1 to 1.8 l, children's from 0.9 l.
# A head whose scalp was taken for the brain's border is below this with scales that look right.
VOLUME_SCALES = (0.95, 2.2)
# Canonical axes are within 45 degrees of R, A, S; heads in a coil are within 30 of the template.
MOST_ROTATION = 40.0
# Similarity inside the template's brain: 0.08 to 0.12 for T1w and 0.05 to 0.07 for other contrasts
# at 1.5 to 3 mm; noise, an abdomen and heads upside down or back to front reached 0.02 to 0.043.
LEAST_SIMILARITY = 0.045
# Fields of coils at 1.5 and 3 T stay within a factor of about three over the brain.
MOST_BIAS = 4.0
# Deviations below the median of the batch, in robust standard deviations.
DEVIATIONS = 4.0
LEAST_CASES = 8
MAD = 1.4826  # median absolute deviation to standard deviation, normal distribution


@dataclass(frozen=True)
class Quality:
    """The numbers of one case.

    Arguments:
        dice: of mask and template's object; None where the mask came from the template
        covered: share of the template's object that shows the volume's foreground
        before, after: normalised mutual information with the template inside its object
        scales, shears, rotation_degrees, mirrored: of the map from native to template
        volume_scale: its determinant
        native_ml: volume of the mask on the native grid
        bias: channel -> smallest and largest value of its field in the mask
    """

    dice: float | None
    covered: float
    before: float
    after: float
    scales: tuple[float, float, float]
    shears: tuple[float, float, float]
    rotation_degrees: float
    mirrored: bool
    volume_scale: float
    native_ml: float
    bias: Mapping[str, tuple[float, float] | None]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Quality":
        """The numbers that `to_json` described."""
        bias = {k: None if v is None else (v[0], v[1]) for k, v in values["bias"].items()}
        a, b, c = values["scales"]
        d, e, f = values["shears"]
        return cls(**{**values, "bias": bias, "scales": (a, b, c), "shears": (d, e, f)})


def measured(found: Aligned, *, template: Template, steps: Steps) -> Quality:
    """The numbers of an aligned case."""
    first = next(iter(found.images))
    alignment, inside = found.alignments[first], template.object
    parts = decomposed(alignment.matrix)
    overlap = 2 * float((found.brain & inside).sum()) / float(found.brain.sum() + inside.sum())
    voxel = float(np.prod(found.native.spacing_mm))
    reference = template.x[inside]
    return Quality(
        None if steps.mask is BrainMask.template else overlap,
        float(found.head[inside].mean()),
        mutual_information(found.before[inside], reference),
        mutual_information(found.images[first][inside], reference),
        parts.scales,
        parts.shears,
        parts.rotation_degrees,
        parts.mirrored,
        alignment.volume_scale,
        float(found.native_brain.sum()) * voxel / 1000,
        dict(found.bias),
    )


def flags(quality: Quality) -> list[str]:
    """What looks wrong about a case by itself."""
    found = []
    if quality.dice is not None and quality.dice < LEAST_DICE:
        found.append(f"mask and template overlap by Dice {quality.dice:.2f} < {LEAST_DICE}")
    if quality.covered < LEAST_COVERED:
        text = f"shows {quality.covered:.1%} of the template's brain, expected {LEAST_COVERED:.0%}"
        found.append(text)
    low, high = SCALES
    if not all(low <= s <= high for s in quality.scales):
        shown = ", ".join(f"{s:.2f}" for s in quality.scales)
        found.append(f"scales {shown}, expected {low} to {high}")
    low, high = VOLUME_SCALES
    if not low <= quality.volume_scale <= high:
        reason = ", larger than a brain, or enlarged before" if quality.volume_scale < low else ""
        text = f"volume scale {quality.volume_scale:.2f}, expected {low} to {high}{reason}"
        found.append(text)
    if max(map(abs, quality.shears)) > MOST_SHEAR:
        found.append(f"shear {max(map(abs, quality.shears)):.2f} > {MOST_SHEAR:.2f}")
    if quality.rotation_degrees > MOST_ROTATION:
        found.append(f"rotation {quality.rotation_degrees:.0f}° > {MOST_ROTATION:.0f}°")
    if quality.mirrored:
        found.append("left and right are exchanged")
    if quality.after < LEAST_SIMILARITY:
        found.append(f"similarity {quality.after:.3f} < {LEAST_SIMILARITY}: another object?")
    if quality.after <= quality.before:
        found.append(f"similarity fell from {quality.before:.3f} to {quality.after:.3f}")
    for channel, span in quality.bias.items():
        if span is not None and span[1] > MOST_BIAS * span[0]:
            found.append(f"bias field of {channel} from {span[0]:.2f} to {span[1]:.2f}")
    return found


def outliers(qualities: Mapping[str, Quality]) -> dict[str, str]:
    """Cases whose similarity is far below that of the batch, in batches of eight and more."""
    values = np.array([q.after for q in qualities.values()])
    if len(values) < LEAST_CASES:
        return {}
    middle = float(np.median(values))
    limit = middle - DEVIATIONS * MAD * float(np.median(np.abs(values - middle)))
    return {
        case: f"similarity {q.after:.3f} is far below the others' ({middle:.3f})"
        for case, q in qualities.items()
        if q.after < limit
    }


def all_flags(qualities: Mapping[str, Quality]) -> dict[str, list[str]]:
    """Flags of every flagged case, those of the batch among them."""
    odd = outliers(qualities)
    found: dict[str, Sequence[str]] = {}
    for case, quality in qualities.items():
        reasons = flags(quality) + ([odd[case]] if case in odd else [])
        if reasons:
            found[case] = reasons
    return {case: list(reasons) for case, reasons in found.items()}
