r"""Precision and recall of generated vectors: fidelity and variety apart.

The real vectors cover the balls around each of them that reach to its k-th nearest real neighbour.
Precision is the share of the generated vectors that some ball covers; recall is the share of the
real vectors that are covered by the balls around the generated ones.

References:
    Kynkäänniemi et al. (2019), Improved Precision and Recall Metric for Assessing Generative
    Models, arXiv:1904.06991
"""

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["NEIGHBOURS", "covered"]

NEIGHBOURS = 3
CHUNK = 512


def covered(
    queries: Float[np.ndarray, "n d"], support: Float[np.ndarray, "m d"], *, k: int = NEIGHBOURS
) -> Bool[np.ndarray, "n"]:
    """Which queries lie in a ball around a vector of the support; borders belong to the balls.

    Arguments:
        queries: generated vectors for precision, real ones for recall
        support: the other ones, more than k of them

    Raises:
        ValueError: too few vectors in the support
    """
    if len(support) <= k:
        raise ValueError(f"expected more than {k} vectors, got {len(support)}")
    radii = np.concatenate(
        [np.partition(_distances(part, support), k, axis=1)[:, k] for part in _chunks(support)]
    )
    return np.concatenate(
        [(_distances(part, support) <= radii).any(axis=1) for part in _chunks(queries)]
    )


def _chunks(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[i : i + CHUNK] for i in range(0, len(vectors), CHUNK)]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(a.astype(np.float64), b.astype(np.float64))
