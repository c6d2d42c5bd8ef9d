"""A map that marks far more of a volume than of any healthy one: the volume is said to be so."""

from jaxtyping import Bool
from torch import Tensor

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.raw_map import Localization
from volumediff.metrics.detection import rates

__all__ = ["flood_warnings"]

# A mask of this share of the foreground, and so many times that of any healthy volume.
FLOOD, FLOOD_RATIO = 0.02, 3.0


def flood_warnings(
    found: Localization, foreground: Bool[Tensor, "1 d h w"], calibration: Calibration | None
) -> list[str]:
    """Says so where far more is marked than in any healthy volume."""
    if found.mask is None or found.threshold is None or calibration is None:
        return []
    if not calibration.each:
        return []
    share = float(found.mask.sum()) / max(int(foreground.sum()), 1)
    healthy = [rates(h, found.threshold).fpr for h in calibration.each]
    if share <= max(FLOOD, FLOOD_RATIO * max(healthy)):
        return []
    return [
        f"The map is above the threshold in {share:.1%} of the foreground, in healthy volumes in "
        f"{min(healthy):.1%} to {max(healthy):.1%}: a large lesion, or a volume unlike those that "
        "the run knows."
    ]
