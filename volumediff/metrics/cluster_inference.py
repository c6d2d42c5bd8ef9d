r"""How often a healthy volume has a finding as extreme: cluster-wise tail probabilities.

As in neuroimaging, a component is judged by its peak, its extent and its mass (the integral of the
map above the threshold), each against the largest one in each of n healthy volumes, so that the
probability is that of a whole volume and needs no correction for its many places. With the finding
as volume 0 and T_kj statistic k of volume j,

.. math:: p_{kj} = \frac{|\{i : T_{ki} \ge T_{kj}\}|}{n + 1}, \quad
          W_j = \min_k p_{kj}, \quad p = \frac{|\{j : W_j \le W_0\}|}{n + 1}.

The smallest of the three is thus itself compared with the smallest of every healthy volume: the
choice among three statistics is paid for. If the volume is healthy and exchangeable with the n,
P(p ≤ α) ≤ α at any n; no p is below 1 / (n + 1). Healthy volumes without a finding count as lower
than any finding.

References:
    Hayasaka and Nichols (2004), Combining Voxel Intensity and Cluster Extent with Permutation Test
    Framework, NeuroImage 23:54; Phipson and Smyth (2010), doi:10.2202/1544-6115.1585, for the
    (k + 1) / (n + 1)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["TailProbability", "tail_probability"]


@dataclass(frozen=True)
class TailProbability:
    """Probability that a healthy volume has a finding at least as extreme.

    Arguments:
        peak, extent, mass: by one statistic, at least 1 / (volumes + 1)
        combined: by all three
        volumes: healthy volumes that it was compared with
    """

    peak: float
    extent: float
    mass: float
    combined: float
    volumes: int


def tail_probability(
    finding: tuple[float, float, float], healthy: Float[np.ndarray, "n 3"]
) -> TailProbability:
    """The tail probability of a finding.

    Arguments:
        finding: its peak, extent and mass
        healthy: the largest of each in each healthy volume, -inf where it has no finding

    Raises:
        ValueError: no healthy volumes
    """
    n = len(healthy)
    if n == 0:
        raise ValueError("expected healthy volumes to compare a finding with, got none.")
    values = np.concatenate([np.asarray(finding, dtype=np.float64)[None], healthy])
    # (j, i, k): whether volume i reaches volume j
    p = (values[None] >= values[:, None]).sum(axis=1) / (n + 1)
    least = p.min(axis=1)
    combined = float((least <= least[0]).sum() / (n + 1))
    return TailProbability(*(float(v) for v in p[0]), combined, n)
