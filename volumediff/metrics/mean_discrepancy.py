r"""Maximum mean discrepancy: are two sets of vectors from one law?

.. math:: \widehat{\text{MMD}}^2 = \frac{\sum_{i \ne j} k(x_i, x_j)}{n (n-1)}
          + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m-1)} - \frac{2 \sum_{i, j} k(x_i, y_j)}{n m},

an estimate without bias for any number of vectors, which may therefore fall below 0. Kernels:

    gaussian     exp(-|a - b|² / (2 σ²)), σ the median distance between the vectors of both sets
    polynomial   (a·b / d + 1)³ of vectors of length d; on features it is the kernel inception
                 distance (KID)

The permutation test has the p-value (1 + number of permutations with a larger value) / (1 + number
of permutations), exact under the hypothesis that both are of one law.

References:
    Gretton et al. (2012), A Kernel Two-Sample Test, JMLR 13
    Bińkowski et al. (2018), Demystifying MMD GANs, arXiv:1801.01401
"""

import numpy as np
from jaxtyping import Bool, Float

from volumediff.metrics.bootstrap import MIN_PATIENTS, Replicates
from volumediff.randomness import key

__all__ = ["Kernel", "bandwidth", "discrepancy", "gaussian", "permutation_p", "polynomial"]

Kernel = Float[np.ndarray, "n n"]
"""Values of a kernel for all pairs of the vectors of both sets, those of the first set first."""


def gaussian(vectors: Float[np.ndarray, "n d"]) -> Kernel:
    """The kernel with the bandwidth of the vectors themselves."""
    sigma = bandwidth(vectors)
    return np.exp(-_squared_distances(vectors) / (2 * sigma**2))


def bandwidth(vectors: Float[np.ndarray, "n d"]) -> float:
    """The median distance between two of the vectors; 1 where it is 0."""
    upper = np.triu_indices(len(vectors), 1)
    return float(np.median(np.sqrt(_squared_distances(vectors)[upper]))) or 1.0


def polynomial(vectors: Float[np.ndarray, "n d"]) -> Kernel:
    """The cubic kernel of KID."""
    x = vectors.astype(np.float64)
    return (x @ x.T / x.shape[1] + 1) ** 3


def discrepancy(
    kernel: Kernel, first: int, *, seed: int = 0, replicates: int = 1000
) -> Replicates:
    """MMD² between the first so many vectors and the others, with bootstrap replicates.

    Vectors of both sets are drawn with replacement; pairs of a vector with itself count nowhere,
    so that replicates have no bias either.

    Arguments:
        kernel: of all vectors
        first: how many vectors the first set has; both sets have at least two
        seed: key of the draws
        replicates: number of draws; none where a set has too few vectors for an interval
    """
    n, m = first, len(kernel) - first
    ones = np.ones((1, n + m))
    value = float(_weighted(kernel, ones, np.arange(n + m) < n)[0])
    if min(n, m) < MIN_PATIENTS:
        return Replicates(value, np.zeros(0))
    rng = np.random.default_rng(key(seed, "mean discrepancy"))
    counts = [rng.multinomial(size, [1 / size] * size, replicates) for size in (n, m)]
    weights = np.concatenate(counts, axis=1).astype(np.float64)
    return Replicates(value, _weighted(kernel, weights, np.arange(n + m) < n))


def permutation_p(kernel: Kernel, first: int, *, seed: int = 0, permutations: int = 1000) -> float:
    """The p-value of the permutation test; nan without permutations.

    Arguments:
        kernel, first: as for `discrepancy`
        seed: key of the permutations
    """
    if permutations < 1:
        return float("nan")
    total = len(kernel)
    rng = np.random.default_rng(key(seed, "permutations"))
    inside = np.arange(total) < first
    observed = _unweighted(kernel, inside[None])[0]
    drawn = _unweighted(kernel, rng.permuted(np.tile(inside, (permutations, 1)), axis=1))
    # Equal values differ by rounding, and a tie is no evidence.
    tie = 1e-12 * max(1.0, float(np.abs(kernel).max()))
    return float((1 + np.count_nonzero(drawn >= observed - tie)) / (1 + permutations))


def _weighted(
    kernel: Kernel, weights: Float[np.ndarray, "r n"], inside: Bool[np.ndarray, "n"]
) -> Float[np.ndarray, "r"]:
    x, y = weights * inside, weights * ~inside
    diagonal = np.diag(kernel)
    own = [
        (((w @ kernel) * w).sum(1) - (w**2) @ diagonal) / (w.sum(1) ** 2 - (w**2).sum(1))
        for w in (x, y)
    ]
    across = ((x @ kernel) * y).sum(1) / (x.sum(1) * y.sum(1))
    return own[0] + own[1] - 2 * across


def _unweighted(kernel: Kernel, inside: Bool[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
    x = inside.astype(np.float64)
    n = x[0].sum()
    m = x.shape[1] - n
    rows, diagonal = x @ kernel, np.diag(kernel)
    xx, x_all = (rows * x).sum(1), rows.sum(1)
    yy = kernel.sum() - 2 * x_all + xx
    own_x, own_y = x @ diagonal, (1 - x) @ diagonal
    return (xx - own_x) / (n * (n - 1)) + (yy - own_y) / (m * (m - 1)) - 2 * (x_all - xx) / (n * m)


def _squared_distances(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    x = vectors.astype(np.float64)
    x = x - x.mean(0)
    squares = (x**2).sum(1)
    found = np.maximum(squares[:, None] + squares[None] - 2 * x @ x.T, 0)
    np.fill_diagonal(found, 0)
    return found
