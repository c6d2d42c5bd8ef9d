"""What healthy volumes can promise about new ones, and what they are too few for."""

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.operating_point import left_out
from volumediff.anomaly.threshold import Threshold

__all__ = ["promises", "share_interval"]

LEVEL = 0.95


def promises(threshold: Threshold, calibration: Calibration) -> list[str]:
    """Lines about a calibration: how often a mask marks something in a new healthy volume of the
    same kind, and how small a probability a score can have.

    Arguments:
        threshold: of the method
        calibration: of the method on healthy volumes
    """
    n = calibration.volumes
    said = []
    rates = left_out(threshold, calibration)
    if rates is not None:
        affected = round(rates.affected * rates.volumes)
        low, high = share_interval(affected, rates.volumes)
        said.append(
            f"findings in {affected} of {rates.volumes} healthy volumes, each judged by the "
            f"others; in new ones like them in {low:.0%} to {high:.0%} ({LEVEL:.0%} interval)"
        )
    said.append(
        f"a volume score above all {n} healthy ones has a probability of {1 / (n + 1):.2g} in a "
        "healthy volume, and no smaller one can be claimed; volumes of another scanner or "
        "contrast are promised nothing"
    )
    return said


def share_interval(count: int, of: int) -> tuple[float, float]:
    """The exact interval of a share by Clopper and Pearson (1934), at 95 %.

    Arguments:
        count: volumes with the property
        of: all volumes, at least one
    """
    from scipy.stats import beta

    tail = (1 - LEVEL) / 2
    low = float(beta.ppf(tail, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, of - count)) if count < of else 1.0
    return low, high
