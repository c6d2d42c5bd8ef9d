r"""Drift of healthy volumes between sites: the Kolmogorov-Smirnov statistic,

.. math:: D = \sup_s |F_a(s) - F_b(s)|

of volume scores, or of map values from their histograms. For maps, D bounds how much the share of
healthy voxels above any threshold differs between the two sites.

References:
    Smirnov (1948), Table for Estimating the Goodness of Fit of Empirical Distributions
"""

import math
from collections.abc import Sequence

import numpy as np

from volumediff.metrics.detection import Histogram

__all__ = ["critical", "ks_of_histograms", "ks_of_samples"]


def ks_of_samples(a: Sequence[float], b: Sequence[float]) -> float:
    """The statistic of two samples, in [0, 1].

    Raises:
        ValueError: one of them is empty
    """
    if not len(a) or not len(b):
        raise ValueError(f"expected two samples, got {len(a)} and {len(b)} values.")
    first, second = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
    places = np.concatenate([first, second])
    below = [np.searchsorted(x, places, side="right") / len(x) for x in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def ks_of_histograms(a: Histogram, b: Histogram) -> float:
    """The statistic of the healthy voxels of two histograms, in [0, 1], to a bin.

    Raises:
        ValueError: one of them has no healthy voxels
    """
    keys = np.union1d(a.keys, b.keys)
    below = []
    for h in (a, b):
        voxels = int(h.healthy.sum())
        if not voxels:
            raise ValueError("expected healthy voxels in both histograms, got none in one.")
        counts = np.zeros(len(keys))
        counts[np.searchsorted(keys, h.keys)] = h.healthy
        below.append(np.cumsum(counts) / voxels)
    return float(np.abs(below[0] - below[1]).max())


def critical(n: int, m: int, *, level: float = 0.05) -> float:
    r"""What two samples of one distribution exceed with probability `level`,

    .. math:: \sqrt{-\tfrac12 \ln(\text{level} / 2)}\, \sqrt{\frac{n + m}{n m}},

    the leading term for large samples; above 1 there are too few volumes to tell.
    """
    return math.sqrt(-math.log(level / 2) / 2) * math.sqrt((n + m) / (n * m))
