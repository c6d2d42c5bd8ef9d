r"""Fréchet distance between two sets of feature vectors, as if both were Gaussian (FID).

.. math:: d^2 = |\mu_x - \mu_y|^2 + \operatorname{tr}\left(\Sigma_x + \Sigma_y
          - 2 (\Sigma_x^{1/2} \Sigma_y \Sigma_x^{1/2})^{1/2}\right)

The estimate from N vectors of each set is too large by about b / N: two halves of one set have a
distance above 0, and a model with fewer samples looks worse. `extrapolated` measures it at several
N and takes the value of the line in 1 / N at N = ∞. The line holds once N is well above the length
d of the vectors; below 2 d (`least`) neither number means anything, and there is none.

References:
    Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule, arXiv:1706.08500
    Chong, Forsyth (2020), Effectively Unbiased FID and Inception Score, arXiv:1911.07023
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from volumediff.metrics.bootstrap import Interval
from volumediff.randomness import key

__all__ = ["centred_interval", "extrapolated", "frechet_distance", "least"]

SIZES = 8  # numbers N between half and all
SUBSETS = 8  # of each number


def least(length: int) -> int:
    """Vectors that each set needs, for vectors of a length."""
    return 2 * length


def frechet_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """d² of the sets' means and covariances (with n - 1)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    gap = x.mean(0) - y.mean(0)
    a, b = (np.atleast_2d(np.cov(v, rowvar=False)) for v in (x, y))
    values, axes = np.linalg.eigh(a)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * shared)


def extrapolated(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], *, seed: int = 0
) -> float:
    """The distance at infinitely many vectors: the intercept of the line in 1 / N.

    Arguments:
        x, y: each with at least `least` vectors
        seed: key of the subsets
    """
    rng = np.random.default_rng(key(seed, "subsets"))
    full = min(len(x), len(y))
    inverse, found = [], []
    for size in np.linspace(full / 2, full, SIZES).astype(int):
        for _ in range(SUBSETS):
            parts = [v[rng.choice(len(v), size, replace=False)] for v in (x, y)]
            inverse.append(1 / size)
            found.append(frechet_distance(*parts))
    return float(np.polyfit(inverse, found, 1)[1])


def centred_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    seed: int = 0,
    replicates: int = 100,
    level: float = 0.95,
) -> Interval:
    """A distance with the spread of its bootstrap replicates around it.

    Vectors that are drawn twice add to the bias of a distance. Replicates are therefore shifted
    such that their median is the value itself: the interval says how much the value varies, not
    how far it is off.
    """
    rng = np.random.default_rng(key(seed, "frechet distance"))
    value = statistic(x, y)
    drawn = [
        statistic(*(v[rng.integers(len(v), size=len(v))] for v in (x, y)))
        for _ in range(replicates)
    ]
    if not drawn:
        return Interval(value, float("nan"), float("nan"), level, 0)
    low, middle, high = np.quantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(
        value, float(value + low - middle), float(value + high - middle), level, len(drawn)
    )
