r"""In which order to look at findings: a fixed rule, no clinical score.

Nothing here was fitted to outcomes or read by a clinician. It sorts a reading list: large or
strong findings first, doubtful ones later, and never a finding off the list.

    size 0  volume < SMALL_ML
    size 1  otherwise
    size 2  volume >= LARGE_ML, or severity / threshold >= HEAVY_ML (with a threshold above 0)

    + 1 for size 0 with a probability >= LIKELY
    - 1 (not below 0) with a relative uncertainty > UNSURE
    0 with a probability < UNLIKELY, or a healthy tail probability > COMMON

0, 1, 2 are routine, soon, now: nothing that is probably no lesion, or that healthy volumes have
often, is ever soon or now. The level never falls when volume, severity or probability rise, and
never rises with the uncertainty or the healthy tail probability. What is unknown neither lifts nor
lowers.
"""

from volumediff.findings.schema import Level, Urgency

__all__ = ["COMMON", "HEAVY_ML", "LARGE_ML", "LIKELY", "SMALL_ML", "UNLIKELY", "UNSURE", "urgency"]

# Below a ball of 5.8 mm the lesions of public data sets are missed most often and false findings
# are the rule; the same edge separates punctate from small lesions in the evaluation.
SMALL_ML = 0.1
# A ball of 27 mm; the edge of the largest stratum of the evaluation.
LARGE_ML = 10.0
# Severity over threshold is the volume that would have the same integral at the threshold itself:
# unit-free, so that it means the same for every map. A finding of half the large size whose mean
# is twice the threshold counts as large.
HEAVY_ML = 10.0
# Voxels that are more probably lesion than not, as validation has it.
LIKELY = 0.5
# Nine of ten such voxels are none in validation.
UNLIKELY = 0.1
# One in five healthy volumes has a finding as extreme; five calibration volumes can show less.
COMMON = 0.2
# The seeds of the ensemble differ by more than half of what they show.
UNSURE = 0.5

LEVELS: tuple[Level, Level, Level] = ("routine", "soon", "now")


def urgency(
    volume_ml: float,
    severity: float,
    *,
    threshold: float | None,
    probability: float | None = None,
    healthy_tail: float | None = None,
    relative_uncertainty: float | None = None,
) -> Urgency:
    """Level and reason of a finding.

    Arguments:
        volume_ml: its volume
        severity: integral of the map over it
        threshold: of the mask, in the unit of the map
        probability: mean calibrated probability, in [0, 1]
        healthy_tail: probability that a healthy volume has a finding as extreme, in (0, 1]
        relative_uncertainty: deviation between seeds over the map itself, 0 or more
    """
    level, why = _size(volume_ml, severity, threshold)
    if probability is not None and probability >= LIKELY and level == 0:
        level = 1
        why.append(f"raised by a probability of {probability:.2f}, at least {LIKELY:g}")
    if relative_uncertainty is not None and relative_uncertainty > UNSURE:
        doubt = f"seeds differ by {relative_uncertainty:.0%} of the map, above {UNSURE:.0%}"
        why.append(f"{doubt}: one level lower" if level else doubt)
        level = max(0, level - 1)
    doubts = []
    if probability is not None and probability < UNLIKELY:
        doubts.append(f"probability {probability:.2f} below {UNLIKELY:g}")
    if healthy_tail is not None and healthy_tail > COMMON:
        doubts.append(
            f"a finding as extreme in {healthy_tail:.0%} of healthy volumes, above {COMMON:.0%}"
        )
    if doubts:
        text = " and ".join(doubts)
        why.append(f"{text}: routine" if level else text)
        level = 0
    if probability is None:
        why.append("no calibrated probability")
    if relative_uncertainty is None:
        why.append("no uncertainty")
    return Urgency(LEVELS[level], "; ".join(why))


def _size(volume_ml: float, severity: float, threshold: float | None) -> tuple[int, list[str]]:
    """0, 1 or 2 by volume and severity, and why."""
    if volume_ml >= LARGE_ML:
        return 2, [f"{volume_ml:.3g} ml, at least {LARGE_ML:g} ml"]
    if threshold is not None and threshold > 0 and severity / threshold >= HEAVY_ML:
        return 2, [
            f"{volume_ml:.3g} ml with the integral of {severity / threshold:.3g} ml at the "
            f"threshold, at least {HEAVY_ML:g} ml"
        ]
    if volume_ml < SMALL_ML:
        return 0, [f"{volume_ml:.3g} ml, below {SMALL_ML:g} ml"]
    return 1, [f"{volume_ml:.3g} ml, between {SMALL_ML:g} and {LARGE_ML:g} ml"]
